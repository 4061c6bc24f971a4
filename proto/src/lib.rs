//! The API of vfu: messages, clients and servers made from `vfu/v1/*.proto`, and their descriptors.
//!
//! The descriptors are checked in, beside the protos, for programs that build without a compiler of
//! protos and for reviewers: a change of the API is a change of that file too. They hold no
//! comments; those are in the protos.

/// Version 1 of the API.
pub mod v1 {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::allow_attributes_without_reason,
        reason = "generated; its documentation is the comments of the protos"
    )]
    tonic::include_proto!("vfu.v1");
}

/// All files of `vfu.v1` and the `google.protobuf` files that they import, as an encoded
/// `google.protobuf.FileDescriptorSet`. It feeds reflection and dynamic messages.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("../vfu/v1/descriptor.bin");

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    fn protos() -> Vec<PathBuf> {
        let mut files: Vec<_> = Path::new("vfu/v1")
            .read_dir()
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|it| it == "proto"))
            .collect();
        files.sort();
        files
    }

    fn compile() -> Vec<u8> {
        protox::Compiler::new(["."])
            .unwrap()
            .include_imports(true)
            .include_source_info(false)
            .open_files(protos())
            .unwrap()
            .encode_file_descriptor_set()
    }

    #[test]
    fn descriptors_are_those_of_the_protos() {
        let fresh = compile();
        if std::env::var_os("VFU_UPDATE").is_some() {
            std::fs::write("vfu/v1/descriptor.bin", &fresh).unwrap();
            return;
        }
        assert!(
            fresh == super::FILE_DESCRIPTOR_SET,
            "vfu/v1/descriptor.bin is not what the protos say: VFU_UPDATE=1 cargo test -p proto"
        );
    }

    #[test]
    fn everything_in_the_protos_has_a_comment() {
        let bare: Vec<_> = protos()
            .iter()
            .flat_map(|path| {
                let text = std::fs::read_to_string(path).unwrap();
                let lines: Vec<_> = text.lines().map(str::trim).collect();
                lines
                    .windows(2)
                    .filter(|pair| {
                        let declares = pair[1].starts_with("message ")
                            || pair[1].starts_with("enum ")
                            || pair[1].starts_with("service ")
                            || pair[1].starts_with("rpc ")
                            || pair[1].starts_with("oneof ")
                            || (pair[1].ends_with(';') && pair[1].contains(" = "));
                        declares && !pair[0].starts_with("//")
                    })
                    .filter(|pair| !pair[1].starts_with("syntax"))
                    .map(|pair| format!("{}: {}", path.display(), pair[1]))
                    .collect::<Vec<_>>()
            })
            .collect();
        assert!(bare.is_empty(), "without a comment: {bare:#?}");
    }
}
