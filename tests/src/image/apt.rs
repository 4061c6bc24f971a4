//! Debian packages of another release, without touching the host: a private apt resolves and downloads them, `dpkg-deb`
//! unpacks them. Nothing is configured or installed, so neither root nor a chroot is needed.
//!
//! Which mirror: `$VFU_DEBIAN_MIRROR`, else those that the host's own apt uses; apt checks the signature in any case.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::run;

/// The release the packages come from, and the suite whose newer versions are preferred.
pub(super) const RELEASE: &str = "trixie";
pub(super) const BACKPORTS: &str = "trixie-backports";

/// Downloads `packages` and all they depend on, but for `omitted`, into `work` and unpacks them under `root`. `work` may
/// hold the downloads of an earlier run that was cut short.
pub(super) fn unpack(packages: &[&str], omitted: &[&str], work: &Path, root: &Path) -> Result<()> {
    let apt = Apt::new(work, omitted)?;
    apt.update("deb", &[RELEASE, BACKPORTS])?;
    apt.download(BACKPORTS, packages)?;
    apt.extract(root)
}

/// The same for packages of the release itself, and the files of the source package `source` as they are, into `sources`.
pub(super) fn unpack_with_source(
    packages: &[&str],
    source: &str,
    work: &Path,
    root: &Path,
    sources: &Path,
) -> Result<()> {
    let apt = Apt::new(work, &[])?;
    apt.update("deb deb-src", &[RELEASE])?;
    apt.download(RELEASE, packages)?;
    fs::create_dir_all(sources)?;
    run(apt
        .command("apt-get")
        .current_dir(sources)
        .args(["source", "--download-only", source]))?;
    apt.extract(root)
}

/// An apt whose state, cache and sources are all under one folder of ours.
struct Apt {
    work: PathBuf,
}

impl Apt {
    fn new(work: &Path, omitted: &[&str]) -> Result<Self> {
        for folder in [
            "lists/partial",
            "cache/archives/partial",
            "sources",
            "preferences",
        ] {
            fs::create_dir_all(work.join(folder))?;
        }
        // Only what is omitted counts as installed, so that everything else that is depended on comes along.
        let status: String = omitted.iter().map(|name| installed(name)).collect();
        fs::write(work.join("status"), status)?;
        let work_dir = work.display();
        // Read last (`-c`), so that what the host configured for itself, but for proxies and the like, gives way.
        let configuration = format!(
            r#"Dir::State "{work_dir}";
Dir::State::status "{work_dir}/status";
Dir::State::Lists "{work_dir}/lists";
Dir::Cache "{work_dir}/cache";
Dir::Etc::SourceList "/dev/null";
Dir::Etc::SourceParts "{work_dir}/sources";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "{work_dir}/preferences";
APT::Architecture "amd64";
APT::Architectures "amd64";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "3";
"#
        );
        fs::write(work.join("apt.conf"), configuration)?;
        Ok(Self {
            work: work.to_owned(),
        })
    }

    fn archives(&self) -> PathBuf {
        self.work.join("cache/archives")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .arg("-c")
            .arg(self.work.join("apt.conf"))
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C");
        command
    }

    fn download(&self, suite: &str, packages: &[&str]) -> Result<()> {
        run(self
            .command("apt-get")
            .args(["--yes", "--download-only", "-t", suite, "install"])
            .args(packages))?;
        Ok(())
    }

    /// Unpacks what was downloaded.
    fn extract(&self, root: &Path) -> Result<()> {
        // The links that every merged-/usr system has and that some packages count on when they are unpacked.
        for folder in ["bin", "sbin", "lib", "lib64"] {
            fs::create_dir_all(root.join("usr").join(folder))?;
            std::os::unix::fs::symlink(format!("usr/{folder}"), root.join(folder))?;
        }
        let mut archives: Vec<PathBuf> = fs::read_dir(self.archives())?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        archives.retain(|path| path.extension().is_some_and(|extension| extension == "deb"));
        archives.sort();
        for archive in archives {
            run(Command::new("dpkg-deb")
                .arg("--extract")
                .arg(archive)
                .arg(root))?;
        }
        Ok(())
    }

    /// Fetches the indices of suites from the first mirror that has them, signed by Debian.
    fn update(&self, types: &str, suites: &[&str]) -> Result<()> {
        let keyring = ["gpg", "pgp"]
            .map(|kind| PathBuf::from(format!("/usr/share/keyrings/debian-archive-keyring.{kind}")))
            .into_iter()
            .find(|path| path.exists())
            .context("no Debian keyring: install the package debian-archive-keyring")?;
        let mut failures = String::new();
        for mirror in mirrors()? {
            let source = format!(
                "Types: {types}\nURIs: {mirror}\nSuites: {}\nComponents: main\nSigned-By: {}\n",
                suites.join(" "),
                keyring.display()
            );
            fs::write(self.work.join("sources/vfu.sources"), source)?;
            let mut update = self.command("apt-get");
            update.arg("update");
            match run(&mut update) {
                Ok(_) => return Ok(()),
                Err(error) => failures.push_str(&format!("\n{error:#}")),
            }
        }
        bail!("no mirror has {RELEASE}; name one in VFU_DEBIAN_MIRROR{failures}");
    }
}

/// How dpkg's status file says that a package is installed, in a version that is new enough for everyone.
fn installed(package: &str) -> String {
    format!(
        "Package: {package}\nStatus: install ok installed\nArchitecture: amd64\nMaintainer: nobody\n\
         Version: 999999\nDescription: omitted\n\n"
    )
}

/// The mirrors to try: with `--print-uris` apt tells what it would fetch, also where its indices were never fetched.
fn mirrors() -> Result<Vec<String>> {
    if let Ok(mirror) = std::env::var("VFU_DEBIAN_MIRROR") {
        return Ok(vec![mirror]);
    }
    let uris = run(Command::new("apt-get").args(["--print-uris", "update"]))
        .context("set-up fetches QEMU and a guest with Debian's apt")?;
    Ok(archives(&uris))
}

/// The archives behind lines like `'http://host/debian/dists/bookworm/InRelease' name 0`. Those that also have an
/// "-updates" suite come first: that is the shape of Debian's main archive.
fn archives(uris: &str) -> Vec<String> {
    let suites: Vec<(&str, &str)> = uris
        .lines()
        .filter_map(|line| {
            line.split('\'')
                .nth(1)?
                .strip_suffix("/InRelease")?
                .split_once("/dists/")
        })
        .collect();
    let has_updates = |archive: &str| {
        suites
            .iter()
            .any(|(base, suite)| *base == archive && suite.ends_with("-updates"))
    };
    let mut found: Vec<String> = Vec::new();
    for wanted in [true, false] {
        for (archive, _) in &suites {
            if has_updates(archive) == wanted && !found.iter().any(|known| known == archive) {
                found.push((*archive).to_owned());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::archives;

    #[test]
    fn the_main_archive_comes_first_and_once() {
        let uris = "'https://other.example/linux/debian/dists/bookworm/InRelease' a 0\n\
                    'http://mirror.example/debian-security/dists/bookworm-security/InRelease' b 0\n\
                    'http://mirror.example/debian/dists/bookworm/InRelease' c 0\n\
                    'http://mirror.example/debian/dists/bookworm-updates/InRelease' d 0\n\
                    'http://mirror.example/debian/dists/bookworm/main/binary-amd64/Packages.xz' e 0\n";
        assert_eq!(
            archives(uris),
            [
                "http://mirror.example/debian",
                "https://other.example/linux/debian",
                "http://mirror.example/debian-security",
            ]
        );
    }
}
