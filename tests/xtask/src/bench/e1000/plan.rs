//! What is measured, in which order.

use clap::ValueEnum;

use super::{E1000, Figures, frame::Size};

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub(crate) enum Work {
    /// Limit: each frame copied once
    Copy,
    /// Limit: frames written to a UNIX stream socket, 64 at once
    Socket,
    /// Limit: frames written to a TAP
    Tap,
    /// Limit: from a message to an eventfd
    Wake,
    /// The guest sends
    Send,
    /// The guest receives, from a peer that sends what it can
    Receive,
    /// The guest receives, from a peer that sends what there are buffers for
    ReceiveWindow,
    /// From doorbell to interrupt
    SendOne,
    /// From a frame's leaving the peer to the interrupt
    ReceiveOne,
}

/// What the device's frames go to, and come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub(crate) enum Backend {
    Null,
    Stream,
    /// Receiving, it is in a bridge with the peer's.
    Tap,
}

/// A line of the table.
pub(super) struct Line {
    pub(super) work: Work,
    /// None in a limit.
    pub(super) backend: Option<Backend>,
    pub(super) size: Size,
    /// Frames for each doorbell; 0 where there is none.
    pub(super) doorbell: u64,
    pub(super) rounds: Vec<Figures>,
    /// System calls of the server per frame.
    pub(super) calls: Option<f64>,
}

const DOORBELLS: [u64; 3] = [1, 16, 64];
const FRAMES: [Size; 3] = [Size::Small, Size::Medium, Size::Large];

/// All that the options ask for. What is compared stands close together, so that it is measured soon one after the other.
pub(super) fn plan(options: &E1000) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut add = |work, backend: Option<Backend>, size, doorbell| {
        let is_wanted = (options.work.is_empty() || options.work.contains(&work))
            && (options.size.is_empty() || options.size.contains(&size))
            && backend.is_none_or(|it| options.backend.is_empty() || options.backend.contains(&it))
            && (doorbell == 0
                || options.doorbell.is_empty()
                || options.doorbell.contains(&doorbell));
        if is_wanted {
            lines.push(Line {
                work,
                backend,
                size,
                doorbell,
                rounds: Vec::new(),
                calls: None,
            });
        }
    };
    for size in Size::value_variants() {
        add(Work::Copy, None, *size, 0);
        for backend in [Backend::Null, Backend::Stream, Backend::Tap] {
            match backend {
                Backend::Null => {}
                Backend::Stream => add(Work::Socket, None, *size, 0),
                Backend::Tap => add(Work::Tap, None, *size, 0),
            }
            for doorbell in DOORBELLS {
                add(Work::Send, Some(backend), *size, doorbell);
            }
        }
    }
    for size in FRAMES {
        for work in [Work::ReceiveWindow, Work::Receive] {
            for doorbell in DOORBELLS {
                add(work, Some(Backend::Stream), size, doorbell);
            }
            add(work, Some(Backend::Tap), size, 64);
        }
    }
    add(Work::Wake, None, Size::Small, 0);
    add(Work::SendOne, Some(Backend::Null), Size::Small, 1);
    add(Work::SendOne, Some(Backend::Stream), Size::Small, 1);
    add(Work::ReceiveOne, Some(Backend::Stream), Size::Small, 1);
    add(Work::ReceiveOne, Some(Backend::Tap), Size::Small, 1);
    lines
}
