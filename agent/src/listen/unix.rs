//! The API's socket on this host.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;

use nix::sys::socket::SockType;

use crate::config::Config;
use crate::patience;
use crate::socket::{Error, bind, check_path, is_served};
use crate::store::SocketSpec;

/// The API's socket. A stale one is replaced, a served one refused.
///
/// Two agents that start on one path at the same moment are told apart by the lock of their run
/// directory, not here.
pub fn bind_api(config: &Config) -> Result<tokio::net::UnixListener, Error> {
    let is_held = |error: &Error| matches!(error, Error::InUse { .. });
    patience::unless_held(|| try_bind_api(config), is_held)
}

fn try_bind_api(config: &Config) -> Result<tokio::net::UnixListener, Error> {
    let path = &*config.listen();
    check_path(path)?;
    let at = |operation, source| Error::Io {
        operation,
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(at("look at", error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            let path = path.to_owned();
            return Err(Error::NoSocket { path });
        }
        Ok(_) => match is_served(path, SockType::Stream) {
            Ok(false) => {}
            Err(error) => return Err(at("connect to", error)),
            Ok(true) => {
                let path = path.to_owned();
                return Err(Error::InUse { path });
            }
        },
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(|source| at("make the directory of", source))?;
    }
    let spec = SocketSpec {
        mode: Some(config.api.mode.0),
        gid: config
            .api
            .gid()
            .map_err(|why| at("set the group of", io::Error::other(why)))?,
        ..SocketSpec::default()
    };
    let fd = bind(path, SockType::Stream, &spec)?;
    crate::steps::reached("agent.bound");
    let listener = std::os::unix::net::UnixListener::from(fd);
    listener
        .set_nonblocking(true)
        .and_then(|()| tokio::net::UnixListener::from_std(listener))
        .map_err(|source| at("listen on", source))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;
    use std::path::Path;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn config(path: &Path) -> Config {
        let mut config = Config::default();
        config.api.listen = Some(format!("unix://{}", path.display()).parse().unwrap());
        config
    }

    #[tokio::test]
    async fn a_stale_api_socket_is_replaced_and_a_served_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made/agent.sock");
        let config = config(&path);
        let first = bind_api(&config).unwrap();
        assert_eq!(mode(&path), 0o660);
        assert!(matches!(bind_api(&config), Err(Error::InUse { .. })));
        drop(first);
        let _second = bind_api(&config).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        fs::write(&path, "x").unwrap();
        assert!(matches!(
            bind_api(&config(&path)),
            Err(Error::NoSocket { .. })
        ));
        assert_eq!(fs::read(&path).unwrap(), b"x");
    }
}
