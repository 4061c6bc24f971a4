//! A cable without a partner.

use std::{os::fd::BorrowedFd, time::Instant};

use crate::{Backend, Full, Interest, Offload, Received};

/// Takes every frame and has none.
#[derive(Default)]
pub(crate) struct Null {
    /// Since when somebody waits to send, who was refused by another backend before his state came here.
    can_send_since: Option<Instant>,
}

impl Backend for Null {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn deadline(&self) -> Option<Instant> {
        self.can_send_since
    }

    fn wait_for(&mut self, interest: Interest) {
        self.can_send_since = interest.send.then(Instant::now);
    }

    fn send(&mut self, _frame: &[u8], _offload: Offload) -> Result<(), Full> {
        Ok(())
    }

    fn receive(&mut self, _buffer: &mut [u8]) -> Option<Received> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;

    #[test]
    fn conforms() {
        conformance::check_alone(&mut || Box::new(Null::default()));
    }

    #[test]
    fn takes_frames_for_ever_and_returns_none() {
        let mut null = Null::default();
        for _ in 0..10_000 {
            null.send(&[0; 1514], Offload::None).unwrap();
        }
        null.flush();
        assert_eq!(null.receive(&mut [0; 1514]), None);
    }

    #[test]
    fn who_waits_to_send_is_called_at_once() {
        let mut null = Null::default();
        assert_eq!(null.deadline(), None);
        null.wait_for(Interest {
            receive: true,
            send: true,
        });
        assert!(null.deadline().is_some_and(|due| due <= Instant::now()));
        null.wait_for(Interest::default());
        assert_eq!(null.deadline(), None);
    }
}
