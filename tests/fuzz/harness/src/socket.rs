//! Any bytes on the socket, in any pieces, with any descriptors.

use std::os::fd::{AsRawFd, RawFd};

use crate::{descriptors::Pool, leaks::Before, run::Run};

/// With more descriptors than this at once the kernel sends none.
const MAX_FDS: usize = 253;
/// How the client has introduced itself before, if it has.
const PROPOSALS: [&str; 3] = [
    "{}",
    r#"{"capabilities":{"max_msg_fds":16,"twin_socket":{"supported":true}}}"#,
    r#"{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":4096,"write_multiple":true,"migration":{"pgsize":4096}}}"#,
];

/// The first byte says how the session begins: bits 0 and 1 which proposal has been made, 3 that none has; bits 2 to 4 how many of
/// the bytes that follow say how the server's requests are answered. Then come pieces: a byte of flags, kinds of
/// descriptors, a length of two bytes, and so many bytes to send.
///
/// Flags: bits 0 and 1 are how many kinds follow, 3 that a number and one kind do. Bit 2: the server has no turn now;
/// bit 3: one turn, and its replies are not taken yet. Bit 4: a byte follows that says which file gets which length. Bit 5:
/// the session is taken apart and put together again.
pub fn socket(data: &[u8]) {
    let before = Before::new(|| _ = Pool::get());
    play(&mut Input(data));
    Pool::get().restore();
    before.check();
}

fn play(input: &mut Input<'_>) {
    let start = input.byte();
    let manners = input.bytes(usize::from(start >> 2 & 7));
    let mut run = Run::new(manners);
    if let Some(proposal) = PROPOSALS.get(usize::from(start & 3)) {
        run.negotiate(proposal);
    }
    while !input.0.is_empty() {
        let flags = input.byte();
        let fds = match flags & 3 {
            3 => {
                let count = usize::from(input.byte()).min(MAX_FDS);
                vec![input.fd(); count]
            }
            count => (0..count).map(|_| input.fd()).collect(),
        };
        if flags & 1 << 4 != 0 {
            let which = input.byte();
            run.set_length(which & 0xf, which >> 4);
        }
        if flags & 1 << 5 != 0 {
            run.hand_over(None);
        }
        let length = usize::from(u16::from_le_bytes([input.byte(), input.byte()]));
        run.send(input.bytes(length), &fds);
        match flags >> 2 & 3 {
            0 => run.settle(),
            2 => run.serve(),
            _ => {}
        }
    }
    run.finish();
}

/// What is left of the input; zeros follow.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    /// Fewer, where there are not so many.
    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (now, later) = self.0.split_at(count.min(self.0.len()));
        self.0 = later;
        now
    }

    fn fd(&mut self) -> RawFd {
        Pool::get().pick(self.byte()).as_raw_fd()
    }
}
