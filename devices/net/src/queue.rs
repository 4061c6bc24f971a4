//! A bounded queue of frames as they lie on a stream: four bytes of length, most significant first, then the frame.
//!
//! One contiguous buffer, so that a batch of frames is one `read` or one `write` and putting in or taking out a frame is
//! one copy. The rest of the buffer is moved to its front only when that makes room for the longest frame, which keeps
//! the moving cheaper than the frames themselves.

use crate::{Full, MAX_FRAME_BYTES};

const PREFIX_BYTES: usize = 4;
const RECORD_BYTES: usize = PREFIX_BYTES + MAX_FRAME_BYTES;
const CAPACITY_BYTES: usize = 2 * RECORD_BYTES;

/// Frames in order, perhaps with the beginning of one at the end.
pub(crate) struct Queue {
    bytes: Box<[u8]>,
    head: usize,
    tail: usize,
}

/// A length that no frame has: zero, or above [`MAX_FRAME_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadLength(pub(crate) u32);

impl Queue {
    pub(crate) fn new() -> Self {
        // Zeroed by the kernel page by page as it is used, so that an idle queue costs nothing.
        Self {
            bytes: vec![0; CAPACITY_BYTES].into_boxed_slice(),
            head: 0,
            tail: 0,
        }
    }

    /// Appends a frame, which must have a length that frames have.
    pub(crate) fn push(&mut self, frame: &[u8]) -> Result<(), Full> {
        let record_bytes = PREFIX_BYTES + frame.len();
        if self.bytes.len() - self.tail < record_bytes {
            if self.head < RECORD_BYTES {
                return Err(Full);
            }
            self.compact();
        }
        let (prefix, rest) = self.bytes[self.tail..][..record_bytes].split_at_mut(PREFIX_BYTES);
        let length = u32::try_from(frame.len()).expect("a frame is at most MAX_FRAME_BYTES long");
        prefix.copy_from_slice(&length.to_be_bytes());
        rest.copy_from_slice(frame);
        self.tail += record_bytes;
        Ok(())
    }

    /// The frame at the front, if it is complete.
    pub(crate) fn front(&self) -> Result<Option<&[u8]>, BadLength> {
        let Some((prefix, rest)) = self.filled().split_first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*prefix);
        match usize::try_from(length) {
            Ok(length @ 1..=MAX_FRAME_BYTES) => Ok(rest.get(..length)),
            _ => Err(BadLength(length)),
        }
    }

    /// Takes out the frame that [`Queue::front`] showed, of this length.
    pub(crate) fn pop(&mut self, frame_bytes: usize) {
        self.consume(PREFIX_BYTES + frame_bytes);
    }

    /// Whether a frame of any length fits now.
    pub(crate) fn has_room(&self) -> bool {
        self.bytes.len() - self.tail >= RECORD_BYTES || self.head >= RECORD_BYTES
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.head == self.tail
    }

    /// All that is queued.
    pub(crate) fn filled(&self) -> &[u8] {
        &self.bytes[self.head..self.tail]
    }

    /// Takes bytes from the front.
    pub(crate) fn consume(&mut self, bytes: usize) {
        self.head += bytes;
        assert!(
            self.head <= self.tail,
            "no more is taken out than was put in"
        );
        if self.is_empty() {
            self.clear();
        }
    }

    /// Where the next bytes go, as many as there is place for.
    pub(crate) fn unfilled(&mut self) -> &mut [u8] {
        self.compact();
        &mut self.bytes[self.tail..]
    }

    /// Says that so many bytes were written to the start of [`Queue::unfilled`].
    pub(crate) fn fill(&mut self, bytes: usize) {
        self.tail += bytes;
        assert!(
            self.tail <= self.bytes.len(),
            "no more is put in than there is place for"
        );
    }

    /// Drops what follows the last complete frame.
    pub(crate) fn keep_complete(&mut self) {
        let start = self.head;
        while let Ok(Some(frame)) = self.front() {
            // Not `pop`: it would start over at the front of the buffer when nothing is left.
            self.head += PREFIX_BYTES + frame.len();
        }
        self.tail = self.head;
        self.head = start;
        if self.is_empty() {
            self.clear();
        }
    }

    pub(crate) fn clear(&mut self) {
        (self.head, self.tail) = (0, 0);
    }

    fn compact(&mut self) {
        self.bytes.copy_within(self.head..self.tail, 0);
        (self.head, self.tail) = (0, self.tail - self.head);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(queue: &mut Queue) -> Option<Vec<u8>> {
        let frame = queue.front().unwrap()?.to_vec();
        queue.pop(frame.len());
        Some(frame)
    }

    #[test]
    fn frames_come_out_in_order_across_many_turns_of_the_buffer() {
        let mut queue = Queue::new();
        let (mut put, mut taken) = (0_u32, 0_u32);
        let frame = |number: u32| {
            let mut frame = vec![
                number.to_le_bytes()[0];
                60 + (number as usize * 7919) % (MAX_FRAME_BYTES - 60)
            ];
            frame[..4].copy_from_slice(&number.to_le_bytes());
            frame
        };
        while put < 500 {
            while queue.push(&frame(put)).is_ok() {
                put += 1;
            }
            assert!(!queue.has_room());
            while !queue.has_room() {
                assert_eq!(take(&mut queue).unwrap(), frame(taken));
                taken += 1;
            }
            queue.push(&vec![1; MAX_FRAME_BYTES]).unwrap();
            while let Some(taken_frame) = take(&mut queue) {
                if taken_frame.len() != MAX_FRAME_BYTES {
                    assert_eq!(taken_frame, frame(taken));
                    taken += 1;
                }
            }
            assert!(queue.is_empty());
        }
        assert_eq!(put, taken);
    }

    #[test]
    fn lengths_that_no_frame_has_are_told() {
        for length in [0, u32::try_from(MAX_FRAME_BYTES).unwrap() + 1, u32::MAX] {
            let mut queue = Queue::new();
            queue.unfilled()[..4].copy_from_slice(&length.to_be_bytes());
            queue.fill(4);
            assert_eq!(queue.front(), Err(BadLength(length)));
            queue.keep_complete();
            assert!(queue.is_empty());
        }
    }

    #[test]
    fn an_incomplete_frame_is_cut_off_at_any_byte() {
        let mut whole = Queue::new();
        whole.push(&[1; 60]).unwrap();
        whole.push(&[2; 61]).unwrap();
        let bytes = whole.filled().to_vec();
        for cut in 0..=bytes.len() {
            let mut queue = Queue::new();
            queue.unfilled()[..cut].copy_from_slice(&bytes[..cut]);
            queue.fill(cut);
            queue.keep_complete();
            let frames: Vec<_> = std::iter::from_fn(|| take(&mut queue)).collect();
            assert_eq!(
                frames.len(),
                usize::from(cut >= 64) + usize::from(cut >= 129)
            );
        }
    }
}
