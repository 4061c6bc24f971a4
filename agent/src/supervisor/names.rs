//! Under which names devices are in VMMs, so that no two of them are in one VMM under one name. A VMM refuses the second;
//! but which of two has a name that the VMM says is there, nobody could tell after the agent's death.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::vmm::Endpoint;

type Holders = HashMap<(Endpoint, String), String>;

/// The names that are taken, and by which devices.
#[derive(Debug, Clone, Default)]
pub(super) struct Names(Arc<Mutex<Holders>>);

/// A name that is one device's until this is dropped.
#[derive(Debug)]
pub(super) struct Name {
    names: Names,
    key: (Endpoint, String),
}

impl Names {
    /// Takes a name in a VMM for a device, or tells which device has it.
    pub(super) fn take(&self, vmm: &Endpoint, name: &str, id: &str) -> Result<Name, String> {
        let key = (vmm.clone(), name.to_owned());
        let mut holders = self.holders();
        if let Some(holder) = holders.get(&key) {
            return Err(holder.clone());
        }
        holders.insert(key.clone(), id.to_owned());
        let names = self.clone();
        Ok(Name { names, key })
    }

    fn holders(&self) -> MutexGuard<'_, Holders> {
        self.0.lock().expect("no holder panics")
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        self.names.holders().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_a_vmm_is_one_devices_until_it_gives_it_up() {
        let names = Names::default();
        let vmm = |path: &str| Endpoint::Qmp {
            socket: path.into(),
        };
        let first = names.take(&vmm("/a"), "card", "nic0").unwrap();
        assert_eq!(names.take(&vmm("/a"), "card", "nic1").unwrap_err(), "nic0");
        let _other_name = names.take(&vmm("/a"), "card1", "nic1").unwrap();
        let _other_vmm = names.take(&vmm("/b"), "card", "nic2").unwrap();
        drop(first);
        names.take(&vmm("/a"), "card", "nic1").unwrap();
    }
}
