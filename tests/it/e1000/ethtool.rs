//! What `ethtool` tests, shows and changes of the card, each with traffic after it.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::{Guest, peer, require};

use super::wired::{MAC, Staffed, Wired, growth, statistics, wait_up};

#[test]
fn all_five_self_tests_pass_and_the_card_works_after_them() -> Result<()> {
    require!(Qemu, Tap);
    passes_all_five(&mut Wired::boot(json!({}))?)
}

/// Runs the self-tests, and checks that the card works after them.
pub(super) fn passes_all_five(wired: &mut Wired) -> Result<()> {
    // The driver takes 20 ms to look at what came back. A guest that the host lets wait is late, which is 14.
    let report = wired.works_after(
        "for i in 1 2 3; do report=$(ethtool -t eth0 offline); \
         echo \"$report\" | grep -q '^Loopback.*[[:space:]]14$' || break; done; echo \"$report\"",
    )?;
    let results: HashMap<&str, &str> = report
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .map(|(name, result)| (name.split(' ').next().unwrap_or(name), result.trim()))
        .collect();
    ensure!(report.starts_with("The test result is PASS\n"), "{report}");
    for test in ["Register", "Eeprom", "Interrupt", "Loopback", "Link"] {
        ensure!(results.get(test) == Some(&"0"), "{test}: {report}");
    }
    ensure!(results.len() == 5, "not five: {report}");
    Ok(())
}

#[test]
fn statistics_count_known_frames_exactly() -> Result<()> {
    require!(Qemu);
    let mut staffed = Staffed::boot(Guest::builder())?;
    let Staffed { guest, peer, .. } = &mut staffed;
    let mac = peer.meet(guest, "eth0")?;
    // What the guest sends when its link comes up.
    peer.exchange(mac, [60])?;

    let before = statistics(guest)?;
    let lengths = [60, 61, 124, 125, 252, 508, 1020, 1514];
    peer.exchange(mac, lengths)?;
    let [broadcast, all_hosts, someone_else] = [
        [0xff; 6],
        [0x01, 0x00, 0x5e, 0x00, 0x00, 0x01],
        [0x52, 0x54, 0x00, 0x00, 0x00, 0x99],
    ];
    for (to, count, length) in [
        (broadcast, 5, 60),
        (all_hosts, 7, 100),
        (someone_else, 9, 60),
        // One more byte than a tagged frame may have: the driver did not ask for long ones.
        (mac, 11, 1519),
    ] {
        for _ in 0..count {
            peer.send(&frame(to, length))?;
        }
    }
    peer.exchange(mac, [60])?;
    let grown = growth(&before, &statistics(guest)?);

    // With the four bytes of their checksums.
    let echoes: u64 = lengths.iter().map(|length| *length as u64 + 4).sum::<u64>() + 64;
    let received = echoes + 5 * 64 + 7 * 104;
    let echo_count = lengths.len() as u64 + 1;
    let expected = [
        ("rx_packets", echo_count + 5 + 7),
        ("tx_packets", echo_count),
        ("rx_bytes", received),
        ("rx_long_byte_count", received),
        ("tx_bytes", echoes),
        ("rx_broadcast", 5),
        ("rx_multicast", 7),
        ("multicast", 7),
        ("rx_length_errors", 11),
        ("rx_long_length_errors", 11),
    ];
    let expected: HashMap<String, u64> = expected
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    ensure!(grown == expected, "grown by {grown:#?}\nnot {expected:#?}");
    Ok(())
}

fn frame(to: [u8; 6], length: usize) -> Vec<u8> {
    // IEEE 802's experimental EtherType: nobody answers.
    let mut frame = [&to[..], &peer::MAC, &[0x88, 0xb5]].concat();
    frame.resize(length, 0x5a);
    frame
}

#[test]
fn registers_are_dumped_as_the_driver_has_set_them() -> Result<()> {
    require!(Qemu, Tap);
    let mut wired = Wired::boot(json!({}))?;
    let dump = wired.works_after("ethtool -d eth0")?;
    for (name, value) in [
        ("Set link up", "1"),
        ("Duplex", "full"),
        ("Link up", "link config"),
        ("Link speed", "1000Mb/s"),
        ("Bus type", "PCI"),
        ("Receiver", "enabled"),
        ("Transmitter", "enabled"),
        ("Unicast promiscuous", "disabled"),
        ("Receive buffer size", "2048"),
        ("PHY type", "M88"),
        ("Link State", "Up"),
        ("Speed & Duplex Resolved", "Yes"),
    ] {
        ensure!(has(&dump, name, value), "{name}: {dump}");
    }
    Ok(())
}

#[test]
fn the_eeprom_can_be_read_and_a_written_address_is_the_cards_next_one() -> Result<()> {
    require!(Qemu, Tap);
    let mut wired = Wired::boot(json!({}))?;
    let eeprom = read_eeprom(&mut wired.guest)?;
    ensure!(
        eeprom[..6] == [0x52, 0x54, 0, 0x12, 0x34, 0x56],
        "{eeprom:x?}"
    );
    ensure!(words_sum(&eeprom) == 0xbaba, "{eeprom:x?}");
    // Words 0Bh to 0Eh: subsystem and its vendor, device, vendor.
    ensure!(
        eeprom[0x1a..0x1e] == [0x0e, 0x10, 0x86, 0x80],
        "{eeprom:x?}"
    );

    // The magic number keeps one card's content from another's: device and vendor.
    let write = |magic: &str| {
        format!(
            r"printf '\x52\x54\x00\xab\xcd\xef' | ethtool -E eth0 magic {magic} offset 0 length 6"
        )
    };
    let (status, refused) = wired
        .guest
        .sh_status(&write("0x100f8086"), std::time::Duration::from_secs(10))?;
    ensure!(status != 0, "another card's magic: {refused}");
    ensure!(
        read_eeprom(&mut wired.guest)? == eeprom,
        "changed all the same"
    );
    wired.works_after(&write("0x100e8086"))?;
    let written = read_eeprom(&mut wired.guest)?;
    ensure!(
        written[..6] == [0x52, 0x54, 0, 0xab, 0xcd, 0xef],
        "{written:x?}"
    );
    ensure!(words_sum(&written) == 0xbaba, "{written:x?}");
    ensure!(written[6..126] == eeprom[6..126], "more than the address");
    // One byte of a word.
    wired.works_after("ethtool -E eth0 magic 0x100e8086 offset 5 value 0xee")?;

    // The card has the old address until it is set up anew.
    ensure!(wired.guest.sh("cat /sys/class/net/eth0/address")?.trim() == MAC);
    wired.reload("")?;
    let address = wired.guest.sh("cat /sys/class/net/eth0/address")?;
    ensure!(address.trim() == "52:54:00:ab:cd:ee", "{address}");
    wired.works()
}

/// The bytes that `ethtool -e` shows.
fn read_eeprom(guest: &mut Guest) -> Result<Vec<u8>> {
    let dump = guest.sh("ethtool -e eth0")?;
    let mut bytes = Vec::new();
    for line in dump.lines().skip(2) {
        let (_, values) = line.split_once(':').with_context(|| dump.clone())?;
        for value in values.split_whitespace() {
            bytes.push(u8::from_str_radix(value, 16)?);
        }
    }
    ensure!(bytes.len() == 128, "{} bytes: {dump}", bytes.len());
    Ok(bytes)
}

/// The sum of all words, which is BABAh when the checksum is right.
fn words_sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2);
    words.fold(0, |sum, pair| {
        sum.wrapping_add(u16::from_le_bytes([pair[0], pair[1]]))
    })
}

#[test]
fn offloads_are_switched_off_and_on() -> Result<()> {
    require!(Qemu, Tap);
    let mut wired = Wired::boot(json!({}))?;
    for (flag, feature) in [
        ("tso", "tcp-segmentation-offload"),
        ("gso", "generic-segmentation-offload"),
        ("tx", "tx-checksumming"),
        ("rxvlan", "rx-vlan-offload"),
        // This driver has no switch of its own for the tags of sent frames: it follows the received ones'.
        ("rxvlan", "tx-vlan-offload"),
        ("rx", "rx-checksumming"),
        ("rx-fcs", "rx-fcs"),
        ("rx-all", "rx-all"),
    ] {
        // The last three are off as the driver comes.
        let states = match flag {
            "rx" | "rx-fcs" | "rx-all" => ["on", "off"],
            _ => ["off", "on"],
        };
        for state in states {
            let shown = wired.works_after(&format!(
                "ethtool -K eth0 {flag} {state} >/dev/null; ethtool -k eth0"
            ))?;
            let is_set = shown
                .lines()
                .any(|line| line.starts_with(&format!("{feature}: {state}")));
            ensure!(is_set, "{feature} is not {state}: {shown}");
        }
    }

    // The kernel has cut nothing: the card did, and it vouched for what it received.
    wired.guest.sh("ethtool -K eth0 rx on tso on gso on")?;
    let before = statistics(&mut wired.guest)?;
    wired.works()?;
    let grown = growth(&before, &statistics(&mut wired.guest)?);
    for counter in ["tx_tcp_seg_good", "rx_csum_offload_good"] {
        ensure!(grown.contains_key(counter), "{counter}: {grown:#?}");
    }
    for counter in ["tx_tcp_seg_failed", "rx_csum_offload_errors", "rx_errors"] {
        ensure!(!grown.contains_key(counter), "{counter}: {grown:#?}");
    }
    Ok(())
}

#[test]
fn rings_pause_led_and_speed_are_set() -> Result<()> {
    require!(Qemu, Tap);
    let mut wired = Wired::boot(json!({}))?;
    for size in [80, 4096, 256] {
        let shown = wired.works_after(&format!(
            "ethtool -G eth0 rx {size} tx {size}; ethtool -g eth0"
        ))?;
        let current = shown.split("Current").nth(1).context("ring sizes")?;
        for ring in ["RX", "TX"] {
            ensure!(has(current, ring, &size.to_string()), "{shown}");
        }
    }
    for (autonegotiate, rx, tx) in [
        ("off", "on", "on"),
        ("off", "off", "off"),
        ("on", "on", "on"),
    ] {
        let shown = wired.works_after(&format!(
            "ethtool -A eth0 autoneg {autonegotiate} rx {rx} tx {tx}; {}; ethtool -a eth0",
            settled()
        ))?;
        ensure!(has(&shown, "Autonegotiate", autonegotiate), "{shown}");
        if autonegotiate == "off" {
            ensure!(has(&shown, "RX", rx) && has(&shown, "TX", tx), "{shown}");
        }
    }
    wired.works_after("ethtool -p eth0 1")?;
    wired.works_after("ethtool -r eth0")?;
    for (settings, speed, duplex) in [
        ("speed 100 duplex full autoneg off", "100Mb/s", "Full"),
        ("speed 100 duplex half autoneg off", "100Mb/s", "Half"),
        ("speed 10 duplex full autoneg off", "10Mb/s", "Full"),
        ("speed 10 duplex half autoneg off", "10Mb/s", "Half"),
        ("speed 100 duplex full autoneg on", "100Mb/s", "Full"),
        ("autoneg on", "1000Mb/s", "Full"),
        ("mdix on", "1000Mb/s", "Full"),
        ("mdix auto", "1000Mb/s", "Full"),
    ] {
        wired.works_after(&format!("ethtool -s eth0 {settings}"))?;
        let shown = wired.guest.sh("ethtool eth0")?;
        let is_set = has(&shown, "Speed", speed) && has(&shown, "Duplex", duplex);
        ensure!(is_set, "{settings}: {shown}");
    }
    Ok(())
}

/// Whether one of the lines is this name with this value.
fn has(text: &str, name: &str, value: &str) -> bool {
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.any(|(found, shown)| found.trim() == name && shown.trim() == value)
}

/// A script that waits until the link is up and lets the script that it is in go on.
fn settled() -> String {
    format!("({})", wait_up("eth0"))
}
