//! What `vfu-device external` is told of a program that serves a device.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::external::{External, Readiness};
use super::template::Own;
use crate::models::model::Model;
use crate::schema::Violation;
use crate::socket::DEFAULT_MODE;
use crate::store::SocketSpec;

/// The number under which a program finds the socket that it takes.
const LISTENER_FD: i32 = 3;

/// A device for whose program a command is made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct For<'a> {
    pub(crate) id: &'a str,
    pub(crate) run_dir: &'a Path,
    /// Where clients find it.
    pub(crate) socket_path: &'a Path,
    pub(crate) socket: SocketSpec,
    pub(crate) config: &'a Value,
}

/// The fields are documented in `devices/process`.
#[derive(Debug, Serialize)]
struct Launch<'a> {
    program: &'a Path,
    arguments: Vec<String>,
    readiness: &'a Readiness,
    socket: Option<Socket<'a>>,
    monitor: Option<&'a Path>,
    ends_with_client: bool,
    config: &'a Value,
}

#[derive(Debug, Serialize)]
struct Socket<'a> {
    bind: &'a Path,
    path: &'a Path,
    uid: Option<u32>,
    gid: Option<u32>,
    mode: u32,
}

impl External {
    /// Whether its program takes the listening socket, and does not make one itself.
    pub(crate) fn takes_socket(&self) -> bool {
        self.readiness == Readiness::Fd
    }

    /// What is to be started for a device, or every value of its configuration that can't be in the command.
    pub(crate) fn launch(
        &self,
        model: &Model,
        program: &Path,
        device: For<'_>,
    ) -> Result<Value, Vec<Violation>> {
        let (bind, monitor) = (bind_path(device.run_dir), monitor_path(device.run_dir));
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let (socket, run_dir) = (text(&bind), text(device.run_dir));
        let own = Own {
            socket: &socket,
            fd: LISTENER_FD,
            id: device.id,
            run_dir: &run_dir,
            monitor: &text(&monitor),
        };
        let arguments = self
            .template
            .expand(own, device.config, &model.config_schema)?;
        let SocketSpec { uid, gid, mode } = device.socket;
        let socket = Socket {
            bind: &bind,
            path: device.socket_path,
            uid,
            gid,
            mode: mode.unwrap_or(DEFAULT_MODE),
        };
        let launch = Launch {
            program,
            arguments,
            readiness: &self.readiness,
            socket: Some(socket).filter(|_| !self.takes_socket()),
            monitor: Some(&*monitor).filter(|_| self.has_monitor),
            ends_with_client: self.ends_with_client,
            config: device.config,
        };
        Ok(serde_json::to_value(launch).expect("paths are text, and keys are names"))
    }
}

/// Where a program makes its socket: in a folder that nobody else enters, until the socket has its owner and mode. No
/// longer than where clients find it.
fn bind_path(run_dir: &Path) -> PathBuf {
    run_dir.join(".b/s")
}

/// Where a program's monitor is.
fn monitor_path(run_dir: &Path) -> PathBuf {
    run_dir.join("monitor.sock")
}
