//! Which frames come in: addresses, the multicast table, VLANs.

use super::*;

const UPE: u32 = 0x08;
const MPE: u32 = 0x10;
const BAM: u32 = 0x8000;
const VFE: u32 = 0x4_0000;
const CFIEN: u32 = 0x8_0000;
const CFI: u32 = 0x10_0000;
const SECRC: u32 = 0x0400_0000;
const VME: u32 = 0x4000_0000;
const VET: u64 = 0x0038;
const MTA: u64 = 0x5200;
const RAL: u64 = 0x5400;
const VFTA: u64 = 0x5600;
const BROADCAST: [u8; 6] = [0xff; 6];
const OTHER: [u8; 6] = [0x02, 0x11, 0x22, 0x33, 0x44, 0x55];
const DD: u8 = 0x01;
const VP: u8 = 0x08;
const PIF: u8 = 0x80;

/// What a frame's descriptor says, if it was received. Its length is that of the frame.
fn offer(driver: &mut Driver, frame: &[u8]) -> Option<Received> {
    let index = driver.read(RDH);
    driver.arrive(frame);
    (driver.read(RDH) != index).then(|| driver.received(index))
}

fn tagged(destination: [u8; 6], ether_type: u16, tag: u16, bytes: usize) -> Vec<u8> {
    let mut frame = frame(destination, bytes);
    let header = [ether_type.to_be_bytes(), tag.to_be_bytes()].concat();
    frame.splice(12..12, header);
    frame
}

#[test]
fn each_of_the_sixteen_addresses_matches_exactly() {
    for group in [0, 1] {
        for index in 0..16 {
            let mut driver = Driver::receiving(8, SECRC);
            let at = RAL + 8 * index;
            let address = [0x02 | group, 0x11, 0x22, 0x33, 0x44, index as u8];
            driver.write(at, 0x3322_1102 | u32::from(group));
            driver.write(at + 4, 0x0000_0044 | (index as u32) << 8);
            assert!(offer(&mut driver, &frame(address, 60)).is_none(), "{index}");
            driver.set(at + 4, 0x8000_0000);
            let received = offer(&mut driver, &frame(address, 60)).unwrap();
            assert_eq!(received.status & PIF, 0, "it is known to be for us");
            let mut near = address;
            near[5] ^= 0x80;
            assert!(offer(&mut driver, &frame(near, 60)).is_none(), "{index}");
        }
    }
}

#[test]
fn an_address_select_that_is_reserved_matches_nothing() {
    let mut driver = Driver::receiving(8, SECRC);
    for select in [2, 3] {
        driver.write(RAL + 8, 0x3322_1102);
        driver.write(RAL + 12, 0x8000_5544 | select << 16);
        assert!(offer(&mut driver, &frame(OTHER, 60)).is_none());
    }
}

#[test]
fn promiscuous_modes_are_one_for_stations_and_one_for_groups() {
    let group = [0x03, 0, 0, 0, 0, 1];
    for (rctl, destination, is_received) in [
        (UPE, OTHER, true),
        (UPE, group, false),
        (UPE, BROADCAST, false),
        (MPE, OTHER, false),
        (MPE, group, true),
        (MPE, BROADCAST, true),
    ] {
        let mut driver = Driver::receiving(8, SECRC | rctl);
        let received = offer(&mut driver, &frame(destination, 60));
        assert_eq!(received.is_some(), is_received, "{rctl:#x}");
        assert!(received.is_none_or(|received| received.status & PIF == PIF));
    }
}

#[test]
fn the_table_has_the_bit_of_the_manuals_example() {
    // xx:xx:xx:xx:9x:bc is bit 9 of row 94.
    let mut driver = Driver::receiving(8, SECRC);
    let group = [0x13, 0x34, 0x56, 0x78, 0x9a, 0xbc];
    driver.write(MTA + 94 * 4, 1 << 9);
    let received = offer(&mut driver, &frame(group, 60)).unwrap();
    assert_eq!(received.status & PIF, PIF, "software has to look again");
    let similar = [0x01, 0, 0, 0, 0x95, 0xbc];
    assert!(offer(&mut driver, &frame(similar, 60)).is_some());
    let station = [0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc];
    assert!(
        offer(&mut driver, &frame(station, 60)).is_none(),
        "the table is for groups"
    );
}

#[test]
fn a_broadcast_that_is_not_accepted_as_such_may_match_otherwise() {
    let mut driver = Driver::receiving(8, SECRC);
    assert!(offer(&mut driver, &frame(BROADCAST, 60)).is_none());
    driver.write(MTA + 127 * 4, 1 << 31);
    let received = offer(&mut driver, &frame(BROADCAST, 60)).unwrap();
    assert_eq!(received.status & PIF, PIF);
    driver.write(MTA + 127 * 4, 0);
    driver.write(RAL + 8, 0xffff_ffff);
    driver.write(RAL + 12, 0x8000_ffff);
    let received = offer(&mut driver, &frame(BROADCAST, 60)).unwrap();
    assert_eq!(received.status & PIF, 0);
    assert_eq!(driver.read(0x4078), 0, "BPRC counts with BAM");
    driver.set(RCTL, BAM);
    assert!(offer(&mut driver, &frame(BROADCAST, 60)).is_some());
    assert_eq!(driver.read(0x4078), 1);
}

#[test]
fn vme_strips_and_vfe_filters_each_by_itself() {
    for (vme, vfe, is_listed) in [
        (false, false, false),
        (false, true, false),
        (false, true, true),
        (true, false, false),
        (true, true, false),
        (true, true, true),
    ] {
        let mut driver = Driver::receiving(8, SECRC | if vfe { VFE } else { 0 });
        if vme {
            driver.set(CTRL, VME);
        }
        if is_listed {
            driver.write(VFTA + 4 * (0xabc >> 5), 1 << (0xabc & 31));
        }
        let untagged = frame(MAC, 100);
        let received = offer(&mut driver, &untagged).unwrap();
        assert_eq!((received.status & VP, received.special), (0, 0));
        let tagged = tagged(MAC, 0x8100, 0x2abc, 100);
        let received = offer(&mut driver, &tagged);
        assert_eq!(received.is_some(), is_listed || !vfe);
        let Some(received) = received else { continue };
        if vme {
            assert_eq!((received.status & VP, received.special), (VP, 0x2abc));
            assert_eq!(received.data, untagged);
        } else {
            assert_eq!((received.status & VP, received.special), (0, 0));
            assert_eq!(received.data, tagged);
        }
    }
}

#[test]
fn the_fcs_is_that_of_the_tagged_frame() {
    let mut driver = Driver::receiving(8, 0);
    driver.set(CTRL, VME);
    let tagged = tagged(MAC, 0x8100, 5, 100);
    let received = offer(&mut driver, &tagged).unwrap();
    assert_eq!(received.data[..100], frame(MAC, 100));
    assert_eq!(received.data[100..], fcs(&tagged));
}

#[test]
fn vet_says_which_frames_are_tagged() {
    let mut driver = Driver::receiving(8, SECRC | VFE);
    driver.set(CTRL, VME);
    driver.write(VET, 0x88a8);
    let frame = tagged(MAC, 0x8100, 7, 100);
    let received = offer(&mut driver, &frame).unwrap();
    assert_eq!((received.status & VP, received.data), (0, frame));
    let frame = tagged(MAC, 0x88a8, 7, 100);
    assert!(
        offer(&mut driver, &frame).is_none(),
        "7 is not in the table"
    );
    driver.write(VFTA, 1 << 7);
    let received = offer(&mut driver, &frame).unwrap();
    assert_eq!((received.status & VP, received.special), (VP, 7));
}

#[test]
fn a_vlan_is_no_reason_to_take_what_is_for_others() {
    let mut driver = Driver::receiving(8, SECRC | VFE);
    driver.write(VFTA, 1 << 7);
    assert!(offer(&mut driver, &tagged(OTHER, 0x8100, 7, 100)).is_none());
    assert!(offer(&mut driver, &tagged(MAC, 0x8100, 7, 100)).is_some());
}

#[test]
fn the_canonical_form_is_a_criterion_of_the_vlan_filter() {
    for (rctl, tag, is_received) in [
        (VFE, 0x0007, true),
        (VFE, 0x1007, true),
        (VFE | CFIEN, 0x0007, true),
        (VFE | CFIEN, 0x1007, false),
        (VFE | CFIEN | CFI, 0x0007, false),
        (VFE | CFIEN | CFI, 0xf007, true),
        // Table 9-3: without VFE only the other filters count.
        (CFIEN, 0x1007, true),
    ] {
        let mut driver = Driver::receiving(8, SECRC | rctl);
        driver.write(VFTA, 1 << 7);
        let received = offer(&mut driver, &tagged(MAC, 0x8100, tag, 100));
        assert_eq!(received.is_some(), is_received, "{rctl:#x} {tag:#x}");
    }
}

#[test]
fn a_tagged_frame_has_up_to_1522_bytes() {
    let mut driver = Driver::receiving(8, 0);
    let longest = tagged(MAC, 0x8100, 7, 1514);
    assert_eq!(offer(&mut driver, &longest).unwrap().data.len(), 1522);
    assert_eq!(driver.received(0).status & DD, DD);
    assert!(offer(&mut driver, &tagged(MAC, 0x8100, 7, 1515)).is_none());
}
