//! What a device starts from: its socket, its configuration, and what is made up for it.

use serde_json::Value;
use sha2::{Digest, Sha256};
use vfio_user::Listener;

use crate::{
    args::Serve,
    failure::{self, Failure},
    inherit,
};

const MAX_CONFIG_BYTES: usize = 1 << 20;

/// Makes or takes the socket.
pub(super) fn listen(args: &Serve) -> Result<Listener, Failure> {
    match (&args.socket_path, args.fd) {
        (Some(path), _) => Listener::bind(path).map_err(failure::listen),
        (None, Some(fd)) => Listener::from_fd(inherit::take("fd", fd)?).map_err(failure::listen),
        (None, None) => Err(Failure::invalid(
            "no socket: pass --socket-path or --fd".into(),
        )),
    }
}

/// Makes the model with its backend.
pub(super) fn open_model(
    model: &str,
    config: Value,
    listener: &Listener,
) -> Result<Box<dyn pci::Device>, Failure> {
    models::open(model, config, seed(listener))
}

/// The same for every start on this host with this socket.
fn seed(listener: &Listener) -> models::Seed {
    let read = |path| std::fs::read(path).ok().filter(|text| !text.is_empty());
    let host = read("/etc/machine-id").or_else(|| read("/proc/sys/kernel/hostname"));
    let socket = match listener.path() {
        Some(path) => path.into_os_string().into_encoded_bytes(),
        // Nothing tells a socket without a path from others.
        None => read("/proc/sys/kernel/random/uuid").unwrap_or_default(),
    };
    let hash = Sha256::new()
        .chain_update(host.unwrap_or_default())
        .chain_update(socket)
        .finalize();
    let (first, _) = hash.split_first_chunk().expect("SHA-256 has 32 bytes");
    models::Seed(*first)
}

/// Reads the configuration that `--config` gives.
pub(crate) fn read_config(argument: &str) -> Result<Value, Failure> {
    let text = match argument.strip_prefix('@') {
        None => argument.to_owned(),
        Some(path) => {
            let file = std::fs::File::open(path).and_then(|file| {
                let mut text = String::new();
                std::io::Read::read_to_string(
                    &mut std::io::Read::take(file, MAX_CONFIG_BYTES as u64),
                    &mut text,
                )?;
                Ok(text)
            });
            file.map_err(|error| Failure::invalid(format!("configuration file {path}: {error}")))?
        }
    };
    serde_json::from_str(&text)
        .map_err(|error| Failure::invalid(format!("configuration is not JSON: {error}")))
}
