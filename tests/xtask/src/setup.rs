//! Set-up: what the demo and the tests need and the host lacks. A second run finds everything and does nothing.

use std::process::Command;

use anyhow::{Context, Result, bail};
use tests::cache::Cache;
use tests::command::{self, run as run_command};
use tests::published::USBVFIOD;
use tests::{Image, Python, QemuServer, require};

/// Makes everything.
pub(crate) fn run() -> Result<Image> {
    program("ip", "iproute2")?;
    let image = Image::prepare()?;
    python();
    USBVFIOD.prepare()?;
    eprintln!("setup: ready in {}", Cache::open()?.dir().display());
    Ok(image)
}

/// Builds the QEMU that serves devices, and prints where it is.
pub(crate) fn qemu_server() -> Result<()> {
    program("unshare", "util-linux")?;
    let server = QemuServer::prepare()?;
    println!("{}", server.program().display());
    Ok(())
}

/// Makes a Python with gRPC. All else works without it, so that a host that can't have it is told so and goes on; the
/// tests that need it say again that they are skipped.
fn python() {
    let venv = || match Python::can_prepare() {
        true => Ok(()),
        false => install("no Python that makes environments", "python3-venv"),
    };
    if let Err(error) = venv().and_then(|()| Python::prepare()) {
        eprintln!("setup: no client in Python: {error:#}");
    }
}

/// Installs the package when the program is missing.
pub(crate) fn program(name: &str, package: &str) -> Result<()> {
    match command::find(name) {
        Some(_) => Ok(()),
        None => install(&format!("no program {name}"), package),
    }
}

/// Installs the package, because of `why`.
fn install(why: &str, package: &str) -> Result<()> {
    if !require::is_root() {
        bail!("{why}: install the package {package}, or run this as root, which does it");
    }
    eprintln!("setup: installing {package}");
    // A machine that has just started may be installing updates by itself.
    let patience = ["-o", "DPkg::Lock::Timeout=300"];
    let apt = |args: &[&str]| {
        run_command(
            Command::new("apt-get")
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(patience)
                .args(args),
        )
    };
    let install = ["--yes", "--no-install-recommends", "install", package];
    // Most often the indices are there. An update may fail for an archive that has nothing to do with this.
    if apt(&install).is_err() {
        let updated = apt(&["update"]);
        apt(&install).with_context(|| match updated {
            Ok(_) => format!("install {package}"),
            Err(error) => format!("install {package}, after {error:#}"),
        })?;
    }
    Ok(())
}
