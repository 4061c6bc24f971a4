//! DEVICE_GET_IRQ_INFO and DEVICE_SET_IRQS.

use std::os::fd::{AsFd, AsRawFd, RawFd};

use nix::{
    errno::Errno,
    sys::eventfd::{EfdFlags, EventFd},
};

use crate::{
    support::{Client, Fake, LINE, MESSAGE},
    wire::words,
};

const GET_IRQ_INFO: u16 = 7;
const SET_IRQS: u16 = 8;
const RESET: u16 = 13;

/// The fake's indexes: one line, four messages, none, one notice.
const INTX: u32 = 0;
const MSI: u32 = 1;
const ABSENT: u32 = 2;
const NOTICE: u32 = 3;

/// What the data is.
const NONE: u32 = 1;
const BOOL: u32 = 2;
const EVENTFD: u32 = 4;
/// What is done.
const MASK: u32 = 8;
const UNMASK: u32 = 16;
const TRIGGER: u32 = 32;

fn set(flags: u32, index: u32, start: u32, count: u32) -> Vec<u8> {
    words(&[20, flags, index, start, count])
}

/// With booleans behind.
fn set_bool(action: u32, index: u32, start: u32, list: &[u8]) -> Vec<u8> {
    let count = list.len() as u32;
    let request = words(&[20 + count, BOOL | action, index, start, count]);
    [&request[..], list].concat()
}

fn eventfds<const N: usize>() -> ([EventFd; N], [RawFd; N]) {
    let fds = std::array::from_fn(|_| EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap());
    let raw = std::array::from_fn(|i: usize| <[EventFd; N]>::as_slice(&fds)[i].as_fd().as_raw_fd());
    (fds, raw)
}

/// How often each was signalled since it was last asked.
fn signals(eventfds: &[EventFd]) -> Vec<u64> {
    let read = |eventfd: &EventFd| eventfd.read().unwrap_or(0);
    eventfds.iter().map(read).collect()
}

/// A client with its eventfds for the four messages.
fn with_messages() -> (Client, [EventFd; 4]) {
    let mut client = Client::new(Fake::default());
    let (eventfds, raw) = eventfds();
    let reply = client.call_with(SET_IRQS, &set(EVENTFD | TRIGGER, MSI, 0, 4), &raw);
    assert_eq!((reply.flags, reply.payload.len()), (1, 0));
    (client, eventfds)
}

#[test]
fn irq_info_says_how_many_and_what_they_can() {
    let mut client = Client::new(Fake::default());
    assert_eq!(
        client.call(GET_IRQ_INFO, &words(&[16, 0, INTX, 0])),
        // EVENTFD, MASKABLE and AUTOMASKED.
        words(&[16, 7, INTX, 1])
    );
    assert_eq!(
        client.call(GET_IRQ_INFO, &words(&[99, 0, MSI, 0])),
        // EVENTFD, MASKABLE and NORESIZE.
        words(&[16, 11, MSI, 4])
    );
    assert_eq!(
        client.call(GET_IRQ_INFO, &words(&[16, 0, ABSENT, 0])),
        words(&[16, 0, ABSENT, 0])
    );
    assert_eq!(
        client.call(GET_IRQ_INFO, &words(&[16, 0, NOTICE, 0])),
        // EVENTFD and NORESIZE.
        words(&[16, 9, NOTICE, 1])
    );
    for bad in [
        words(&[15, 0, 0, 0]),
        words(&[16, 0, 4, 0]),
        words(&[16, 0, u32::MAX, 0]),
        words(&[16, 0, 0]),
    ] {
        assert_eq!(client.refused(GET_IRQ_INFO, &bad), Errno::EINVAL);
    }
}

#[test]
fn interrupts_are_signalled_through_their_eventfds() {
    let (mut client, eventfds) = with_messages();
    client.write(MESSAGE, &[2]).unwrap();
    assert_eq!(signals(&eventfds), [0, 0, 1, 0]);
    let ([other], raw) = self::eventfds();
    client.call_with(SET_IRQS, &set(EVENTFD | TRIGGER, MSI, 2, 1), &raw);
    client.write(MESSAGE, &[2]).unwrap();
    client.write(MESSAGE, &[3]).unwrap();
    assert_eq!(
        (signals(&eventfds), other.read()),
        (vec![0, 0, 0, 1], Ok(1))
    );
}

#[test]
fn no_descriptors_take_the_range_away() {
    let (mut client, eventfds) = with_messages();
    client.call(SET_IRQS, &set(EVENTFD | TRIGGER, MSI, 1, 2));
    for number in 0..4 {
        client.write(MESSAGE, &[number]).unwrap();
    }
    assert_eq!(signals(&eventfds), [1, 0, 0, 1]);
}

#[test]
fn count_zero_disables_the_index() {
    let (mut client, eventfds) = with_messages();
    for bad in [
        set(NONE | TRIGGER, MSI, 1, 0),
        set(NONE | MASK, MSI, 0, 0),
        set(NONE | UNMASK, MSI, 0, 0),
        set(BOOL | TRIGGER, MSI, 0, 0),
        set(EVENTFD | TRIGGER, MSI, 0, 0),
        set(NONE | TRIGGER, ABSENT, 0, 0),
        set(NONE | TRIGGER, 4, 0, 0),
    ] {
        assert_eq!(client.refused(SET_IRQS, &bad), Errno::EINVAL, "{bad:?}");
    }
    client.write(MESSAGE, &[0]).unwrap();
    assert_eq!(signals(&eventfds), [1, 0, 0, 0]);
    client.call(SET_IRQS, &set(NONE | TRIGGER, MSI, 0, 0));
    client.write(MESSAGE, &[0]).unwrap();
    assert_eq!(signals(&eventfds), [0; 4]);
}

#[test]
fn a_client_triggers_interrupts_itself() {
    let (mut client, eventfds) = with_messages();
    client.call(SET_IRQS, &set(NONE | TRIGGER, MSI, 1, 3));
    assert_eq!(signals(&eventfds), [0, 1, 1, 1]);
    client.call(SET_IRQS, &set_bool(TRIGGER, MSI, 0, &[1, 0, 0, 255]));
    assert_eq!(signals(&eventfds), [1, 0, 0, 1]);
}

#[test]
fn messages_are_masked_and_unmasked_by_number() {
    let (mut client, eventfds) = with_messages();
    client.call(SET_IRQS, &set(NONE | MASK, MSI, 0, 4));
    for number in 0..4 {
        client.write(MESSAGE, &[number]).unwrap();
    }
    assert_eq!(signals(&eventfds), [0; 4]);
    client.call(SET_IRQS, &set_bool(UNMASK, MSI, 1, &[1, 0, 1]));
    assert_eq!(signals(&eventfds), [0, 1, 0, 1], "they were pending");
    client.call(SET_IRQS, &set(NONE | UNMASK, MSI, 0, 4));
    assert_eq!(signals(&eventfds), [1, 0, 1, 0]);
    client.call(SET_IRQS, &set_bool(MASK, MSI, 0, &[0, 1]));
    client.write(MESSAGE, &[0]).unwrap();
    client.write(MESSAGE, &[1]).unwrap();
    assert_eq!(signals(&eventfds), [1, 0, 0, 0]);
}

#[test]
fn messages_from_before_a_reset_are_not_sent_after_it() {
    let (mut client, eventfds) = with_messages();
    client.call(SET_IRQS, &set(NONE | MASK, MSI, 0, 4));
    client.write(MESSAGE, &[1]).unwrap();
    client.call(RESET, &[]);
    client.write(MESSAGE, &[2]).unwrap();
    client.call(SET_IRQS, &set(NONE | UNMASK, MSI, 0, 4));
    assert_eq!(signals(&eventfds), [0, 0, 1, 0]);
}

#[test]
fn a_line_that_is_still_up_fires_again_at_unmask() {
    let mut client = Client::new(Fake::default());
    let (eventfds, raw) = eventfds::<1>();
    client.call_with(SET_IRQS, &set(EVENTFD | TRIGGER, INTX, 0, 1), &raw);
    client.write(LINE, &[1]).unwrap();
    assert_eq!(signals(&eventfds), [1]);
    client.call(SET_IRQS, &set(NONE | UNMASK, INTX, 0, 1));
    assert_eq!(signals(&eventfds), [1]);
    client.call(SET_IRQS, &set_bool(UNMASK, INTX, 0, &[0]));
    assert_eq!(signals(&eventfds), [0], "unmask of none");
    client.write(LINE, &[0]).unwrap();
    client.call(SET_IRQS, &set_bool(UNMASK, INTX, 0, &[1]));
    assert_eq!(signals(&eventfds), [0]);
}

#[test]
fn flags_are_one_kind_of_data_and_one_action() {
    let (mut client, _eventfds) = with_messages();
    for flags in (0..64).chain([NONE | TRIGGER | 64, NONE | TRIGGER | 1 << 31, u32::MAX]) {
        let is_one = |bits: u32| bits.count_ones() == 1;
        if !is_one(flags & 7) || !is_one(flags >> 3) {
            let request = [set(flags, MSI, 0, 1), vec![0]].concat();
            assert_eq!(client.refused(SET_IRQS, &request), Errno::EINVAL, "{flags}");
        }
    }
}

#[test]
fn ranges_stay_inside_their_index() {
    let (mut client, _eventfds) = with_messages();
    for flags in [
        NONE | TRIGGER,
        NONE | MASK,
        NONE | UNMASK,
        EVENTFD | TRIGGER,
    ] {
        for (index, start, count) in [
            (MSI, 0, 5),
            (MSI, 4, 1),
            (MSI, 3, 2),
            (MSI, 1, u32::MAX),
            (MSI, u32::MAX, 1),
            (MSI, u32::MAX, u32::MAX),
            (ABSENT, 0, 1),
            (4, 0, 1),
            (u32::MAX, 0, 1),
        ] {
            let request = set(flags, index, start, count);
            assert_eq!(client.refused(SET_IRQS, &request), Errno::EINVAL);
        }
    }
}

#[test]
fn data_is_as_long_as_the_range() {
    let (mut client, eventfds) = with_messages();
    let (_keep, raw) = self::eventfds::<4>();
    let mut short = set_bool(TRIGGER, MSI, 0, &[1; 4]);
    short.pop();
    assert_eq!(client.refused(SET_IRQS, &short), Errno::EINVAL);
    let argsz = [words(&[23, BOOL | TRIGGER, MSI, 0, 4]), vec![1; 4]].concat();
    assert_eq!(client.refused(SET_IRQS, &argsz), Errno::EINVAL);
    let argsz = words(&[19, NONE | TRIGGER, MSI, 0, 4]);
    assert_eq!(client.refused(SET_IRQS, &argsz), Errno::EINVAL);
    for count in [1, 2, 3] {
        let request = set(EVENTFD | TRIGGER, MSI, 0, count);
        assert_eq!(client.refused_with(SET_IRQS, &request, &raw), Errno::EINVAL);
    }
    // Descriptors that nothing was said about.
    for request in [
        set(NONE | TRIGGER, MSI, 0, 4),
        set_bool(TRIGGER, MSI, 0, &[1; 4]),
        set(NONE | TRIGGER, MSI, 0, 0),
    ] {
        assert_eq!(client.refused_with(SET_IRQS, &request, &raw), Errno::EINVAL);
    }
    assert_eq!(signals(&eventfds), [0; 4], "nothing was done");
}

#[test]
fn masking_is_told_and_done_by_eventfds() {
    let mut client = Client::new(Fake::default());
    let ([trigger, mask, unmask], raw) = eventfds();
    for (action, fd) in [TRIGGER, MASK, UNMASK].into_iter().zip(raw) {
        let reply = client.call_with(SET_IRQS, &set(EVENTFD | action, INTX, 0, 1), &[fd]);
        assert_eq!((reply.flags, reply.error), (1, 0));
    }
    client.write(LINE, &[1]).unwrap();
    assert_eq!((trigger.read(), mask.read()), (Ok(1), Ok(1)));
    unmask.write(1).unwrap();
    client.session.lent().irqs.serve();
    assert_eq!(trigger.read(), Ok(1), "still up");
    // Without descriptors, it is taken away again.
    client.call(SET_IRQS, &set(EVENTFD | UNMASK, INTX, 0, 1));
    unmask.write(1).unwrap();
    client.session.lent().irqs.serve();
    assert_eq!(trigger.read(), Err(Errno::EAGAIN));
}

#[test]
fn a_notice_is_triggered_only() {
    let mut client = Client::new(Fake::default());
    let ([eventfd], raw) = eventfds();
    for flags in [NONE | MASK, NONE | UNMASK] {
        let request = set(flags, NOTICE, 0, 1);
        assert_eq!(client.refused(SET_IRQS, &request), Errno::EINVAL);
    }
    for flags in [EVENTFD | MASK, EVENTFD | UNMASK] {
        let request = set(flags, NOTICE, 0, 1);
        assert_eq!(client.refused_with(SET_IRQS, &request, &raw), Errno::EINVAL);
    }
    client.call_with(SET_IRQS, &set(EVENTFD | TRIGGER, NOTICE, 0, 1), &raw);
    client.session.lent().irqs.trigger(NOTICE, 0);
    assert_eq!(eventfd.read(), Ok(1));
}

#[test]
fn what_is_no_eventfd_is_refused() {
    let mut client = Client::new(Fake::default());
    let (pipe, _write) = nix::unistd::pipe().unwrap();
    for action in [TRIGGER, MASK, UNMASK] {
        let request = set(EVENTFD | action, INTX, 0, 1);
        let fds = [pipe.as_raw_fd()];
        assert_eq!(client.refused_with(SET_IRQS, &request, &fds), Errno::EINVAL);
    }
}
