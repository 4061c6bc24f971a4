//! Programs that are not ours and serve devices: what they are like, which their descriptions build on.

mod described;
mod qemu;
mod usbvfiod;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tests::Device;
use tests::agent::programs;
use tests::command::{self, wait_for};

const LIMIT: Duration = Duration::from_secs(60);

/// A server in a folder of its own. Dropping it kills it and removes the folder.
struct Server {
    child: Child,
    dir: TempDir,
}

impl Server {
    /// Starts what `command` makes of the socket's path, and waits until it listens there.
    fn start(command: impl FnOnce(&Path) -> Command) -> Result<Self> {
        let dir = Device::dir()?;
        let log = File::create(dir.path().join("log"))?;
        let child = command(&dir.path().join("vfio-user.sock"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start the server")?;
        let mut server = Self { child, dir };
        wait_for("the server to listen", LIMIT, || {
            if let Some(status) = server.child.try_wait()? {
                bail!("it ended: {status}\n{}", server.log());
            }
            Ok(listens(&server.socket())?.then_some(()))
        })?;
        Ok(server)
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("vfio-user.sock")
    }

    fn log(&self) -> String {
        command::tail(&self.dir.path().join("log"), 20)
    }

    /// How it ends by itself.
    fn end(&mut self) -> Result<ExitStatus> {
        wait_for("the server to end", LIMIT, || Ok(self.child.try_wait()?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to kill, and waiting only reaps it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a socket of this path listens, without connecting to it: these servers take the first client for the VMM.
fn listens(path: &Path) -> Result<bool> {
    let path = path.to_str().context("a path")?;
    let listening = |line: &str| {
        let mut words = line.split_whitespace();
        words.nth(3) == Some("00010000") && words.next_back() == Some(path)
    };
    Ok(fs::read_to_string("/proc/net/unix")?.lines().any(listening))
}

/// A configuration of an agent in this directory that has the description file which is deployed, with this program.
fn deployed(dir: &Path, name: &str, program: &Path) -> Result<String> {
    let file = repository().join(format!("deploy/models.d/{name}.json"));
    let mut description: Value = serde_json::from_slice(&fs::read(file)?)?;
    description["command"][0] = program.to_str().context("a path")?.into();
    let folder = dir.join("models.d");
    fs::create_dir(&folder)?;
    let file = folder.join(format!("{name}.json"));
    fs::write(&file, description.to_string())?;
    fs::set_permissions(&file, PermissionsExt::from_mode(0o644))?;
    Ok(format!("models_dirs = [{folder:?}]\n"))
}

fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// What `vfu-device probe` says of a socket.
fn probe(socket: &Path) -> Result<Value> {
    let mut probe = Command::new(programs()?.join("vfu-device"));
    let output = command::output(probe.args(["probe", "--json"]).arg(socket), LIMIT)?;
    ensure!(
        output.status.success(),
        "{}: {}",
        output.status,
        output.stderr
    );
    Ok(serde_json::from_str(&output.stdout)?)
}
