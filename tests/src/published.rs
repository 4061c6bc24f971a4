//! Programs of others from crates.io, each of one version, built into the cache folder: minutes, once.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cache::Cache;

/// A program in a package of the same name.
#[derive(Debug, Clone, Copy)]
pub struct Published {
    name: &'static str,
    version: &'static str,
}

/// Which licences, bans and sources dependencies have.
pub const CARGO_DENY: Published = Published {
    name: "cargo-deny",
    version: "0.20.2",
};

/// A device server that is not ours: an xHCI controller for the host's USB devices.
pub const USBVFIOD: Published = Published {
    name: "usbvfiod",
    version: "0.3.0",
};

impl Published {
    /// What the program is called.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The program, if an earlier `prepare` built it.
    pub fn find(&self) -> Result<Option<PathBuf>> {
        let folder = Cache::open()?.find(&self.folder());
        Ok(folder.map(|folder| folder.join("bin").join(self.name)))
    }

    /// Builds it, with the cargo that runs this, where it is missing.
    pub fn prepare(&self) -> Result<PathBuf> {
        let cache = Cache::open()?;
        // Outside what a killed run leaves behind, so that the next one goes on where it stopped.
        let target = cache.dir().join(format!("build-{}", self.folder()));
        let folder = cache.stage(&self.folder(), |folder| {
            eprintln!(
                "setup: building {} {}; this takes minutes, once",
                self.name, self.version
            );
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let mut install = Command::new(cargo);
            install
                .args(["install", "--quiet", "--locked", "--version", self.version])
                .arg(self.name)
                .arg("--root")
                .arg(folder)
                .arg("--target-dir")
                .arg(&target)
                // By the compiler of this workspace, wherever this is called from.
                .current_dir(env!("CARGO_MANIFEST_DIR"));
            let status = install.status().context("start cargo")?;
            ensure!(status.success(), "cargo install {}: {status}", self.name);
            Ok(())
        })?;
        if target.exists() {
            std::fs::remove_dir_all(&target)?;
        }
        Ok(folder.join("bin").join(self.name))
    }

    fn folder(&self) -> String {
        format!("{}-{}", self.name, self.version)
    }
}
