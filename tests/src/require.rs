//! What a test needs of the machine, and what happens where it is missing.
//!
//! `require!(Qemu, Tap)` at the top of a test: where one is missing the test says so and passes, unless `VFU_REQUIRE`
//! names it (`qemu,tap`, or `all`, or all but one: `all,-tap`): then it fails.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;

use crate::command;
use crate::image::{Image, QemuServer};
use crate::published::USBVFIOD;
use crate::python::Python;

/// Something that not every machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// The virtual machine that `cargo xtask setup` makes.
    Qemu,
    /// The QEMU that serves devices, which `cargo xtask qemu-server` makes.
    QemuServer,
    /// The program usbvfiod, which `cargo xtask setup` builds.
    Usbvfiod,
    /// A cloud-hypervisor, which the variable `CLOUD_HYPERVISOR` names: it needs a KVM, and set-up has none.
    CloudHypervisor,
    /// Python with gRPC, which `cargo xtask setup` makes.
    Python,
    /// To run as root.
    Root,
    /// To make TAP devices and network namespaces.
    Tap,
}

impl Need {
    fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::QemuServer => "qemu-server",
            Self::Usbvfiod => "usbvfiod",
            Self::CloudHypervisor => "cloud-hypervisor",
            Self::Python => "python",
            Self::Root => "root",
            Self::Tap => "tap",
        }
    }

    /// Nothing if it is there, else why not.
    fn missing(self) -> Option<String> {
        match self {
            Self::Qemu => match Image::find() {
                Ok(Some(_)) => None,
                Ok(None) => {
                    Some("no QEMU and guest in the cache; cargo xtask setup makes them".to_owned())
                }
                Err(error) => Some(format!("{error:#}")),
            },
            Self::QemuServer => match QemuServer::find() {
                Ok(Some(_)) => None,
                Ok(None) => Some(
                    "no QEMU that serves devices in the cache; cargo xtask qemu-server builds it"
                        .to_owned(),
                ),
                Err(error) => Some(format!("{error:#}")),
            },
            Self::Usbvfiod => match USBVFIOD.find() {
                Ok(Some(_)) => None,
                Ok(None) => {
                    Some("no usbvfiod in the cache; cargo xtask setup builds it".to_owned())
                }
                Err(error) => Some(format!("{error:#}")),
            },
            Self::CloudHypervisor => cloud_hypervisor()
                .is_none()
                .then(|| "CLOUD_HYPERVISOR names no program".to_owned()),
            Self::Python => match Python::find() {
                Ok(Some(_)) => None,
                Ok(None) => {
                    Some("no Python with gRPC in the cache; cargo xtask setup makes it".to_owned())
                }
                Err(error) => Some(format!("{error:#}")),
            },
            Self::Root => (!is_root()).then(|| "this is not root".to_owned()),
            Self::Tap => {
                if !is_root() {
                    return Some("this is not root".to_owned());
                }
                if command::find("ip").is_none() {
                    return Some("no program ip; install the package iproute2".to_owned());
                }
                let device = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open("/dev/net/tun");
                device
                    .err()
                    .map(|error| format!("open /dev/net/tun: {error}"))
            }
        }
    }
}

/// The program that the variable `CLOUD_HYPERVISOR` names.
#[must_use]
pub fn cloud_hypervisor() -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os("CLOUD_HYPERVISOR")?);
    path.is_file().then_some(path)
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether the test may go on. Fails where it may not and `VFU_REQUIRE` names what is missing.
pub fn met(needs: &[Need]) -> bool {
    for need in needs {
        let Some(reason) = need.missing() else {
            continue;
        };
        let name = need.name();
        let required = std::env::var("VFU_REQUIRE").unwrap_or_default();
        let has = |wanted: &str| required.split(',').any(|word| word == wanted);
        let named = has(name) || has("all") && !has(&format!("-{name}"));
        assert!(
            !named,
            "VFU_REQUIRE names {name}, and it is missing: {reason}"
        );
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("test").to_owned();
        // Not eprintln!, which the harness hides when the test passes.
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: needs {name}: {reason}");
        return false;
    }
    true
}

/// What a test returns when it is skipped.
pub trait Skipped {
    /// The value that lets it pass.
    fn skipped() -> Self;
}

impl Skipped for () {
    fn skipped() -> Self {}
}

impl Skipped for Result<()> {
    fn skipped() -> Self {
        Ok(())
    }
}

/// Leaves the test, aloud, where the machine lacks something: `require!(Qemu, Tap)`.
#[macro_export]
macro_rules! require {
    ($($need:ident),+ $(,)?) => {
        if !$crate::require::met(&[$($crate::require::Need::$need),+]) {
            return $crate::require::Skipped::skipped();
        }
    };
}
