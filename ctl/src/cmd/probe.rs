//! `vfuctl probe`: what a vfio-user socket has to offer.
//!
//! `vfu-device probe` asks the server, since this program knows nothing of devices. The agent knows who uses a device, and
//! is asked before: a server that takes another client's connection may take it from the first.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use proto::v1::{Device, GetDeviceRequest, device_status::State};
use tokio::process::Command;

use super::{device_name, read};
use crate::{
    args::Probe,
    client::Client,
    error::Error,
    output::{self, Format, Output},
};

const PROGRAM: &str = "vfu-device";
/// The program ends in time by itself; this is for one that does not.
const GRACE: Duration = Duration::from_secs(10);

/// The agent hears of a client's leaving a moment after it, and that may have been the last probe.
const PAUSE: Duration = Duration::from_millis(100);
const LOOKS: u32 = 5;

/// Probes a device of the agent, or a socket.
pub(crate) async fn run(
    args: Probe,
    client: Result<Client, Error>,
    timeout: Duration,
    output: &mut Output<'_>,
) -> Result<(), Error> {
    let socket = match device_id(&args.target) {
        Some(id) => {
            let client = client?;
            let device = free(look(&client, device_name(id)).await?, &client).await?;
            PathBuf::from(device.status.unwrap_or_default().socket_path)
        }
        None => {
            // Without an agent nobody knows better than the server itself.
            if let Ok(client) = client
                && let Ok(listed) = read::all(&client, "").await
                && let Some(device) = listed
                    .devices
                    .into_iter()
                    .find(|it| is_same(&args.target, it))
            {
                free(device, &client).await?;
            }
            args.target
        }
    };
    let program = find(args.device_program)?;
    match output.format() {
        Format::Json | Format::Yaml => {
            let text = ask(&program, &socket, timeout, true).await?;
            let value = serde_json::from_str(&text)
                .map_err(|error| Error::Nonsense(format!("{}: {error}", program.display())))?;
            output.value(&value)
        }
        Format::Table | Format::Wide | Format::Name => {
            let text = ask(&program, &socket, timeout, false).await?;
            output.text(&text)
        }
    }
}

/// The id, unless it is a path: that has a slash, and is no resource name.
fn device_id(target: &Path) -> Option<&str> {
    let text = target.to_str()?;
    let id = text.strip_prefix("devices/").unwrap_or(text);
    (!id.contains('/')).then_some(id)
}

/// Whether `path` is the socket of `device`, by whatever name.
fn is_same(path: &Path, device: &Device) -> bool {
    let Some(status) = &device.status else {
        return false;
    };
    let inode = |path: &Path| Some(path.metadata().ok()?).map(|it| (it.dev(), it.ino()));
    let theirs = Path::new(&status.socket_path);
    path == theirs || inode(path).is_some_and(|ours| Some(ours) == inode(theirs))
}

async fn look(client: &Client, name: String) -> Result<Device, Error> {
    let request = client.request(GetDeviceRequest { name });
    client.answer(client.devices().get_device(request)).await
}

/// The device, unless a VMM uses it: one that does still does so a moment later.
async fn free(mut device: Device, client: &Client) -> Result<Device, Error> {
    for _ in 0..LOOKS {
        if check(&device).is_ok() {
            break;
        }
        tokio::time::sleep(PAUSE).await;
        device = look(client, device.name).await?;
    }
    check(&device).map(|()| device)
}

/// Refuses a device that a VMM uses.
fn check(device: &Device) -> Result<(), Error> {
    let status = device.status.clone().unwrap_or_default();
    if status.state() != State::Connected {
        return Ok(());
    }
    let client = status.client.as_ref().map(output::client);
    Err(Error::InUse {
        device: device.name.clone(),
        client: client.unwrap_or_else(|| "a VMM".into()),
    })
}

/// The program that was named, else the one beside this program, else the one in PATH.
fn find(named: Option<PathBuf>) -> Result<PathBuf, Error> {
    let candidates = match named {
        Some(path) => vec![path],
        None => {
            let own = std::env::current_exe().ok();
            let beside = own.and_then(|it| it.parent().map(Path::to_owned));
            let path = std::env::var_os("PATH").unwrap_or_default();
            let path = std::env::split_paths(&path).filter(|it| it.is_absolute());
            let folders = beside.into_iter().chain(path);
            folders.map(|folder| folder.join(PROGRAM)).collect()
        }
    };
    let mut found = candidates.iter().filter(|path| path.is_file());
    match found.next() {
        Some(path) => Ok(path.clone()),
        None => Err(Error::NoProgram(candidates)),
    }
}

/// What the program prints of `socket`.
async fn ask(
    program: &Path,
    socket: &Path,
    timeout: Duration,
    json: bool,
) -> Result<String, Error> {
    let mut command = Command::new(program);
    command.arg("probe").args(json.then_some("--json"));
    command.args(["--timeout", &timeout.as_secs_f64().to_string()]);
    let child = command
        .arg("--")
        .arg(socket)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = match tokio::time::timeout(timeout.saturating_add(GRACE), child).await {
        Err(_) => {
            return Err(Error::Probe {
                code: None,
                message: format!("{} probe does not end; it was killed", program.display()),
            });
        }
        Ok(Err(source)) => {
            return Err(Error::Run {
                program: program.to_owned(),
                source,
            });
        }
        Ok(Ok(output)) => output,
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim();
        return Err(Error::Probe {
            code: output.status.code(),
            message: match said.strip_prefix("vfu-device: ").unwrap_or(said) {
                "" => format!("{}: {}", program.display(), output.status),
                said => said.to_owned(),
            },
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::DeviceStatus;

    #[test]
    fn a_path_has_a_slash_and_a_resource_name_is_none() {
        let id = |text: &'static str| device_id(Path::new(text));
        assert_eq!(id("nic0"), Some("nic0"));
        assert_eq!(id("devices/nic0"), Some("nic0"));
        assert_eq!(id("./nic0"), None);
        assert_eq!(id("/run/x.sock"), None);
        assert_eq!(id("devices/nic0/vfio-user.sock"), None);
    }

    #[test]
    fn a_socket_is_known_by_every_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let device = Device {
            status: Some(DeviceStatus {
                socket_path: path.to_str().unwrap().to_owned(),
                ..DeviceStatus::default()
            }),
            ..Device::default()
        };
        assert!(is_same(&path, &device) && is_same(&link, &device));
        assert!(!is_same(dir.path(), &device) && !is_same(&path, &Device::default()));
    }

    #[test]
    fn only_a_device_that_is_used_is_left_alone() {
        let mut device = Device {
            name: "devices/nic0".into(),
            ..Device::default()
        };
        assert!(check(&device).is_ok());
        device.status = Some(DeviceStatus {
            state: State::Connected.into(),
            client: Some(proto::v1::Client {
                pid: 7,
                executable: "/usr/bin/qemu".into(),
                ..proto::v1::Client::default()
            }),
            ..DeviceStatus::default()
        });
        let error = check(&device).unwrap_err();
        assert_eq!(error.exit_code(), 5);
        assert!(
            error
                .to_string()
                .contains("devices/nic0 is in use by qemu(7)")
        );
    }
}
