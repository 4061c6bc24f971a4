//! A driver of a second family: DPDK's, in a process of the guest. It polls its rings, reaches the card through
//! `uio_pci_generic` - which takes only functions whose interrupt can be switched off in the command register, as PCI 2.3
//! has it - and finds its memory by physical addresses, in huge pages.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context, Result, ensure};
use tests::{Guest, command, peer, require};

use super::wired::Staffed;

const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
const FRAMES: usize = 6400;
/// How many are on their way at once: fewer than the driver has descriptors.
const BATCH: usize = 64;
const LIMIT: Duration = Duration::from_secs(30);

/// testpmd, with commands by a pipe and its output, by lines, on the console. Its two threads share the guest's
/// processor.
const START: &str = "
    set -e
    chmod 755 /; mkdir -p /var/run /dev/hugepages; mount -t hugetlbfs none /dev/hugepages
    echo 64 >/proc/sys/vm/nr_hugepages
    card=$(basename $(readlink -f /sys/class/net/eth0/device))
    cd /sys/bus/pci/devices/$card
    echo $card >driver/unbind
    echo uio_pci_generic >driver_override
    echo $card >/sys/bus/pci/drivers_probe
    test $(basename $(readlink driver)) = uio_pci_generic
    for name in bus_pci mempool_ring net_e1000; do plugins=\"$plugins -d /lib/librte_$name.so.25\"; done
    mkfifo /tmp/commands
    dpdk-testpmd $plugins --in-memory --lcores 0@0,1@0 -m 64 --iova-mode=pa -a $card -- \\
        -i --nb-cores=1 --total-num-mbufs=4096 </tmp/commands >/dev/console 2>&1 &
    # Keeps the pipe open between commands.
    sleep 100000 >/tmp/commands &
";

#[test]
fn dpdk_receives_and_sends_every_frame() -> Result<()> {
    require!(Qemu);
    let mut staffed = Staffed::boot(Guest::builder().dpdk().memory_mebibytes(512))?;
    let Staffed { guest, peer, .. } = &mut staffed;
    guest.sh(START)?;
    wait_output(guest, 0, "Done")?;
    let output = tell(guest, "show port info 0", "Device private info")?;
    for line in [
        "Driver name: net_e1000_em",
        "MAC address: 52:54:00:12:34:56",
        "Link status: up",
        "Link speed: 1 Gbps",
    ] {
        ensure!(output.contains(line), "no `{line}`: {output}");
    }

    // Each frame comes back with its addresses exchanged.
    guest.sh("echo set fwd macswap >/tmp/commands")?;
    tell(guest, "start", "packets/burst")?;
    let frames: Vec<Vec<u8>> = (0..FRAMES).map(frame).collect();
    for batch in frames.chunks(BATCH) {
        for frame in batch {
            peer.send(frame)?;
        }
        for frame in batch {
            let expected = [&frame[6..12], &frame[..6], &frame[12..]].concat();
            let returned = next(peer)?;
            ensure!(
                returned == expected,
                "a frame of {} bytes comes back changed, with {}",
                frame.len(),
                returned.len()
            );
        }
    }
    tell(guest, "stop", "Done.")?;
    // The card counts the checksum too.
    let bytes: usize = frames.iter().map(|frame| frame.len() + 4).sum();
    let counted = statistics(guest)?;
    for (name, value) in [
        ("RX-packets", FRAMES),
        ("TX-packets", FRAMES),
        ("RX-bytes", bytes),
        ("TX-bytes", bytes),
        ("RX-missed", 0),
        ("RX-errors", 0),
        ("TX-errors", 0),
    ] {
        ensure!(
            counted.get(name) == Some(&value),
            "{name} is not {value}: {counted:?}"
        );
    }

    // As fast as it can, while somebody reads.
    guest.sh("echo set fwd txonly >/tmp/commands; echo start >/tmp/commands")?;
    for _ in 0..20 * FRAMES {
        next(peer)?;
    }
    Ok(())
}

/// A frame of a length and a content of its own.
fn frame(number: usize) -> Vec<u8> {
    let mut frame = [&MAC[..], &peer::MAC, &[0x88, 0xb5]].concat();
    frame.extend((0..46 + number % 1455).map(|byte| (byte * 7 + number).to_le_bytes()[0]));
    frame
}

/// Passes over what the guest's Linux sent before.
fn next(peer: &mut tests::Peer) -> Result<Vec<u8>> {
    loop {
        let frame = peer.receive()?;
        // IPv6, from when its interface was there.
        if frame.get(12..14) != Some(&[0x86, 0xdd]) {
            return Ok(frame);
        }
    }
}

/// Gives testpmd a command, and waits for what it prints then. Returns all that it prints until then.
fn tell(guest: &mut Guest, command: &str, wanted: &str) -> Result<String> {
    let before = guest.console().len();
    guest.sh(&format!("echo {command} >/tmp/commands"))?;
    wait_output(guest, before, wanted)
}

fn wait_output(guest: &Guest, from: usize, wanted: &str) -> Result<String> {
    let output = || guest.console().get(from..).unwrap_or_default().to_owned();
    let waited = command::wait_for(&format!("testpmd to say {wanted}"), LIMIT, || {
        let output = output();
        Ok(output.contains(wanted).then_some(output))
    });
    waited.with_context(output)
}

/// The numbers in `RX-packets: 6400       RX-missed: 0`.
fn statistics(guest: &mut Guest) -> Result<HashMap<String, usize>> {
    let output = tell(guest, "show port stats 0", "Tx-pps")?;
    let words: Vec<&str> = output.split_whitespace().collect();
    let pairs = words.windows(2).filter_map(|pair| {
        let name = pair[0].strip_suffix(':')?;
        Some((name.to_owned(), pair[1].parse().ok()?))
    });
    Ok(pairs.collect())
}
