//! The shared libraries that programs of the packages need, found by the packages' own dynamic loader: it knows the
//! format, and what a library needs in turn.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;

/// Where the packages have their dynamic loader, and their libraries.
pub(super) const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";
pub(super) const FOLDER: &str = "usr/lib/x86_64-linux-gnu";

/// The words of a command that runs a program of the packages on the host, with their libraries.
pub(super) fn words(root: &Path, program: &str) -> [OsString; 4] {
    [
        root.join(LOADER).into(),
        "--library-path".into(),
        root.join(FOLDER).into(),
        root.join(program).into(),
    ]
}

/// The files of all libraries that the programs need, each once, without the loader.
pub(super) fn closure(root: &Path, programs: &[&str]) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for program in programs {
        let [loader, option, folder, path] = words(root, program);
        let list = command::run(
            Command::new(loader)
                .args([option, folder])
                .arg("--list")
                .arg(path),
        )
        .with_context(|| format!("list the libraries of {program}"))?;
        found.extend(parse(&list).with_context(|| format!("the libraries of {program}"))?);
    }
    Ok(found)
}

/// The paths in lines like `libm.so.6 => /root/usr/lib/x86_64-linux-gnu/libm.so.6 (0x00007f6c5a400000)`. The kernel's
/// own page and the loader have no arrow.
fn parse(list: &str) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for line in list.lines() {
        let Some((name, place)) = line.split_once(" => ") else {
            continue;
        };
        match place.rsplit_once(" (") {
            Some((path, _)) if !path.ends_with("ld-linux-x86-64.so.2") => paths.push(path.into()),
            Some(_) => {}
            None => bail!("{}: {place}", name.trim()),
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_and_a_missing_one_is_named() {
        let list = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibm.so.6 => /r/usr/lib/libm.so.6 (0x00007f6c)\n\
                    \t/lib64/ld-linux-x86-64.so.2 => /r/usr/lib64/ld-linux-x86-64.so.2 (0x00007f6d)\n";
        assert_eq!(parse(list).unwrap(), [Path::new("/r/usr/lib/libm.so.6")]);
        let error = parse("\tlibnuma.so.1 => not found\n").unwrap_err();
        assert_eq!(error.to_string(), "libnuma.so.1: not found");
    }
}
