//! QEMU's own device server: the object `x-vfio-user-server` on its machine `x-remote`, which serves any PCI device that
//! QEMU has.
//!
//! No package has a QEMU with it, but Debian's source package of QEMU holds all that it takes. It is built in a root of
//! Debian's own packages, in namespaces of its own, so that nothing is installed on the host; what stays is the program,
//! its libraries and the network cards' ROMs.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::statvfs::statvfs;

use super::{apt, elf, libraries};
use crate::cache::{self, Cache};
use crate::{command, require};

/// Change it when the code below makes something else of the same ingredients.
const RECIPE: &[u8] = b"1";
const SCRIPT: &str = include_str!("qemu-server.sh");
const SOURCE: &str = "qemu";
/// What the build needs, with what every Debian has and these packages therefore don't name.
const PACKAGES: &[&str] = &[
    "bash",
    "ca-certificates",
    "coreutils",
    "dash",
    "diffutils",
    "dpkg-dev",
    "findutils",
    "gcc",
    "grep",
    "gzip",
    "ipxe-qemu",
    "libc6-dev",
    "libcmocka-dev",
    "libfdt-dev",
    "libglib2.0-dev",
    "libjson-c-dev",
    "libslirp-dev",
    "make",
    "meson",
    "ninja-build",
    "patch",
    "perl-base",
    "pkgconf",
    "python3-venv",
    "sed",
    "tar",
    "xz-utils",
    "zlib1g-dev",
];
const PROGRAM: &str = "bin/qemu-system-x86_64";
const LIBRARIES: &str = "lib";
/// Where QEMU looks for ROMs: beside the folder of its program.
const ROMS: &str = "share/qemu";
const LOADER: &str = "ld-linux-x86-64.so.2";
const BUILT: &str = "src/build/qemu-system-x86_64";

/// How long the build may take on a slow or busy machine.
const BUILD_LIMIT: Duration = Duration::from_secs(60 * 60);
/// What packages, sources and objects take until the build is done, with something to spare.
const BUILD_BYTES: u64 = 3 << 30;

/// Enters the root `$1` and runs its `/src/build.sh`. The mounts are seen and kept by this process alone.
const ENTER: &str = r#"
mount --rbind /dev "$1/dev"
mount --rbind /proc "$1/proc"
exec chroot "$1" /usr/bin/env -i PATH=/usr/sbin:/usr/bin HOME=/tmp LC_ALL=C.UTF-8 sh /src/build.sh
"#;

/// A QEMU that serves devices.
#[derive(Debug, Clone)]
pub struct QemuServer {
    program: PathBuf,
}

impl QemuServer {
    /// What an earlier `prepare` made, or nothing.
    pub fn find() -> Result<Option<Self>> {
        let cache = Cache::open()?;
        Ok(cache.find(&name(&cache)).map(Self::within))
    }

    /// Builds it where it is missing: about ten minutes the first time, nothing later.
    pub fn prepare() -> Result<Self> {
        let cache = Cache::open()?;
        let name = name(&cache);
        let folder = cache.stage(&name, |folder| build(&cache, &name, folder))?;
        Ok(Self::within(folder))
    }

    /// QEMU's executable, which needs nothing of the host.
    pub fn program(&self) -> &Path {
        &self.program
    }

    fn within(folder: PathBuf) -> Self {
        Self {
            program: folder.join(PROGRAM),
        }
    }
}

fn name(cache: &Cache) -> String {
    let key = cache::key(
        [
            RECIPE,
            SCRIPT.as_bytes(),
            ENTER.as_bytes(),
            apt::RELEASE.as_bytes(),
            // The loader is named by its whole path.
            cache.dir().as_os_str().as_bytes(),
        ]
        .into_iter()
        .chain(PACKAGES.iter().map(|package| package.as_bytes())),
    );
    format!("qemu-server-{key}")
}

fn build(cache: &Cache, name: &str, folder: &Path) -> Result<()> {
    let started = Instant::now();
    room(cache)?;
    let root = folder.join("build");
    eprintln!("setup: fetching the sources of QEMU and what builds them");
    // Outside the folder that a killed run leaves behind, so that the next one need not download again.
    let work = cache.dir().join(format!("apt-{name}"));
    apt::unpack_with_source(PACKAGES, SOURCE, &work, &root, &root.join("src"))?;
    for folder in ["dev", "proc", "tmp"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::write(root.join("src/build.sh"), SCRIPT)?;
    eprintln!("setup: building QEMU's device server; this takes about ten minutes, once");
    enter(&root)?;
    install(&root, folder, &cache.dir().join(name))?;
    for folder in [&root, &work] {
        fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    eprintln!("setup: built in {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// An error now rather than a compiler's in ten minutes.
fn room(cache: &Cache) -> Result<()> {
    let volume = statvfs(cache.dir())
        .with_context(|| format!("ask for the free space of {}", cache.dir().display()))?;
    let free = volume.blocks_available() as u64 * volume.fragment_size() as u64;
    ensure!(
        free >= BUILD_BYTES,
        "{} has {} MiB free and the build takes {} MiB while it runs: make room, or name another folder in VFU_CACHE",
        cache.dir().display(),
        free >> 20,
        BUILD_BYTES >> 20,
    );
    Ok(())
}

/// Runs the build; whatever it started ends with it.
fn enter(root: &Path) -> Result<()> {
    let mut words = vec!["--mount", "--pid", "--fork", "--kill-child"];
    if !require::is_root() {
        words.push("--map-root-user");
    }
    let unshare = || {
        let mut unshare = Command::new("unshare");
        unshare.args(&words);
        unshare
    };
    command::run(unshare().arg("true"))
        .context("QEMU is built in namespaces: run this as root, or let users make namespaces")?;
    let output = command::output(
        unshare().args(["sh", "-ec", ENTER, "sh"]).arg(root),
        BUILD_LIMIT,
    )?;
    if !output.status.success() {
        // The cause is the end of it.
        let printed = [output.stdout.trim_end(), output.stderr.trim_end()].join("\n");
        let lines: Vec<&str> = printed.lines().collect();
        let end = lines[lines.len().saturating_sub(40)..].join("\n");
        bail!("build QEMU: {}\n{end}", output.status);
    }
    Ok(())
}

/// What is needed to run it, from the build's root to `folder`, which will be at `place`.
fn install(root: &Path, folder: &Path, place: &Path) -> Result<()> {
    for part in ["bin", LIBRARIES, ROMS] {
        fs::create_dir_all(folder.join(part))?;
    }
    for library in libraries::closure(root, &[BUILT])? {
        copy(&library, &folder.join(LIBRARIES))?;
    }
    copy(&root.join(libraries::LOADER), &folder.join(LIBRARIES))?;
    let roms = root.join("usr").join(ROMS);
    for rom in fs::read_dir(&roms).with_context(|| format!("list {}", roms.display()))? {
        copy(&rom?.path(), &folder.join(ROMS))?;
    }

    let mut program = fs::read(root.join(BUILT)).context("read what was built")?;
    let loader: OsString = place.join(LIBRARIES).join(LOADER).into();
    let loader = loader
        .to_str()
        .context("the cache folder's name is not UTF-8")?;
    elf::set_interpreter(&mut program, loader).context("give QEMU its loader")?;
    let path = folder.join(PROGRAM);
    fs::write(&path, program)?;
    fs::set_permissions(&path, fs::metadata(root.join(BUILT))?.permissions())?;
    Ok(())
}

fn copy(file: &Path, folder: &Path) -> Result<()> {
    let name = file.file_name().context("a file's name")?;
    fs::copy(file, folder.join(name)).with_context(|| format!("copy {}", file.display()))?;
    Ok(())
}
