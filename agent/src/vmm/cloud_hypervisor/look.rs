//! What a VMM is and has.
//!
//! A device is in the configuration, which says what the machine has when it is turned on the next time, and on a machine
//! that is on it is in the device tree as well. Who asks for its removal takes it from the configuration at once, and from
//! the tree when the guest lets go: what is there is what is in the tree, whatever the configuration says.

use std::time::Duration;

use tokio::time::timeout;

use super::super::{Bus, Error, Facts, Found, Memory, Placed, Windows, said};
use super::http::{Call, stranger};
use super::wire::{self, Address, Info, Node, UserDevice};
use super::{ANSWER, CloudHypervisor, NEEDED};

/// All answers that make up the facts.
const FACTS: Duration = Duration::from_secs(20);

/// More than any machine has.
const MAX_SEGMENTS: u16 = 256;
/// Slots of a segment's bus. In the first is the bridge to the host.
const SLOTS: u8 = 32;

/// What has a name in the VMM.
#[derive(Debug)]
pub(super) enum Named<'a> {
    Nothing,
    /// A vfio-user device, as the configuration has it.
    Ours(Placed, &'a UserDevice),
    /// What may be a vfio-user device, of which the guest is asked to let go already.
    Leaving(Placed),
    /// Something else.
    Other,
}

impl Info {
    /// What has this name.
    pub(super) fn named(&self, id: &str) -> Named<'_> {
        let device = self.user_devices().find(|it| it.id.as_deref() == Some(id));
        let node = self.node(id);
        let address = node.and_then(Node::address);
        let placed = |segment: u16| Placed {
            bus: segment.to_string(),
            address: address.map(|it| it.to_string()).unwrap_or_default(),
        };
        match (device, address) {
            (Some(device), _) if self.device_tree.is_none() => {
                Named::Ours(placed(device.pci_segment), device)
            }
            (Some(device), Some(address)) => Named::Ours(placed(address.segment), device),
            (None, Some(address)) if !self.is_passed(id) && node.is_some_and(Node::is_single) => {
                Named::Leaving(placed(address.segment))
            }
            // The guest has thrown it out by itself: it is no more, until the machine is turned on again.
            (Some(_), None) => Named::Nothing,
            (None, _) if node.is_some() || self.is_child(id) => Named::Other,
            (None, _) => Named::Nothing,
        }
    }

    /// The name of the device that is connected to this socket.
    pub(super) fn on_socket(&self, socket: &std::path::Path) -> Option<&str> {
        let mut devices = self.user_devices();
        devices.find(|it| it.socket == socket)?.id.as_deref()
    }

    pub(super) fn user_devices(&self) -> impl Iterator<Item = &UserDevice> {
        self.config.user_devices.iter().flatten()
    }

    fn node(&self, id: &str) -> Option<&Node> {
        self.device_tree.as_ref()?.get(id)
    }

    /// Whether it is a device of the host, passed through.
    fn is_passed(&self, id: &str) -> bool {
        let mut devices = self.config.devices.iter().flatten();
        devices.any(|it| it.id.as_deref() == Some(id))
    }

    fn is_child(&self, id: &str) -> bool {
        let mut nodes = self.device_tree.iter().flat_map(|it| it.values());
        nodes.any(|it| it.children.iter().any(|child| child == id))
    }

    fn memory(&self) -> Vec<Memory> {
        let memory = &self.config.memory;
        // What is in huge pages is shared always.
        let is_shared = memory.shared || memory.hugepages;
        if memory.size > 0 {
            return vec![Memory {
                id: String::new(),
                size_bytes: memory.size,
                is_shared,
            }];
        }
        let zones = memory.zones.iter().flatten();
        zones
            .map(|it| Memory {
                id: said::text(&it.id),
                size_bytes: it.size,
                is_shared: is_shared || it.shared || it.hugepages,
            })
            .collect()
    }

    /// The PCI segments, each with its one bus.
    pub(super) fn buses(&self) -> Vec<Bus> {
        let platform = self.config.platform.as_ref();
        let count = platform.and_then(|it| it.num_pci_segments).unwrap_or(1);
        let behind_iommu = platform.and_then(|it| it.iommu_segments.as_deref());
        let behind_iommu = behind_iommu.unwrap_or_default();
        (0..count.min(MAX_SEGMENTS))
            .map(|segment| self.bus(segment, behind_iommu.contains(&segment)))
            .collect()
    }

    fn bus(&self, segment: u16, is_behind_iommu: bool) -> Bus {
        let mut free: Vec<u8> = (1..SLOTS).collect();
        let mut devices = Vec::new();
        let mut taken_slots = Vec::new();
        for (id, node) in self.device_tree.iter().flatten() {
            if let Some(address) = node.address().filter(|it| it.segment == segment) {
                free.retain(|slot| *slot != address.device);
                taken_slots.push((format!("{:x}", address.device), said::text(id)));
                devices.push(said::text(id));
                devices.extend(node.children.iter().map(|it| said::text(it)));
            }
        }
        let kind = match is_behind_iommu {
            true => "PCI segment behind the virtual IOMMU",
            false => "PCI segment",
        };
        Bus {
            name: segment.to_string(),
            kind: kind.to_owned(),
            is_hotpluggable: !is_behind_iommu,
            free_slots: free.iter().map(|slot| format!("{slot:x}")).collect(),
            taken_slots,
            windows: Windows {
                // Of its segments only the first one's bridge decodes ports.
                io_bytes: (segment != 0).then_some(0),
                memory_bytes: None,
            },
            devices,
        }
    }

    fn devices(&self) -> Vec<Found> {
        let configured = self.user_devices().filter_map(|it| it.id.as_deref());
        let nodes = self.device_tree.iter().flat_map(|it| it.keys());
        let leaving = nodes.filter(|id| matches!(self.named(id), Named::Leaving(_)));
        let ids = configured.chain(leaving.map(String::as_str));
        ids.filter_map(|id| self.find(id)).collect()
    }

    fn find(&self, id: &str) -> Option<Found> {
        let (placed, device_socket) = match self.named(id) {
            Named::Ours(placed, device) => (placed, Some(device.socket.clone())),
            Named::Leaving(placed) => (placed, None),
            Named::Nothing | Named::Other => return None,
        };
        Some(Found {
            id: said::text(id),
            device_socket,
            placed,
        })
    }
}

impl Node {
    fn address(&self) -> Option<Address> {
        Address::parse(self.pci_bdf.as_deref()?)
    }

    /// Whether it is one device, and no transport of another.
    fn is_single(&self) -> bool {
        self.children.is_empty()
    }
}

impl CloudHypervisor {
    pub(in super::super) async fn facts(&self) -> Result<Facts, Error> {
        let late = Error::Unanswered {
            operation: "what it is and has",
            waited: FACTS,
        };
        timeout(FACTS, self.look()).await.unwrap_or(Err(late))
    }

    /// Whether the guest runs.
    pub(in super::super) async fn runs(&self) -> Result<bool, Error> {
        let info = self.info().await?;
        Ok(info.is_some_and(|it| it.state == "Running"))
    }

    async fn look(&self) -> Result<Facts, Error> {
        let is_new = !self.is_old();
        let info = self.info().await?.ok_or_else(|| Error::NoPlace {
            why: "the VMM has no machine yet".to_owned(),
            cure: "create one, and start it (vm.create, vm.boot)".to_owned(),
        })?;
        let session = &self.session;
        Ok(Facts {
            program: "cloud-hypervisor",
            version: said::text(&session.version_text),
            version_needed: (!is_new).then(|| NEEDED.to_string()),
            takes_vfio_user: is_new,
            owner: session.owner,
            machine: String::new(),
            run_state: said::text(&info.state.to_lowercase()),
            memory: info.memory(),
            buses: if is_new { info.buses() } else { Vec::new() },
            devices: if is_new { info.devices() } else { Vec::new() },
            unheard: session.unheard().await,
        })
    }

    pub(in super::super) async fn find(&self, id: &str) -> Result<Option<Found>, Error> {
        Ok(self.info().await?.and_then(|it| it.find(id)))
    }

    /// The machine; nothing while there is none.
    pub(super) async fn info(&self) -> Result<Option<Info>, Error> {
        let operation = "vm.info";
        let answer = self.session.ask(Call::get(operation), ANSWER).await?;
        if !answer.status.is_success() {
            if answer.status.as_u16() == 404 || wire::is_without_machine(&answer) {
                return Ok(None);
            }
            let message = wire::refusal(&answer);
            return Err(Error::Refused { operation, message });
        }
        let info = serde_json::from_slice(&answer.body).map_err(|error| {
            let error = said::text(&error.to_string());
            let why = format!("its answer to {operation} is none: {error}");
            stranger(self.session.path(), why)
        })?;
        Ok(Some(info))
    }
}
