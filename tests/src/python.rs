//! Python with gRPC, for tests that call the agent as programs do that are not written in Rust.
//!
//! The host's Python, with packages in a virtual environment in the cache folder: nothing is installed on the host. The
//! packages are pinned with their hashes.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::{self, Cache};
use crate::command::{self, run};

const REQUIREMENTS: &str = include_str!("../clients/python/requirements.txt");

/// A Python that has the packages.
#[derive(Debug)]
pub struct Python {
    program: PathBuf,
}

impl Python {
    /// The Python of set-up, if there is one for the Python that the host has now.
    pub fn find() -> Result<Option<Self>> {
        let Some(host) = Host::find()? else {
            return Ok(None);
        };
        Ok(Cache::open()?.find(&host.name()).map(Self::within))
    }

    /// Makes it where it is missing.
    pub fn prepare() -> Result<Self> {
        let host = Host::find()?.context("no program python3")?;
        let folder = Cache::open()?.stage(&host.name(), |folder| host.make(folder))?;
        Ok(Self::within(folder))
    }

    /// Whether the host's Python can make environments: Debian has that in a package of its own.
    pub fn can_prepare() -> bool {
        let modules = ["-c", "import ensurepip, venv"];
        run(Command::new("python3").args(modules)).is_ok()
    }

    fn within(folder: PathBuf) -> Self {
        Self {
            program: folder.join("bin/python3"),
        }
    }

    /// One of the scripts in `tests/clients/python`, which may import each other.
    pub fn script(&self, name: &str) -> Command {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/python");
        let mut command = Command::new(&self.program);
        // Nothing of the user's, and no files beside the scripts.
        command.args(["-s", "-B"]).arg(folder.join(name));
        command.env_remove("PYTHONPATH");
        command
    }
}

/// The host's own Python.
struct Host {
    program: PathBuf,
    /// What packages have to fit.
    version: String,
}

impl Host {
    fn find() -> Result<Option<Self>> {
        let Some(program) = command::find("python3") else {
            return Ok(None);
        };
        let version = run(Command::new(&program).args([
            "-c",
            "import sys, sysconfig; print(sys.version, sysconfig.get_platform(), sys.base_prefix)",
        ]))?;
        Ok(Some(Self { program, version }))
    }

    fn name(&self) -> String {
        let key = cache::key([REQUIREMENTS.as_bytes(), self.version.as_bytes()]);
        format!("python-{key}")
    }

    fn make(&self, folder: &Path) -> Result<()> {
        if !Python::can_prepare() {
            bail!("python3 can't make environments: install the package python3-venv");
        }
        eprintln!("setup: Python packages");
        run(Command::new(&self.program).args(["-m", "venv"]).arg(folder))?;
        let list = folder.join("requirements.txt");
        std::fs::write(&list, REQUIREMENTS)?;
        // The folder is renamed when it is whole: its Python finds itself again, scripts such as pip would not.
        let mut pip = Command::new(folder.join("bin/python3"));
        pip.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ])
        .args([
            "--no-deps",
            "--only-binary",
            ":all:",
            "--require-hashes",
            "-r",
        ])
        .arg(&list);
        run(&mut pip)?;
        Ok(())
    }
}
