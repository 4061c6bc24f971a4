//! Which frames the card lets through to the guest, counted by the driver.

use anyhow::{Context, Result, ensure};
use tests::{Guest, peer, require};

use super::wired::Staffed;

/// Frames that are sent of each kind.
const COUNT: u64 = 20;

const SOMEONE_ELSE: [u8; 6] = [0x52, 0x54, 0, 0, 0, 0x99];
const BROADCAST: [u8; 6] = [0xff; 6];
const JOINED: [u8; 6] = [0x01, 0x00, 0x5e, 0x01, 0x02, 0x03];
/// Its twelve highest bits, by which the table of groups is looked up, are not those of the other one.
const NOT_JOINED: [u8; 6] = [0x01, 0x00, 0x5e, 0x01, 0x42, 0x77];

struct Filters {
    staffed: Staffed,
    guest_mac: [u8; 6],
}

impl Filters {
    fn boot() -> Result<Self> {
        let mut staffed = Staffed::boot(Guest::builder())?;
        let guest_mac = staffed.peer.meet(&mut staffed.guest, "eth0")?;
        Ok(Self { staffed, guest_mac })
    }

    fn sh(&mut self, script: &str) -> Result<String> {
        self.staffed.guest.sh(script)
    }

    /// How many of these frames reach the guest.
    fn let_through(&mut self, frame: &[u8]) -> Result<u64> {
        let before = self.received()?;
        for _ in 0..COUNT {
            self.staffed.peer.send(frame)?;
        }
        // Frames keep their order: the answer to this one tells that the others have had their chance.
        self.staffed.peer.exchange(self.guest_mac, [60])?;
        Ok(self.received()? - before - 1)
    }

    fn received(&mut self) -> Result<u64> {
        let count = self.sh("cat /sys/class/net/eth0/statistics/rx_packets")?;
        count.trim().parse().context("a counter")
    }

    fn passes(&mut self, what: &str, to: [u8; 6]) -> Result<()> {
        let count = self.let_through(&frame(to, &[])).context(what.to_owned())?;
        ensure!(count == COUNT, "{what}: {count} of {COUNT} frames pass");
        Ok(())
    }

    fn is_kept_out(&mut self, what: &str, to: [u8; 6]) -> Result<()> {
        let count = self.let_through(&frame(to, &[])).context(what.to_owned())?;
        ensure!(count == 0, "{what}: {count} of {COUNT} frames pass");
        Ok(())
    }
}

/// A short frame from the station, with a tag or without.
fn frame(to: [u8; 6], tag: &[u8]) -> Vec<u8> {
    let mut frame = [&to[..], &peer::MAC, tag, &[0x88, 0xb5]].concat();
    frame.resize(64, 0x5a);
    frame
}

#[test]
fn addresses_groups_and_promiscuous_modes_decide_what_passes() -> Result<()> {
    require!(Qemu);
    let mut filters = Filters::boot()?;
    let own = filters.guest_mac;
    filters.passes("own address", own)?;
    filters.passes("broadcast", BROADCAST)?;
    filters.is_kept_out("another address", SOMEONE_ELSE)?;
    filters.is_kept_out("a group before it is joined", JOINED)?;

    // A full ip: busybox has no maddress.
    filters.sh("/bin/ip maddress add 01:00:5e:01:02:03 dev eth0")?;
    filters.passes("a joined group", JOINED)?;
    filters.is_kept_out("a group that was not joined", NOT_JOINED)?;
    filters.sh("/bin/ip maddress delete 01:00:5e:01:02:03 dev eth0")?;
    filters.is_kept_out("a group that was left", JOINED)?;

    // More groups than the card has exact addresses: some are looked up in the table.
    filters
        .sh("for i in $(seq 10 39); do /bin/ip maddress add 01:00:5e:02:$i:01 dev eth0; done")?;
    for last in (10..=39).map(|i: u8| i / 10 * 16 + i % 10) {
        filters.passes("one of thirty groups", [0x01, 0x00, 0x5e, 0x02, last, 0x01])?;
    }
    filters.is_kept_out("a group beside thirty", NOT_JOINED)?;
    filters
        .sh("for i in $(seq 10 39); do /bin/ip maddress delete 01:00:5e:02:$i:01 dev eth0; done")?;

    filters.sh("/bin/ip link set eth0 allmulticast on")?;
    filters.passes("any group", NOT_JOINED)?;
    filters.is_kept_out("another address, with all groups", SOMEONE_ELSE)?;
    filters.sh("/bin/ip link set eth0 allmulticast off; ip link set eth0 promisc on")?;
    filters.passes("any address, promiscuous", SOMEONE_ELSE)?;
    filters.passes("any group, promiscuous", NOT_JOINED)?;
    filters.sh("ip link set eth0 promisc off")?;
    filters.is_kept_out("another address, no longer promiscuous", SOMEONE_ELSE)?;
    filters.is_kept_out("any group, no longer promiscuous", NOT_JOINED)?;

    // A new address, and the old one is another's.
    filters.sh("ip link set eth0 address 52:54:00:00:00:99")?;
    let Staffed { guest, peer, .. } = &mut filters.staffed;
    filters.guest_mac = peer.meet(guest, "eth0")?;
    filters.passes("the new address", SOMEONE_ELSE)?;
    filters.is_kept_out("the old address", own)
}

#[test]
fn only_frames_of_the_guests_vlans_pass() -> Result<()> {
    require!(Qemu);
    let mut filters = Filters::boot()?;
    let own = filters.guest_mac;
    let tagged = |id: u8| frame(own, &[0x81, 0x00, 0x00, id]);
    let mut passing = |script: &str| -> Result<[u64; 3]> {
        filters.sh(script)?;
        Ok([
            filters.let_through(&frame(own, &[]))?,
            filters.let_through(&tagged(5))?,
            filters.let_through(&tagged(6))?,
        ])
    };
    assert_eq!(passing("true")?, [COUNT, 0, 0]);
    let add = "ip link add link eth0 name eth0.5 type vlan id 5 && ip link set eth0.5 up";
    assert_eq!(passing(add)?, [COUNT, COUNT, 0]);
    // Promiscuous means every VLAN too.
    assert_eq!(passing("ip link set eth0 promisc on")?, [COUNT; 3]);
    assert_eq!(passing("ip link set eth0 promisc off")?, [COUNT, COUNT, 0]);
    assert_eq!(passing("ip link delete eth0.5")?, [COUNT, 0, 0]);
    Ok(())
}
