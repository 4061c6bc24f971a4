//! What a server has to do with the bytes that were sent: a model of the protocol, as small as it can be.
//!
//! Each request gets one reply, in order, unless it asked for none; a frame that is no frame ends the connection, and so
//! does a request before VERSION. What region 0 of the device has is known from what was written to it.

use std::collections::VecDeque;

use crate::{
    client::Message,
    device::BYTES,
    replies,
    wire::{ERROR, HEADER_BYTES, Header, NO_REPLY, REPLY, VERSION},
};

/// A larger message is refused.
const MAX_MESSAGE_BYTES: usize = HEADER_BYTES + 16 + (1 << 20);
/// Of a request, as much as is looked at.
const KEPT_BYTES: usize = 8 << 10;
/// With fewer descriptors than this on their way nothing is refused for their number.
const FEW_DESCRIPTORS: usize = 8;
/// With fewer than this the connection is not ended for it.
const MANY_DESCRIPTORS: usize = 200;

/// Whether the connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    GoesOn,
    MayEnd,
    Ends,
}

/// A request that was sent, wholly or in part.
struct Request {
    header: Header,
    /// The front of the payload.
    payload: Vec<u8>,
    /// Bytes that are still to be sent.
    lacking: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Accepted,
    /// VERSION was sent, and no reply was wanted.
    Unsure,
    Negotiated,
}

pub(crate) struct Expected {
    phase: Phase,
    /// The front of a header.
    partial: Vec<u8>,
    requests: VecDeque<Request>,
    /// What came last is no message.
    is_broken: bool,
    /// VERSION was sent without a reply, and another request: whether that ended the connection can't be told.
    is_unknown: bool,
    descriptors: usize,
    /// What region 0 has, as long as that is known.
    bytes: Option<[u8; BYTES]>,
}

impl Default for Expected {
    fn default() -> Self {
        Self {
            phase: Phase::Accepted,
            partial: Vec::new(),
            requests: VecDeque::new(),
            is_broken: false,
            is_unknown: false,
            descriptors: 0,
            bytes: Some([0; BYTES]),
        }
    }
}

impl Expected {
    pub(crate) fn has_negotiated(&self) -> bool {
        self.phase == Phase::Negotiated
    }

    /// How many bytes the message that was begun still lacks, as far as can be told.
    pub(crate) fn lacking(&self) -> usize {
        if self.is_unknown {
            usize::MAX
        } else if self.is_broken {
            0
        } else if self.partial.is_empty() {
            self.requests.back().map_or(0, |request| request.lacking)
        } else {
            HEADER_BYTES - self.partial.len()
        }
    }

    /// Takes note of what was sent.
    pub(crate) fn sent(&mut self, bytes: &[u8], descriptors: usize) {
        if !bytes.is_empty() {
            self.descriptors += descriptors;
        }
        if self.descriptors > FEW_DESCRIPTORS {
            self.bytes = None;
        }
        let mut rest = bytes;
        while !rest.is_empty() && !self.is_broken && !self.is_unknown {
            if self.partial.is_empty()
                && let Some(request) = self.requests.back_mut()
                && request.lacking > 0
            {
                let (now, later) = rest.split_at(request.lacking.min(rest.len()));
                let room = KEPT_BYTES - request.payload.len();
                request
                    .payload
                    .extend_from_slice(&now[..now.len().min(room)]);
                request.lacking -= now.len();
                rest = later;
                continue;
            }
            let (now, later) = rest.split_at(rest.len().min(HEADER_BYTES - self.partial.len()));
            self.partial.extend_from_slice(now);
            rest = later;
            if let Some(header) = Header::parse(&self.partial) {
                self.partial.clear();
                let size = header.size as usize;
                self.is_broken = size < HEADER_BYTES;
                if !self.is_broken {
                    self.requests.push_back(Request {
                        header,
                        payload: Vec::new(),
                        lacking: size - HEADER_BYTES,
                    });
                }
            }
        }
    }

    /// Compares the replies with the requests, once the server has done all that it can.
    pub(crate) fn settle(&mut self, replies: &mut VecDeque<Message>) -> Fate {
        let mut fate = if self.descriptors < MANY_DESCRIPTORS {
            Fate::GoesOn
        } else {
            Fate::MayEnd
        };
        while let Some(request) = self.requests.pop_front() {
            let is_whole = request.lacking == 0;
            let is_too_large = request.header.size as usize > MAX_MESSAGE_BYTES;
            if !request.header.is_command() {
                if !is_whole {
                    self.requests.push_front(request);
                    break;
                }
                continue;
            }
            if self.phase != Phase::Negotiated && request.header.command != VERSION {
                if !is_whole && !is_too_large {
                    self.requests.push_front(request);
                    break;
                }
                if self.phase == Phase::Accepted {
                    return Fate::Ends;
                }
                self.is_unknown = true;
                break;
            }
            if !is_whole {
                // One that is too large may be refused before all of it has come.
                self.requests.push_front(request);
                break;
            }
            if request.header.flags & NO_REPLY != 0 {
                self.follow(&request, None, is_too_large);
            } else if let Some(reply) = replies.pop_front() {
                check(&request, &reply);
                self.follow(&request, Some(&reply), is_too_large);
            } else {
                // Only where the connection has ended.
                fate = Fate::Ends;
            }
        }
        if self.is_unknown {
            replies.clear();
            self.requests.clear();
            return Fate::MayEnd;
        }
        if self.is_broken && self.requests.is_empty() {
            return Fate::Ends;
        }
        let early = self.requests.front().filter(|request| {
            request.header.size as usize > MAX_MESSAGE_BYTES && !replies.is_empty()
        });
        if let Some(request) = early {
            assert_eq!(replies.len(), 1, "more replies than requests");
            check(request, &replies[0]);
        } else {
            assert!(replies.is_empty(), "a reply to nothing: {replies:?}");
        }
        fate
    }

    /// What became of VERSION: `reply` is one that says yes.
    fn follow_version(&mut self, request: &Request, reply: Option<&Message>) {
        if let Some(reply) = reply {
            assert!(self.phase != Phase::Negotiated, "agreed on once more");
            replies::check_success(VERSION, &request.payload, &reply.payload);
            self.phase = Phase::Negotiated;
        } else if request.header.flags & NO_REPLY != 0 && self.phase == Phase::Accepted {
            self.phase = Phase::Unsure;
        }
    }

    /// What became of a request.
    fn follow(&mut self, request: &Request, reply: Option<&Message>, is_too_large: bool) {
        let is_refused = reply.map(|reply| reply.header.flags & ERROR != 0);
        if request.header.command == VERSION {
            self.follow_version(request, reply.filter(|_| is_refused == Some(false)));
            return;
        }
        assert!(
            !is_too_large || is_refused != Some(false),
            "too large, and served"
        );
        let command = request.header.command;
        if self.descriptors <= FEW_DESCRIPTORS && replies::cant_fail(command, &request.payload) {
            assert_ne!(is_refused, Some(true), "command {command}");
        }
        if request.payload.len() == KEPT_BYTES || replies::moves(command, &request.payload) {
            self.bytes = None;
        }
        if let (false, Some(bytes)) = (is_too_large, &mut self.bytes) {
            replies::follow(bytes, command, &request.payload, reply);
        }
        if let (Some(false), Some(reply)) = (is_refused, reply) {
            replies::check_success(command, &request.payload, &reply.payload);
        }
    }
}

/// What holds for every reply.
fn check(request: &Request, reply: &Message) {
    let Header { id, command, .. } = request.header;
    let header = reply.header;
    assert_eq!((header.id, header.command), (id, command), "{reply:?}");
    if header.flags & ERROR == 0 {
        assert_eq!((header.flags, header.error), (REPLY, 0), "{reply:?}");
    } else {
        assert_eq!(header.flags, REPLY | ERROR, "{reply:?}");
        assert!((1..134).contains(&header.error), "no errno: {reply:?}");
        assert!(reply.payload.is_empty(), "{reply:?}");
    }
}
