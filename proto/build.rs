//! Compiles `vfu/v1/*.proto` with protox, a compiler in Rust, so that nobody has to install protoc.

use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=vfu");
    let mut files: Vec<_> = Path::new("vfu/v1")
        .read_dir()?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|it| it == "proto"));
    files.sort();
    let set = protox::compile(files, ["."])?;
    // Sorted maps: one message has one encoding, so that two devices can be compared by their bytes.
    tonic_prost_build::configure()
        .btree_map(".")
        .compile_fds(set)?;
    Ok(())
}
