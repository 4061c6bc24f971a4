//! TAPs in a network namespace of the test's own: what one sends, a bridge carries to the other.

use std::{
    process::Command,
    sync::{Mutex, PoisonError, mpsc},
    time::{Duration, Instant},
};

use nix::{sched::unshare, unistd::gettid};

use super::*;
use crate::{
    Kind,
    conformance::{self, Peer, frame, readable, receive, receive_with_verdict, run_until},
    null::Null,
};

const RECEIVE: Interest = Interest {
    receive: true,
    send: false,
};

/// A process that one test starts holds another's TAP open until it executes its program, so they take turns.
static TURN: Mutex<()> = Mutex::new(());

/// Runs a test in a new network namespace; says aloud when this host can't.
fn in_new_netns(test: impl FnOnce() + Send) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let able = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .is_ok();
    let run = || match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) if able => {
            // No frames but ours.
            let _ = std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
            let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
            test();
        }
        _ => {
            let required = std::env::var("VFU_REQUIRE").unwrap_or_default();
            assert!(
                !required
                    .split(',')
                    .any(|name| name == "tap" || name == "all"),
                "needs root and /dev/net/tun"
            );
            eprintln!("SKIPPED: needs root and /dev/net/tun");
        }
    };
    thread::scope(|scope| scope.spawn(run).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split(' '))
        .status()
        .unwrap();
    assert!(status.success(), "ip {arguments}");
}

fn config(ifname: &str, bridge: Option<&str>) -> config::Tap {
    config::Tap {
        ifname: Some(ifname.to_owned()),
        bridge: bridge.map(str::to_owned),
        netns: None,
    }
}

fn error(config: &config::Tap) -> Error {
    Tap::open(config).err().unwrap()
}

impl Peer for Tap {
    fn send(&mut self, frame: &[u8]) {
        Backend::send(self, frame, Offload::None).unwrap();
    }

    fn receive(&mut self) -> Option<Vec<u8>> {
        Some(receive(self, 70_000))
    }

    fn holds_back(&self) -> bool {
        false
    }
}

/// Two TAPs, joined by a bridge that has come to forward.
fn pair() -> (Tap, Tap) {
    bridge();
    another_pair()
}

/// Without snooping, which would send frames of its own.
fn bridge() {
    ip("link add br0 type bridge mcast_snooping 0");
    ip("link set br0 up");
}

fn another_pair() -> (Tap, Tap) {
    let any = config::Tap {
        bridge: Some("br0".to_owned()),
        ..config::Tap::default()
    };
    let (mut one, mut other) = (Tap::open(&any).unwrap(), Tap::open(&any).unwrap());
    let mut buffer = [0; 100];
    for [from, to] in [[0, 1], [1, 0]] {
        let mut ends = [&mut one, &mut other];
        run_until(&mut Null::default(), |_| {
            Backend::send(ends[from], &frame(60, 0xffff), Offload::None).unwrap();
            Backend::receive(ends[to], &mut buffer).is_some()
        });
    }
    for end in [&mut one, &mut other] {
        while readable_once(end) {
            Backend::receive(end, &mut buffer);
        }
    }
    (one, other)
}

fn readable_once(tap: &mut Tap) -> bool {
    tap.wait_for(RECEIVE);
    let readable = readable(tap, 20);
    tap.wait_for(Interest::default());
    readable
}

#[test]
fn conforms() {
    in_new_netns(|| {
        bridge();
        conformance::check(&mut || {
            let (one, other) = another_pair();
            (Box::new(one), Box::new(other))
        });
    });
}

fn sum(bytes: &[u8]) -> u16 {
    let mut sum = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low)))
        .sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum of the pseudo-header of an IPv4 or IPv6 packet.
fn pseudo_sum(packet: &[u8], protocol: u8) -> u16 {
    let version = packet[0] >> 4;
    let (addresses, header) = if version == 4 {
        (&packet[12..20], 20)
    } else {
        (&packet[8..40], 40)
    };
    let length = (packet.len() - header) as u32;
    sum(&[addresses, &length.to_be_bytes(), &[0, 0, 0, protocol]].concat())
}

/// A packet to everybody, with the pseudo-header's sum where its TCP or UDP checksum goes.
fn packet(version: u8, protocol: u8, payload: &[u8]) -> (Vec<u8>, usize) {
    let layer4_header: Vec<u8> = match protocol {
        6 => {
            let ports = [0x80, 0, 0x80, 1];
            [
                &ports[..],
                &1000_u32.to_be_bytes(),
                &[0; 4],
                &[0x50, 0x18, 0x10, 0, 0, 0, 0, 0],
            ]
            .concat()
        }
        _ => [
            &[0x80, 0, 0x80, 1][..],
            &(payload.len() as u16 + 8).to_be_bytes(),
            &[0, 0],
        ]
        .concat(),
    };
    let length = (layer4_header.len() + payload.len()) as u16;
    let ip_header = if version == 4 {
        let mut header = [
            &[0x45, 0][..],
            &(length + 20).to_be_bytes(),
            &[0, 7, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2],
        ]
        .concat();
        let checksum = !sum(&header);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        header
    } else {
        let addresses = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1].repeat(2);
        [
            &[0x60, 0, 0, 0][..],
            &length.to_be_bytes(),
            &[protocol, 64],
            &addresses,
        ]
        .concat()
    };
    let ethertype = if version == 4 {
        [0x08, 0x00]
    } else {
        [0x86, 0xdd]
    };
    let mut frame = [
        &[0xff; 6][..],
        &[2, 0, 0, 0, 0, 1],
        &ethertype,
        &ip_header,
        &layer4_header,
        payload,
    ]
    .concat();
    let start = 14 + ip_header.len();
    let at = start + if protocol == 6 { 16 } else { 6 };
    let pseudo = pseudo_sum(&frame[14..], protocol);
    frame[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
    (frame, start)
}

#[test]
fn the_kernel_puts_in_the_checksum() {
    in_new_netns(|| {
        let (mut one, mut other) = pair();
        for version in [4, 6] {
            for (protocol, offset) in [(6, 16), (17, 6)] {
                for length in [0, 1, 100, 1399] {
                    let (mut frame, start) = packet(version, protocol, &vec![0xa5; length]);
                    Backend::send(
                        &mut one,
                        &frame,
                        Offload::Checksum {
                            start: start as u16,
                            offset,
                        },
                    )
                    .unwrap();
                    let (received, is_right) = receive_with_verdict(&mut other, 1514);
                    assert!(is_right);
                    let whole = sum(&[
                        &received[start..],
                        if length % 2 == 1 { &[0][..] } else { &[] },
                        &pseudo_sum(&received[14..], protocol).to_be_bytes(),
                    ]
                    .concat());
                    assert_eq!(
                        whole, 0xffff,
                        "version {version} protocol {protocol} length {length}"
                    );
                    let at = start + usize::from(offset);
                    frame[at..at + 2].copy_from_slice(&received[at..at + 2]);
                    assert_eq!(received, frame);
                }
            }
        }
    });
}

#[test]
fn the_kernel_cuts_tcp_into_segments() {
    in_new_netns(|| {
        let (mut one, mut other) = pair();
        let payload: Vec<u8> = (0..40_000_u32)
            .map(|index| (index * 31 / 8) as u8)
            .collect();
        for version in [4, 6] {
            // The last is one segment only.
            for (length, segment_bytes) in [
                (40_000, 1440),
                (1441, 1440),
                (1440, 1440),
                (3000, 100),
                (50, 1440),
            ] {
                let (frame, start) = packet(version, 6, &payload[..length]);
                let header_bytes = start + 20;
                let offload = Offload::Segment {
                    ip_version: version,
                    header_bytes: header_bytes as u16,
                    segment_bytes,
                    start: start as u16,
                    offset: 16,
                };
                Backend::send(&mut one, &frame, offload).unwrap();
                let mut arrived = Vec::new();
                while arrived.len() < length {
                    let (segment, is_right) = receive_with_verdict(&mut other, 1514);
                    assert!(is_right);
                    let data = &segment[header_bytes..];
                    assert!(
                        data.len() == usize::from(segment_bytes)
                            || arrived.len() + data.len() == length
                    );
                    let sequence =
                        u32::from_be_bytes(segment[start + 4..start + 8].try_into().unwrap());
                    assert_eq!(sequence, 1000 + arrived.len() as u32);
                    let odd = if data.len() % 2 == 1 { &[0][..] } else { &[] };
                    let pseudo = pseudo_sum(&segment[14..], 6).to_be_bytes();
                    assert_eq!(sum(&[&segment[start..], odd, &pseudo].concat()), 0xffff);
                    if version == 4 {
                        assert_eq!(sum(&segment[14..34]), 0xffff, "the IP header's checksum");
                        assert_eq!(
                            usize::from(u16::from_be_bytes([segment[16], segment[17]])),
                            segment.len() - 14
                        );
                    }
                    arrived.extend_from_slice(data);
                }
                assert!(arrived == payload[..length]);
            }
        }
        assert!(!readable_once(&mut other));
    });
}

/// How often this thread has written something, as the kernel counts.
fn writes() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/io").unwrap();
    let count = text.lines().find_map(|line| line.strip_prefix("syscw: "));
    count.unwrap().parse().unwrap()
}

#[test]
fn a_packet_of_64_kib_is_one_write() {
    in_new_netns(|| {
        let (mut one, mut other) = pair();
        let payload = vec![0x5a; 44 * 1460];
        let (frame, start) = packet(4, 6, &payload);
        let before = writes();
        Backend::send(
            &mut one,
            &frame,
            Offload::Segment {
                ip_version: 4,
                header_bytes: start as u16 + 20,
                segment_bytes: 1460,
                start: start as u16,
                offset: 16,
            },
        )
        .unwrap();
        one.flush();
        assert_eq!(writes() - before, 1);
        for _ in 0..44 {
            assert_eq!(receive(&mut other, 1514).len(), 1514);
        }
    });
}

/// Puts a VLAN tag behind the addresses.
fn tagged(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0, 0x20, 0x05], &frame[12..]].concat()
}

#[test]
fn the_kernel_does_the_same_behind_a_vlan_tag() {
    in_new_netns(|| {
        let (mut one, mut other) = pair();
        for version in [4, 6] {
            let (frame, start) = packet(version, 17, &[0xa5; 101]);
            let offload = Offload::Checksum {
                start: start as u16 + 4,
                offset: 6,
            };
            Backend::send(&mut one, &tagged(&frame), offload).unwrap();
            let (received, is_right) = receive_with_verdict(&mut other, 1518);
            assert!(is_right);
            assert_eq!(received[..16], tagged(&frame)[..16]);
            let pseudo = pseudo_sum(&received[18..], 17).to_be_bytes();
            assert_eq!(
                sum(&[&received[start + 4..], &[0], &pseudo].concat()),
                0xffff
            );

            let (frame, start) = packet(version, 6, &[0x5a; 4000]);
            let start = start + 4;
            let offload = Offload::Segment {
                ip_version: version,
                header_bytes: start as u16 + 20,
                segment_bytes: 1000,
                start: start as u16,
                offset: 16,
            };
            Backend::send(&mut one, &tagged(&frame), offload).unwrap();
            for number in 0..4 {
                let (segment, is_right) = receive_with_verdict(&mut other, 1518);
                assert!(is_right);
                assert_eq!(segment.len(), start + 20 + 1000);
                assert_eq!(segment[..16], tagged(&frame)[..16]);
                assert_eq!(
                    segment[start + 4..start + 8],
                    (1000 + number * 1000_u32).to_be_bytes()
                );
                let pseudo = pseudo_sum(&segment[18..], 6).to_be_bytes();
                assert_eq!(sum(&[&segment[start..], &pseudo].concat()), 0xffff);
            }
        }
    });
}

#[test]
fn only_the_first_segment_says_that_the_window_was_reduced() {
    in_new_netns(|| {
        let (mut one, mut other) = pair();
        let (mut frame, start) = packet(4, 6, &[0x5a; 3000]);
        frame[start + 13] |= 0x80;
        let offload = Offload::Segment {
            ip_version: 4,
            header_bytes: start as u16 + 20,
            segment_bytes: 1000,
            start: start as u16,
            offset: 16,
        };
        Backend::send(&mut one, &frame, offload).unwrap();
        // ACK in all, PSH in the last, CWR in the first.
        for flags in [0x90, 0x10, 0x18] {
            assert_eq!(receive(&mut other, 1514)[start + 13], flags);
        }
    });
}

#[test]
fn nobody_vouches_for_a_frame_that_came_as_it_is() {
    in_new_netns(|| {
        let (mut one, mut other) = pair();
        let (frame, _) = packet(4, 17, &[1; 60]);
        Backend::send(&mut one, &frame, Offload::None).unwrap();
        assert_eq!(receive_with_verdict(&mut other, 1514), (frame, false));
    });
}

#[test]
fn nonsense_costs_the_frame_and_no_more() {
    in_new_netns(|| {
        let (mut one, mut other) = pair();
        for offload in [
            Offload::Checksum {
                start: 60,
                offset: 0,
            },
            Offload::Checksum {
                start: 0xffff,
                offset: 0xffff,
            },
            Offload::Segment {
                ip_version: 4,
                header_bytes: 0xffff,
                segment_bytes: 0,
                start: 0,
                offset: 0,
            },
            Offload::Segment {
                ip_version: 9,
                header_bytes: 54,
                segment_bytes: 1,
                start: 34,
                offset: 16,
            },
        ] {
            Backend::send(&mut one, &frame(60, 1), offload).unwrap();
        }
        Backend::send(&mut one, &frame(64, 2), Offload::None).unwrap();
        run_until(&mut other, |other| {
            let mut buffer = [0; 100];
            Backend::receive(other, &mut buffer).is_some_and(|received| received.frame_bytes == 64)
        });
    });
}

#[test]
fn an_interface_that_is_down_drops_and_works_again_when_it_is_up() {
    in_new_netns(|| {
        let (mut one, mut other) = pair();
        let ifname = one.ifname.clone();
        ip(&format!("link set {ifname} down"));
        Backend::send(&mut one, &frame(60, 1), Offload::None).unwrap();
        assert!(!readable_once(&mut one));
        ip(&format!("link set {ifname} up"));
        other.wait_for(RECEIVE);
        run_until(&mut other, |other| {
            Backend::send(&mut one, &frame(60, 2), Offload::None).unwrap();
            let mut buffer = [0; 60];
            Backend::receive(other, &mut buffer).is_some_and(|_| buffer[..] == frame(60, 2))
        });
    });
}

#[test]
fn a_deleted_interface_does_not_keep_the_loop_awake() {
    in_new_netns(|| {
        for interest in [
            RECEIVE,
            Interest {
                receive: true,
                send: true,
            },
            Interest::default(),
        ] {
            let mut tap = Tap::open(&config("vfu0", None)).unwrap();
            tap.wait_for(interest);
            ip("link del vfu0");
            if interest.receive {
                assert!(readable(&tap, 1000));
            }
            tap.run(Instant::now());
            tap.wait_for(RECEIVE);
            let end = Instant::now() + Duration::from_secs(5);
            while readable(&tap, 20) {
                assert!(Instant::now() < end, "awake for ever");
                tap.run(Instant::now());
                assert_eq!(Backend::receive(&mut tap, &mut [0; 60]), None);
            }
            Backend::send(&mut tap, &frame(60, 1), Offload::None).unwrap();
            tap.wait_for(Interest {
                receive: false,
                send: true,
            });
            assert!(readable(&tap, 20), "a frame that waits may go");
            tap.wait_for(Interest::default());
            assert!(!readable(&tap, 20));
        }
    });
}

#[test]
fn an_interface_is_used_by_one() {
    in_new_netns(|| {
        let tap = Tap::open(&config("vfu0", None)).unwrap();
        let busy = error(&config("vfu0", None));
        assert_eq!(
            busy.to_string(),
            "tap vfu0 is in use by another process: stop it or choose another ifname"
        );
        assert_eq!((busy.field(), busy.kind()), ("tap.ifname", Kind::InUse));
        drop(tap);
        assert!(
            if_nametoindex("vfu0").is_err(),
            "what was created goes with us"
        );
        Tap::open(&config("vfu0", None)).unwrap();
    });
}

#[test]
fn an_interface_that_exists_is_opened_and_stays() {
    in_new_netns(|| {
        ip("tuntap add dev vfu0 mode tap");
        ip("link add br0 type bridge");
        ip("link add br1 type bridge");
        drop(Tap::open(&config("vfu0", None)).unwrap());
        drop(Tap::open(&config("vfu0", Some("br0"))).unwrap());
        drop(Tap::open(&config("vfu0", Some("br0"))).unwrap());
        let taken = error(&config("vfu0", Some("br1")));
        assert!(matches!(taken, Error::BridgeTaken { .. }), "{taken}");
        assert!(if_nametoindex("vfu0").is_ok());
    });
}

#[test]
fn what_is_no_tap_or_no_bridge_is_told() {
    in_new_netns(|| {
        ip("link add br0 type bridge");
        ip("tuntap add dev tun0 mode tun");
        for ifname in ["br0", "tun0", "lo"] {
            let error = error(&config(ifname, None));
            assert!(matches!(error, Error::NotATap { .. }), "{error}");
        }
        let not = error(&config("vfu0", Some("tun0")));
        assert!(matches!(not, Error::NotABridge { .. }), "{not}");
        let missing = error(&config("vfu0", Some("br9")));
        assert!(matches!(missing, Error::BridgeMissing { .. }), "{missing}");
        assert_eq!(
            (missing.field(), missing.kind()),
            ("tap.bridge", Kind::NotFound)
        );
        assert!(if_nametoindex("vfu0").is_err(), "nothing is left behind");
    });
}

#[test]
fn names_that_cannot_be_are_refused() {
    for name in [
        "",
        "sixteen-bytes-ab",
        "a/b",
        "a b",
        "a\tb",
        "vfu%d",
        "a:b",
        ".",
        "..",
        "üüüüüüüü",
        "a\0b",
    ] {
        let error = error(&config(name, None));
        assert_eq!(
            (error.field(), error.kind()),
            ("tap.ifname", Kind::Invalid),
            "{name}"
        );
        let bridge = config::Tap {
            bridge: Some(name.to_owned()),
            ..config::Tap::default()
        };
        assert_eq!(self::error(&bridge).field(), "tap.bridge", "{name}");
    }
}

#[test]
fn the_namespace_is_entered_for_the_interface_only() {
    in_new_netns(|| {
        let (tell, told) = mpsc::channel();
        let (leave, left) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let other = scope.spawn(move || {
                unshare(CloneFlags::CLONE_NEWNET).unwrap();
                ip("link add br7 type bridge");
                tell.send(gettid()).unwrap();
                let _ = left.recv();
                assert!(
                    if_nametoindex("vfu7").is_ok(),
                    "it is in the other namespace"
                );
            });
            let netns = format!("/proc/self/task/{}/ns/net", told.recv().unwrap());
            let there = config::Tap {
                netns: Some(netns.into()),
                ..config("vfu7", Some("br7"))
            };
            let tap = Tap::open(&there).unwrap();
            assert!(if_nametoindex("vfu7").is_err(), "it is not in ours");
            assert!(if_nametoindex("br7").is_err(), "nor are we there");
            let busy = error(&there);
            assert!(matches!(busy, Error::TapBusy { .. }), "{busy}");
            let missing = error(&config::Tap {
                bridge: Some("br8".to_owned()),
                ifname: None,
                ..there
            });
            assert!(
                missing
                    .to_string()
                    .contains("in the namespace /proc/self/task/"),
                "{missing}"
            );
            drop(leave);
            other.join().unwrap();
            drop(tap);
        });
    });
}

#[test]
fn a_namespace_that_is_none_is_told() {
    let open = |path: &str| {
        error(&config::Tap {
            netns: Some(path.into()),
            ..config("vfu0", None)
        })
    };
    let missing = open("/run/netns/vfu-test-none");
    assert_eq!(
        missing.to_string(),
        "netns /run/netns/vfu-test-none: no such file: create it with `ip netns add vfu-test-none`"
    );
    assert_eq!(
        (missing.field(), missing.kind()),
        ("tap.netns", Kind::NotFound)
    );
    in_new_netns(move || {
        for path in ["/dev/null", "/proc/self/ns/uts"] {
            let not = open(path);
            assert!(matches!(not, Error::NotANetns { .. }), "{not}");
            assert_eq!((not.field(), not.kind()), ("tap.netns", Kind::Invalid));
        }
    });
}
