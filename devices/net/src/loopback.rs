//! Every frame comes back, in order. When the queue is full frames are refused, so that none is lost.

use std::os::fd::BorrowedFd;

use tracing::debug;

use crate::{
    Backend, Error, Full, Interest, MAX_FRAME_BYTES, Offload, Received, pace::Pace, poller::Flag,
    queue::Queue,
};

/// A plug that joins the sending pair of a cable to the receiving pair.
pub(crate) struct Loopback {
    queue: Queue,
    interest: Interest,
    flag: Flag,
    drops: Pace,
}

impl Loopback {
    pub(crate) fn new() -> Result<Self, Error> {
        Ok(Self {
            queue: Queue::new(),
            interest: Interest::default(),
            flag: Flag::new()?,
            drops: Pace::default(),
        })
    }

    fn update(&mut self) {
        let can_receive = self.interest.receive && !self.queue.is_empty();
        self.flag
            .raise(can_receive || self.interest.send && self.queue.has_room());
    }

    fn dropped(&mut self, frame_bytes: usize) {
        if let Some(count) = self.drops.occurred() {
            debug!(
                count,
                frame_bytes, "loopback dropped frames of a length that can't be taken"
            );
        }
    }
}

impl Backend for Loopback {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.flag.fd())
    }

    fn wait_for(&mut self, interest: Interest) {
        self.interest = interest;
        self.update();
    }

    fn send(&mut self, frame: &[u8], offload: Offload) -> Result<(), Full> {
        debug_assert_eq!(offload, Offload::None, "none is advertised");
        if frame.is_empty() || frame.len() > MAX_FRAME_BYTES {
            self.dropped(frame.len());
            return Ok(());
        }
        self.queue.push(frame)?;
        self.update();
        Ok(())
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Option<Received> {
        let mut received = None;
        while received.is_none() {
            let Ok(Some(frame)) = self.queue.front() else {
                break;
            };
            let frame_bytes = frame.len();
            if let Some(place) = buffer.get_mut(..frame_bytes) {
                place.copy_from_slice(frame);
                received = Some(Received::unverified(frame_bytes));
            }
            self.queue.pop(frame_bytes);
            if received.is_none() {
                self.dropped(frame_bytes);
            }
        }
        self.update();
        received
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{self, frame};

    fn open() -> Box<dyn Backend> {
        Box::new(Loopback::new().unwrap())
    }

    #[test]
    fn conforms() {
        conformance::check_alone(&mut open);
    }

    #[test]
    fn frames_of_every_length_come_back() {
        let mut loopback = open();
        let mut buffer = [0; 2048];
        for length in 1..=1514 {
            loopback.send(&frame(length, 7), Offload::None).unwrap();
            loopback.flush();
            assert_eq!(
                loopback.receive(&mut buffer),
                Some(Received::unverified(length))
            );
            assert_eq!(buffer[..length], frame(length, 7));
        }
        assert_eq!(loopback.receive(&mut buffer), None);
    }

    #[test]
    fn refuses_when_full_and_loses_nothing() {
        let mut loopback = open();
        let mut sent = 0;
        while loopback.send(&frame(1514, sent), Offload::None).is_ok() {
            sent += 1;
        }
        assert!(sent >= 64, "{sent}");
        loopback.wait_for(Interest {
            receive: false,
            send: true,
        });
        assert!(!conformance::readable(loopback.as_ref(), 0));
        let mut buffer = [0; 1514];
        let mut received = 0;
        while loopback.receive(&mut buffer).is_some() {
            assert_eq!(buffer[..], frame(1514, received));
            received += 1;
        }
        assert_eq!(received, sent);
        assert!(conformance::readable(loopback.as_ref(), 0));
        loopback.send(&frame(60, 0), Offload::None).unwrap();
        loopback.wait_for(Interest {
            receive: true,
            send: false,
        });
        assert!(conformance::readable(loopback.as_ref(), 0));
        loopback.wait_for(Interest::default());
        assert!(!conformance::readable(loopback.as_ref(), 0));
    }

    #[test]
    fn a_frame_that_is_too_long_for_the_buffer_is_dropped() {
        let mut loopback = open();
        loopback.send(&frame(61, 1), Offload::None).unwrap();
        loopback.send(&frame(60, 2), Offload::None).unwrap();
        let mut buffer = [0; 60];
        assert_eq!(
            loopback.receive(&mut buffer),
            Some(Received::unverified(60))
        );
        assert_eq!(buffer[..], frame(60, 2));
        loopback
            .send(&vec![0; MAX_FRAME_BYTES + 1], Offload::None)
            .unwrap();
        assert_eq!(loopback.receive(&mut buffer), None);
    }
}
