//! Whether the device is there for a VMM to take.

use super::{Finding, Scene};
use crate::supervisor::Life;

pub(super) fn findings(scene: &Scene<'_>) -> Vec<Finding> {
    let Some(device) = &scene.question.device else {
        return Vec::new();
    };
    let name = format!("devices/{}", device.id);
    let not_ready = |message: &str, cure: String| {
        let why = match &*device.reason {
            "" => message.to_owned(),
            reason => format!("{message}: {reason}"),
        };
        Finding::error("DEVICE_NOT_READY", &name, why, cure)
    };
    let id = &device.id;
    if let Some(attachment) = &device.attachment
        && !scene.question.is_attached()
    {
        let place = attachment.vmm.path().display();
        return vec![Finding::error(
            "DEVICE_IN_USE",
            name,
            format!(
                "it is in the VMM at {place}, as {}",
                attachment.vmm_device_id
            ),
            format!("vfuctl unplug {id} takes it out there"),
        )];
    }
    if scene.is_there() && device.life != Life::Connected {
        return vec![Finding::error(
            "BACKEND_LOST",
            name,
            "the VMM has the device, and is connected to no process of it: the guest's card is dead",
            format!("vfuctl unplug {id}, and plug it in again; no VMM connects again by itself"),
        )];
    }
    let finding = match device.life {
        Life::Ready => Finding::ok(
            "DEVICE_READY",
            name,
            "its process serves it, and nobody uses it",
        ),
        Life::Connected => {
            let (_, client) = device.client.clone().unwrap_or_default();
            let used = match &*client {
                "" => "a client uses it".to_owned(),
                client => format!("{client} uses it"),
            };
            match &scene.question.endpoint {
                Some(_) if scene.is_there() => {
                    let used = format!("{used}, the VMM that is asked for");
                    Finding::ok("DEVICE_PLUGGED", name, used)
                }
                // Nobody wants it elsewhere.
                None => Finding::ok("DEVICE_CONNECTED", name, used),
                Some(_) => Finding::error(
                    "DEVICE_IN_USE",
                    name,
                    format!("{used}, and a device has one client at a time"),
                    format!("unplug it there (vfuctl unplug {id}), or stop that program"),
                ),
            }
        }
        Life::Starting => not_ready(
            "it is not served yet",
            format!(
                "wait for it (vfuctl wait {id} --for state=READY); vfuctl logs {id} shows more"
            ),
        ),
        Life::Failed => not_ready(
            "it is not served",
            format!("see vfuctl logs {id}, and then vfuctl restart {id}"),
        ),
        Life::Stopped => not_ready(
            "it is shut down with all devices of this host",
            "vfuctl undrain starts them again".to_owned(),
        ),
        Life::Deleting | Life::Gone => {
            not_ready("it is being deleted", "create another device".to_owned())
        }
    };
    vec![finding]
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::super::tests::{QMP, qemu, question, scene, wrong};
    use super::super::{Question, Severity};
    use super::*;
    use crate::store::{Attachment, Stage};
    use crate::vmm::{Endpoint, Error, Found, Placed, Wanted};

    fn found(question: &Question) -> Vec<Finding> {
        let gone = Error::Gone { path: "/q".into() };
        findings(&scene(question, Err(gone)))
    }

    #[test]
    fn what_is_not_served_can_not_be_plugged() {
        for (life, cure) in [
            (Life::Starting, "vfuctl wait nic0"),
            (Life::Failed, "vfuctl restart nic0"),
            (Life::Stopped, "undrain"),
            (Life::Deleting, "another"),
        ] {
            let mut question = question();
            let device = question.device.as_mut().unwrap();
            (device.life, device.reason) = (life, "the reason".to_owned());
            let found = found(&question);
            assert_eq!(wrong(&found), [("DEVICE_NOT_READY", Severity::Error)]);
            assert!(found[0].cure.contains(cure) && found[0].message.ends_with(": the reason"));
        }
    }

    fn attachment(vmm: &str) -> Attachment {
        Attachment {
            stage: Stage::Plugged,
            vmm: Endpoint::Qmp { socket: vmm.into() },
            vmm_device_id: "nic0".to_owned(),
            wanted: Wanted::default(),
            placed: Placed::default(),
            process: None,
            lost_time: None,
            comes_back: false,
            create_time: SystemTime::UNIX_EPOCH,
            update_time: SystemTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_device_is_in_one_vmm() {
        let mut question = question();
        question.device.as_mut().unwrap().attachment = Some(attachment("/run/vm2/qmp.sock"));
        let elsewhere = found(&question);
        assert_eq!(wrong(&elsewhere), [("DEVICE_IN_USE", Severity::Error)]);
        assert!(elsewhere[0].message.contains("/run/vm2/qmp.sock"));
        question.device.as_mut().unwrap().attachment = Some(attachment(QMP));
        assert_eq!(found(&question)[0].code, "DEVICE_READY", "on its way");
    }

    #[test]
    fn a_vmm_that_lost_its_backend_is_told_of() {
        let mut question = question();
        question.device.as_mut().unwrap().attachment = Some(attachment(QMP));
        let mut facts = qemu();
        facts.devices.push(Found {
            id: "nic0".to_owned(),
            device_socket: None,
            placed: Placed::default(),
        });
        let lost = findings(&scene(&question, Ok(facts.clone())));
        assert_eq!(wrong(&lost), [("BACKEND_LOST", Severity::Error)]);
        question.device.as_mut().unwrap().life = Life::Connected;
        let there = findings(&scene(&question, Ok(facts)));
        assert_eq!(there[0].code, "DEVICE_PLUGGED");
    }

    #[test]
    fn a_device_has_one_client() {
        let mut question = question();
        let device = question.device.as_mut().unwrap();
        device.life = Life::Connected;
        device.client = Some((77, "process 77 (/usr/bin/qemu)".to_owned()));
        let in_use = [("DEVICE_IN_USE", Severity::Error)];
        let other = found(&question);
        assert_eq!(wrong(&other), in_use);
        assert!(other[0].message.starts_with("process 77 (/usr/bin/qemu)"));

        // The same VMM, under another name, and under this one.
        let mut facts = qemu();
        assert_eq!(
            wrong(&findings(&scene(&question, Ok(facts.clone())))),
            in_use
        );
        facts.devices.push(Found {
            id: "nic0".to_owned(),
            device_socket: None,
            placed: Placed::default(),
        });
        let there = findings(&scene(&question, Ok(facts.clone())));
        assert_eq!(there[0].code, "DEVICE_PLUGGED");
        facts.owner.pid = Some(78);
        assert_eq!(wrong(&findings(&scene(&question, Ok(facts)))), in_use);

        question.endpoint = None;
        assert_eq!(found(&question)[0].code, "DEVICE_CONNECTED");
    }
}
