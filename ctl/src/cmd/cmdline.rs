//! `vfuctl cmdline`: what a VMM needs to be told.
//!
//! Both VMMs share the guest's memory with the device's process, which reads and writes it as a card does by DMA; without
//! that they connect and the device can't work. The comments come last, so that a shell can `eval` the whole.

use proto::v1::GetDeviceRequest;
use serde_json::json;

use super::device_name;
use crate::{
    args::{Cmdline, Vmm},
    client::Client,
    error::Error,
    output::{Format, Output},
};

/// Prints the arguments for the devices.
pub(crate) async fn run(
    args: Cmdline,
    client: &Client,
    output: &mut Output<'_>,
) -> Result<(), Error> {
    let mut sockets = Vec::new();
    for id in &args.ids {
        let request = client.request(GetDeviceRequest {
            name: device_name(id),
        });
        let device = client.answer(client.devices().get_device(request)).await?;
        let status = device.status.unwrap_or_default();
        if status.socket_path.is_empty() {
            return Err(Error::Nonsense(format!("{} has no socket", device.name)));
        }
        sockets.push(status.socket_path);
    }
    let (groups, notes) = match args.vmm {
        Vmm::Qemu => (qemu(&sockets, &args.memory), QEMU_NOTES),
        Vmm::CloudHypervisor => (
            cloud_hypervisor(&sockets, &args.memory)?,
            CLOUD_HYPERVISOR_NOTES,
        ),
    };
    match output.format() {
        Format::Json | Format::Yaml => output.value(&groups.concat().into()),
        Format::Table | Format::Wide | Format::Name => output.text(&text(&groups, notes)),
    }
}

const QEMU_NOTES: &str = "\
# -m and the size of the memory backend must agree; without share=on the device can't reach the guest's memory.
# Needs QEMU 10.1.1 or later.
";

const CLOUD_HYPERVISOR_NOTES: &str = "\
# Without shared=on the device can't reach the guest's memory.
";

/// Options with their values; one group is one line.
type Groups = Vec<Vec<String>>;

fn group<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

fn qemu(sockets: &[String], memory: &str) -> Groups {
    let backend = format!("memory-backend-memfd,id=mem,size={memory},share=on");
    let mut groups = vec![
        group(["-m", memory]),
        group(["-object", &backend]),
        group(["-machine", "memory-backend=mem"]),
    ];
    for path in sockets {
        // Written out to keep the driver in front, where people look for it.
        let path = json!(path);
        let device =
            format!(r#"{{"driver":"vfio-user-pci","socket":{{"path":{path},"type":"unix"}}}}"#);
        groups.push(group(["-device", &device]));
    }
    groups
}

fn cloud_hypervisor(sockets: &[String], memory: &str) -> Result<Groups, Error> {
    let mut groups = vec![group(["--memory", &format!("size={memory},shared=on")])];
    for path in sockets {
        // It splits values at commas, except in double quotes, and counts brackets even there; nothing escapes a quote.
        if path.contains(['"', '[', ']']) {
            return Err(Error::Usage(format!(
                "cloud-hypervisor can't be given the path {path}: it has a bracket or a double quote"
            )));
        }
        let socket = match path.contains(',') {
            true => format!("socket=\"{path}\""),
            false => format!("socket={path}"),
        };
        groups.push(group(["--user-device", &socket]));
    }
    Ok(groups)
}

fn text(groups: &Groups, notes: &str) -> String {
    let line = |words: &Vec<String>| {
        let words: Vec<_> = words.iter().map(|word| quote(word)).collect();
        words.join(" ")
    };
    let lines: Vec<_> = groups.iter().map(line).collect();
    format!("{}\n{notes}", lines.join(" \\\n"))
}

/// `word` as one word of a POSIX shell.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=,./:@%+".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOCKET: &str = "/run/vfu/devices/nic0/vfio-user.sock";

    /// What a shell makes of `text`.
    fn words(text: &str) -> Vec<String> {
        let script = format!("printf '%s\\0' {text}");
        let output = std::process::Command::new("sh")
            .args(["-c", &script])
            .output()
            .unwrap();
        assert!(output.status.success());
        let output = String::from_utf8(output.stdout).unwrap();
        output.split_terminator('\0').map(str::to_owned).collect()
    }

    #[test]
    fn qemu_gets_shared_memory_and_the_device() {
        assert_eq!(
            text(&qemu(&[SOCKET.to_owned()], "512M"), QEMU_NOTES),
            "\
-m 512M \\
-object memory-backend-memfd,id=mem,size=512M,share=on \\
-machine memory-backend=mem \\
-device '{\"driver\":\"vfio-user-pci\",\"socket\":{\"path\":\"/run/vfu/devices/nic0/vfio-user.sock\",\"type\":\"unix\"}}'
# -m and the size of the memory backend must agree; without share=on the device can't reach the guest's memory.
# Needs QEMU 10.1.1 or later.
"
        );
    }

    #[test]
    fn cloud_hypervisor_gets_shared_memory_and_the_device() {
        let groups = cloud_hypervisor(&[SOCKET.to_owned()], "1G").unwrap();
        assert_eq!(
            text(&groups, CLOUD_HYPERVISOR_NOTES),
            "\
--memory size=1G,shared=on \\
--user-device socket=/run/vfu/devices/nic0/vfio-user.sock
# Without shared=on the device can't reach the guest's memory.
"
        );
    }

    #[test]
    fn a_shell_reads_back_every_path() {
        for path in [
            "/a b",
            "/it's",
            "/$HOME`id`",
            "/a\\b",
            "/\"q\"",
            "/a\nb",
            "/*",
            "/~",
            "/a;b",
            "/ü",
        ] {
            let groups = qemu(&[path.to_owned()], "1G");
            assert_eq!(words(&text(&groups, QEMU_NOTES)), groups.concat(), "{path}");
        }
        assert_eq!(words(&quote("")), [""]);
    }

    #[test]
    fn commas_in_paths_are_quoted_for_cloud_hypervisor() {
        let groups = cloud_hypervisor(&["/a,b".to_owned()], "1G").unwrap();
        assert_eq!(groups[1][1], "socket=\"/a,b\"");
        assert!(cloud_hypervisor(&["/a[b".to_owned()], "1G").is_err());
    }
}
