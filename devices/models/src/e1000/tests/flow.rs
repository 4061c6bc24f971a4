//! PAUSE frames, both ways.

use std::time::Duration;

use super::*;

const FCAL: u64 = 0x0028;
const FCAH: u64 = 0x002c;
const FCT: u64 = 0x0030;
const FCTTV: u64 = 0x0170;
const FCRTL: u64 = 0x2160;
const FCRTH: u64 = 0x2168;
const DC: u64 = 0x4030;
const XONRXC: u64 = 0x4048;
const XONTXC: u64 = 0x404c;
const XOFFRXC: u64 = 0x4050;
const XOFFTXC: u64 = 0x4054;
const FCRUC: u64 = 0x4058;
const RFCE: u32 = 1 << 27;
const TFCE: u32 = 1 << 28;
const SWXOFF: u32 = 1 << 22;
const TXOFF: u32 = 1 << 4;
/// Receive everything that filters take, no FCS.
const RECEIVE: u32 = 0x0400_8000;
const DPF: u32 = 1 << 22;
const PMCF: u32 = 1 << 23;
const GROUP: [u8; 6] = [0x01, 0x80, 0xc2, 0, 0, 1];
const LEGACY: u64 = EOP | IFCS | RS;

/// A MAC Control frame of the partner.
fn control(destination: [u8; 6], opcode: u16, slots: u16) -> Vec<u8> {
    let mut frame = destination.to_vec();
    frame.extend([2, 0, 0, 0, 0, 1, 0x88, 0x08]);
    frame.extend(opcode.to_be_bytes());
    frame.extend(slots.to_be_bytes());
    frame.resize(60, 0);
    frame
}

/// Both rings, and flow control as a driver sets it up.
fn driver(ctrl: u32, rctl: u32) -> Driver {
    let mut driver = Driver::new();
    driver.set_up_transmit(64);
    driver.set_up_receive(8, rctl);
    for (register, value) in [
        (FCAL, 0x00c2_8001),
        (FCAH, 0x0100),
        (FCT, 0x8808),
        (FCTTV, 0x1234),
        (FCRTH, 0x8000),
        (FCRTL, 0x8000_4000),
    ] {
        driver.write(register, value);
    }
    driver.set(CTRL, ctrl);
    driver.guest.advance(Duration::ZERO);
    driver
}

fn queue_frame(driver: &mut Driver) -> Vec<u8> {
    let frame = frame([2, 0, 0, 0, 0, 1], 100);
    driver.queue_data(&frame, LEGACY);
    driver.ring();
    frame
}

#[test]
fn xoff_silences_the_transmitter_for_its_slots() {
    let mut driver = driver(RFCE, RECEIVE);
    driver.arrive(&control(GROUP, 1, 100));
    assert_eq!(driver.read(STATUS) & TXOFF, TXOFF);
    let frame = queue_frame(&mut driver);
    assert!(driver.wire.sent().is_empty());
    // 64 bytes at 1 Gb/s are 512 ns.
    let pause = Duration::from_nanos(100 * 512);
    assert_eq!(driver.guest.due_in(), Some(pause));
    driver.guest.advance(pause - Duration::from_nanos(1));
    driver.guest.run_until_idle();
    assert!(driver.wire.sent().is_empty());
    driver.guest.advance(Duration::from_nanos(1));
    driver.guest.run_until_idle();
    assert_eq!(driver.wire.sent(), [frame]);
    assert_eq!(driver.read(STATUS) & TXOFF, 0);
    assert_eq!(driver.guest.due_in(), None);
    assert_eq!(driver.read(XOFFRXC), 1);
    assert_eq!(driver.read(XOFFRXC), 0);
}

#[test]
fn a_pause_defers_the_packet_that_waits_for_its_end() {
    let mut driver = driver(RFCE, RECEIVE);
    driver.arrive(&control(GROUP, 1, 0));
    driver.arrive(&control(GROUP, 1, 100));
    driver.arrive(&control(GROUP, 1, 0));
    assert_eq!(driver.read(DC), 0, "there was nothing to send");
    driver.arrive(&control(GROUP, 1, 100));
    for _ in 0..3 {
        queue_frame(&mut driver);
    }
    driver.arrive(&control(GROUP, 1, 0));
    assert_eq!(driver.wire.sent().len(), 3);
    assert_eq!(driver.read(DC), 1, "only the first was to be sent at once");
    driver.arrive(&control(GROUP, 1, 1));
    queue_frame(&mut driver);
    driver.guest.advance(Duration::from_nanos(512));
    driver.guest.run_until_idle();
    assert_eq!(driver.wire.sent().len(), 1);
    assert_eq!((driver.read(DC), driver.read(DC)), (1, 0));
    driver.arrive(&control(GROUP, 1, 1));
    driver.write(TCTL, 0);
    queue_frame(&mut driver);
    driver.guest.advance(Duration::from_nanos(512));
    driver.guest.run_until_idle();
    assert_eq!(driver.read(DC), 0, "the transmitter is off");
}

#[test]
fn a_pause_ends_though_nothing_is_to_be_sent() {
    let mut driver = driver(RFCE, RECEIVE);
    driver.arrive(&control(GROUP, 1, 100));
    driver.guest.advance(Duration::from_nanos(100 * 512));
    driver.guest.run();
    assert_eq!(driver.read(STATUS) & TXOFF, 0);
    assert_eq!(driver.guest.due_in(), None);
}

#[test]
fn a_slot_is_longer_on_a_slower_link() {
    for (speed, nanoseconds) in [(0, 51_200), (1, 5_120)] {
        let mut driver = driver(RFCE, RECEIVE);
        // FRCSPD, FRCDPLX, FD and SLU.
        let ctrl = driver.read(CTRL) & !0x300;
        driver.write(CTRL, ctrl | 0x1841 | speed << 8);
        driver.arrive(&control(GROUP, 1, 1));
        let due = Duration::from_nanos(nanoseconds);
        assert_eq!(driver.guest.due_in(), Some(due));
    }
}

#[test]
fn a_later_pause_takes_the_place_of_the_one_before() {
    let mut driver = driver(RFCE, RECEIVE);
    driver.arrive(&control(GROUP, 1, 0xffff));
    driver.arrive(&control(MAC, 1, 2));
    assert_eq!(driver.guest.due_in(), Some(Duration::from_nanos(1024)));
}

#[test]
fn xon_ends_the_pause() {
    let mut driver = driver(RFCE, RECEIVE);
    driver.arrive(&control(GROUP, 1, 0xffff));
    let frame = queue_frame(&mut driver);
    driver.arrive(&control(MAC, 1, 0));
    assert_eq!(driver.wire.sent(), [frame]);
    assert_eq!(driver.guest.due_in(), None);
    assert_eq!(driver.read(STATUS) & TXOFF, 0);
    assert_eq!((driver.read(XOFFRXC), driver.read(XONRXC)), (1, 1));
}

#[test]
fn txoff_is_gone_with_the_xon() {
    let mut driver = driver(RFCE, RECEIVE);
    driver.arrive(&control(GROUP, 1, 0xffff));
    driver.wire.arrive(&control(MAC, 1, 0));
    driver.guest.run();
    assert_eq!(driver.read(STATUS) & TXOFF, 0);
}

#[test]
fn what_a_pause_held_is_lost_with_the_link() {
    let mut driver = driver(RFCE, RECEIVE);
    driver.arrive(&control(GROUP, 1, 0xffff));
    queue_frame(&mut driver);
    // The PHY without power: a write to its register 0.
    driver.write(MDIC, 0x0420_0000 | 0x1940);
    assert_eq!(driver.read(STATUS) & (TXOFF | 2), 0);
    driver.guest.run_until_idle();
    assert_eq!(driver.read(TDH), driver.read(TDT));
    assert_eq!(driver.guest.due_in(), None);
    assert!(driver.wire.sent().is_empty(), "it is lost");
}

#[test]
fn without_rfce_a_pause_is_a_frame_like_others() {
    let mut driver = driver(0, RECEIVE | DPF);
    driver.arrive(&control(MAC, 1, 0xffff));
    let frame = queue_frame(&mut driver);
    assert_eq!(driver.wire.sent(), [frame]);
    assert_eq!(driver.read(STATUS) & TXOFF, 0);
    assert_eq!(driver.read(XOFFRXC), 0);
    assert_eq!(driver.received(0).data, control(MAC, 1, 0xffff));
    assert_eq!(driver.read(0x4074), 1, "and a good packet");
}

#[test]
fn switching_rfce_off_ends_the_pause() {
    let mut driver = driver(RFCE, RECEIVE);
    driver.arrive(&control(GROUP, 1, 0xffff));
    let frame = queue_frame(&mut driver);
    let ctrl = driver.read(CTRL);
    driver.write(CTRL, ctrl & !RFCE);
    assert_eq!(driver.wire.sent(), [frame]);
    assert_eq!(driver.guest.due_in(), None);
}

#[test]
fn a_link_that_is_lost_ends_the_pause() {
    let mut driver = driver(RFCE, RECEIVE);
    driver.arrive(&control(GROUP, 1, 0xffff));
    let ctrl = driver.read(CTRL);
    driver.write(CTRL, ctrl & !0x40);
    driver.write(CTRL, ctrl);
    assert_eq!(driver.read(STATUS) & TXOFF, 0);
    let frame = queue_frame(&mut driver);
    assert_eq!(driver.wire.sent(), [frame]);
}

#[test]
fn address_type_and_opcode_make_a_pause() {
    for (name, frame, unsupported) in [
        ("another's", control([2, 0, 0, 0, 0, 9], 1, 9), 0),
        ("another group", control([1, 0x80, 0xc2, 0, 0, 2], 1, 9), 0),
        ("opcode", control(GROUP, 2, 9), 1),
        ("opcode to us", control(MAC, 0x0101, 9), 1),
        (
            "type",
            {
                let mut frame = control(GROUP, 1, 9);
                frame[13] = 9;
                frame
            },
            0,
        ),
        ("short", control(GROUP, 1, 9)[..17].to_vec(), 0),
    ] {
        let mut driver = driver(RFCE, RECEIVE);
        driver.arrive(&frame);
        assert_eq!(driver.read(STATUS) & TXOFF, 0, "{name}");
        assert_eq!(driver.read(XOFFRXC), 0, "{name}");
        assert_eq!(driver.read(FCRUC), unsupported, "{name}");
    }
    let mut driver = driver(RFCE, RECEIVE);
    driver.write(FCT, 0x9000);
    driver.write(FCAL, 0x0504_0302);
    driver.write(FCAH, 0x0706);
    let mut frame = control([2, 3, 4, 5, 6, 7], 1, 9);
    frame[12..14].copy_from_slice(&[0x90, 0]);
    driver.arrive(&frame);
    assert_eq!(
        driver.read(XOFFRXC),
        1,
        "the registers say what is compared"
    );
}

#[test]
fn a_receiver_that_is_off_hears_nothing() {
    let mut driver = driver(RFCE, RECEIVE);
    driver.write(RCTL, RECEIVE);
    driver.arrive(&control(GROUP, 1, 9));
    assert_eq!((driver.read(STATUS) & TXOFF, driver.read(XOFFRXC)), (0, 0));
}

#[test]
fn dpf_keeps_pauses_to_the_station_from_the_guest() {
    for (rctl, destination, is_received) in [
        (RECEIVE, MAC, true),
        (RECEIVE | DPF, MAC, false),
        (RECEIVE, GROUP, false),
        // MPE: filters decide on the group, whatever DPF says.
        (RECEIVE | DPF | 0x10, GROUP, true),
    ] {
        let mut driver = driver(RFCE, rctl);
        driver.arrive(&control(destination, 1, 9));
        assert_eq!(driver.read(RDH) == 1, is_received, "{rctl:#x}");
        assert_eq!(driver.read(XOFFRXC), 1);
        assert_eq!(driver.read(0x40d0), 1, "TPR counts it");
        assert_eq!(driver.read(0x4074), 0, "GPRC does not");
        assert_eq!(driver.read(0x4088), 0, "nor GORC");
    }
}

#[test]
fn pmcf_passes_control_frames_that_are_no_pause() {
    for (rctl, destination, opcode, is_received) in [
        (RECEIVE, GROUP, 2, false),
        (RECEIVE | PMCF, GROUP, 2, true),
        (RECEIVE | PMCF, GROUP, 1, false),
        (RECEIVE, MAC, 2, true),
    ] {
        let mut driver = driver(RFCE, rctl);
        driver.arrive(&control(destination, opcode, 9));
        assert_eq!(driver.read(RDH) == 1, is_received, "{rctl:#x} {opcode}");
    }
}

/// What the controller says to its partner.
fn own(slots: u16) -> Vec<u8> {
    let mut frame = control(GROUP, 1, slots);
    frame[6..12].copy_from_slice(&MAC);
    frame
}

#[test]
fn swxoff_sends_a_pause_and_clears_itself() {
    let mut driver = driver(0, RECEIVE);
    let tctl = driver.read(TCTL);
    driver.write(TCTL, tctl | SWXOFF);
    assert_eq!(driver.wire.sent(), [own(0x1234)], "whatever TFCE says");
    assert_eq!(driver.read(TCTL), tctl);
    assert_eq!((driver.read(XOFFTXC), driver.read(XONTXC)), (1, 0));
    driver.write(FCTTV, 0);
    driver.write(TCTL, tctl | SWXOFF);
    assert_eq!(driver.wire.sent(), [own(0)], "XON");
    assert_eq!((driver.read(XOFFTXC), driver.read(XONTXC)), (0, 1));
    assert_eq!(
        (driver.read(0x40d4), driver.read(0x40c8)),
        (2, 128),
        "TPT and TOT"
    );
    assert_eq!(
        (driver.read(0x4080), driver.read(0x40d8)),
        (0, 0),
        "no good packets"
    );
}

#[test]
fn swxoff_waits_for_the_transmitter_and_for_room() {
    let mut driver = driver(0, RECEIVE);
    driver.write(TCTL, SWXOFF);
    assert!(driver.wire.sent().is_empty());
    driver.wire.state().room = Some(0);
    driver.write(TCTL, SWXOFF | 2);
    assert_eq!(driver.read(TCTL), SWXOFF | 2);
    assert!(driver.wire.state().interest.send);
    driver.wire.state().room = None;
    driver.guest.run_until_idle();
    assert_eq!(driver.wire.sent(), [own(0x1234)]);
    assert_eq!(driver.read(TCTL), 2);
    assert!(!driver.wire.state().interest.send);
}

#[test]
fn swxoff_means_nothing_in_half_duplex() {
    let mut driver = driver(0, RECEIVE);
    // FRCDPLX without FD.
    let ctrl = driver.read(CTRL) & !1;
    driver.write(CTRL, ctrl | 0x1000);
    driver.write(TCTL, SWXOFF | 2);
    assert!(driver.wire.sent().is_empty());
    assert_eq!(driver.read(TCTL), 2);
}

#[test]
fn a_pause_is_sent_even_while_the_partner_wants_silence() {
    let mut driver = driver(RFCE, RECEIVE);
    driver.arrive(&control(GROUP, 1, 0xffff));
    driver.write(TCTL, SWXOFF | 2);
    assert_eq!(driver.wire.sent(), [own(0x1234)]);
}

#[test]
fn frames_that_wait_hold_the_partner_back_until_they_are_taken() {
    let mut driver = driver(TFCE, RECEIVE);
    for _ in 0..7 {
        driver.arrive(&frame(MAC, 100));
    }
    assert!(
        driver.wire.sent().is_empty(),
        "no descriptors, and no frame waits"
    );
    for _ in 0..3 {
        driver.arrive(&frame(MAC, 100));
    }
    assert_eq!(driver.wire.sent(), [own(0x1234)], "once");
    assert_eq!(driver.read(XOFFTXC), 1);
    let tail = driver.read(RDT);
    driver.write(RDT, (tail + 1) % 8);
    driver.guest.run_until_idle();
    assert!(driver.wire.sent().is_empty(), "two still wait");
    driver.write(RDT, (tail + 4) % 8);
    driver.guest.run_until_idle();
    assert_eq!(driver.wire.sent(), [own(0)]);
    assert_eq!((driver.read(XOFFTXC), driver.read(XONTXC)), (0, 1));
    assert_eq!(driver.read(RDH), (tail + 3) % 8, "and none is lost");
}

#[test]
fn only_what_is_enabled_is_said() {
    for (ctrl, high, low, expected) in [
        (0, 0x8000, 0x8000_4000, vec![]),
        (TFCE, 0, 0x8000_4000, vec![]),
        (TFCE, 0x8000, 0x4000, vec![own(0x1234)]),
        (TFCE, 0x8000, 0x8000_4000, vec![own(0x1234), own(0)]),
    ] {
        let mut driver = driver(ctrl, RECEIVE);
        driver.write(FCRTH, high);
        driver.write(FCRTL, low);
        for _ in 0..9 {
            driver.arrive(&frame(MAC, 100));
        }
        driver.write(RDT, 5);
        driver.guest.run_until_idle();
        assert_eq!(driver.wire.sent(), expected, "{ctrl:#x} {high:#x} {low:#x}");
    }
}

#[test]
fn a_pause_is_looped_back_like_any_frame() {
    // LBM.
    let mut driver = driver(RFCE, RECEIVE | 0x40);
    driver.write(TCTL, SWXOFF | 2);
    assert!(driver.wire.sent().is_empty());
    assert_eq!((driver.read(XOFFTXC), driver.read(XOFFRXC)), (1, 1));
    assert_eq!(driver.read(STATUS) & TXOFF, TXOFF);
}

#[test]
fn a_reset_ends_the_pause() {
    let mut driver = driver(RFCE, RECEIVE);
    driver.arrive(&control(GROUP, 1, 0xffff));
    driver.write(CTRL, 0x0400_0000);
    assert_eq!(driver.read(STATUS) & TXOFF, 0);
    assert_eq!(driver.guest.due_in(), None);
}

#[test]
fn switching_tfce_off_ends_what_is_said() {
    let mut driver = driver(TFCE, RECEIVE);
    for _ in 0..9 {
        driver.arrive(&frame(MAC, 100));
    }
    assert_eq!(driver.wire.sent(), [own(0x1234)]);
    let ctrl = driver.read(CTRL);
    driver.write(CTRL, ctrl & !TFCE);
    driver.write(RDT, 5);
    driver.guest.run_until_idle();
    assert!(driver.wire.sent().is_empty());
    assert_eq!(driver.received(7).data, frame(MAC, 100), "nothing is lost");
}

/// However many there are, each pause lasts no longer than it says, and a station that is flooded with them works.
#[test]
fn a_flood_of_pauses_counts_and_holds_nothing_but_the_transmitter() {
    let mut driver = driver(RFCE, RECEIVE);
    let sent = queue_frame(&mut driver);
    driver.wire.sent();
    for _ in 0..1000 {
        driver.wire.arrive(&control(GROUP, 1, 0xffff));
    }
    driver.arrive(&frame(MAC, 100));
    assert_eq!(driver.received(0).data, frame(MAC, 100));
    assert_eq!(driver.read(XOFFRXC), 1000);
    queue_frame(&mut driver);
    let longest = Duration::from_nanos(512 * 0xffff);
    assert_eq!(driver.guest.due_in(), Some(longest));
    driver.guest.advance(longest);
    driver.guest.run_until_idle();
    assert_eq!(driver.wire.sent(), [sent]);
}
