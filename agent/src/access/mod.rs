//! Who may call the API, and what.
//!
//! A caller is known by what it can't choose: a process by the credentials that the kernel has of it, a caller over TCP
//! by its certificate. `[[access]]` gives roles to users, groups and names in certificates; of several rules that match
//! the strongest counts. Root and the agent's own user are always admins, because they can do all that the agent can
//! without it.
//!
//! Without a rule for a user or group everybody who may open the UNIX socket is an operator: its mode and group are the
//! rule then. Over TCP there is no such thing, and a certificate that no rule names gets nothing.
//!
//! Rules are looked at when a call begins. A stream that is under way goes on when they change.

mod certificate;
mod groups;
mod peer;
mod role;
mod rule;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

pub(crate) use self::peer::{Local, Peer, Remote};
pub use self::role::Role;
pub(crate) use self::role::least;
pub use self::rule::{Account, Error, Rule, Rules};

/// Why a caller is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// It has less of a role than it takes, or none.
    Role {
        /// What it has.
        has: Option<Role>,
        /// What it takes.
        needs: Role,
    },
    /// Its certificate was good when it connected, and is not any more.
    Expired,
}

/// The rules, which can be replaced while calls are under way.
#[derive(Debug)]
pub(crate) struct Access {
    rules: RwLock<Arc<Rules>>,
    own_uid: u32,
}

impl Access {
    pub(crate) fn new(rules: Rules) -> Self {
        Self {
            rules: RwLock::new(Arc::new(rules)),
            own_uid: nix::unistd::geteuid().as_raw(),
        }
    }

    /// Puts other rules in their place. They hold for the next call, on connections that there are as well.
    pub(crate) fn set(&self, rules: Rules) {
        let mut place = self.rules.write().unwrap_or_else(PoisonError::into_inner);
        *place = Arc::new(rules);
    }

    /// What this caller may do.
    pub(crate) fn role(&self, peer: &Peer) -> Option<Role> {
        let rules = self.rules.read().unwrap_or_else(PoisonError::into_inner);
        let rules = Arc::clone(&rules);
        match peer {
            Peer::Local(local) if [0, self.own_uid].contains(&local.uid) => Some(Role::Admin),
            Peer::Local(_) if !rules.name_accounts() => Some(Role::Operator),
            peer => rules.strongest(peer),
        }
    }

    /// Whether this caller may do what takes that role.
    pub(crate) fn check(&self, peer: &Peer, needs: Role) -> Result<Role, Denied> {
        match peer {
            Peer::Remote(remote) if remote.expires <= SystemTime::now() => {
                return Err(Denied::Expired);
            }
            _ => {}
        }
        match self.role(peer) {
            Some(role) if role >= needs => Ok(role),
            has => Err(Denied::Role { has, needs }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn access(rules: serde_json::Value) -> Access {
        let rules: Vec<Rule> = serde_json::from_value(rules).unwrap();
        Access {
            rules: RwLock::new(Arc::new(Rules::new(&rules).unwrap())),
            own_uid: 7,
        }
    }

    fn local(uid: u32, gid: u32, groups: &[u32]) -> Peer {
        Peer::Local(Local {
            uid,
            gid,
            groups: groups.to_vec(),
            pid: None,
            executable: None,
        })
    }

    fn remote(names: &[&str], expires: SystemTime) -> Peer {
        Peer::Remote(Remote {
            names: names.iter().map(|it| (*it).to_owned()).collect(),
            address: ([127, 0, 0, 1], 1).into(),
            expires,
        })
    }

    fn later() -> SystemTime {
        SystemTime::now() + Duration::from_secs(3600)
    }

    #[test]
    fn without_rules_the_sockets_mode_decides_and_certificates_get_nothing() {
        for rules in [
            serde_json::json!([]),
            serde_json::json!([{"role": "viewer", "certificate": "ci"}]),
        ] {
            let access = access(rules);
            assert_eq!(access.role(&local(0, 9, &[])), Some(Role::Admin));
            assert_eq!(access.role(&local(7, 9, &[])), Some(Role::Admin));
            assert_eq!(access.role(&local(8, 9, &[])), Some(Role::Operator));
            assert_eq!(access.role(&remote(&["other"], later())), None);
        }
    }

    #[test]
    fn the_strongest_rule_that_matches_counts() {
        let access = access(serde_json::json!([
            {"role": "viewer", "uid": 8},
            {"role": "operator", "gid": 20},
            {"role": "admin", "gid": 30},
            {"role": "viewer", "gid": 20},
            {"role": "operator", "certificate": "spiffe://a/b"},
            {"role": "viewer", "certificate": "ci"},
        ]));
        let role = |uid, gid, groups: &[u32]| access.role(&local(uid, gid, groups));
        assert_eq!(role(8, 9, &[]), Some(Role::Viewer));
        assert_eq!(role(8, 20, &[]), Some(Role::Operator));
        assert_eq!(role(8, 9, &[1, 20]), Some(Role::Operator));
        assert_eq!(role(9, 20, &[30]), Some(Role::Admin));
        assert_eq!(role(9, 9, &[]), None);
        assert_eq!(role(0, 9, &[]), Some(Role::Admin));
        let role = |names: &[&str]| access.role(&remote(names, later()));
        assert_eq!(role(&["ci", "spiffe://a/b"]), Some(Role::Operator));
        assert_eq!(role(&["ci"]), Some(Role::Viewer));
        assert_eq!(role(&["CI", "spiffe://a/b/c", ""]), None);
    }

    #[test]
    fn a_certificate_that_expired_after_its_caller_connected_gets_nothing() {
        let access = access(serde_json::json!([{"role": "viewer", "certificate": "ci"}]));
        let peer = remote(&["ci"], later());
        assert_eq!(access.check(&peer, Role::Viewer), Ok(Role::Viewer));
        let has = Some(Role::Viewer);
        let needs = Role::Admin;
        assert_eq!(access.check(&peer, needs), Err(Denied::Role { has, needs }));
        let peer = remote(&["ci"], SystemTime::now() - Duration::from_secs(1));
        assert_eq!(access.check(&peer, Role::Viewer), Err(Denied::Expired));
    }
}
