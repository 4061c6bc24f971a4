//! Devices go into VMMs and out of them: what callers ask for, and what they are shown.

use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::v1;
use proto::v1::unplug_device_request::Method as V1Method;
use tonic::Status;

use super::span::patience;
use super::status::invalid;
use crate::schema::{Violation, quoted};
use crate::socket;
use crate::store::{Attachment, Stage};
use crate::supervisor::{Method, Plug};
use crate::vmm::{Endpoint, Wanted};

/// How long a guest has to let go, unless the caller says so.
const GUEST_PATIENCE: Duration = Duration::from_secs(30);
/// The longest name of a device, a bus or a slot inside a VMM.
const MAX_NAME_BYTES: usize = 63;
const NAME_RULE: &str = "a letter first, then up to 62 letters, digits, or any of - . _";

/// How the device of this id is to be plugged.
pub(super) fn plug(id: &str, request: &v1::PlugDeviceRequest) -> Result<Plug, Status> {
    let mut bad = Vec::new();
    let vmm = match &request.vmm {
        Some(vmm) => endpoint(vmm, &mut bad),
        None => {
            bad.push(Violation::new("vmm", "required"));
            None
        }
    };
    let name = match &*request.vmm_device_id {
        "" => id.to_owned(),
        name => name.to_owned(),
    };
    let wanted = Wanted {
        bus: request.bus.clone(),
        slot: request.slot.clone(),
        pci_segment: request.pci_segment,
    };
    let is_name = |name: &str| {
        let rest = |it: char| it.is_ascii_alphanumeric() || "-._".contains(it);
        name.len() <= MAX_NAME_BYTES
            && name.starts_with(|it: char| it.is_ascii_alphabetic())
            && name.chars().all(rest)
    };
    let mut refuse = |field: &str, given: &str, rule: &str| {
        let why = format!("{} is not allowed: {rule}", quoted(given));
        bad.push(Violation::new(field, why));
    };
    if !request.vmm_device_id.is_empty() && !is_name(&name) {
        refuse("vmm_device_id", &name, NAME_RULE);
    }
    if !wanted.bus.is_empty() && !is_name(&wanted.bus) {
        refuse("bus", &wanted.bus, NAME_RULE);
    }
    if !wanted.slot.is_empty() && !is_slot(&wanted.slot) {
        refuse(
            "slot",
            &wanted.slot,
            "hexadecimal from 0 to 1f, as QEMU's addr and lspci have it: 5, 1f, 0x1f or 5.0",
        );
    }
    let is_qemu = matches!(vmm, Some(Endpoint::Qmp { .. }));
    let is_set = [
        ("bus", !is_qemu && !wanted.bus.is_empty()),
        ("slot", !is_qemu && !wanted.slot.is_empty()),
        ("pci_segment", is_qemu && wanted.pci_segment.is_some()),
    ];
    for (field, _) in is_set.into_iter().filter(|(_, it)| *it && vmm.is_some()) {
        let whose = if is_qemu { "cloud-hypervisor" } else { "QEMU" };
        bad.push(Violation::new(field, format!("only for {whose}")));
    }
    match vmm {
        Some(vmm) if bad.is_empty() => Ok(Plug {
            vmm,
            vmm_device_id: name,
            wanted,
        }),
        _ => Err(invalid(bad)),
    }
}

/// A slot as QEMU takes it: hexadecimal. Of its functions a device that comes alone is the first.
fn is_slot(slot: &str) -> bool {
    let digits = slot.strip_suffix(".0").unwrap_or(slot);
    let digits = digits.strip_prefix("0x").unwrap_or(digits);
    let number = u8::from_str_radix(digits, 16);
    digits.len() <= 2 && !digits.starts_with('+') && number.is_ok_and(|it| it < 32)
}

/// The VMM that a request is about.
pub(super) fn endpoint(vmm: &v1::Vmm, bad: &mut Vec<Violation>) -> Option<Endpoint> {
    use v1::vmm::Endpoint::{CloudHypervisorSocketPath, QmpSocketPath};
    let mut path = |field: &str, path: &str| -> Option<PathBuf> {
        let given = Path::new(path);
        let why = match () {
            () if !given.is_absolute() => format!("{} is no absolute path", quoted(path)),
            () if path.len() > socket::MAX_PATH_BYTES => format!(
                "it has {} bytes and {} is the most that UNIX sockets take",
                path.len(),
                socket::MAX_PATH_BYTES
            ),
            () if path.contains('\0') => "it has a zero byte".to_owned(),
            () => return Some(given.to_owned()),
        };
        bad.push(Violation::new(format!("vmm.{field}"), why));
        None
    };
    let events = match &*vmm.event_monitor_path {
        "" => None,
        events => Some(path("event_monitor_path", events)?),
    };
    match &vmm.endpoint {
        Some(QmpSocketPath(socket)) => {
            let socket = path("qmp_socket_path", socket)?;
            if events.is_some() {
                let why = "only for cloud-hypervisor";
                bad.push(Violation::new("vmm.event_monitor_path", why));
            }
            Some(Endpoint::Qmp { socket })
        }
        Some(CloudHypervisorSocketPath(socket)) => {
            let socket = path("cloud_hypervisor_socket_path", socket)?;
            Some(Endpoint::CloudHypervisor { socket, events })
        }
        None => {
            let why = "one of qmp_socket_path, cloud_hypervisor_socket_path is required";
            bad.push(Violation::new("vmm", why));
            None
        }
    }
}

/// Whom to ask, and how long the guest has.
pub(super) fn unplug(request: &v1::UnplugDeviceRequest) -> Result<(Method, Duration), Status> {
    let method = match V1Method::try_from(request.method) {
        Ok(V1Method::Unspecified | V1Method::Vmm) => Method::Vmm,
        Ok(V1Method::ClientRequest) => Method::ClientRequest,
        Err(_) => {
            let why = format!(
                "{} is no method; there are: VMM, CLIENT_REQUEST",
                request.method
            );
            return Err(invalid(vec![Violation::new("method", why)]));
        }
    };
    let patience = match &request.timeout {
        Some(timeout) => patience(timeout)?,
        None => GUEST_PATIENCE,
    };
    Ok((method, patience))
}

/// A device's place in a VMM as the API has it.
pub(super) fn attachment(attachment: &Attachment) -> v1::Attachment {
    use v1::vmm::Endpoint::{CloudHypervisorSocketPath, QmpSocketPath};
    let text = |path: &Path| path.display().to_string();
    let (endpoint, events) = match &attachment.vmm {
        Endpoint::Qmp { socket } => (QmpSocketPath(text(socket)), None),
        Endpoint::CloudHypervisor { socket, events } => {
            (CloudHypervisorSocketPath(text(socket)), events.as_deref())
        }
    };
    v1::Attachment {
        state: match attachment.stage {
            Stage::Plugging => v1::attachment::State::Plugging.into(),
            Stage::Plugged => v1::attachment::State::Plugged.into(),
            Stage::Unplugging => v1::attachment::State::Unplugging.into(),
        },
        vmm: Some(v1::Vmm {
            endpoint: Some(endpoint),
            event_monitor_path: events.map(text).unwrap_or_default(),
        }),
        vmm_device_id: attachment.vmm_device_id.clone(),
        update_time: Some(attachment.update_time.into()),
        bus: attachment.placed.bus.clone(),
        address: attachment.placed.address.clone(),
        create_time: Some(attachment.create_time.into()),
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt;
    use v1::vmm::Endpoint::{CloudHypervisorSocketPath, QmpSocketPath};

    use super::*;

    fn request() -> v1::PlugDeviceRequest {
        v1::PlugDeviceRequest {
            name: "devices/nic0".to_owned(),
            vmm: Some(v1::Vmm {
                endpoint: Some(QmpSocketPath("/run/vm/qmp.sock".to_owned())),
                ..v1::Vmm::default()
            }),
            ..v1::PlugDeviceRequest::default()
        }
    }

    fn fields(request: &v1::PlugDeviceRequest) -> Vec<String> {
        let status = plug("nic0", request).unwrap_err();
        let bad = status.get_details_bad_request().unwrap();
        bad.field_violations
            .into_iter()
            .map(|it| it.field)
            .collect()
    }

    #[test]
    fn a_device_has_its_own_name_in_the_vmm_unless_another_is_given() {
        let plug_in = plug("nic0", &request()).unwrap();
        assert_eq!(plug_in.vmm_device_id, "nic0");
        let mut other = request();
        other.vmm_device_id = "net-1".to_owned();
        other.bus = "rp0".to_owned();
        other.slot = "1f.0".to_owned();
        let plug_in = plug("nic0", &other).unwrap();
        assert_eq!(plug_in.vmm_device_id, "net-1");
        assert_eq!(plug_in.wanted.slot, "1f.0");
    }

    #[test]
    fn each_field_that_is_wrong_is_named() {
        let mut wrong = request();
        wrong.vmm_device_id = "0".to_owned();
        wrong.bus = "a b".to_owned();
        wrong.slot = "20".to_owned();
        wrong.pci_segment = Some(1);
        assert_eq!(
            fields(&wrong),
            ["vmm_device_id", "bus", "slot", "pci_segment"]
        );
        for slot in [
            "", ".", "+1", "0x+1", "1.8", "1.1", "1.", "100", "0x", "0x100",
        ] {
            assert!(!is_slot(slot), "{slot}");
        }
        for slot in ["0", "1f", "1F", "05", "0x1f", "0x5.0", "5.0"] {
            assert!(is_slot(slot), "{slot}");
        }
    }

    #[test]
    fn a_vmm_is_an_absolute_path_that_fits_into_an_address() {
        let with = |endpoint| v1::PlugDeviceRequest {
            vmm: Some(v1::Vmm {
                endpoint,
                ..v1::Vmm::default()
            }),
            ..request()
        };
        let qmp = |path: &str| with(Some(QmpSocketPath(path.to_owned())));
        for path in ["", "qmp.sock", "/a\0b", &format!("/{}", "x".repeat(107))] {
            assert_eq!(fields(&qmp(path)), ["vmm.qmp_socket_path"], "{path:?}");
        }
        assert_eq!(fields(&with(None)), ["vmm"]);
        let mut bus = with(Some(CloudHypervisorSocketPath("/run/ch.sock".to_owned())));
        bus.bus = "rp0".to_owned();
        assert_eq!(fields(&bus), ["bus"]);
        let none = v1::PlugDeviceRequest::default();
        assert_eq!(fields(&none), ["vmm"]);
    }
}
