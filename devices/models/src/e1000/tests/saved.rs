//! Saved state: a controller that was loaded behaves as the one that was saved, whatever it was doing.

use std::{fmt::Write as _, time::Duration};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// What a driver, a PHY, an EEPROM programmer and the other end of the cable may do.
#[derive(Clone, Debug)]
enum Step {
    Read(u64),
    Write(u64, u32),
    /// A legacy descriptor: how many bytes, and its command.
    Legacy(usize, u64),
    /// A context for TCP in IPv4: MSS, and whether it is for segmentation.
    Context(u64, bool),
    /// A data descriptor: how many bytes, its command and options.
    Data(usize, u64),
    /// The tail moves to behind what is queued.
    Tail,
    Run,
    Arrive(usize),
    /// Buffers for so many frames more.
    Buffers(u32),
    /// The backend takes so many frames more.
    Room(Option<usize>),
    /// The partner wants so many slots of silence.
    Pause(u16),
    /// So many nanoseconds pass.
    Wait(u64),
    ConfigWrite(u64, u8),
    /// And the driver begins anew.
    Reset {
        by_software: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let write = |register: u64, fixed: u32, free: u32| {
        any::<u32>().prop_map(move |value| Step::Write(register, fixed | value & free))
    };
    // Most writes leave the link, the rings and the bus as they are, so that there is something to save.
    let registers = prop_oneof![
        4 => write(CTRL, 0x40, 0x5800_0000),
        1 => write(CTRL, 0, 0xd800_1be9),
        4 => write(0x10, 0x42, 5),
        2 => write(0x10, 0, 0x47),
        2 => write(0x14, 1, 0xff00),
        // MDIC, to the one PHY: not its Control, whose loopback could keep the device busy with itself for ever.
        2 => write(0x20, 0x0821_0000, 0x201e_0000),
        2 => write(0x20, 0x0424_0000, 0x201e_ffff),
        1 => write(0x20, 0x0420_1340, 0),
        2 => write(ICR, 0, 0x1_ffff),
        2 => write(0xc8, 0, 0x1_ffff),
        2 => write(0xc4, 0, 0xffff),
        1 => write(0x2820, 0, 0x8000_ffff),
        1 => write(0x282c, 0, 0xffff),
        1 => write(0x3820, 0, 0xffff),
        1 => write(0x382c, 0, 0xffff),
        2 => write(IMS, 0, 0x1_ffff),
        1 => write(IMC, 0, 0x1_ffff),
        3 => write(RCTL, 0x801a, 0x0003_2320),
        1 => write(RCTL, 0, 0x0407_0e3e),
        1 => write(TCTL, 0, 0x0040_000a),
        1 => write(0x170, 0, 0xffff),
        2 => write(0x3820, 0, 0xff),
        2 => write(0x3828, 0x0100_0000, 0x0207_0000),
        1 => write(0x2160, 0, 0x8000_0000),
        3 => write(TCTL, 0xa, 0),
        1 => write(0x5000, 0, 0x07ff),
        1 => (0u64..128).prop_flat_map(move |index| write(0x5200 + 4 * index, 0, !0)),
        1 => (0u64..128).prop_flat_map(move |index| write(0x5600 + 4 * index, 0, !0)),
        1 => (0u64..0x8000).prop_filter_map("a ring stays", move |word| match 4 * word {
            0x20 | 0x2800..=0x2810 | 0x3800..=0x3810 | 0x110..=0x120 | 0x420..=0x430 => None,
            offset => Some(write(offset, 0, !0)),
        }).prop_flat_map(|write| write),
    ];
    let command = prop_oneof![
        Just(RS),
        Just(RS | IFCS),
        Just(EOP | RS | IFCS),
        Just(EOP | RS | IFCS | IDE),
        Just(EOP | IFCS | RS | VLE),
        Just(EOP | IFCS | RS | 0x04 << 24 | 14 << 16 | 40 << 40),
    ];
    let data = (any::<bool>(), any::<bool>(), 0u64..4).prop_map(|(end, cut, options)| {
        let end = if end { EOP | IFCS } else { 0 };
        let cut = if cut { 0x04 << 24 } else { 0 };
        DEXT | RS | 1 << 20 | end | cut | options << 40
    });
    prop_oneof![
        2 => (0u64..0x8000).prop_map(|word| Step::Read(4 * word)),
        2 => (0u64..64).prop_map(|word| Step::Read(0x4000 + 4 * word)),
        2 => prop::sample::select(vec![0x8, 0x10, 0x14, 0x20, ICR]).prop_map(Step::Read),
        6 => registers,
        2 => (0usize..2000, command).prop_map(|(bytes, command)| Step::Legacy(bytes, command)),
        1 => (0u64..1500, any::<bool>()).prop_map(|(mss, cut)| Step::Context(mss, cut)),
        3 => (0usize..9000, data).prop_map(|(bytes, command)| Step::Data(bytes, command)),
        4 => Just(Step::Tail),
        2 => Just(Step::Run),
        3 => (1usize..3000).prop_map(Step::Arrive),
        1 => (1u32..8).prop_map(Step::Buffers),
        2 => prop::option::of(0usize..4).prop_map(Step::Room),
        1 => prop_oneof![Just(0), any::<u16>()].prop_map(Step::Pause),
        2 => (0u64..50_000_000).prop_map(Step::Wait),
        1 => any::<u8>().prop_map(|byte| Step::ConfigWrite(0x3c, byte)),
        1 => prop::sample::select(vec![3, 7]).prop_map(|command| Step::ConfigWrite(4, command)),
        1 => Just(Step::ConfigWrite(4, 7)),
        1 => any::<bool>().prop_map(|by_software| Step::Reset { by_software }),
    ]
}

/// Both rings, the link, flow control, and interrupts.
fn set_up(driver: &mut Driver) {
    driver.set_up_transmit(64);
    driver.set_up_receive(16, 0x8018);
    driver.write(0x28, 0x00c2_8001);
    driver.write(0x2c, 0x0100);
    driver.write(0x30, 0x8808);
    driver.write(0x170, 0x1234);
    driver.write(0x2168, 0x8000);
    driver.tx_next = driver.read(TDH);
    driver.write(IMS, 0x1_ffff);
}

fn driver(offloads: bool) -> Driver {
    let mut driver = Driver::new();
    driver.guest.advance(Duration::ZERO);
    set_up(&mut driver);
    driver.wire.state().offloads = Offloads {
        checksum: offloads,
        segment: offloads,
    };
    driver
}

/// The same driver and the same backend with another controller, which has taken over the state of the one before.
fn moved(driver: Driver) -> Driver {
    let controller = Controller::new(MacAddress([2; 6]), Box::new(driver.wire.clone()));
    Driver {
        guest: driver.guest.moved_to(controller).unwrap(),
        ..driver
    }
}

fn pause(slots: u16) -> Vec<u8> {
    let mut frame = vec![1, 0x80, 0xc2, 0, 0, 1, 2, 0, 0, 0, 0, 1, 0x88, 8, 0, 1];
    frame.extend(slots.to_be_bytes());
    frame
}

/// Does one step, and says what the guest and the other end of the cable see of it.
fn take(driver: &mut Driver, step: &Step) -> String {
    let mut seen = String::new();
    match *step {
        Step::Read(register) => write!(seen, "{:x}", driver.read(register)).unwrap(),
        Step::Write(register, value) => driver.write(register, value),
        Step::Legacy(bytes, command) => {
            let data = ipv4_frame(17, &vec![bytes as u8; bytes]);
            driver.queue_data(&data[..bytes.min(data.len())], command);
        }
        Step::Context(mss, cut) => {
            let command = if cut { 0x27 } else { 0x23 };
            let offsets = 14 | 24 << 8 | 33 << 16 | 34 << 32 | 50 << 40;
            driver.queue(offsets, command << 24 | 54 << 40 | mss << 48);
        }
        Step::Data(bytes, command) => {
            let data = ipv4_frame(6, &vec![bytes as u8; bytes]);
            driver.queue_data(&data, command);
        }
        Step::Tail => {
            let tail = driver.tx_next;
            driver.write(TDT, tail);
            driver.data = TX_DATA;
        }
        Step::Run => driver.guest.run(),
        Step::Arrive(bytes) => driver.arrive(&frame([0xff; 6], bytes)),
        Step::Buffers(count) => {
            let tail = (driver.read(RDT) + count) % driver.rx_count;
            driver.write(RDT, tail);
        }
        Step::Pause(slots) => driver.arrive(&pause(slots)),
        Step::Wait(nanoseconds) => driver.guest.advance(Duration::from_nanos(nanoseconds)),
        Step::Room(room) => driver.wire.state().room = room,
        Step::ConfigWrite(at, byte) => driver.guest.config_write(at, &[byte]),
        Step::Reset { by_software } => {
            match by_software {
                true => driver.write(CTRL, 0x0400_0000),
                false => driver.guest.reset(),
            }
            set_up(driver);
        }
    }
    let interrupted = driver.guest.interrupted();
    let due = driver.guest.due_in();
    let mut wire = driver.wire.state();
    let sent = std::mem::take(&mut wire.sent);
    write!(seen, " {interrupted} {due:?} {:?} {sent:?}", wire.interest).unwrap();
    seen
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_controller_that_is_moved_all_the_time_behaves_as_one_that_stays(
        steps in prop::collection::vec((step(), any::<bool>()), 20..120),
        offloads in any::<bool>(),
    ) {
        let mut stays = driver(offloads);
        let mut moves = driver(offloads);
        for (step, is_moved) in &steps {
            prop_assert_eq!(take(&mut stays, step), take(&mut moves, step), "{:?}", step);
            if *is_moved {
                moves = moved(moves);
            }
        }
        prop_assert_eq!(stays.guest.save(), moves.guest.save());
        let rings = (TX_RING, (RX_DATA - TX_RING + 16 * RX_STRIDE) as usize);
        prop_assert!(stays.guest.load(rings.0, rings.1) == moves.guest.load(rings.0, rings.1));
    }

    #[test]
    fn a_state_that_was_tampered_with_is_harmless(
        changes in prop::collection::vec((any::<prop::sample::Index>(), tampering()), 1..4),
        steps in prop::collection::vec(step(), 1..20),
        kind in 0usize..4,
    ) {
        let mut state = serde_json::from_slice(&busy(kind).guest.save()).unwrap();
        for (place, change) in &changes {
            tamper(&mut state, place, change);
        }
        let mut driver = driver(false);
        let before = driver.guest.save();
        let loaded = driver.guest.load_state(&serde_json::to_vec(&state).unwrap());
        if loaded.is_err() {
            prop_assert_eq!(driver.guest.save(), before);
        }
        for step in &steps {
            take(&mut driver, step);
        }
    }

    #[test]
    fn garbage_is_no_state(bytes in prop::collection::vec(any::<u8>(), 0..200), keep in 0usize..4000) {
        let mut driver = driver(false);
        let mut state = driver.guest.save();
        prop_assert!(driver.guest.load_state(&bytes).is_err());
        state.truncate(keep);
        state.extend(bytes);
        // What was put behind or in between may by chance be a state.
        let _ = driver.guest.load_state(&state);
        driver.guest.run();
    }
}

/// Traffic of every kind, both ways, through everything that can hold it up.
fn script() -> Vec<Step> {
    let mut steps = vec![
        // Threshold and delay of write-back.
        Step::Write(0x3820, 0x40),
        Step::Write(0x3828, 0x0103_0000),
        Step::Write(CTRL, 0x5800_0041),
    ];
    for round in 0..4 {
        steps.extend([
            Step::Room(Some(round)),
            Step::Context(100 + round as u64, true),
            Step::Data(300 + round, DEXT | RS | 1 << 20 | 0x04 << 24 | 3 << 40),
            Step::Tail,
            Step::Arrive(60 + 500 * round),
            Step::Data(200, EOP | IFCS | RS | DEXT | 1 << 20 | 0x04 << 24),
            Step::Legacy(100, RS),
            Step::Tail,
            Step::Arrive(2900),
            Step::Legacy(1000, EOP | IFCS | RS | VLE | 0x80 << 24),
            Step::Tail,
            Step::Run,
            Step::Pause(1000),
            Step::Legacy(64, EOP | IFCS | RS),
            Step::Tail,
            Step::Wait(300_000),
            Step::Room(None),
            Step::Run,
            Step::Wait(300_000),
            Step::Run,
            Step::Context(0, false),
            Step::Data(500, EOP | IFCS | RS | DEXT | 1 << 20 | 3 << 40),
            Step::ConfigWrite(4, 3),
            Step::Tail,
            Step::Wait(500_000),
            Step::ConfigWrite(4, 7),
            Step::Run,
            Step::Wait(600_000),
            Step::Run,
            Step::Arrive(1500),
            Step::Buffers(7),
            Step::Wait(100_000),
            Step::Run,
            Step::Read(ICR),
        ]);
    }
    steps.push(Step::Wait(2_000_000_000));
    steps.push(Step::Run);
    steps
}

#[test]
fn a_script_that_moves_after_any_step_ends_with_the_same_frames() {
    let steps = script();
    for offloads in [false, true] {
        let play = |moves_after: Option<usize>| {
            let mut driver = driver(offloads);
            let mut seen = Vec::new();
            for (at, step) in steps.iter().enumerate() {
                seen.push(take(&mut driver, step));
                if moves_after == Some(at) {
                    driver = moved(driver);
                }
            }
            (seen, driver.guest.save())
        };
        let (expected, state) = play(None);
        let sent = expected.iter().filter(|seen| !seen.ends_with("[]"));
        assert!(sent.count() >= 10, "there is something to compare");
        for at in 0..steps.len() {
            let (seen, end) = play(Some(at));
            for ((step, seen), expected) in steps.iter().zip(&seen).zip(&expected) {
                assert_eq!(seen, expected, "moved after step {at}: {step:?}");
            }
            assert_eq!(end, state, "moved after step {at}");
        }
    }
}

#[derive(Clone, Debug)]
enum Tampering {
    Put(Value),
    Remove,
    Double,
}

fn tampering() -> impl Strategy<Value = Tampering> {
    prop_oneof![
        any::<u64>().prop_map(|number| Tampering::Put(json!(number))),
        any::<u32>().prop_map(|number| Tampering::Put(json!(number))),
        (0u32..300).prop_map(|number| Tampering::Put(json!(number))),
        any::<bool>().prop_map(|value| Tampering::Put(json!(value))),
        "[A-Za-z0-9+/]{0,40}".prop_map(|text| Tampering::Put(json!(text))),
        Just(Tampering::Put(Value::Null)),
        Just(Tampering::Remove),
        Just(Tampering::Double),
    ]
}

/// Changes something at some depth.
fn tamper(value: &mut Value, place: &prop::sample::Index, change: &Tampering) {
    let mut leaves = Vec::new();
    list(value, String::new(), &mut leaves);
    let path = place.get(&leaves).clone();
    let (parent, name) = path.rsplit_once('/').unwrap();
    match (value.pointer_mut(parent).unwrap(), change) {
        (Value::Object(map), Tampering::Remove) => drop(map.remove(name)),
        (Value::Array(array), Tampering::Remove) => drop(array.pop()),
        (Value::Array(array), Tampering::Double) => array.extend_from_within(..),
        (Value::Object(map), Tampering::Double) => drop(map.insert("another".into(), json!(1))),
        (_, Tampering::Put(new)) => *value.pointer_mut(&path).unwrap() = new.clone(),
        _ => {}
    }
}

/// The paths of all values that are not the whole. Of a long array the first ones: most are zeros of filters.
fn list(value: &Value, path: String, paths: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                list(value, format!("{path}/{name}"), paths);
            }
        }
        Value::Array(array) => {
            for (index, value) in array.iter().take(3).enumerate() {
                list(value, format!("{path}/{index}"), paths);
            }
        }
        _ => {}
    }
    if !path.is_empty() {
        paths.push(path);
    }
}

/// A controller with a packet in its transmitter (none, gathered, one frame, segments), a frame that waits for
/// descriptors, and a command half clocked into its EEPROM.
fn busy(kind: usize) -> Driver {
    let mut driver = driver(false);
    driver.write(0x5200, 0x8000_0001);
    driver.write(0x5604, 0x10);
    driver.write(0x14, 0x0501);
    // The PHY's software reset: the link went away for a moment, which its Status has not told yet.
    driver.write(0x20, 0x0420_9140);
    // EWEN; then READ of word 0, and its first bit.
    for command in ["100110000", "1100000000"] {
        driver.write(0x10, 0x40);
        for bit in command.bytes() {
            let data = u32::from(bit - b'0') << 2;
            driver.write(0x10, 0x42 | data);
            driver.write(0x10, 0x43 | data);
        }
    }
    // Interrupts are held back by ITR, and by the timers of both directions.
    for (register, value) in [
        (0xc4, 1000),
        (0x2820, 100),
        (0x282c, 200),
        (0x3820, 8),
        (0x382c, 32),
    ] {
        driver.write(register, value);
    }
    driver.read(ICR);
    driver.queue_data(&ipv4_frame(17, b"sent"), EOP | IFCS | RS | IDE);
    driver.ring();
    driver.read(ICR);
    driver.guest.advance(Duration::from_nanos(3000));
    driver.arrive(&frame(MAC, 64));
    driver.write(RDT, driver.rx_count - 1);
    let free = driver.read(RDT) - driver.read(RDH);
    for _ in 0..free - 1 {
        driver.arrive(&frame([0xff; 6], 80));
    }
    driver.set(CTRL, 0x1000_0000);
    // LPE: it needs two buffers, and there is one. The rest of it waits.
    driver.write(RCTL, 0x803a);
    driver.arrive(&frame(MAC, 2100));
    let offsets = 14 | 24 << 8 | 33 << 16 | 34 << 32 | 50 << 40;
    driver.queue(offsets, 0x23 << 24 | 54 << 40);
    driver.queue(offsets, 0x27 << 24 | 54 << 40 | 20 << 48 | 30);
    driver.wire.state().room = Some(1);
    match kind {
        0 => {}
        1 => {
            driver.write(0x3820, 0x100);
            driver.write(0x3828, 0x0108_0000);
            driver.queue_data(b"the first half", RS);
            // The other half is not there.
            driver.queue(1 << 40, RS | 14);
        }
        2 => {
            driver.wire.state().room = Some(0);
            driver.wire.state().offloads.checksum = true;
            driver.queue_data(
                &ipv4_frame(6, b"x"),
                EOP | IFCS | RS | DEXT | 1 << 20 | 3 << 40,
            );
        }
        _ => {
            let data = ipv4_frame(6, b"thirty bytes in two segments.");
            let command = EOP | IFCS | RS | VLE | DEXT | 1 << 20 | 0x04 << 24 | 3 << 40 | 5 << 48;
            driver.set(CTRL, 0x4000_0000);
            driver.queue_data(&data, command);
        }
    }
    driver.ring();
    driver.guest.set_running(false);
    driver
}

/// Who changes this file makes a new version of the format, and says what becomes of states in the old one.
#[test]
fn the_format_of_today_is_the_documented_one() {
    for (kind, literal) in [
        include_str!("saved/idle.json"),
        include_str!("saved/gathering.json"),
        include_str!("saved/frame.json"),
        include_str!("saved/segments.json"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut driver = busy(kind);
        let state: Value = serde_json::from_slice(&driver.guest.save()).unwrap();
        let literal: Value = serde_json::from_str(literal).unwrap();
        // The other packets come with the same everything else.
        let actual = match kind {
            0 => state,
            _ => state["device"]["state"]["transmitter"].clone(),
        };
        assert_eq!(actual, literal, "{kind}: {actual}");
    }
}

#[test]
fn a_state_of_today_is_loaded() {
    let mut fresh = Driver::new();
    fresh.guest.advance(Duration::ZERO);
    fresh
        .guest
        .load_state(include_bytes!("saved/idle.json"))
        .unwrap();
    assert_eq!(fresh.guest.save(), busy(0).guest.save());
}

#[test]
fn what_can_not_be_is_refused_by_name() {
    let long = "A".repeat(90_000);
    for (kind, field, value) in [
        (0, "registers.CTRL", json!([0x0020_0203])),
        (0, "registers.STATUS", json!([4])),
        (0, "registers.ICR", json!([0x2_0000])),
        (0, "registers.MTA", json!([0, 0])),
        (0, "io_address", json!(0x10_0000)),
        (0, "eeprom.words", json!(vec![0; 63])),
        (0, "eeprom.pins", json!(0x200)),
        (0, "eeprom.taken", json!(26)),
        (0, "eeprom.shift", json!(0)),
        (0, "phy.registers[2]", json!(0x0142)),
        (0, "transmitter.contexts", json!([])),
        (0, "receiver.waiting.data", json!("")),
        (0, "receiver.waiting.data", json!(long)),
        (0, "receiver.waiting.stored", json!(2104)),
        (0, "receiver.more", json!(2)),
        (0, "transmitter.retry", json!({"due_ns": 2, "after_ns": 1})),
        (
            0,
            "transmitter.retry",
            json!({"due_ns": 0, "after_ns": 1_000_000_001}),
        ),
        (0, "transmitter.done.count", json!(64)),
        (0, "transmitter.done.reported", json!(1)),
        (1, "transmitter.done.due_ns", json!(null)),
        (1, "transmitter.done.due_ns", json!(65_536 * 1024)),
        (0, "flow.paused_ns", json!(51_200u64 * 65_536)),
        (0, "interrupts.receive.packet_ns", json!(67_107_841)),
        (0, "interrupts.transmit.absolute_ns", json!(67_107_841)),
        (0, "interrupts.throttle.passed_ns", json!(16_776_961)),
        (0, "interrupts.throttle.waiting", json!(1)),
        (1, "transmitter.packet.gathering.data", json!(long)),
        (1, "transmitter.packet.gathering.options", json!("legacy")),
        (2, "transmitter.packet.frame.data", json!("")),
        (2, "transmitter.packet.frame.data", json!(long)),
        (
            2,
            "transmitter.packet.frame.checksum",
            json!({"start": 2, "at": 1}),
        ),
        (
            2,
            "transmitter.packet.frame.checksum",
            json!({"start": 0, "at": 65_535}),
        ),
        (3, "transmitter.packet.segments.header", json!("AAAA")),
        (3, "transmitter.packet.segments.payload", json!("")),
        (3, "transmitter.packet.segments.payload", json!(long)),
    ] {
        let mut driver = busy(kind);
        let mut state: Value = serde_json::from_slice(&driver.guest.save()).unwrap();
        let path = field.replace(['.', '['], "/").replace(']', "");
        let path = format!("/device/state/{path}");
        *state.pointer_mut(&path).expect(field) = value;
        let error = driver
            .guest
            .load_state(&serde_json::to_vec(&state).unwrap())
            .unwrap_err();
        let named = error.field().strip_prefix("device.state.");
        assert!(named.is_some_and(|name| name.starts_with(field)), "{error}");
    }
}

#[test]
fn the_cable_is_that_of_the_host() {
    let mut driver = driver(false);
    driver.read(ICR);
    let mut controller = Controller::new(MacAddress(MAC), Box::new(driver.wire.clone()));
    controller.config.link = Link::Down;
    let mut there = Driver {
        guest: driver.guest.moved_to(controller).unwrap(),
        ..driver
    };
    assert_eq!(there.read(STATUS) & 2, 2, "nobody has looked yet");
    let mut there = moved(there);
    there.guest.run_until_idle();
    assert_eq!((there.read(STATUS) & 2, there.read(ICR)), (2, 0));
    let mut controller = Controller::new(MacAddress(MAC), Box::new(there.wire.clone()));
    controller.config.link = Link::Down;
    let mut back = Driver {
        guest: there.guest.moved_to(controller).unwrap(),
        ..there
    };
    back.guest.run_until_idle();
    assert_eq!((back.read(STATUS) & 2, back.read(ICR)), (0, 4));
}

#[test]
fn a_frame_that_is_half_stored_goes_on_elsewhere() {
    // SECRC, buffers of 256 bytes; VME; IPOFLD and TUOFLD.
    let mut driver = Driver::receiving(8, 0x0403_0000);
    driver.set(CTRL, 0x4000_0000);
    driver.write(0x5000, 0x300);
    driver.write(RDT, 2);
    let mut frame = ipv4_frame(6, &[7; 900]);
    frame[60] ^= 1;
    let mut tagged = frame.clone();
    tagged.splice(12..12, [0x81, 0, 0, 9]);
    driver.arrive(&tagged);
    let mut there = moved(driver);
    assert!(!there.wire.state().interest.receive);
    // What decides on a frame was looked at when it came.
    there.write(0x5000, 0);
    there.write(CTRL, 0x40);
    there.write(RDT, 7);
    let parts: Vec<_> = (0..4).map(|index| there.received(index)).collect();
    let data: Vec<u8> = parts.iter().flat_map(|part| part.data.clone()).collect();
    assert_eq!(data, frame);
    let last = &parts[3];
    assert_eq!((last.status, last.errors, last.special), (0x6b, 0x20, 9));
    assert_eq!((there.read(RDH), there.read(0x4074)), (4, 1));
}

/// A packet that waited for a backend that sums and cuts is finished here, for one that does not.
#[test]
fn a_backend_that_does_less_gets_the_same_frames() {
    let command = EOP | IFCS | RS | DEXT | 1 << 20 | 3 << 40;
    for cut in [0, 0x04 << 24] {
        let frames = |offloads| {
            let mut driver = driver(offloads);
            let offsets = 14 | 24 << 8 | 33 << 16 | 34 << 32 | 50 << 40;
            driver.queue(offsets, 0x23 << 24 | 54 << 40);
            driver.queue(offsets, 0x27 << 24 | 54 << 40 | 100 << 48 | 1000);
            driver.wire.state().room = Some(0);
            driver.queue_data(&ipv4_frame(6, &[7; 1000]), command | cut);
            driver.ring();
            let mut there = moved(driver);
            *there.wire.state() = State::default();
            there.guest.run_until_idle();
            let state = there.wire.state();
            assert!(state.sent.iter().all(|(_, left)| *left == Offload::None));
            state.sent.clone()
        };
        let expected = frames(false);
        assert_eq!(expected.len(), if cut == 0 { 1 } else { 10 });
        assert_eq!(frames(true), expected);
    }
}
