//! A device as the message that others keep and compare without a look into it.

use prost::Message;
use proto::v1;

use super::convert;
use crate::changes::Snapshot;
use crate::supervisor::Device;

/// The message of a device. Equal devices have equal messages.
pub(crate) fn encode(device: Device, socket_path: String) -> Vec<u8> {
    convert::device(device, socket_path).encode_to_vec()
}

/// What was encoded.
pub(super) fn decode(snapshot: &Snapshot) -> v1::Device {
    v1::Device::decode(&*snapshot.encoded).expect("what the agent encoded can be decoded")
}
