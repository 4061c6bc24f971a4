//! A machine without a disk boots over the card, by iPXE in the card's expansion ROM: its driver is another one than
//! Linux's, and polls.

use std::{
    fs::{self, File},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tempfile::TempDir;
use tests::{Guest, Image, Netns, command, guest::KERNEL_OPTIONS, require};

use super::wired::{GUEST, HOST, MAC, Wired, plugged};

const ROM: &str = "usr/share/qemu/pxe-e1000.rom";
const SCRIPT: &str = "boot.ipxe";
/// A word of the kernel's command line that only the script has.
const MARK: &str = "booted_by=ipxe";

#[test]
fn a_guest_boots_from_the_network_by_the_roms_driver() -> Result<()> {
    require!(Qemu, Tap);
    let image = Image::find()?.context("no image")?;
    let (device, netns) = plugged(json!({"rom_file": image.file(ROM)}))?;
    let servers = Servers::start(&image, &netns)?;
    let guest = Guest::builder().firmware().nic(device.socket()).boot();
    let guest = guest.with_context(|| servers.log())?;

    let console = guest.console();
    for line in [
        format!("net0: {MAC} using 82540em"),
        format!("net0: {GUEST}/255.255.255.252"),
        format!("tftp://{HOST}/{SCRIPT}... ok"),
    ] {
        ensure!(console.contains(&line), "no `{line}`: {console}");
    }
    let log = servers.log();
    for line in [
        format!("DHCPACK(vfu0) {GUEST} {MAC}"),
        format!("{SCRIPT} to {GUEST}"),
    ] {
        ensure!(log.contains(&line), "no `{line}`: {log}");
    }

    // The kernel and its whole file system came over the card, else there would be no shell to answer.
    let mut wired = Wired::new(guest, device, netns)?;
    let options = wired.guest.sh("cat /proc/cmdline")?;
    ensure!(options.contains(MARK), "{options}");
    wired.works()?;

    // The ROM finds a card again that Linux has used.
    wired.guest.reset()?;
    wired.configure()?;
    wired.works()
}

/// DHCP and TFTP for the script, HTTP for what it loads.
struct Servers {
    running: Vec<Child>,
    dir: TempDir,
}

impl Servers {
    fn start(image: &Image, netns: &Netns) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let files = dir.path().join("files");
        fs::create_dir(&files)?;
        fs::copy(&image.kernel, files.join("vmlinuz"))?;
        fs::copy(&image.initramfs, files.join("initramfs"))?;
        fs::write(
            files.join(SCRIPT),
            format!(
                "#!ipxe\n\
                 kernel http://{HOST}/vmlinuz initrd=initramfs {KERNEL_OPTIONS} {MARK}\n\
                 initrd http://{HOST}/initramfs\n\
                 boot\n"
            ),
        )?;

        let log = File::create(log(dir.path()))?;
        // Dropping it ends what runs.
        let mut servers = Self {
            running: Vec::new(),
            dir,
        };
        let mut run = |program: &str, args: &[&str]| -> Result<()> {
            let [loader, words @ ..] = image.program(program);
            let mut command = netns.command(loader.to_str().context("a path")?);
            command.args(words).args(args);
            command
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log.try_clone()?);
            let child = command.spawn();
            servers
                .running
                .push(child.with_context(|| format!("start {command:?}"))?);
            Ok(())
        };
        let folder = files.to_str().context("a path")?;
        run(
            "usr/sbin/dnsmasq",
            &[
                "--keep-in-foreground",
                "--log-facility=-",
                "--conf-file=/dev/null",
                "--pid-file=",
                "--user=root",
                "--group=root",
                // No DNS.
                "--port=0",
                "--interface=vfu0",
                &format!("--dhcp-range={GUEST},{GUEST}"),
                "--dhcp-leasefile=/dev/null",
                &format!("--dhcp-boot={SCRIPT}"),
                "--enable-tftp",
                &format!("--tftp-root={folder}"),
            ],
        )?;
        run(
            "usr/bin/busybox",
            &["httpd", "-f", "-p", "80", "-h", folder],
        )?;
        command::wait_for("the servers", Duration::from_secs(10), || {
            let answers = netns.inside(|| Ok(TcpStream::connect((HOST, 80)).is_ok()))?;
            Ok((answers && servers.log().contains("TFTP root")).then_some(()))
        })
        .with_context(|| servers.log())?;
        Ok(servers)
    }

    fn log(&self) -> String {
        command::tail(&log(self.dir.path()), usize::MAX)
    }
}

fn log(dir: &Path) -> PathBuf {
    dir.join("log")
}

impl Drop for Servers {
    fn drop(&mut self) {
        for server in &mut self.running {
            // One that has ended by itself is only reaped.
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}
