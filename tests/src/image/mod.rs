//! The virtual machine that tests use: a QEMU with the device `vfio-user-pci`, a Linux kernel, an initramfs.
//!
//! The host's QEMU is taken if it is new enough; otherwise one comes from Debian's backports, unpacked in the cache and
//! run by its own dynamic loader, so that sockets and files keep the host's paths. The kernel is Debian's; the
//! initramfs is a static busybox, ethtool, iproute2, iperf3, the drivers, and `init.sh`. A second one has DPDK on top. Programs
//! that a test runs on the host beside a guest, as a DHCP server, come from the same packages.

mod apt;
mod cpio;
mod elf;
mod libraries;
mod modules;
mod qemu_server;

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

pub use self::qemu_server::QemuServer;
use crate::cache::{self, Cache};
use crate::command;

/// Change it when the code below makes something else of the same ingredients.
const RECIPE: &[u8] = b"3";
const INIT: &[u8] = include_bytes!("init.sh");
const PACKAGES: &[&str] = &[
    "linux-image-amd64/trixie",
    "busybox-static",
    "ethtool",
    "iproute2",
    "iperf3",
    "dnsmasq-base",
    "ipxe-qemu",
    "dpdk-dev",
    "librte-bus-pci25",
    "librte-mempool-ring25",
    "librte-net-e1000-25",
];
/// What those packages depend on and what nobody here has a use for: compilers' headers and an interpreter.
const OMITTED: &[&str] = &["libdpdk-dev", "python3", "rdma-core"];
const BUSYBOX: &str = "usr/bin/busybox";
const LINUX: Contents = Contents {
    programs: &["usr/sbin/ethtool", "usr/bin/ip", "usr/bin/iperf3"],
    // What the C library loads by itself to end a thread.
    plugins: &["libgcc_s.so.1"],
    modules: &["e1000", "8021q"],
};
/// A driver of another family: it lives in a process, and reaches the card through `uio_pci_generic`.
const DPDK: Contents = Contents {
    programs: &["usr/bin/dpdk-testpmd"],
    plugins: &[
        "librte_bus_pci.so.25",
        "librte_mempool_ring.so.25",
        "librte_net_e1000.so.25",
    ],
    modules: &["uio_pci_generic"],
};
const QEMU_PACKAGE: &str = "qemu-system-x86";
const QEMU: &str = "qemu-system-x86_64";

/// The first QEMU whose `vfio-user-pci` is whole.
const QEMU_VERSION: [u32; 3] = [10, 1, 1];

/// Starts QEMU with the libraries and data of the root beside it. `exec`, so that the process that was started is QEMU.
const WRAPPER: &str = r#"#!/bin/sh
root=$(dirname "$0")/root
LD_LIBRARY_PATH="$root/usr/lib/x86_64-linux-gnu" \
    exec "$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" "$@"
"#;

/// Where the parts of the virtual machine are.
#[derive(Debug, Clone)]
pub struct Image {
    /// QEMU's executable, or the script that starts it.
    pub qemu: PathBuf,
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// The guest's whole file system.
    pub initramfs: PathBuf,
    /// The same with DPDK.
    pub dpdk_initramfs: PathBuf,
    /// The packages, unpacked.
    root: PathBuf,
}

/// What an initramfs has.
struct Contents {
    /// Programs, which the guest has in `/bin`; what libraries they need follows from them.
    programs: &'static [&'static str],
    /// Libraries that a program loads by name, which the guest has with the others in `/lib`.
    plugins: &'static [&'static str],
    /// Kernel modules; what others they need follows from them.
    modules: &'static [&'static str],
}

impl Contents {
    /// Everything that it is made of, for the name of what is made.
    fn names(&self) -> impl Iterator<Item = &[u8]> {
        [self.programs, self.plugins, self.modules]
            .into_iter()
            .flat_map(|names| [&b"|"[..]].into_iter().chain(bytes(names)))
    }
}

impl Image {
    /// What an earlier set-up made, or nothing.
    pub fn find() -> Result<Option<Self>> {
        let plan = Plan::new()?;
        match (
            plan.cache.find(&plan.system_name),
            plan.cache.find(&plan.guest_name),
        ) {
            (Some(system), Some(guest)) => Ok(Some(plan.image(&system, &guest))),
            _ => Ok(None),
        }
    }

    /// Makes what is missing; that takes below a minute the first time, nothing later.
    pub fn prepare() -> Result<Self> {
        let plan = Plan::new()?;
        let system = plan
            .cache
            .stage(&plan.system_name, |folder| plan.build_system(folder))?;
        let guest = plan
            .cache
            .stage(&plan.guest_name, |folder| plan.build_guest(&system, folder))?;
        Ok(plan.image(&system, &guest))
    }

    /// A file of the packages.
    pub fn file(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The words of a command that runs a program of the packages on the host.
    pub fn program(&self, path: &str) -> [OsString; 4] {
        libraries::words(&self.root, path)
    }
}

/// What is to be made and under which names, which hold the hash of the recipe.
struct Plan {
    cache: Cache,
    host_qemu: Option<PathBuf>,
    packages: Vec<&'static str>,
    system_name: String,
    guest_name: String,
}

impl Plan {
    fn new() -> Result<Self> {
        let cache = Cache::open()?;
        let host_qemu = command::find(QEMU).filter(|qemu| serves(qemu));
        let mut packages = PACKAGES.to_vec();
        if host_qemu.is_none() {
            packages.push(QEMU_PACKAGE);
        }
        let suites = [
            RECIPE,
            apt::RELEASE.as_bytes(),
            apt::BACKPORTS.as_bytes(),
            WRAPPER.as_bytes(),
            // QEMU's loader is named by its whole path.
            cache.dir().as_os_str().as_bytes(),
        ];
        let system_key = cache::key(
            suites
                .into_iter()
                .chain(bytes(&packages))
                .chain([&b"|"[..]])
                .chain(bytes(OMITTED)),
        );
        let guest_key = cache::key(
            [RECIPE, system_key.as_bytes(), INIT]
                .into_iter()
                .chain(LINUX.names())
                .chain(DPDK.names()),
        );
        Ok(Self {
            cache,
            host_qemu,
            packages,
            system_name: format!("system-{system_key}"),
            guest_name: format!("guest-{guest_key}"),
        })
    }

    fn image(&self, system: &Path, guest: &Path) -> Image {
        Image {
            qemu: self.host_qemu.clone().unwrap_or_else(|| system.join(QEMU)),
            kernel: guest.join("vmlinuz"),
            initramfs: guest.join("initramfs"),
            dpdk_initramfs: guest.join("initramfs-dpdk"),
            root: system.join("root"),
        }
    }

    /// The packages, unpacked under `root`, and the script that starts QEMU.
    fn build_system(&self, folder: &Path) -> Result<()> {
        let started = Instant::now();
        eprintln!(
            "setup: fetching {} and what they need",
            self.packages.join(", ")
        );
        // Outside the folder that a killed run leaves behind, so that the next one need not download again.
        let work = self.cache.dir().join(format!("apt-{}", self.system_name));
        let root = folder.join("root");
        apt::unpack(&self.packages, OMITTED, &work, &root)?;
        if self.host_qemu.is_none() {
            self.build_qemu(folder, &root)?;
        }
        fs::remove_dir_all(&work)?;
        eprintln!(
            "setup: unpacked in {:.1} s",
            started.elapsed().as_secs_f64()
        );
        Ok(())
    }

    /// QEMU with a loader of its own, at the path where it will be, and the script that starts it.
    fn build_qemu(&self, folder: &Path, root: &Path) -> Result<()> {
        let version = command::run(
            Command::new(root.join(libraries::LOADER))
                .arg("--library-path")
                .arg(root.join(libraries::FOLDER))
                .arg(root.join("usr/bin").join(QEMU))
                .arg("--version"),
        )?;
        eprintln!("setup: {}", version.lines().next().unwrap_or_default());

        let path = root.join("usr/bin").join(QEMU);
        let mut program = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let loader = self
            .cache
            .dir()
            .join(&self.system_name)
            .join("root")
            .join(libraries::LOADER);
        let loader = loader
            .to_str()
            .context("the cache folder's name is not UTF-8")?;
        elf::set_interpreter(&mut program, loader).context("give QEMU its loader")?;
        fs::write(&path, program)?;

        let wrapper = folder.join(QEMU);
        fs::write(&wrapper, WRAPPER)?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    /// The kernel and the initramfs for it.
    fn build_guest(&self, system: &Path, folder: &Path) -> Result<()> {
        let root = system.join("root");
        let tree = only_entry(&root.join("usr/lib/modules"))?;
        let release = tree
            .file_name()
            .and_then(|name| name.to_str())
            .context("kernel release")?;
        fs::copy(
            root.join(format!("boot/vmlinuz-{release}")),
            folder.join("vmlinuz"),
        )
        .context("copy the kernel")?;

        let mut archive = cpio::Archive::default();
        for path in ["bin", "dev", "lib", "modules", "proc", "run", "sys", "tmp"] {
            archive.directory(path);
        }
        archive.symlink("lib64", "lib");
        archive.symlink("sbin", "bin");
        archive.file("init", INIT);
        archive.file("bin/busybox", &read(&root.join(BUSYBOX))?);
        archive.file(
            "lib/ld-linux-x86-64.so.2",
            &read(&root.join(libraries::LOADER))?,
        );
        add(&mut archive, &root, &tree, &LINUX)?;
        let linux = archive.finish();
        let mut archive = cpio::Archive::default();
        add(&mut archive, &root, &tree, &DPDK)?;
        // The kernel unpacks one archive after the other, into the same tree.
        let dpdk = [&linux[..], &archive.finish()].concat();
        fs::write(folder.join("initramfs"), linux)?;
        fs::write(folder.join("initramfs-dpdk"), dpdk)?;
        eprintln!("setup: guest with Linux {release}");
        Ok(())
    }
}

/// Programs with their libraries, and modules with theirs, into the archive.
fn add(archive: &mut cpio::Archive, root: &Path, tree: &Path, contents: &Contents) -> Result<()> {
    for program in contents.programs {
        archive.file(
            &below("bin", program.as_ref())?,
            &read(&root.join(program))?,
        );
    }
    let plugins: Vec<String> = contents
        .plugins
        .iter()
        .map(|name| format!("{}/{name}", libraries::FOLDER))
        .collect();
    let mut dynamic = contents.programs.to_vec();
    dynamic.extend(plugins.iter().map(String::as_str));
    let mut files = libraries::closure(root, &dynamic)?;
    files.extend(plugins.iter().map(|plugin| root.join(plugin)));
    for file in files {
        archive.file(&below("lib", &file)?, &read(&file)?);
    }
    // Numbered, because the guest loads them in the order of their names.
    let modules = modules::closure(tree, contents.modules, &root.join(BUSYBOX))?;
    for (number, module) in modules.iter().enumerate() {
        archive.file(
            &format!("modules/{number:02}-{}.ko", module.name),
            &module.content,
        );
    }
    Ok(())
}

/// Where the guest has this file: in one folder, by its name.
fn below(folder: &str, file: &Path) -> Result<String> {
    let name = file.file_name().and_then(|name| name.to_str());
    Ok(format!("{folder}/{}", name.context("a file's name")?))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

fn bytes<'a>(names: &'a [&str]) -> impl Iterator<Item = &'a [u8]> {
    names.iter().map(|name| name.as_bytes())
}

/// Whether this QEMU is new enough and was built with the vfio-user client.
fn serves(qemu: &Path) -> bool {
    let Ok(text) = command::run(Command::new(qemu).arg("--version")) else {
        return false;
    };
    version(&text).is_some_and(|version| version >= QEMU_VERSION)
        && command::run(Command::new(qemu).args(["-device", "vfio-user-pci,help"])).is_ok()
}

/// The numbers in `QEMU emulator version 10.1.1 (...)`.
fn version(text: &str) -> Option<[u32; 3]> {
    let number = text.split("version ").nth(1)?.split_whitespace().next()?;
    let mut parts = number.split('.').map(|part| part.parse().ok());
    Some([
        parts.next()??,
        parts.next()??,
        parts.next().flatten().unwrap_or(0),
    ])
}

fn only_entry(folder: &Path) -> Result<PathBuf> {
    let mut entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let entry = entries
        .next()
        .with_context(|| format!("nothing in {}", folder.display()))??;
    Ok(entry.path())
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn versions_compare_by_number() {
        let parsed = version("QEMU emulator version 10.1.1 (Debian 1:10.1.1)").unwrap();
        assert_eq!(parsed, [10, 1, 1]);
        assert!(version("QEMU emulator version 9.2.4").unwrap() < parsed);
        assert!(version("QEMU emulator version 11.1").unwrap() > parsed);
        assert_eq!(version("no such program"), None);
    }
}
