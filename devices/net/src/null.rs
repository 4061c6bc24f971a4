//! A cable without a partner.

use std::os::fd::BorrowedFd;

use crate::{Backend, Full, Interest, Offload, Received};

/// Takes every frame and has none.
pub(crate) struct Null;

impl Backend for Null {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn wait_for(&mut self, _interest: Interest) {}

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
        conformance::check_alone(&mut || Box::new(Null));
    }

    #[test]
    fn takes_frames_for_ever_and_returns_none() {
        let mut null = Null;
        for _ in 0..10_000 {
            null.send(&[0; 1514], Offload::None).unwrap();
        }
        null.flush();
        assert_eq!(null.receive(&mut [0; 1514]), None);
    }
}
