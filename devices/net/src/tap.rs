//! A TAP interface: one frame is one `readv` or `writev`.
//!
//! Frames carry a virtio-net header (`IFF_VNET_HDR`), in which a frame to send asks the kernel for its checksum and
//! segmentation. In the other direction the kernel may leave a checksum to us (`TUN_F_CSUM`), and tells of those that it
//! has verified; it cuts large packets itself, because a card without large receive has no use for them.
//!
//! An interface that is down, or a frame that the kernel does not like, costs that frame. An interface that was deleted
//! is a cable without a partner from then on.
#![expect(
    unsafe_code,
    reason = "the ioctls that make a TAP and configure its interface"
)]

use std::{
    ffi::{CStr, c_int, c_short},
    fs::{File, OpenOptions},
    io::{IoSlice, IoSliceMut},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::Path,
    thread,
};

use nix::{
    errno::Errno,
    net::if_::if_nametoindex,
    sched::{CloneFlags, setns},
    sys::{
        epoll::EpollFlags,
        socket::{AddressFamily, SockFlag, SockType, socket},
        uio::{readv, writev},
    },
    unistd::write,
};
use tracing::{debug, info, warn};
use zerocopy::{FromZeros, IntoBytes};

use crate::{
    Backend, Error, Full, Interest, MAX_FRAME_BYTES, Offload, Offloads, Received, config,
    pace::Pace,
    poller::{Poller, Watch},
    virtio::{HEADER_BYTES, Header, Incomplete},
};

/// A TAP interface that we have attached to.
pub(crate) struct Tap {
    file: File,
    ifname: String,
    poller: Poller,
    watch: Watch,
    interest: Interest,
    deleted: bool,
    drops: Pace,
    /// Where a short frame is put behind its header: the copy costs less than the kernel's looking at two places.
    joined: [u8; HEADER_BYTES + JOINED_BYTES],
}

const TUN: usize = 0;
/// A frame that is not longer is short.
const JOINED_BYTES: usize = 2048;
/// How many frames that can't be taken one call drops.
const DROPS_PER_RECEIVE: usize = 64;

impl Tap {
    pub(crate) fn open(config: &config::Tap) -> Result<Self, Error> {
        if let Some(ifname) = config.ifname.as_ref().filter(|name| !is_name(name)) {
            return Err(Error::Ifname {
                ifname: ifname.clone(),
            });
        }
        if let Some(bridge) = config.bridge.as_ref().filter(|name| !is_name(name)) {
            return Err(Error::BridgeName {
                bridge: bridge.clone(),
            });
        }
        let poller = Poller::new()?;
        let (file, ifname) = match &config.netns {
            Some(path) => in_netns(path, || attach(config))?,
            None => attach(config)?,
        };
        info!(ifname, bridge = config.bridge, netns = ?config.netns, "tap opened");
        Ok(Self {
            file,
            ifname,
            poller,
            watch: Watch::default(),
            interest: Interest::default(),
            deleted: false,
            drops: Pace::default(),
            joined: [0; HEADER_BYTES + JOINED_BYTES],
        })
    }

    fn update(&mut self) {
        let mut wanted = EpollFlags::empty();
        wanted.set(EpollFlags::EPOLLIN, self.interest.receive);
        wanted.set(EpollFlags::EPOLLOUT, self.interest.send);
        let wanted = (!self.deleted && !wanted.is_empty()).then_some(wanted);
        self.poller
            .arm(&mut self.watch, TUN as u64, self.file.as_fd(), wanted);
        // Who waits to send may: the frame will be dropped.
        self.poller.raise(self.deleted && self.interest.send);
    }

    fn dropped(&mut self, why: &str) {
        if let Some(count) = self.drops.occurred() {
            debug!(ifname = self.ifname, count, why, "tap dropped frames");
        }
    }

    /// The descriptor reports an error for ever after this, so it must not be watched any more.
    fn give_up(&mut self, why: &str) {
        if !self.deleted {
            warn!(
                ifname = self.ifname,
                why, "tap can't be used any more: create the device again"
            );
            self.deleted = true;
            self.update();
        }
    }
}

impl Backend for Tap {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.poller.fd())
    }

    // Nothing to run: whoever waits for something tries it then, and is told so by the attempt when the interface is gone.

    fn wait_for(&mut self, interest: Interest) {
        if interest != self.interest {
            self.interest = interest;
            self.update();
        }
    }

    fn offloads(&self) -> Offloads {
        Offloads {
            checksum: true,
            segment: true,
        }
    }

    fn send(&mut self, frame: &[u8], offload: Offload) -> Result<(), Full> {
        if self.deleted {
            return Ok(());
        }
        if frame.len() > MAX_FRAME_BYTES {
            self.dropped("a frame longer than any");
            return Ok(());
        }
        let header = Header::new(offload, frame);
        loop {
            let written = match self
                .joined
                .get_mut(HEADER_BYTES..HEADER_BYTES + frame.len())
            {
                Some(place) => {
                    place.copy_from_slice(frame);
                    self.joined[..HEADER_BYTES].copy_from_slice(header.as_bytes());
                    write(&self.file, &self.joined[..HEADER_BYTES + frame.len()])
                }
                None => {
                    let record = [IoSlice::new(header.as_bytes()), IoSlice::new(frame)];
                    writev(&self.file, &record)
                }
            };
            match written {
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return Err(Full),
                Err(errno @ Errno::EBADFD) => self.give_up(errno.desc()),
                // Among them EIO, the interface is down, and EINVAL, the frame or what is to be done to it makes no sense.
                Err(errno) => self.dropped(errno.desc()),
            }
            return Ok(());
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Option<Received> {
        let mut dropped = 0;
        while !self.deleted && dropped < DROPS_PER_RECEIVE {
            let mut header = Header::new_zeroed();
            // The kernel cuts a frame that is too long without telling: the byte behind the buffer tells.
            let mut behind = [0; 1];
            let mut record = [
                IoSliceMut::new(header.as_mut_bytes()),
                IoSliceMut::new(buffer),
                IoSliceMut::new(&mut behind),
            ];
            match readv(&self.file, &mut record) {
                Ok(count) => {
                    let frame = count
                        .checked_sub(HEADER_BYTES)
                        .and_then(|length| buffer.get_mut(..length));
                    match frame.map(|frame| header.complete(frame)) {
                        Some(Ok(received)) => return Some(received),
                        Some(Err(Incomplete)) => self.dropped("a frame that is not complete"),
                        None => self.dropped("a frame longer than the buffer"),
                    }
                    dropped += 1;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                // No error is known to pass, and the descriptor would stay readable.
                Err(errno) => self.give_up(errno.desc()),
            }
        }
        None
    }
}

/// What the kernel accepts as the name of an interface and takes as it stands.
fn is_name(name: &str) -> bool {
    let is_refused = |c: char| matches!(c, '/' | ':' | '%' | '\0') || c.is_whitespace();
    (1..libc::IFNAMSIZ).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(is_refused)
}

/// Runs `work` in another network namespace: on a thread of its own, because a thread that has changed its namespace is
/// of no use for anything else.
fn in_netns<T: Send>(
    path: &Path,
    work: impl FnOnce() -> Result<T, Error> + Send,
) -> Result<T, Error> {
    let netns = |source| Error::Netns {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(|error| match Errno::try_from(error) {
        Ok(Errno::ENOENT | Errno::ENOTDIR) => Error::NetnsMissing {
            path: path.to_owned(),
        },
        Ok(Errno::EACCES | Errno::EPERM) => Error::NetnsPermission {
            path: path.to_owned(),
        },
        other => netns(other.unwrap_or(Errno::UnknownErrno)),
    })?;
    let enter = || match setns(file, CloneFlags::CLONE_NEWNET) {
        Ok(()) => work(),
        Err(Errno::EINVAL) => Err(Error::NotANetns {
            path: path.to_owned(),
        }),
        Err(Errno::EPERM) => Err(Error::NetnsPermission {
            path: path.to_owned(),
        }),
        Err(source) => Err(netns(source)),
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, enter);
        let thread =
            thread.map_err(|error| netns(Errno::try_from(error).unwrap_or(Errno::EAGAIN)))?;
        thread.join().expect("nothing panics while a TAP is made")
    })
}

/// Creates or opens the TAP in this thread's namespace, and makes it work: header, bridge, up.
fn attach(config: &config::Tap) -> Result<(File, String), Error> {
    let file = open_tun()?;
    let (ifname, mut request) = create(&file, config.ifname.as_deref())?;
    let failed = |operation| {
        let ifname = ifname.clone();
        move |source| match source {
            Errno::EPERM => Error::TapPermission { ifname, operation },
            source => Error::Tap {
                ifname,
                operation,
                source,
            },
        }
    };
    // An interface that existed may have been left with other settings.
    // SAFETY: TUNSETVNETHDRSZ and TUNSETVNETLE read an int, TUNSETOFFLOAD takes a number.
    unsafe {
        let fd = file.as_raw_fd();
        tun_set_header_size(fd, &(HEADER_BYTES as c_int))
            .map_err(failed("set the header's size"))?;
        tun_set_little_endian(fd, &1).map_err(failed("set the header's byte order"))?;
        tun_set_offload(fd, TUN_F_CSUM).map_err(failed("set the offloads"))?;
    }
    let control = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(failed("open a control socket"))?;
    if let Some(bridge) = &config.bridge {
        join(&control, bridge, &ifname, config)?;
    }
    set_up(&control, &mut request).map_err(failed("set it up"))?;
    Ok((file, ifname))
}

fn open_tun() -> Result<File, Error> {
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun");
    tun.map_err(|error| match Errno::try_from(error) {
        Ok(Errno::EACCES | Errno::EPERM) => Error::TunPermission,
        Ok(Errno::ENOENT | Errno::ENXIO | Errno::ENODEV) => Error::TunMissing,
        other => Error::Tun(other.unwrap_or(Errno::UnknownErrno)),
    })
}

/// Attaches the file to the interface and returns its name, and a request that names it.
fn create(file: &File, ifname: Option<&str>) -> Result<(String, libc::ifreq), Error> {
    let ifname = ifname.unwrap_or("vfu%d");
    let operation = "create or open it";
    let mut request = request(ifname);
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as c_short;
    // SAFETY: TUNSETIFF reads and writes an ifreq.
    let result = unsafe { tun_set_interface(file.as_raw_fd(), &mut request) };
    let ifname = ifname.to_owned();
    match result {
        Ok(_) => {}
        Err(Errno::EBUSY) => return Err(Error::TapBusy { ifname }),
        Err(Errno::EPERM) => return Err(Error::TapPermission { ifname, operation }),
        Err(Errno::EINVAL | Errno::EEXIST) if if_nametoindex(ifname.as_str()).is_ok() => {
            return Err(Error::NotATap { ifname });
        }
        Err(source) => {
            return Err(Error::Tap {
                ifname,
                operation,
                source,
            });
        }
    }
    let name = CStr::from_bytes_until_nul(request.ifr_name.as_bytes())
        .expect("the kernel ends names with a zero");
    Ok((name.to_string_lossy().into_owned(), request))
}

/// Puts the interface into the bridge, unless it is there.
fn join(control: &OwnedFd, bridge: &str, ifname: &str, config: &config::Tap) -> Result<(), Error> {
    let failed = |source| Error::Bridge {
        bridge: bridge.to_owned(),
        ifname: ifname.to_owned(),
        source,
    };
    let mut request = request(bridge);
    let index = if_nametoindex(ifname).map_err(failed)? as c_int;
    request.ifr_ifru.ifru_ifindex = index;
    // SAFETY: SIOCBRADDIF reads an ifreq.
    match unsafe { bridge_add_interface(control.as_raw_fd(), &request) } {
        Ok(_) => Ok(()),
        Err(Errno::ENODEV) => Err(Error::BridgeMissing {
            bridge: bridge.to_owned(),
            netns: config.netns.clone(),
        }),
        Err(Errno::EOPNOTSUPP) => Err(Error::NotABridge {
            bridge: bridge.to_owned(),
        }),
        Err(Errno::EBUSY) if ports(control, request).contains(&index) => Ok(()),
        Err(Errno::EBUSY) => Err(Error::BridgeTaken {
            bridge: bridge.to_owned(),
            ifname: ifname.to_owned(),
        }),
        Err(source) => Err(failed(source)),
    }
}

/// The interfaces in a bridge, by index; none when the kernel does not tell.
fn ports(control: &OwnedFd, mut bridge: libc::ifreq) -> Vec<c_int> {
    const GET_PORT_LIST: usize = 7;
    const PORTS: usize = 1024;
    let mut ports = vec![0; PORTS];
    let mut arguments = [
        GET_PORT_LIST,
        ports.as_mut_ptr().expose_provenance(),
        PORTS,
        0,
    ];
    bridge.ifr_ifru.ifru_data = arguments.as_mut_ptr().cast();
    // SAFETY: For a bridge, SIOCDEVPRIVATE reads the four words that the request points to; with this first word it writes
    // up to the third's number of ints to where the second points. Both arrays live until it has returned.
    let told = unsafe { bridge_private(control.as_raw_fd(), &bridge) };
    if told.is_ok() { ports } else { Vec::new() }
}

/// Brings the interface up, if it is not, which lets an owner without privilege use one that is.
fn set_up(control: &OwnedFd, request: &mut libc::ifreq) -> Result<(), Errno> {
    // SAFETY: SIOCGIFFLAGS reads and writes an ifreq, SIOCSIFFLAGS reads one; the flags are what the former wrote.
    unsafe {
        get_interface_flags(control.as_raw_fd(), request)?;
        if request.ifr_ifru.ifru_flags & libc::IFF_UP as c_short == 0 {
            request.ifr_ifru.ifru_flags |= libc::IFF_UP as c_short;
            set_interface_flags(control.as_raw_fd(), request)?;
        }
    }
    Ok(())
}

/// A request about an interface whose name [`is_name`] accepts, or our pattern.
fn request(name: &str) -> libc::ifreq {
    // SAFETY: An ifreq is integers, and a union of those and of pointers: all zero is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request
}

mod ioctl {
    //! What the kernel's headers say about each: its number and the type of its argument.
    use super::c_int;

    // The C library's crate lacks these.
    pub(super) const TUN_F_CSUM: c_int = 1;
    const SIOCBRADDIF: libc::Ioctl = 0x89a2;
    const SIOCDEVPRIVATE: libc::Ioctl = 0x89f0;

    nix::ioctl_readwrite_bad!(tun_set_interface, libc::TUNSETIFF, libc::ifreq);
    nix::ioctl_write_ptr_bad!(tun_set_header_size, libc::TUNSETVNETHDRSZ, c_int);
    nix::ioctl_write_ptr_bad!(tun_set_little_endian, libc::TUNSETVNETLE, c_int);
    nix::ioctl_write_int_bad!(tun_set_offload, libc::TUNSETOFFLOAD);
    nix::ioctl_readwrite_bad!(get_interface_flags, libc::SIOCGIFFLAGS, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_interface_flags, libc::SIOCSIFFLAGS, libc::ifreq);
    nix::ioctl_write_ptr_bad!(bridge_add_interface, SIOCBRADDIF, libc::ifreq);
    nix::ioctl_write_ptr_bad!(bridge_private, SIOCDEVPRIVATE, libc::ifreq);
}
use ioctl::*;

#[cfg(test)]
#[path = "tap_tests.rs"]
mod tests;
