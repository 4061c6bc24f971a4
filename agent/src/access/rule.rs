//! Rules of `[[access]]` in the configuration: who has which role.

use nix::unistd::{Group, User};
use serde::{Deserialize, Serialize};

use super::peer::Peer;
use super::role::Role;

/// One rule: a role, and one thing by which a caller is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What such a caller may do.
    pub role: Role,
    /// The user that a caller on the UNIX socket is, by number or name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<Account>,
    /// A group that it is in, by number or name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<Account>,
    /// A name in the certificate of a caller over TCP: the common name of its subject, or a DNS name or URI of its
    /// alternative names; the same to the letter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
}

/// A user or group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Account {
    /// By number.
    Number(u32),
    /// By name.
    Name(String),
}

/// A rule that can't be kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It says too much, or too little.
    #[error(
        "access rule {index}, for role {role}, has {count} of uid, gid and certificate; give it one of them"
    )]
    Subjects {
        /// Which rule, from 1.
        index: usize,
        /// Its role.
        role: Role,
        /// How many of them it has.
        count: usize,
    },
    /// A name that nobody has.
    #[error(
        "access rule {index}: this host has no {kind} {name:?}; correct the name, or give its number"
    )]
    Unknown {
        /// Which rule, from 1.
        index: usize,
        /// User or group.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// An empty name would be that of certificates without one.
    #[error("access rule {index}: certificate is empty; name one")]
    Empty {
        /// Which rule, from 1.
        index: usize,
    },
}

/// By what a caller is known.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Subject {
    Uid(u32),
    Gid(u32),
    Certificate(String),
}

/// All rules, with names looked up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    rules: Vec<(Subject, Role)>,
}

impl Rules {
    /// Checks rules and looks their names up, which can take as long as the host's user database does.
    pub fn new(rules: &[Rule]) -> Result<Self, Error> {
        let rules = rules.iter().zip(1..).map(|(rule, index)| {
            let Rule {
                role,
                uid,
                gid,
                certificate,
            } = rule;
            let subject = match (uid, gid, certificate) {
                (Some(uid), None, None) => {
                    let find = |name: &str| User::from_name(name).ok()??.uid.as_raw().into();
                    Subject::Uid(number(uid, index, "user", find)?)
                }
                (None, Some(gid), None) => {
                    let find = |name: &str| Group::from_name(name).ok()??.gid.as_raw().into();
                    Subject::Gid(number(gid, index, "group", find)?)
                }
                (None, None, Some(name)) if name.is_empty() => return Err(Error::Empty { index }),
                (None, None, Some(name)) => Subject::Certificate(name.clone()),
                _ => {
                    let given = [uid.is_some(), gid.is_some(), certificate.is_some()];
                    let count = given.into_iter().filter(|it| *it).count();
                    let role = *role;
                    return Err(Error::Subjects { index, role, count });
                }
            };
            Ok((subject, *role))
        });
        let rules = rules.collect::<Result<_, _>>()?;
        Ok(Self { rules })
    }

    /// The strongest role that a rule gives this caller.
    pub(super) fn strongest(&self, peer: &Peer) -> Option<Role> {
        let matches = |subject: &Subject| match (subject, peer) {
            (Subject::Uid(uid), Peer::Local(local)) => local.uid == *uid,
            (Subject::Gid(gid), Peer::Local(local)) => {
                local.gid == *gid || local.groups.contains(gid)
            }
            (Subject::Certificate(name), Peer::Remote(remote)) => remote.names.contains(name),
            _ => false,
        };
        let matching = self.rules.iter().filter(|(subject, _)| matches(subject));
        matching.map(|(_, role)| *role).max()
    }

    /// Whether any is about callers on the UNIX socket.
    pub(super) fn name_accounts(&self) -> bool {
        let of_account = |subject: &Subject| !matches!(subject, Subject::Certificate(_));
        self.rules.iter().any(|(subject, _)| of_account(subject))
    }
}

fn number(
    account: &Account,
    index: usize,
    kind: &'static str,
    find: impl FnOnce(&str) -> Option<u32>,
) -> Result<u32, Error> {
    let name = match account {
        Account::Number(number) => return Ok(*number),
        Account::Name(name) => name,
    };
    find(name).ok_or_else(|| Error::Unknown {
        index,
        kind,
        name: name.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(json: serde_json::Value) -> Result<Rules, String> {
        let rules: Vec<Rule> = serde_json::from_value(json).map_err(|it| it.to_string())?;
        Rules::new(&rules).map_err(|it| it.to_string())
    }

    #[test]
    fn a_rule_has_one_subject() {
        let error = rules(serde_json::json!([
            {"role": "viewer", "uid": 1},
            {"role": "admin", "uid": 1, "gid": 2},
        ]));
        let expected =
            "access rule 2, for role admin, has 2 of uid, gid and certificate; give it one of them";
        assert_eq!(error.unwrap_err(), expected);
        let error = rules(serde_json::json!([{"role": "viewer"}])).unwrap_err();
        assert!(error.contains("has 0 of uid"), "{error}");
        let error = rules(serde_json::json!([{"role": "viewer", "certificate": ""}])).unwrap_err();
        assert!(error.contains("certificate is empty"), "{error}");
        assert!(rules(serde_json::json!([{"role": "viewer", "user": 1}])).is_err());
        assert!(rules(serde_json::json!([{"role": "root", "uid": 1}])).is_err());
    }

    #[test]
    fn names_of_users_and_groups_are_looked_up() {
        let named = serde_json::json!([{"role": "viewer", "uid": "root"}, {"role": "viewer", "gid": "root"}]);
        let numbered =
            serde_json::json!([{"role": "viewer", "uid": 0}, {"role": "viewer", "gid": 0}]);
        assert_eq!(rules(named), rules(numbered));
        let error = rules(serde_json::json!([{"role": "viewer", "gid": "no-such"}])).unwrap_err();
        let expected = "access rule 1: this host has no group \"no-such\"; correct the name, or give its number";
        assert_eq!(error, expected);
    }
}
