//! Interrupts as a client sees them.

use std::{os::fd::AsRawFd, thread, time::Duration};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        epoll::EpollCreateFlags,
        eventfd::{EfdFlags, EventFd},
        inotify::{InitFlags, Inotify},
        timerfd::{ClockId, TimerFd, TimerFlags},
    },
};

use super::*;

const INTX: u32 = 0;
const MSI: u32 = 1;
const REQUEST: u32 = 2;
const NOTHING: Result<u64, Errno> = Err(Errno::EAGAIN);

/// An eventfd of the client's, and the descriptor that it passes.
fn eventfd() -> (EventFd, OwnedFd) {
    let ours = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    let theirs = ours.as_fd().try_clone_to_owned().unwrap();
    (ours, theirs)
}

fn infos() -> [IrqInfo; 3] {
    [
        (1, IrqKind::Level),
        (4, IrqKind::Message),
        (1, IrqKind::Notice),
    ]
    .map(|(count, kind)| IrqInfo { count, kind })
}

fn irqs() -> Irqs {
    Irqs::new(&infos())
}

/// Connects one interrupt, and returns the client's end.
fn connect(irqs: &mut Irqs, index: u32, action: IrqAction, number: u32) -> EventFd {
    let (ours, theirs) = eventfd();
    irqs.connect(index, action, number, [Some(theirs)].into_iter())
        .unwrap();
    ours
}

fn set_mask(irqs: &mut Irqs, index: u32, masked: bool) {
    let count = irqs.indexes[index as usize].irqs.len();
    irqs.set_mask(index, 0, count, masked, |_| true).unwrap();
}

/// Whether somebody who waits for the interrupts is told to serve them.
fn is_ready(irqs: &Irqs) -> bool {
    let mut fds = [PollFd::new(irqs.fd().unwrap(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
}

/// Does something that might wait for the client, and says so rather than wait with it.
fn ends(work: impl FnOnce() + Send + 'static) {
    let worker = thread::spawn(work);
    for _ in 0..1000 {
        if worker.is_finished() {
            return worker.join().unwrap();
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("waits for the client");
}

#[test]
fn level_is_signalled_once_until_unmasked() {
    let mut irqs = irqs();
    let client = connect(&mut irqs, INTX, IrqAction::Trigger, 0);
    irqs.set_level(INTX, true);
    assert_eq!(client.read(), Ok(1));
    irqs.set_level(INTX, true);
    irqs.set_level(INTX, false);
    irqs.set_level(INTX, true);
    assert_eq!(client.read(), NOTHING, "masked since it was signalled");
}

#[test]
fn level_still_up_at_unmask_fires_again() {
    let mut irqs = irqs();
    irqs.set_level(INTX, true);
    let client = connect(&mut irqs, INTX, IrqAction::Trigger, 0);
    assert_eq!(client.read(), Ok(1), "it was up before there was a client");
    set_mask(&mut irqs, INTX, false);
    assert_eq!(client.read(), Ok(1));
    irqs.set_level(INTX, false);
    set_mask(&mut irqs, INTX, false);
    assert_eq!(client.read(), NOTHING);
    irqs.set_level(INTX, true);
    assert_eq!(client.read(), Ok(1));
}

#[test]
fn an_eventfd_unmasks_as_a_message_does() {
    let mut irqs = irqs();
    assert!(irqs.fd().is_none());
    let client = connect(&mut irqs, INTX, IrqAction::Trigger, 0);
    let end = connect(&mut irqs, INTX, IrqAction::Unmask, 0);
    assert!(!is_ready(&irqs));
    irqs.set_level(INTX, true);
    assert_eq!(client.read(), Ok(1));
    for _ in 0..3 {
        end.write(1).unwrap();
        assert!(is_ready(&irqs));
        irqs.serve();
        assert_eq!(client.read(), Ok(1), "still up");
        assert_eq!(end.read(), NOTHING, "it was read");
        assert!(!is_ready(&irqs));
    }
    irqs.set_level(INTX, false);
    end.write(1).unwrap();
    irqs.serve();
    assert_eq!(client.read(), NOTHING);
}

#[test]
fn an_eventfd_that_was_signalled_before_it_came_counts() {
    let mut irqs = irqs();
    let client = connect(&mut irqs, INTX, IrqAction::Trigger, 0);
    irqs.set_level(INTX, true);
    assert_eq!(client.read(), Ok(1));
    let (end, theirs) = eventfd();
    end.write(1).unwrap();
    irqs.connect(INTX, IrqAction::Unmask, 0, [Some(theirs)].into_iter())
        .unwrap();
    assert!(is_ready(&irqs));
    irqs.serve();
    assert_eq!(client.read(), Ok(1));
}

#[test]
fn an_eventfd_that_was_replaced_or_taken_away_no_longer_unmasks() {
    let mut irqs = irqs();
    let client = connect(&mut irqs, INTX, IrqAction::Trigger, 0);
    let first = connect(&mut irqs, INTX, IrqAction::Unmask, 0);
    let second = connect(&mut irqs, INTX, IrqAction::Unmask, 0);
    irqs.set_level(INTX, true);
    assert_eq!(client.read(), Ok(1));
    first.write(1).unwrap();
    irqs.serve();
    assert_eq!(client.read(), NOTHING);
    second.write(1).unwrap();
    irqs.serve();
    assert_eq!(client.read(), Ok(1));
    irqs.connect(INTX, IrqAction::Unmask, 0, [None].into_iter())
        .unwrap();
    second.write(1).unwrap();
    assert!(!is_ready(&irqs));
    let third = connect(&mut irqs, INTX, IrqAction::Unmask, 0);
    irqs.disconnect(INTX).unwrap();
    third.write(1).unwrap();
    assert!(!is_ready(&irqs));
}

#[test]
fn an_eventfd_that_stays_full_does_not_keep_anybody_busy() {
    let mut irqs = irqs();
    let end =
        EventFd::from_value_and_flags(1_000_000, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_SEMAPHORE)
            .unwrap();
    let theirs = end.as_fd().try_clone_to_owned().unwrap();
    irqs.connect(MSI, IrqAction::Unmask, 0, [Some(theirs)].into_iter())
        .unwrap();
    irqs.serve();
    assert!(!is_ready(&irqs));
    end.write(1).unwrap();
    assert!(is_ready(&irqs));
}

#[test]
fn the_client_is_told_of_masks_by_eventfd() {
    let mut irqs = irqs();
    let told = connect(&mut irqs, INTX, IrqAction::Mask, 0);
    let client = connect(&mut irqs, INTX, IrqAction::Trigger, 0);
    irqs.set_level(INTX, true);
    assert_eq!((client.read(), told.read()), (Ok(1), Ok(1)));
    set_mask(&mut irqs, INTX, true);
    assert_eq!(told.read(), NOTHING, "it was masked");
    irqs.set_level(INTX, false);
    set_mask(&mut irqs, INTX, false);
    set_mask(&mut irqs, INTX, true);
    assert_eq!(told.read(), Ok(1));
    let told = connect(&mut irqs, MSI, IrqAction::Mask, 2);
    set_mask(&mut irqs, MSI, true);
    set_mask(&mut irqs, MSI, true);
    assert_eq!(told.read(), Ok(1));
}

#[test]
fn a_masked_message_is_pending_and_sent_once_at_unmask() {
    let mut irqs = irqs();
    let client = connect(&mut irqs, MSI, IrqAction::Trigger, 1);
    set_mask(&mut irqs, MSI, true);
    irqs.trigger(MSI, 1);
    irqs.trigger(MSI, 1);
    assert_eq!(client.read(), NOTHING);
    assert!(irqs.is_pending(MSI, 1));
    assert!(!irqs.is_pending(MSI, 0));
    irqs.set_mask(MSI, 1, 1, false, |_| true).unwrap();
    assert_eq!(client.read(), Ok(1));
    assert!(!irqs.is_pending(MSI, 1));
    irqs.trigger(MSI, 1);
    assert_eq!(client.read(), Ok(1), "a message does not mask itself");
}

#[test]
fn what_the_client_was_told_is_counted_by_index() {
    let mut irqs = irqs();
    let signalled = |irqs: &Irqs| [INTX, MSI, REQUEST, 3].map(|index| irqs.signalled(index));
    irqs.trigger(MSI, 1);
    irqs.set_level(INTX, true);
    assert_eq!(signalled(&irqs), [0; 4], "nobody was told");
    let _clients = [
        connect(&mut irqs, INTX, IrqAction::Trigger, 0),
        connect(&mut irqs, MSI, IrqAction::Trigger, 1),
        connect(&mut irqs, REQUEST, IrqAction::Trigger, 0),
    ];
    assert_eq!(signalled(&irqs), [1, 1, 0, 0]);
    set_mask(&mut irqs, INTX, false);
    assert_eq!(signalled(&irqs), [2, 1, 0, 0], "the line is still up");
    set_mask(&mut irqs, MSI, true);
    irqs.trigger(MSI, 1);
    irqs.trigger(REQUEST, 0);
    irqs.try_out(MSI, 1, 1, |_| true).unwrap();
    assert_eq!(signalled(&irqs), [2, 1, 1, 0]);
    irqs.disconnect(MSI).unwrap();
    assert_eq!(signalled(&irqs), [2, 1, 1, 0]);
}

#[test]
fn a_message_without_an_eventfd_is_pending_until_there_is_one() {
    let mut irqs = irqs();
    irqs.trigger(MSI, 3);
    assert!(irqs.is_pending(MSI, 3));
    let client = connect(&mut irqs, MSI, IrqAction::Trigger, 3);
    assert_eq!(client.read(), Ok(1));
    assert!(!irqs.is_pending(MSI, 3));
}

#[test]
fn a_mask_outlives_the_eventfd() {
    let mut irqs = irqs();
    set_mask(&mut irqs, MSI, true);
    let client = connect(&mut irqs, MSI, IrqAction::Trigger, 0);
    irqs.trigger(MSI, 0);
    assert_eq!(client.read(), NOTHING);
    set_mask(&mut irqs, MSI, false);
    assert_eq!(client.read(), Ok(1));
}

#[test]
fn a_line_is_signalled_again_to_a_new_eventfd() {
    let mut irqs = irqs();
    connect(&mut irqs, INTX, IrqAction::Trigger, 0);
    irqs.set_level(INTX, true);
    let client = connect(&mut irqs, INTX, IrqAction::Trigger, 0);
    assert_eq!(client.read(), Ok(1));
}

#[test]
fn disconnecting_an_index_forgets_everything_but_the_line() {
    let mut irqs = irqs();
    let told = connect(&mut irqs, MSI, IrqAction::Mask, 0);
    let client = connect(&mut irqs, MSI, IrqAction::Trigger, 0);
    set_mask(&mut irqs, MSI, true);
    irqs.trigger(MSI, 0);
    irqs.disconnect(MSI).unwrap();
    set_mask(&mut irqs, MSI, true);
    set_mask(&mut irqs, MSI, false);
    assert_eq!((client.read(), told.read()), (NOTHING, Ok(1)));
    let client = connect(&mut irqs, MSI, IrqAction::Trigger, 0);
    assert_eq!(client.read(), NOTHING);
    irqs.trigger(MSI, 0);
    assert_eq!(client.read(), Ok(1), "not masked");
    irqs.set_level(INTX, true);
    irqs.disconnect(INTX).unwrap();
    let client = connect(&mut irqs, INTX, IrqAction::Trigger, 0);
    assert_eq!(client.read(), Ok(1));
}

#[test]
fn vectors_can_be_added_and_taken_away_one_by_one() {
    let mut irqs = irqs();
    let (first, theirs) = eventfd();
    let (second, theirs_too) = eventfd();
    let both = [Some(theirs), Some(theirs_too)].into_iter();
    irqs.connect(MSI, IrqAction::Trigger, 0, both).unwrap();
    let third = connect(&mut irqs, MSI, IrqAction::Trigger, 2);
    irqs.connect(MSI, IrqAction::Trigger, 1, [None].into_iter())
        .unwrap();
    for number in 0..3 {
        irqs.trigger(MSI, number);
    }
    assert_eq!(
        (first.read(), second.read(), third.read()),
        (Ok(1), NOTHING, Ok(1))
    );
}

#[test]
fn a_notice_reaches_who_listens_and_is_not_kept() {
    let mut irqs = irqs();
    irqs.trigger(REQUEST, 0);
    assert!(!irqs.is_pending(REQUEST, 0));
    let client = connect(&mut irqs, REQUEST, IrqAction::Trigger, 0);
    assert_eq!(client.read(), NOTHING);
    irqs.trigger(REQUEST, 0);
    assert_eq!(client.read(), Ok(1));
    let invalid = Err(Errno::EINVAL);
    assert_eq!(irqs.set_mask(REQUEST, 0, 1, true, |_| true), invalid);
    for action in [IrqAction::Mask, IrqAction::Unmask] {
        let eventfd = [Some(eventfd().1)].into_iter();
        assert_eq!(irqs.connect(REQUEST, action, 0, eventfd), invalid);
    }
}

#[test]
fn the_client_can_try_out_its_eventfds() {
    let mut irqs = irqs();
    let clients = [0, 1, 2].map(|number| connect(&mut irqs, MSI, IrqAction::Trigger, number));
    set_mask(&mut irqs, MSI, true);
    irqs.try_out(MSI, 0, 4, |at| at != 1).unwrap();
    assert_eq!(clients.map(|client| client.read()), [Ok(1), NOTHING, Ok(1)]);
    assert!((0..4).all(|number| !irqs.is_pending(MSI, number)));
    let client = connect(&mut irqs, INTX, IrqAction::Trigger, 0);
    irqs.try_out(INTX, 0, 1, |_| true).unwrap();
    assert_eq!(client.read(), Ok(1));
    irqs.set_level(INTX, true);
    assert_eq!(client.read(), Ok(1), "it did not mask itself");
}

#[test]
fn ranges_outside_the_index_are_refused() {
    let mut irqs = irqs();
    let invalid = Err(Errno::EINVAL);
    for (index, start, count) in [
        (INTX, 0, 2),
        (INTX, 1, 1),
        (MSI, 3, 2),
        (MSI, u32::MAX, 1),
        (MSI, u32::MAX, usize::MAX),
        (7, 0, 1),
    ] {
        let context = format!("{index} {start} {count}");
        let chosen = |_| true;
        assert_eq!(
            irqs.set_mask(index, start, count, true, chosen),
            invalid,
            "{context}"
        );
        assert_eq!(
            irqs.try_out(index, start, count, chosen),
            invalid,
            "{context}"
        );
        let none = (0..count).map(|_| None);
        assert_eq!(
            irqs.connect(index, IrqAction::Trigger, start, none),
            invalid,
            "{context}"
        );
    }
    assert_eq!(irqs.disconnect(7), invalid);
    irqs.trigger(9, 9);
    irqs.set_level(9, true);
    irqs.serve();
}

#[test]
fn only_eventfds_are_taken_and_then_all_or_none() {
    let mut irqs = irqs();
    let (read_end, _write_end) = nix::unistd::pipe().unwrap();
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::empty()).unwrap();
    let not_eventfds: [OwnedFd; 5] = [
        read_end,
        tempfile::tempfile().unwrap().into(),
        Epoll::new(EpollCreateFlags::empty()).unwrap().0,
        timer.as_fd().try_clone_to_owned().unwrap(),
        Inotify::init(InitFlags::empty())
            .unwrap()
            .as_fd()
            .try_clone_to_owned()
            .unwrap(),
    ];
    let client = connect(&mut irqs, MSI, IrqAction::Trigger, 0);
    for fd in not_eventfds {
        let name = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
        for action in [IrqAction::Trigger, IrqAction::Mask, IrqAction::Unmask] {
            let fds = [Some(eventfd().1), Some(fd.try_clone().unwrap())];
            assert_eq!(
                irqs.connect(MSI, action, 0, fds.into_iter()),
                Err(Errno::EINVAL),
                "{name:?} {action:?}"
            );
        }
    }
    irqs.trigger(MSI, 0);
    assert_eq!(client.read(), Ok(1), "what was there has stayed");
}

#[test]
fn what_a_client_made_long_to_describe_is_not_read() {
    // /proc has a line for each descriptor that an epoll waits for.
    let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
    let event = eventfd().1;
    let watched: Vec<OwnedFd> = (0..1000).map(|_| event.try_clone().unwrap()).collect();
    for fd in &watched {
        epoll.add(fd, EpollEvent::empty()).unwrap();
    }
    let bytes_read = || {
        let io = std::fs::read_to_string("/proc/thread-self/io").unwrap();
        let read = io.lines().find_map(|line| line.strip_prefix("rchar: "));
        read.unwrap().parse::<u64>().unwrap()
    };
    let mut irqs = irqs();
    let before = bytes_read();
    let refused = irqs.connect(MSI, IrqAction::Trigger, 0, [Some(epoll.0)].into_iter());
    assert_eq!(refused, Err(Errno::EINVAL));
    let read = bytes_read() - before;
    assert!(read < 4096, "{read} bytes");
}

#[test]
fn an_eventfd_that_would_answer_itself_is_refused() {
    for (first, second) in [
        (IrqAction::Trigger, IrqAction::Unmask),
        (IrqAction::Mask, IrqAction::Unmask),
        (IrqAction::Unmask, IrqAction::Trigger),
        (IrqAction::Unmask, IrqAction::Mask),
    ] {
        let mut irqs = irqs();
        let client = connect(&mut irqs, INTX, first, 0);
        let same = || [Some(client.as_fd().try_clone_to_owned().unwrap())].into_iter();
        let refused = irqs.connect(MSI, second, 3, same());
        assert_eq!(refused, Err(Errno::EINVAL), "{first:?} {second:?}");
        irqs.connect(MSI, first, 3, same()).unwrap();
        irqs.disconnect(INTX).unwrap();
        irqs.disconnect(MSI).unwrap();
        irqs.connect(MSI, second, 3, same()).unwrap();
    }
}

#[test]
fn a_full_eventfd_delays_nobody() {
    for flags in [EfdFlags::empty(), EfdFlags::EFD_SEMAPHORE] {
        let mut irqs = irqs();
        let (client, theirs) = {
            let ours = EventFd::from_flags(flags).unwrap();
            let theirs = ours.as_fd().try_clone_to_owned().unwrap();
            (ours, theirs)
        };
        irqs.connect(MSI, IrqAction::Trigger, 0, [Some(theirs)].into_iter())
            .unwrap();
        client.write(u64::MAX - 1).unwrap();
        fcntl(&client, FcntlArg::F_SETFL(OFlag::O_RDWR)).unwrap();
        ends(move || irqs.trigger(MSI, 0));
    }
}

#[test]
fn an_eventfd_that_was_made_to_block_and_emptied_delays_nobody() {
    let mut irqs = irqs();
    let end = connect(&mut irqs, MSI, IrqAction::Unmask, 0);
    end.write(1).unwrap();
    assert_eq!(end.read(), Ok(1));
    fcntl(&end, FcntlArg::F_SETFL(OFlag::O_RDWR)).unwrap();
    ends(move || irqs.serve());
}

/// Through bytes, as on the way to another process.
fn move_on(irqs: &Irqs) -> Irqs {
    let mut fds = Vec::new();
    let saved = irqs.save(&mut fds).unwrap();
    let bytes = serde_json::to_vec(&saved).unwrap();
    let mut fds = fds.into_iter();
    let saved = serde_json::from_slice(&bytes).unwrap();
    let moved = Irqs::restore(&infos(), saved, &mut fds).unwrap();
    assert_eq!(fds.count(), 0, "no descriptor is left over");
    moved
}

#[test]
fn interrupts_are_moved_with_their_eventfds_and_tell_nothing_twice() {
    let mut before = irqs();
    let line = connect(&mut before, INTX, IrqAction::Trigger, 0);
    let told = connect(&mut before, INTX, IrqAction::Mask, 0);
    let end = connect(&mut before, INTX, IrqAction::Unmask, 0);
    let message = connect(&mut before, MSI, IrqAction::Trigger, 2);
    let request = connect(&mut before, REQUEST, IrqAction::Trigger, 0);
    before.set_level(INTX, true);
    before.set_mask(MSI, 2, 1, true, |_| true).unwrap();
    before.trigger(MSI, 2);
    before.trigger(MSI, 3);
    assert_eq!((line.read(), told.read()), (Ok(1), Ok(1)));
    let mut moved = move_on(&before);
    drop(before);
    let all = [&line, &told, &end, &message, &request];
    assert_eq!(all.map(EventFd::read), [NOTHING; 5]);
    assert!(moved.is_pending(MSI, 2) && moved.is_pending(MSI, 3));
    end.write(1).unwrap();
    moved.serve();
    assert_eq!((line.read(), told.read()), (Ok(1), Ok(1)), "still up");
    set_mask(&mut moved, MSI, false);
    assert_eq!(message.read(), Ok(1));
    moved.trigger(REQUEST, 0);
    assert_eq!(request.read(), Ok(1));
    let late = connect(&mut moved, MSI, IrqAction::Trigger, 3);
    assert_eq!(late.read(), Ok(1));
}

#[test]
fn an_end_of_interrupt_that_was_not_served_yet_is_not_lost_on_the_way() {
    let mut before = irqs();
    let line = connect(&mut before, INTX, IrqAction::Trigger, 0);
    let end = connect(&mut before, INTX, IrqAction::Unmask, 0);
    before.set_level(INTX, true);
    assert_eq!(line.read(), Ok(1));
    end.write(1).unwrap();
    let mut moved = move_on(&before);
    assert!(is_ready(&moved));
    moved.serve();
    assert_eq!(line.read(), Ok(1));
}

#[test]
fn saved_interrupts_that_the_device_does_not_have_are_refused() {
    let irq = |index: u32, number: u32, fds: [bool; 3]| {
        let [trigger, mask, unmask] = fds;
        format!(
            r#"{{"index":{index},"number":{number},"trigger":{trigger},"mask":{mask},"unmask":{unmask},
            "masked":true,"automasked":false,"pending":true}}"#
        )
    };
    let restore = |irqs: &[String], fds: Vec<OwnedFd>| {
        let text = format!(r#"{{"irqs":[{}]}}"#, irqs.join(","));
        let saved = serde_json::from_str(&text).unwrap();
        Irqs::restore(&infos(), saved, &mut fds.into_iter()).map(drop)
    };
    let fds = |count| (0..count).map(|_| eventfd().1).collect::<Vec<_>>();
    let all = [true; 3];
    let none = [false; 3];
    assert_eq!(restore(&[irq(MSI, 1, all)], fds(3)), Ok(()));
    for (irqs, fds) in [
        (vec![irq(MSI, 4, none)], fds(0)),
        (vec![irq(MSI, u32::MAX, none)], fds(0)),
        (vec![irq(3, 0, none)], fds(0)),
        (vec![irq(MSI, 1, all)], fds(2)),
        (vec![irq(MSI, 1, none), irq(MSI, 1, none)], fds(0)),
        (vec![irq(MSI, 1, none), irq(INTX, 0, none)], fds(0)),
        (vec![irq(REQUEST, 0, all)], fds(3)),
        (
            vec![irq(MSI, 0, [true, false, false])],
            vec![tempfile::tempfile().unwrap().into()],
        ),
        (vec![irq(MSI, 0, [true, false, true])], {
            let one = eventfd().1;
            vec![one.try_clone().unwrap(), one]
        }),
    ] {
        assert_eq!(restore(&irqs, fds), Err(Errno::EINVAL), "{irqs:?}");
    }
}
