//! An agent's end of a device's control socket.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, listen, recv,
    send, socket,
};
use serde_json::{Value, json};
use tests::Device;

/// A connection to a device's control socket.
pub(crate) struct Control(OwnedFd);

impl Control {
    /// An e1000 without backend, and a connection to its control socket.
    pub(crate) fn e1000() -> (Device, Self) {
        let dir = Device::dir().unwrap();
        let path = UnixAddr::new(&dir.path().join("control.sock")).unwrap();
        let seqpacket = || {
            let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
            // The device inherits it.
            socket(family, kind, SockFlag::empty(), None).unwrap()
        };
        let listener = seqpacket();
        bind(listener.as_raw_fd(), &path).unwrap();
        listen(&listener, Backlog::new(1).unwrap()).unwrap();
        let fd = listener.as_raw_fd().to_string();
        let args = ["--control-fd", &fd];
        let device = Device::start_under(&["env"], dir, "e1000", "{}", &args).unwrap();
        let control = seqpacket();
        connect(control.as_raw_fd(), &path).unwrap();
        (device, Self(control))
    }

    /// A connection to the control socket at this path.
    pub(crate) fn connect(path: &Path) -> Self {
        let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
        let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
        connect(fd.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
        Self(fd)
    }

    /// Asks for something, and waits for the reply: whether it was done, or why not.
    pub(crate) fn ask(&self, kind: &str) -> Result<(), String> {
        self.request(&json!({"type": kind, "id": 7}))
            .map_err(|(_, why)| why)
    }

    /// Tells the device what it is to be. When it can't, it says which field stands in the way, and why.
    pub(crate) fn update(&self, config: &Value) -> Result<(), (Option<String>, String)> {
        self.request(&json!({"type": "update", "id": 7, "config": config}))
    }

    fn request(&self, request: &Value) -> Result<(), (Option<String>, String)> {
        let request = request.to_string();
        send(self.0.as_raw_fd(), request.as_bytes(), MsgFlags::empty()).unwrap();
        loop {
            let mut packet = vec![0; 4096];
            let len = recv(self.0.as_raw_fd(), &mut packet, MsgFlags::empty()).unwrap();
            let message: Value = serde_json::from_slice(&packet[..len]).unwrap();
            // Status may come in between.
            if message["type"] == "reply" {
                assert_eq!(message["id"], 7);
                let text = |key: &str| message[key].as_str().map(str::to_owned);
                return match message["ok"].as_bool().unwrap() {
                    true => Ok(()),
                    false => Err((text("field"), text("message").unwrap())),
                };
            }
        }
    }
}
