//! The migration states, MIG_DATA_READ and MIG_DATA_WRITE.

use nix::errno::Errno;

use crate::{
    support::{Client, Fake},
    wire::{access, words},
};

const RESET: u16 = 13;
const FEATURE: u16 = 16;
const DATA_READ: u16 = 17;
const DATA_WRITE: u16 = 18;

const ERROR: u32 = 0;
const STOP: u32 = 1;
const RUNNING: u32 = 2;
const STOP_COPY: u32 = 3;
const RESUMING: u32 = 4;
const RUNNING_P2P: u32 = 5;
const PRE_COPY: u32 = 6;
const PRE_COPY_P2P: u32 = 7;
const STATES: [u32; 5] = [STOP, RUNNING, STOP_COPY, RESUMING, PRE_COPY];

impl Client {
    fn movable() -> Self {
        Self::new(Fake {
            is_movable: true,
            ..Fake::default()
        })
    }

    fn state(&mut self) -> u32 {
        let reply = self.call(FEATURE, &words(&[16, 1 << 16 | 2]));
        u32::from_le_bytes(reply[8..12].try_into().unwrap())
    }

    fn go(&mut self, state: u32) -> Result<(), Errno> {
        let request = words(&[16, 1 << 17 | 2, state, 0]);
        let reply = self.call_with(FEATURE, &request, &[]);
        match reply.error {
            0 if reply.payload == request => Ok(()),
            errno => Err(Errno::from_raw(errno as i32)),
        }
    }

    /// MIG_DATA_READ of `size` bytes.
    fn read(&mut self, size: u32) -> Vec<u8> {
        let reply = self.call(DATA_READ, &words(&[8 + size, size]));
        let got = reply.len() as u32;
        assert_eq!(reply[..8], words(&[got, got - 8]));
        reply[8..].to_vec()
    }

    /// MIG_DATA_WRITE.
    fn deliver(&mut self, data: &[u8]) {
        let size = data.len() as u32;
        let reply = self.call(DATA_WRITE, &[&words(&[8 + size, size])[..], data].concat());
        assert!(reply.is_empty());
    }

    /// A device that has been brought to `state`, with an empty stream where there is one.
    fn at(state: u32) -> Self {
        let mut client = Self::movable();
        client.go(state).unwrap();
        client
    }
}

fn state_of(fill: u8) -> Vec<u8> {
    [&b"fake"[..], &[fill; 256]].concat()
}

#[test]
fn every_state_is_reached_from_every_other() {
    for from in STATES {
        for to in STATES {
            let mut client = Client::at(from);
            if from == RESUMING {
                client.deliver(&state_of(1));
            }
            if (from, to) == (STOP_COPY, PRE_COPY) {
                assert_eq!(client.go(to), Err(Errno::EINVAL));
                assert_eq!(client.state(), from);
                continue;
            }
            client.go(to).unwrap();
            assert_eq!(client.state(), to, "from {from}");
            let is_running = [RUNNING, PRE_COPY].contains(&to);
            assert_eq!(client.session.is_running(), is_running, "{from} -> {to}");
            assert_eq!(client.device.is_running, is_running, "{from} -> {to}");
        }
    }
}

#[test]
fn there_is_no_way_to_states_that_are_not_used() {
    for from in STATES {
        for to in [ERROR, RUNNING_P2P, PRE_COPY_P2P, 8, u32::MAX] {
            let mut client = Client::at(from);
            assert_eq!(client.go(to), Err(Errno::EINVAL));
            assert_eq!(client.state(), from);
        }
    }
}

#[test]
fn a_saved_state_is_read_in_pieces_up_to_a_short_one() {
    let mut client = Client::movable();
    client.device.bytes = [7; 256];
    client.go(STOP_COPY).unwrap();
    let mut state = Vec::new();
    for (size, got) in [(0, 0), (100, 100), (100, 100), (60, 60), (1, 0), (100, 0)] {
        let data = client.read(size);
        assert_eq!(data.len(), got);
        state.extend(data);
    }
    assert_eq!(state, state_of(7));
    // Saved again, it is read from its beginning.
    client.go(STOP).unwrap();
    client.go(STOP_COPY).unwrap();
    assert_eq!(client.read(1 << 20), state);
}

#[test]
fn what_is_left_of_a_stream_is_not_found_in_the_next() {
    let mut client = Client::at(STOP_COPY);
    assert_eq!(client.read(100).len(), 100);
    client.go(PRE_COPY).unwrap_err();
    client.go(RUNNING).unwrap();
    client.go(PRE_COPY).unwrap();
    assert!(client.read(4096).is_empty());
    client.go(RESUMING).unwrap();
    client.deliver(&state_of(3));
    client.go(STOP).unwrap();
    client.go(RESUMING).unwrap();
    client.deliver(&state_of(4));
    client.go(RUNNING).unwrap();
    assert_eq!(client.device.bytes, [4; 256]);
}

#[test]
fn nothing_is_read_before_the_device_stops() {
    let mut client = Client::at(PRE_COPY);
    assert!(client.read(4096).is_empty());
    client.go(STOP_COPY).unwrap();
    assert_eq!(client.read(4096).len(), 260);
}

#[test]
fn what_is_read_is_limited() {
    let mut client = Client::at(STOP_COPY);
    for bad in [
        words(&[7, 0]),
        words(&[107, 100]),
        words(&[u32::MAX, (1 << 20) + 1]),
        words(&[u32::MAX, u32::MAX]),
        words(&[8]),
    ] {
        assert_eq!(client.refused(DATA_READ, &bad), Errno::EINVAL, "{bad:?}");
    }
    assert_eq!(client.read(1 << 20).len(), 260, "nothing was lost");
}

#[test]
fn the_stream_belongs_to_its_states() {
    for state in STATES {
        let mut client = Client::at(state);
        if ![PRE_COPY, STOP_COPY].contains(&state) {
            assert_eq!(
                client.refused(DATA_READ, &words(&[108, 100])),
                Errno::EINVAL
            );
        }
        if state != RESUMING {
            assert_eq!(
                client.refused(DATA_WRITE, &words(&[9, 1, 0])),
                Errno::EINVAL
            );
        }
    }
    let mut client = Client::new(Fake::default());
    assert_eq!(
        client.refused(DATA_READ, &words(&[108, 100])),
        Errno::EINVAL
    );
    assert_eq!(
        client.refused(DATA_WRITE, &words(&[9, 1, 0])),
        Errno::EINVAL
    );
}

#[test]
fn a_state_is_moved_to_another_device() {
    let mut source = Client::movable();
    source.call(10, &[&access(5, 0, 1)[..], &[99]].concat());
    source.go(PRE_COPY).unwrap();
    source.go(STOP_COPY).unwrap();
    let mut target = Client::at(RESUMING);
    loop {
        let data = source.read(50);
        target.deliver(&data);
        if data.len() < 50 {
            break;
        }
    }
    target.go(RUNNING).unwrap();
    assert_eq!(target.call(9, &access(5, 0, 1))[16..], [99]);
    assert!(target.session.is_running());
}

#[test]
fn a_bad_state_ends_in_error_and_reset_leads_out_of_it() {
    for bad in [
        vec![],
        b"fake".to_vec(),
        b"ekaf".repeat(65),
        state_of(0)[1..].to_vec(),
    ] {
        let mut client = Client::at(RESUMING);
        client.deliver(&bad);
        assert_eq!(client.go(RUNNING), Err(Errno::EILSEQ));
        assert_eq!(client.state(), ERROR);
        assert!(!client.session.is_running() && !client.device.is_running);
        for to in STATES {
            assert_eq!(client.go(to), Err(Errno::EINVAL));
        }
        client.call(RESET, &[]);
        assert_eq!(client.state(), RUNNING);
        assert!(client.session.is_running() && client.device.is_running);
    }
}

#[test]
fn reset_leads_to_running_from_everywhere() {
    for from in STATES {
        let mut client = Client::at(from);
        client.call(RESET, &[]);
        assert_eq!(client.state(), RUNNING);
        assert!(client.session.is_running() && client.device.is_running);
        // What was to be read or had been written is gone.
        client.go(RESUMING).unwrap();
        client.deliver(&state_of(3));
        client.call(RESET, &[]);
        client.go(RESUMING).unwrap();
        client.deliver(&state_of(4));
        client.go(RUNNING).unwrap();
        assert_eq!(client.device.bytes, [4; 256]);
    }
}

#[test]
fn a_device_that_can_not_be_saved_stays_what_it_was() {
    let mut client = Client::movable();
    client.device.save_error = Some(Errno::ENOSPC);
    client.go(PRE_COPY).unwrap();
    assert_eq!(client.go(STOP_COPY), Err(Errno::ENOSPC));
    assert_eq!(client.state(), PRE_COPY);
    assert!(client.device.is_running);
    client.go(STOP).unwrap();
    assert_eq!(client.go(STOP_COPY), Err(Errno::ENOSPC));
    assert_eq!(client.state(), STOP);
    assert!(!client.device.is_running);
    client.device.save_error = None;
    client.go(STOP_COPY).unwrap();
}

#[test]
fn what_is_written_is_limited() {
    let mut client = Client::at(RESUMING);
    for bad in [
        words(&[9, 1]),
        words(&[9]),
        words(&[u32::MAX, u32::MAX, 0, 0]),
    ] {
        assert_eq!(client.refused(DATA_WRITE, &bad), Errno::EINVAL, "{bad:?}");
    }
    let mebibyte = [words(&[8 + (1 << 20), 1 << 20]), vec![0; 1 << 20]].concat();
    for _ in 0..64 {
        client.call(DATA_WRITE, &mebibyte);
    }
    assert_eq!(
        client.refused(DATA_WRITE, &words(&[9, 1, 0])),
        Errno::ENOMEM
    );
    assert_eq!(client.go(STOP), Err(Errno::EILSEQ));
}
