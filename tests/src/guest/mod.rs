//! A Linux guest in QEMU, with a shell.
//!
//! Two serial ports: the first is the kernel's console, kept in a file; the second carries commands and their answers
//! by lines (`image/init.sh` is its other end). A serial port is slow: large data is made in the guest, and only its
//! hash comes out.

mod lines;
mod qmp;

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::command;
use crate::image::Image;
use lines::Lines;
use qmp::Qmp;

/// How long a boot may take: seconds on an idle machine, many more on one that also compiles.
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// How long QEMU may take to end in order.
const QUIT_LIMIT: Duration = Duration::from_secs(10);

/// How long a command in the guest may take, unless told otherwise.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// The kernel's options, whoever loads it. Where the host is busy, an emulated timer's ticks come so late that the kernel's
/// check of it ends the boot.
pub const KERNEL_OPTIONS: &str = "console=ttyS0 panic=0 nokaslr mitigations=off no_timer_check";

/// What the guest is made of; [`Builder::boot`] starts it.
#[derive(Debug)]
#[must_use]
pub struct Builder {
    machine: String,
    memory_mebibytes: u32,
    boot: Boot,
    devices: Vec<Value>,
    args: Vec<String>,
    kernel_options: Vec<String>,
}

/// Where the guest's kernel comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Boot {
    /// QEMU loads it.
    Linux,
    /// The same, with DPDK in its initramfs.
    Dpdk,
    /// The firmware finds one.
    Firmware,
}

impl Builder {
    /// A PCI device that is served on this vfio-user socket.
    pub fn nic(mut self, socket: impl AsRef<Path>) -> Self {
        let id = format!("nic{}", self.devices.len());
        self.devices.push(json!({
            "driver": "vfio-user-pci",
            "id": id,
            "socket": {"type": "unix", "path": socket.as_ref()},
        }));
        self
    }

    /// QEMU's machine type: `q35` unless told otherwise, or `pc`.
    pub fn machine(mut self, machine: &str) -> Self {
        machine.clone_into(&mut self.machine);
        self
    }

    /// How much memory it has: 256 MiB unless told otherwise.
    pub fn memory_mebibytes(mut self, mebibytes: u32) -> Self {
        self.memory_mebibytes = mebibytes;
        self
    }

    /// Has DPDK's programs too.
    pub fn dpdk(mut self) -> Self {
        self.boot = Boot::Dpdk;
        self
    }

    /// Leaves it to the firmware, and to the expansion ROMs of its cards, to find the kernel and initramfs of the
    /// [`Image`]. What they print goes to the console.
    pub fn firmware(mut self) -> Self {
        self.boot = Boot::Firmware;
        self
    }

    /// One more argument for QEMU.
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// One more option for the kernel, which QEMU loads.
    pub fn kernel_option(mut self, option: &str) -> Self {
        self.kernel_options.push(option.to_owned());
        self
    }

    /// Starts QEMU and waits until the guest's shell is there.
    pub fn boot(self) -> Result<Guest> {
        let image =
            Image::find()?.context("no QEMU and guest in the cache: run cargo xtask setup")?;
        let dir = tempfile::Builder::new().prefix("vfu-guest-").tempdir()?;
        let (ours, theirs) = UnixStream::pair()?;
        let child = self
            .command(&image, dir.path())
            // The guest's second serial port: as its stdin QEMU inherits the socket without a path or a race.
            .stdin(OwnedFd::from(theirs))
            .stdout(File::create(dir.path().join("qemu.log"))?)
            .stderr(
                File::options()
                    .append(true)
                    .open(dir.path().join("qemu.log"))?,
            )
            .spawn()
            .with_context(|| format!("start {}", image.qemu.display()))?;
        // From here on dropping it ends the process.
        let mut guest = Guest {
            child,
            control: Lines::new(ours)?,
            qmp: None,
            next_id: 0,
            dir,
        };
        match Qmp::connect(&guest.qmp_path()).and_then(|qmp| {
            guest.qmp = Some(qmp);
            guest.wait_ready()
        }) {
            Ok(()) => Ok(guest),
            Err(error) => Err(guest.explain(error.context("boot the guest"))),
        }
    }

    fn command(&self, image: &Image, dir: &Path) -> Command {
        let mut command = Command::new(&image.qemu);
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-accel", "tcg", "-cpu", "max", "-smp", "1"])
            .args(["-m", &format!("{}M", self.memory_mebibytes)])
            // vfio-user servers map the guest's memory, so it must be a file that can be shared.
            .args([
                "-object",
                &format!(
                    "memory-backend-memfd,id=memory,size={}M,share=on",
                    self.memory_mebibytes
                ),
            ])
            .args([
                "-machine",
                &format!("{},memory-backend=memory", self.machine),
            ])
            .args([
                "-chardev",
                &format!("file,id=console,path={}", console(dir).display()),
            ])
            .args(["-serial", "chardev:console"])
            .args(["-chardev", "socket,id=control,fd=0"])
            .args(["-serial", "chardev:control"])
            .args([
                "-qmp",
                &format!("unix:{},server=on,wait=off", qmp_socket(dir).display()),
            ]);
        let initramfs = match self.boot {
            Boot::Linux => Some(&image.initramfs),
            Boot::Dpdk => Some(&image.dpdk_initramfs),
            Boot::Firmware => None,
        };
        match initramfs {
            Some(initramfs) => {
                command
                    .arg("-kernel")
                    .arg(&image.kernel)
                    .arg("-initrd")
                    .arg(initramfs)
                    .arg("-append")
                    .arg(format!(
                        "{KERNEL_OPTIONS} {}",
                        self.kernel_options.join(" ")
                    ));
            }
            // Without graphics the firmware speaks on the first serial port.
            None => {
                command.args(["-machine", "graphics=off"]);
            }
        }
        for device in &self.devices {
            command.args(["-device", &device.to_string()]);
        }
        command.args(&self.args);
        command
    }
}

/// A guest that runs. Dropping it kills QEMU and removes its files.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    control: Lines,
    qmp: Option<Qmp>,
    next_id: u64,
    dir: tempfile::TempDir,
}

impl Guest {
    /// A guest without any device yet.
    pub fn builder() -> Builder {
        Builder {
            machine: "q35".to_owned(),
            memory_mebibytes: 256,
            boot: Boot::Linux,
            devices: Vec::new(),
            args: Vec::new(),
            kernel_options: Vec::new(),
        }
    }

    /// Runs shell commands in the guest and returns what they print; an exit status other than 0 is an error.
    pub fn sh(&mut self, script: &str) -> Result<String> {
        self.sh_within(script, COMMAND_LIMIT)
    }

    /// The same, for what may take longer than a minute.
    pub fn sh_within(&mut self, script: &str, limit: Duration) -> Result<String> {
        let (status, output) = self.sh_status(script, limit)?;
        if status != 0 {
            return Err(self.explain(anyhow!("guest: {script}: exit status {status}\n{output}")));
        }
        Ok(output)
    }

    /// Runs shell commands in the guest and returns their exit status and what they print, stderr included.
    pub fn sh_status(&mut self, script: &str, limit: Duration) -> Result<(i32, String)> {
        self.exchange(script, limit)
            .map_err(|error| self.explain(error.context(format!("guest: {script}"))))
    }

    fn exchange(&mut self, script: &str, limit: Duration) -> Result<(i32, String)> {
        self.next_id += 1;
        let id = self.next_id.to_string();
        writeln!(self.control.stream(), "{id} {}", BASE64.encode(script))
            .context("send the command")?;
        let deadline = Instant::now() + limit;
        loop {
            let line = self
                .control
                .next(deadline)?
                .with_context(|| format!("no answer within {limit:?}"))?;
            let mut words = line.split(' ');
            // Anything else is the late answer to a command that was given up.
            if words.next() == Some(id.as_str()) {
                let status = words
                    .next()
                    .unwrap_or_default()
                    .parse()
                    .context("its exit status")?;
                let output = BASE64
                    .decode(words.next().unwrap_or_default())
                    .context("its output")?;
                return Ok((status, String::from_utf8_lossy(&output).into_owned()));
            }
        }
    }

    /// Presses the machine's reset button and waits until the guest is there again.
    pub fn reset(&mut self) -> Result<()> {
        self.qmp("system_reset", json!({}))?;
        self.wait_ready()
            .map_err(|error| self.explain(error.context("boot again after system_reset")))
    }

    /// Runs a QMP command.
    pub fn qmp(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let qmp = self
            .qmp
            .as_mut()
            .context("QEMU's monitor is not connected")?;
        qmp.execute(command, arguments)
            .map_err(|error| self.explain(error))
    }

    /// Waits for an event of QEMU's, which may have come since the guest booted and which nobody has taken yet. `None`: there
    /// is none in time.
    pub fn event(&mut self, name: &str, limit: Duration) -> Result<Option<Value>> {
        let qmp = self
            .qmp
            .as_mut()
            .context("QEMU's monitor is not connected")?;
        qmp.event(name, limit).map_err(|error| self.explain(error))
    }

    /// Ends QEMU in order, as an operator does who stops the machine without asking the guest.
    pub fn quit(mut self) -> Result<()> {
        self.qmp("quit", json!({}))?;
        command::wait_for("the end of QEMU", QUIT_LIMIT, || {
            Ok(self.child.try_wait()?)
        })?;
        Ok(())
    }

    /// Ends QEMU as a crash or the OOM killer does; its devices get no goodbye.
    pub fn kill(mut self) -> Result<()> {
        self.end()
    }

    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where QEMU's monitor listens. The fixture itself holds the one connection it serves.
    pub fn qmp_path(&self) -> PathBuf {
        qmp_socket(self.dir.path())
    }

    /// What the kernel and init have printed so far.
    pub fn console(&self) -> String {
        command::tail(&console(self.dir.path()), usize::MAX)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + BOOT_LIMIT;
        while let Some(line) = self.control.next(deadline)? {
            if line == "ready" {
                return Ok(());
            }
        }
        bail!("the guest's shell is not there within {BOOT_LIMIT:?}")
    }

    /// The error together with what else is known about the guest.
    fn explain(&mut self, error: anyhow::Error) -> anyhow::Error {
        if command::check_interrupted().is_err() {
            return error;
        }
        let state = match self.child.try_wait() {
            Ok(Some(status)) => format!("QEMU has ended: {status}"),
            _ => "QEMU runs".to_owned(),
        };
        anyhow!(
            "{error:#}\n{state}\n--- QEMU ---\n{}\n--- console ---\n{}",
            command::tail(&self.dir.path().join("qemu.log"), 20),
            command::tail(&console(self.dir.path()), 30)
        )
    }

    fn end(&mut self) -> Result<()> {
        self.child.kill().context("kill QEMU")?;
        self.child.wait().context("wait for QEMU")?;
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // After `kill` the process is already reaped, and this does nothing.
        let _ = self.end();
    }
}

fn console(dir: &Path) -> PathBuf {
    dir.join("console.log")
}

fn qmp_socket(dir: &Path) -> PathBuf {
    dir.join("qmp.sock")
}
