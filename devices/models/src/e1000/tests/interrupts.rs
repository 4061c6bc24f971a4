//! Interrupts: causes and mask, ITR, and the timers of both directions. The clock stands still.

use std::time::Duration;

use super::*;

const ITR: u64 = 0x00c4;
const RDTR: u64 = 0x2820;
const RADV: u64 = 0x282c;
const TIDV: u64 = 0x3820;
const TADV: u64 = 0x382c;

const TXDW: u32 = 0x01;
const TXQE: u32 = 0x02;
const RXDMT0: u32 = 0x10;
const RXT0: u32 = 0x80;
const SRPD: u32 = 0x1_0000;

fn ns(nanoseconds: u64) -> Duration {
    Duration::from_nanos(nanoseconds)
}

/// In the unit of the delay timers.
fn units(count: u64) -> Duration {
    ns(1024 * count)
}

/// Both rings, and those causes let through.
fn driver(mask: u32) -> Driver {
    let mut driver = Driver::new();
    driver.guest.advance(Duration::ZERO);
    driver.set_up_transmit(64);
    driver.set_up_receive(64, 0x8000);
    driver.read(ICR);
    driver.write(IMS, mask);
    driver
}

impl Driver {
    /// Time goes by, and the device runs whenever something is due.
    fn wait(&mut self, time: Duration) {
        let mut left = time;
        while let Some(due) = self.guest.due_in().filter(|due| *due <= left) {
            self.guest.advance(due);
            self.guest.run_until_idle();
            left -= due;
        }
        self.guest.advance(left);
    }

    /// An interrupt has come, and no other is pending once its causes are read: those, without TXD_LOW, which comes
    /// whenever the ring becomes empty.
    fn serve(&mut self) -> Option<u32> {
        let causes = self.guest.interrupted();
        let causes = causes.then(|| self.read(ICR) & !0x8000);
        self.guest.interrupted();
        causes
    }

    fn send(&mut self, command: u64) {
        self.queue_data(&frame([2, 0, 0, 0, 0, 1], 64), EOP | IFCS | command);
        self.ring();
    }
}

#[test]
fn reading_icr_clears_every_cause_whatever_the_mask() {
    let mut driver = driver(0);
    driver.write(ICS, 0x1_02d7);
    assert_eq!(driver.read(ICR), 0x1_02d7);
    assert_eq!(driver.read(ICR), 0);
}

#[test]
fn writing_ones_to_icr_clears_those() {
    let mut driver = driver(RXT0 | TXDW);
    driver.write(ICS, RXT0 | TXDW | TXQE);
    driver.write(ICR, 0);
    assert!(driver.guest.interrupted());
    driver.write(ICR, RXT0 | TXQE);
    assert!(driver.guest.interrupted(), "one is left");
    driver.write(ICR, TXDW);
    driver.guest.interrupted();
    assert!(!driver.guest.interrupted());
    assert_eq!(driver.read(ICR), 0);
}

#[test]
fn zeros_change_no_cause_and_no_mask() {
    let mut driver = driver(RXT0);
    driver.write(IMS, TXDW);
    driver.write(ICS, TXDW);
    for register in [ICS, IMS, IMC, ICR] {
        driver.write(register, 0);
    }
    assert_eq!(driver.read(IMS), RXT0 | TXDW);
    driver.write(IMC, RXT0);
    assert_eq!(driver.read(IMS), TXDW);
    assert_eq!((driver.read(ICS), driver.read(IMC)), (0, 0), "write-only");
    assert_eq!(driver.serve(), Some(TXDW));
}

#[test]
fn interrupts_are_an_interval_apart() {
    let mut driver = driver(RXT0 | LSC);
    driver.write(ITR, 500);
    driver.write(ICS, RXT0);
    assert_eq!(driver.serve(), Some(RXT0), "the first comes at once");
    driver.wait(ns(28_000));
    driver.write(ICS, RXT0);
    assert_eq!(driver.serve(), None);
    assert_eq!(driver.guest.due_in(), Some(ns(100_000)));
    driver.wait(ns(99_999));
    driver.write(ICS, LSC);
    assert_eq!(driver.serve(), None);
    driver.wait(ns(1));
    assert_eq!(driver.serve(), Some(RXT0 | LSC), "causes have added up");
    assert_eq!(driver.guest.due_in(), None);
    driver.wait(ns(128_000));
    driver.write(ICS, LSC);
    assert_eq!(driver.serve(), Some(LSC), "the interval is over");
}

#[test]
fn the_interval_counts_from_the_interrupt_and_not_from_its_end() {
    let mut driver = driver(RXT0);
    driver.write(ITR, 500);
    driver.write(ICS, RXT0);
    driver.wait(ns(128_000));
    assert_eq!(driver.serve(), Some(RXT0));
    driver.write(ICS, RXT0);
    assert_eq!(driver.serve(), Some(RXT0));
}

#[test]
fn an_itr_of_zero_throttles_nothing() {
    let mut driver = driver(RXT0);
    for _ in 0..3 {
        driver.write(ICS, RXT0);
        assert_eq!(driver.serve(), Some(RXT0));
    }
    assert_eq!(driver.guest.due_in(), None);
}

#[test]
fn a_new_itr_counts_from_the_last_interrupt() {
    let mut driver = driver(RXT0);
    driver.write(ITR, 1000);
    driver.write(ICS, RXT0);
    assert_eq!(driver.serve(), Some(RXT0));
    driver.wait(ns(10_000));
    driver.write(ICS, RXT0);
    assert_eq!(driver.guest.due_in(), Some(ns(246_000)));
    driver.write(ITR, 2000);
    assert_eq!(driver.guest.due_in(), Some(ns(502_000)));
    driver.write(ITR, 100);
    assert_eq!(driver.guest.due_in(), Some(ns(15_600)));
    driver.write(ITR, 10);
    assert_eq!(driver.serve(), Some(RXT0), "that was long ago");
    driver.write(ICS, RXT0);
    assert_eq!(driver.serve(), None);
    driver.write(ITR, 0);
    assert_eq!(driver.serve(), Some(RXT0));
}

#[test]
fn an_interrupt_that_is_not_wanted_any_more_is_not_waited_for() {
    let mut driver = driver(RXT0);
    driver.write(ITR, 500);
    driver.write(ICS, RXT0);
    assert_eq!(driver.serve(), Some(RXT0));
    driver.write(ICS, RXT0);
    driver.read(ICR);
    assert_eq!(driver.guest.due_in(), None);
    driver.write(ICS, RXT0);
    driver.write(IMC, RXT0);
    assert_eq!(driver.guest.due_in(), None);
    driver.write(IMS, RXT0);
    assert_eq!(driver.serve(), None, "unmasking is no way round");
    driver.wait(ns(128_000));
    assert_eq!(driver.serve(), Some(RXT0));
}

#[test]
fn without_a_delay_a_frame_is_told_at_once() {
    let mut driver = driver(RXT0);
    driver.write(RADV, 100);
    driver.arrive(&frame(MAC, 64));
    assert_eq!(driver.serve(), Some(RXT0), "no RDTR, no RADV");
    assert_eq!(driver.guest.due_in(), None);
}

#[test]
fn the_packet_timer_starts_again_with_each_frame() {
    let mut driver = driver(RXT0);
    driver.write(RDTR, 10);
    for _ in 0..5 {
        driver.arrive(&frame(MAC, 64));
        assert_eq!(driver.guest.due_in(), Some(units(10)));
        driver.wait(units(9));
    }
    assert_eq!(driver.read(ICR), 0);
    driver.wait(units(1));
    assert_eq!(driver.serve(), Some(RXT0));
    driver.wait(units(100));
    assert_eq!(driver.serve(), None, "it runs once");
}

#[test]
fn the_absolute_timer_starts_with_the_first_frame_only() {
    let mut driver = driver(RXT0);
    driver.write(RADV, 20);
    // Case A: the packet timer is longer.
    driver.write(RDTR, 21);
    for _ in 0..3 {
        driver.arrive(&frame(MAC, 64));
        driver.wait(units(6));
        assert_eq!(driver.serve(), None);
    }
    driver.wait(units(2));
    assert_eq!(driver.serve(), Some(RXT0), "20 after the first");
    driver.wait(units(100));
    assert_eq!(driver.serve(), None, "the packet timer was halted");
}

#[test]
fn either_receive_timer_halts_the_other() {
    let mut driver = driver(RXT0);
    driver.write(RDTR, 10);
    driver.write(RADV, 15);
    // Case B: the packet timer is first, and the absolute timer begins anew with the next frame.
    driver.arrive(&frame(MAC, 64));
    driver.wait(units(10));
    assert_eq!(driver.serve(), Some(RXT0));
    driver.arrive(&frame(MAC, 64));
    driver.wait(units(8));
    assert_eq!(driver.serve(), None);
    driver.arrive(&frame(MAC, 64));
    driver.wait(units(7));
    assert_eq!(driver.serve(), Some(RXT0), "15 after the second");
    assert_eq!(driver.guest.due_in(), None);
}

#[test]
fn an_absolute_delay_of_zero_is_none() {
    let mut driver = driver(RXT0);
    driver.write(RDTR, 10);
    driver.write(RADV, 15);
    driver.arrive(&frame(MAC, 64));
    driver.write(RADV, 0);
    for _ in 0..4 {
        driver.wait(units(9));
        driver.arrive(&frame(MAC, 64));
    }
    assert_eq!(driver.serve(), None);
    driver.wait(units(10));
    assert_eq!(driver.serve(), Some(RXT0));
}

#[test]
fn fpd_expires_the_packet_timer_at_once_and_reads_zero() {
    let mut driver = driver(RXT0);
    driver.write(RDTR, 1000);
    driver.write(RADV, 2000);
    driver.arrive(&frame(MAC, 64));
    driver.write(RDTR, 0x8000_03e8);
    assert_eq!(driver.serve(), Some(RXT0));
    assert_eq!(driver.guest.due_in(), None);
    assert_eq!(driver.read(RDTR), 1000);
    driver.write(RDTR, 0x8000_03e8);
    assert_eq!(driver.serve(), Some(RXT0), "also when nothing waits");
}

#[test]
fn frames_that_wait_are_told_when_the_delay_is_taken_away() {
    let mut driver = driver(RXT0);
    driver.write(RDTR, 1000);
    driver.write(RDTR, 0);
    assert_eq!(driver.serve(), None, "nothing waits");
    driver.write(RDTR, 1000);
    driver.arrive(&frame(MAC, 64));
    driver.write(RDTR, 10);
    assert_eq!(driver.guest.due_in(), Some(units(1000)), "it runs on");
    driver.write(RDTR, 0);
    assert_eq!(driver.serve(), Some(RXT0));
    assert_eq!(driver.guest.due_in(), None);
}

#[test]
fn a_small_packet_is_told_at_once_with_those_before_it() {
    let mut driver = driver(RXT0 | SRPD);
    driver.write(RDTR, 10);
    driver.write(RADV, 15);
    // RSRPD.
    driver.write(0x2c00, 100);
    driver.arrive(&frame(MAC, 200));
    assert_eq!(driver.serve(), None);
    driver.arrive(&frame(MAC, 64));
    assert_eq!(driver.serve(), Some(RXT0 | SRPD));
    assert_eq!(driver.guest.due_in(), None, "both timers are halted");
}

#[test]
fn other_causes_do_not_wait_and_do_not_end_a_wait() {
    let mut driver = driver(RXT0 | RXDMT0 | LSC);
    driver.write(RDTR, 10);
    driver.arrive(&frame(MAC, 64));
    driver.write(ICS, LSC);
    assert_eq!(driver.serve(), Some(LSC));
    for _ in 0..31 {
        driver.arrive(&frame(MAC, 64));
    }
    assert_eq!(driver.serve(), Some(RXDMT0));
    assert_eq!(driver.guest.due_in(), Some(units(10)));
    driver.wait(units(10));
    assert_eq!(driver.serve(), Some(RXT0));
}

#[test]
fn ide_delays_txdw_by_tidv_after_the_last() {
    let mut driver = driver(TXDW | TXQE);
    driver.write(TIDV, 10);
    for _ in 0..5 {
        driver.send(RS | IDE);
        assert_eq!(driver.serve(), Some(TXQE), "which is never delayed");
        driver.wait(units(9));
    }
    assert_eq!(driver.serve(), None);
    driver.wait(units(1));
    assert_eq!(driver.serve(), Some(TXDW));
    driver.send(IDE);
    assert_eq!(driver.serve(), Some(TXQE));
    assert_eq!(driver.guest.due_in(), None, "without RS nobody asked");
}

#[test]
fn a_descriptor_without_ide_is_told_at_once_and_ends_the_delay() {
    let mut driver = driver(TXDW);
    driver.write(TIDV, 10);
    driver.write(TADV, 15);
    driver.send(RS | IDE);
    assert_eq!(driver.serve(), None);
    driver.send(RS);
    assert_eq!(driver.serve(), Some(TXDW | TXQE));
    assert_eq!(driver.guest.due_in(), None);
}

#[test]
fn tadv_bounds_the_delay_of_txdw() {
    let mut driver = driver(TXDW);
    driver.write(TIDV, 10);
    driver.write(TADV, 15);
    driver.send(RS | IDE);
    driver.wait(units(8));
    driver.send(RS | IDE);
    driver.wait(units(6));
    assert_eq!(driver.serve(), None);
    driver.wait(units(1));
    assert_eq!(driver.serve(), Some(TXDW | TXQE), "15 after the first");
    assert_eq!(driver.guest.due_in(), None, "TIDV is halted");
    driver.send(RS | IDE);
    driver.wait(units(10));
    assert_eq!(driver.serve(), Some(TXDW | TXQE));
    assert_eq!(driver.guest.due_in(), None, "TADV is halted");
    driver.send(RS | IDE);
    driver.write(TADV, 0);
    driver.wait(units(8));
    driver.send(RS | IDE);
    driver.wait(units(9));
    assert_eq!(driver.serve(), None, "TADV is off");
}

#[test]
fn a_tidv_of_zero_delays_nothing() {
    let mut driver = driver(TXDW);
    driver.write(TADV, 15);
    driver.send(RS | IDE);
    assert_eq!(driver.serve(), Some(TXDW | TXQE));
    assert_eq!(driver.guest.due_in(), None);
}

#[test]
fn a_timer_that_has_run_out_is_told_of_before_it_starts_again() {
    let mut driver = driver(TXDW);
    driver.write(TIDV, 10);
    driver.send(RS | IDE);
    driver.guest.advance(units(11));
    driver.queue_data(&frame(MAC, 64), EOP | IFCS | RS | IDE);
    let tail = driver.tx_next;
    driver.write(TDT, tail);
    assert_eq!(driver.serve(), Some(TXDW | TXQE));
    assert_eq!(driver.guest.due_in(), Some(units(10)));
}

#[test]
fn delay_and_throttle_add_up() {
    let mut driver = driver(RXT0);
    driver.write(RDTR, 10);
    driver.write(ITR, 500);
    driver.write(ICS, RXT0);
    assert_eq!(driver.serve(), Some(RXT0));
    driver.arrive(&frame(MAC, 64));
    driver.wait(units(10));
    assert_eq!(driver.serve(), None);
    assert_eq!(driver.guest.due_in(), Some(ns(128_000 - 10_240)));
    driver.wait(ns(128_000 - 10_240));
    assert_eq!(driver.serve(), Some(RXT0));
}

#[test]
fn a_reset_forgets_timers_and_interval() {
    for by_software in [false, true] {
        let mut driver = driver(RXT0 | TXDW);
        for register in [RDTR, RADV, TIDV, TADV, ITR] {
            driver.write(register, 1000);
        }
        driver.write(ICS, RXT0);
        assert_eq!(driver.serve(), Some(RXT0));
        driver.arrive(&frame(MAC, 64));
        driver.send(RS | IDE);
        driver.write(ICS, RXT0);
        assert!(driver.guest.due_in().is_some());
        if by_software {
            driver.set(CTRL, 0x0400_0000);
        } else {
            driver.guest.reset();
        }
        assert_eq!(driver.guest.due_in(), None, "by software: {by_software}");
        assert_eq!((driver.read(ITR), driver.read(RDTR)), (0, 0));
        driver.write(ITR, 1000);
        driver.write(IMS, RXT0);
        driver.write(ICS, RXT0);
        assert_eq!(driver.serve(), Some(RXT0));
    }
}

#[test]
fn the_shortest_delays_do_not_keep_the_device_busy() {
    let mut driver = driver(0x1_ffff);
    for register in [RDTR, RADV, TIDV, TADV, ITR] {
        driver.write(register, 1);
    }
    for _ in 0..100 {
        driver.arrive(&frame(MAC, 64));
        let tail = (driver.read(RDH) + 63) % 64;
        driver.write(RDT, tail);
        driver.send(RS | IDE);
        let mut runs = 0;
        while let Some(due) = driver.guest.due_in() {
            driver.guest.advance(due);
            driver.guest.run();
            runs += 1;
        }
        assert!(runs <= 3, "{runs}: ITR's, RDTR's and TIDV's");
        assert!(driver.serve().is_some());
    }
}
