//! Gives a program another dynamic loader, so that it runs with libraries that are not the host's, and under its own
//! name: started as `ld.so program` it would be `ld.so` in `/proc` and to everyone who asks who their client is.
//!
//! The new path may be longer than the old one, so it goes to the end of the file. The kernel reads it there; the
//! loaded image stays as it was.

use anyhow::{Context, Result, ensure};

const MAGIC: &[u8] = b"\x7fELF\x02\x01";
/// Offsets in the header of a 64-bit file and in an entry of its table of segments.
const TABLE_OFFSET: usize = 32;
const ENTRY_BYTES: usize = 54;
const ENTRY_COUNT: usize = 56;
const FILE_OFFSET: usize = 8;
const FILE_BYTES: usize = 32;
const MEMORY_BYTES: usize = 40;
const INTERPRETER: u32 = 3;

/// Makes `interpreter` the dynamic loader of the program.
pub(super) fn set_interpreter(program: &mut Vec<u8>, interpreter: &str) -> Result<()> {
    ensure!(
        program.starts_with(MAGIC),
        "not a 64-bit little-endian ELF file"
    );
    let table = usize::try_from(u64::from_le_bytes(field(program, TABLE_OFFSET)?))?;
    let size = usize::from(u16::from_le_bytes(field(program, ENTRY_BYTES)?));
    let count = usize::from(u16::from_le_bytes(field(program, ENTRY_COUNT)?));
    for entry in (0..count).map(|index| table + index * size) {
        if u32::from_le_bytes(field(program, entry)?) == INTERPRETER {
            let path = [interpreter.as_bytes(), &[0]].concat();
            let length = path.len() as u64;
            for (offset, value) in [
                (FILE_OFFSET, program.len() as u64),
                (FILE_BYTES, length),
                (MEMORY_BYTES, length),
            ] {
                program
                    .get_mut(entry + offset..entry + offset + 8)
                    .context("the file is cut short")?
                    .copy_from_slice(&value.to_le_bytes());
            }
            program.extend_from_slice(&path);
            return Ok(());
        }
    }
    anyhow::bail!("the program has no dynamic loader")
}

fn field<const N: usize>(program: &[u8], offset: usize) -> Result<[u8; N]> {
    let bytes = program.get(offset..).and_then(|rest| rest.first_chunk());
    bytes.copied().context("the file is cut short")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_program_runs_by_another_loader() {
        let dir = tempfile::tempdir().unwrap();
        let loader = dir
            .path()
            .join("loader-with-a-name-that-is-longer-than-the-usual-one");
        std::os::unix::fs::symlink("/lib64/ld-linux-x86-64.so.2", &loader).unwrap();
        let mut program = std::fs::read("/bin/true").unwrap();
        set_interpreter(&mut program, loader.to_str().unwrap()).unwrap();
        let file = dir.path().join("program");
        std::fs::write(&file, &program).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(Command::new(&file).status().unwrap().success());
        // Without the loader it can't start: it was this one that ran.
        std::fs::remove_file(&loader).unwrap();
        assert!(Command::new(&file).status().is_err());
    }

    #[test]
    fn what_is_no_program_is_refused() {
        assert!(set_interpreter(&mut b"#!/bin/sh".to_vec(), "/x").is_err());
        let mut cut_short = MAGIC.to_vec();
        assert!(set_interpreter(&mut cut_short, "/x").is_err());
    }
}
