//! Kernel modules for the guest, with the modules they need, in the order in which they load.
//!
//! A kernel package has no `modules.dep` before it is configured, but each module names what it needs: its section
//! `.modinfo` holds strings `key=value`, among them `depends=a,b`.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// A module, unpacked.
pub(super) struct Module {
    pub(super) name: String,
    pub(super) content: Vec<u8>,
}

/// The modules `wanted` from the kernel's tree, each after those it depends on. Drivers built into the kernel are left
/// out.
pub(super) fn closure(tree: &Path, wanted: &[&str], busybox: &Path) -> Result<Vec<Module>> {
    let mut files = HashMap::new();
    index(&tree.join("kernel"), &mut files)?;
    let builtin =
        fs::read_to_string(tree.join("modules.builtin")).context("read modules.builtin")?;
    let builtin: Vec<String> = builtin
        .lines()
        .map(|line| name_of(Path::new(line)))
        .collect();

    let mut loaded: Vec<Module> = Vec::new();
    let mut visit: Vec<(String, bool)> = wanted
        .iter()
        .rev()
        .map(|name| ((*name).to_owned(), false))
        .collect();
    let mut unpacked: HashMap<String, Vec<u8>> = HashMap::new();
    // Depth first without recursion: a name comes up once to push what it needs, and again to be loaded after that.
    while let Some((name, ready)) = visit.pop() {
        if loaded.iter().any(|module| module.name == name) || builtin.contains(&name) {
            continue;
        }
        if ready {
            let content = unpacked
                .remove(&name)
                .context("a module comes up unpacked")?;
            loaded.push(Module { name, content });
            continue;
        }
        let Some(file) = files.get(&name) else {
            bail!("kernel module {name}: not in {}", tree.display());
        };
        let content = unpack(file, busybox)?;
        let needs = depends(&content);
        unpacked.insert(name.clone(), content);
        visit.push((name, true));
        visit.extend(needs.into_iter().map(|need| (need, false)));
    }
    Ok(loaded)
}

fn index(folder: &Path, files: &mut HashMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            index(&entry.path(), files)?;
        } else {
            files.insert(name_of(&entry.path()), entry.path());
        }
    }
    Ok(())
}

/// `drivers/net/foo-bar.ko.xz` is the module `foo_bar`.
fn name_of(path: &Path) -> String {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    file.split('.').next().unwrap_or_default().replace('-', "_")
}

fn unpack(file: &Path, busybox: &Path) -> Result<Vec<u8>> {
    let applet = match file.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xzcat",
        Some("gz") => "zcat",
        _ => "cat",
    };
    let output = Command::new(busybox)
        .arg(applet)
        .arg(file)
        .output()
        .context("start busybox")?;
    if !output.status.success() {
        bail!(
            "unpack {}: {}",
            file.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(output.stdout)
}

fn depends(module: &[u8]) -> Vec<String> {
    let list = module
        .split(|byte| *byte == 0)
        .find_map(|string| string.strip_prefix(b"depends="));
    String::from_utf8_lossy(list.unwrap_or_default())
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_dependencies_are_read() {
        assert_eq!(
            name_of(Path::new("kernel/drivers/net/foo-bar.ko.xz")),
            "foo_bar"
        );
        assert_eq!(
            depends(b"\x7fELF\0license=GPL\0depends=mii,foo-bar\0intree=Y\0"),
            ["mii", "foo_bar"]
        );
        assert!(depends(b"\0depends=\0").is_empty());
    }
}
