//! What was measured, for people and for programs, beside what is aimed at.

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde_json::{Value, json};

use super::{
    super::bound::Bound,
    Figures, Outcome,
    frame::Size,
    plan::{Backend, Line, Work},
};

/// A figure that is aimed at.
struct Target {
    what: &'static str,
    unit: &'static str,
    bound: Bound,
    value: fn(&Outcome) -> Option<f64>,
}

const TARGETS: &[Target] = &[
    Target {
        what: "64 bytes sent to null",
        unit: " M/s",
        bound: Bound::AtLeast(3.0),
        value: |outcome| outcome.rate(Work::Send, Backend::Null, Size::Small),
    },
    Target {
        what: "64 bytes sent to stream",
        unit: " M/s",
        bound: Bound::AtLeast(2.0),
        value: |outcome| outcome.rate(Work::Send, Backend::Stream, Size::Small),
    },
    Target {
        what: "1514 bytes sent to stream",
        unit: " M/s",
        bound: Bound::AtLeast(1.2),
        value: |outcome| outcome.rate(Work::Send, Backend::Stream, Size::Large),
    },
    Target {
        what: "64 bytes received from stream",
        unit: " M/s",
        bound: Bound::AtLeast(2.0),
        value: |outcome| outcome.rate(Work::Receive, Backend::Stream, Size::Small),
    },
    Target {
        what: "64 bytes received from stream, with a window",
        unit: " M/s",
        bound: Bound::AtLeast(2.0),
        value: |outcome| outcome.rate(Work::ReceiveWindow, Backend::Stream, Size::Small),
    },
    Target {
        what: "1514 bytes received from stream",
        unit: " M/s",
        bound: Bound::AtLeast(1.2),
        value: |outcome| outcome.rate(Work::Receive, Backend::Stream, Size::Large),
    },
    Target {
        what: "1514 bytes received from stream, with a window",
        unit: " M/s",
        bound: Bound::AtLeast(1.2),
        value: |outcome| outcome.rate(Work::ReceiveWindow, Backend::Stream, Size::Large),
    },
    Target {
        what: "server CPU, 64 bytes sent to stream",
        unit: " s/M",
        bound: Bound::AtMost(0.5),
        value: |outcome| outcome.processor(Backend::Stream, Size::Small),
    },
    Target {
        what: "server CPU, 1514 bytes sent to stream",
        unit: " s/M",
        bound: Bound::AtMost(0.5),
        value: |outcome| outcome.processor(Backend::Stream, Size::Large),
    },
    Target {
        what: "64 bytes sent to a TAP",
        unit: " x limit",
        bound: Bound::AtLeast(0.85),
        value: |outcome| outcome.to_tap(Size::Small),
    },
    Target {
        what: "512 bytes sent to a TAP",
        unit: " x limit",
        bound: Bound::AtLeast(0.85),
        value: |outcome| outcome.to_tap(Size::Medium),
    },
    Target {
        what: "1514 bytes sent to a TAP",
        unit: " x limit",
        bound: Bound::AtLeast(0.85),
        value: |outcome| outcome.to_tap(Size::Large),
    },
    Target {
        what: "64 KiB TSO to a TAP",
        unit: " x 1514 bytes",
        bound: Bound::AtLeast(5.0),
        value: |outcome| {
            let whole = outcome.line(Work::Send, Some(Backend::Tap), Size::Segments, 64)?;
            let single = outcome.line(Work::Send, Some(Backend::Tap), Size::Large, 64)?;
            ratio(whole, single, bits)
        },
    },
    Target {
        what: "system calls, 64 bytes sent to null",
        unit: " a frame",
        bound: Bound::AtMost(0.15),
        value: |outcome| outcome.calls(Work::Send, Backend::Null),
    },
    Target {
        what: "system calls, 64 bytes sent to stream",
        unit: " a frame",
        bound: Bound::AtMost(0.15),
        value: |outcome| outcome.calls(Work::Send, Backend::Stream),
    },
    Target {
        what: "system calls, 64 bytes received from stream",
        unit: " a frame",
        bound: Bound::AtMost(0.15),
        value: |outcome| outcome.calls(Work::ReceiveWindow, Backend::Stream),
    },
    Target {
        what: "system calls, 64 bytes sent to a TAP",
        unit: " a frame",
        bound: Bound::AtMost(1.15),
        value: |outcome| outcome.calls(Work::Send, Backend::Tap),
    },
    Target {
        what: "frames lost between stream and guest",
        unit: "",
        bound: Bound::AtMost(0.0),
        value: |outcome| {
            let lines = || outcome.of(Backend::Stream);
            lines().next()?;
            Some(lines().map(|round| round.lost as f64).sum())
        },
    },
    Target {
        what: "interrupts lost, in all",
        unit: "",
        bound: Bound::AtMost(0.0),
        value: |outcome| {
            let rounds = outcome.lines.iter().flat_map(|line| &line.rounds);
            Some(rounds.map(|round| round.lost_interrupts as f64).sum())
        },
    },
];

impl Outcome {
    fn line(
        &self,
        work: Work,
        backend: Option<Backend>,
        size: Size,
        doorbell: u64,
    ) -> Option<&Line> {
        let wanted = (work, backend, size, doorbell);
        self.lines
            .iter()
            .find(|line| (line.work, line.backend, line.size, line.doorbell) == wanted)
    }

    /// The rounds of all lines with this backend.
    fn of(&self, backend: Backend) -> impl Iterator<Item = &Figures> {
        let lines = self.lines.iter();
        let lines = lines.filter(move |line| line.backend == Some(backend));
        lines.flat_map(|line| &line.rounds)
    }

    /// Millions of frames a second, announced 64 at a time.
    fn rate(&self, work: Work, backend: Backend, size: Size) -> Option<f64> {
        median(self.line(work, Some(backend), size, 64)?, millions)
    }

    /// Seconds for a million frames that are sent.
    fn processor(&self, backend: Backend, size: Size) -> Option<f64> {
        median(
            self.line(Work::Send, Some(backend), size, 64)?,
            processor_us,
        )
    }

    fn calls(&self, work: Work, backend: Backend) -> Option<f64> {
        self.line(work, Some(backend), Size::Small, 64)?.calls
    }

    /// How the rate stands to that of plain writes.
    fn to_tap(&self, size: Size) -> Option<f64> {
        let limit = self.line(Work::Tap, None, size, 0)?;
        let line = self.line(Work::Send, Some(Backend::Tap), size, 64)?;
        ratio(line, limit, |_, round| millions(round))
    }
}

fn millions(round: &Figures) -> Option<f64> {
    (round.seconds > 0.0).then(|| round.frames as f64 / round.seconds / 1e6)
}

/// Gigabits a second of what the driver handed over or received.
fn bits(line: &Line, round: &Figures) -> Option<f64> {
    Some(millions(round)? * (line.size.bytes() * 8) as f64 / 1e3)
}

fn processor_us(round: &Figures) -> Option<f64> {
    (round.processor_seconds > 0.0).then(|| round.processor_seconds * 1e6 / round.frames as f64)
}

/// Of what the rounds have, the middle.
fn median(line: &Line, figure: impl Fn(&Figures) -> Option<f64>) -> Option<f64> {
    middle(line.rounds.iter().filter_map(figure).collect())
}

/// The middle of the rounds' ratios: what disturbs a round disturbs both sides of it.
fn ratio(line: &Line, to: &Line, figure: impl Fn(&Line, &Figures) -> Option<f64>) -> Option<f64> {
    let pairs = line.rounds.iter().zip(&to.rounds);
    let ratios = pairs.filter_map(|(one, other)| Some(figure(line, one)? / figure(to, other)?));
    middle(ratios.collect())
}

fn middle(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// What a line is about, in words.
pub(super) fn name(line: &Line) -> String {
    let backend = match line.backend {
        Some(Backend::Null) => "null",
        Some(Backend::Stream) => "stream",
        Some(Backend::Tap) => "tap",
        None => "",
    };
    let every = match line.doorbell {
        0 => String::new(),
        1 => ", doorbell for each".to_owned(),
        doorbell => format!(", doorbell every {doorbell}"),
    };
    match line.work {
        Work::Copy => "limit: copied once".to_owned(),
        Work::Socket => "limit: a socket, 64 at once".to_owned(),
        Work::Tap => "limit: a TAP, one by one".to_owned(),
        Work::Wake => "limit: message to eventfd".to_owned(),
        Work::Send => format!("to {backend}{every}"),
        Work::Receive => format!("from {backend}{every}"),
        Work::ReceiveWindow => format!("from {backend}, window{every}"),
        Work::SendOne => format!("doorbell to interrupt, {backend}"),
        Work::ReceiveOne => format!("frame to interrupt, {backend}"),
    }
}

fn title(line: &Line) -> String {
    let size = match line.size {
        Size::Segments => "64 KiB TSO".to_owned(),
        size => format!("{} bytes", size.bytes()),
    };
    match line.work {
        Work::Wake | Work::SendOne | Work::ReceiveOne => "one frame at a time".to_owned(),
        Work::Receive | Work::ReceiveWindow => format!("received, {size}"),
        _ => format!("sent, {size}"),
    }
}

pub(super) fn print(outcome: &Outcome) {
    let mut before = None;
    for line in &outcome.lines {
        let title = title(line);
        if before.as_ref() != Some(&title) {
            println!(
                "\n{title:42} {:>8} {:>8} {:>8} {:>9} {:>8} {:>8} {:>7} {:>7}",
                "M/s", "Gbit/s", "CPU s/M", "calls/fr", "fr/irq", "lost", "p50 us", "p99 us"
            );
            before = Some(title);
        }
        print_line(line);
    }
    let processors = if outcome.has_two_cores {
        "two cores: the driver and the peer on one, the server on the other"
    } else {
        "ONE CORE for all: no figure is worth much"
    };
    let priority = if outcome.real_time {
        "real-time priority"
    } else {
        "ordinary priority: other programs disturb"
    };
    println!(
        "\nmedians of {} rounds, rings of {} descriptors, {priority}",
        outcome.rounds, outcome.ring
    );
    println!("{processors}");
    for reason in &outcome.skipped {
        println!("SKIPPED {reason}");
    }
}

fn print_line(line: &Line) {
    let lost: u64 = line.rounds.iter().map(|round| round.lost).sum();
    let us = |ns: Option<f64>| shown(ns.map(|ns| ns / 1e3), 1);
    println!(
        "  {:40} {:>8} {:>8} {:>8} {:>9} {:>8} {:>8} {:>7} {:>7}",
        name(line),
        shown(median(line, millions), 3),
        shown(median(line, |round| bits(line, round)), 2),
        shown(median(line, processor_us), 3),
        shown(line.calls, 3),
        shown(median(line, frames_per_interrupt), 1),
        if line.backend.is_some() {
            lost.to_string()
        } else {
            "-".to_owned()
        },
        us(median(line, |round| round.p50_ns)),
        us(median(line, |round| round.p99_ns)),
    );
}

fn frames_per_interrupt(round: &Figures) -> Option<f64> {
    (round.interrupts > 0).then(|| round.frames as f64 / round.interrupts as f64)
}

fn shown(value: Option<f64>, digits: usize) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
}

/// Prints the targets. Fails when one is missed and `assert` is set.
pub(super) fn judge(outcome: &Outcome, assert: bool) -> Result<()> {
    println!(
        "\n{:50} {:>9}  target",
        "targets, doorbell every 64", "measured"
    );
    let (mut judged, mut missed) = (0, 0);
    for target in TARGETS {
        let Some(value) = (target.value)(outcome) else {
            continue;
        };
        let met = target.bound.is_met(value);
        judged += 1;
        missed += usize::from(!met);
        let (word, bound) = target.bound.words();
        println!(
            "  {:48} {value:>9.2}  {word} {bound}{}: {}",
            target.what,
            target.unit,
            if met { "met" } else { "NOT MET" }
        );
    }
    if assert && missed > 0 {
        bail!("{missed} of {judged} targets are missed");
    }
    Ok(())
}

pub(super) fn json(outcome: &Outcome) -> Value {
    let lines: Vec<Value> = outcome.lines.iter().map(line_json).collect();
    let targets = TARGETS.iter().filter_map(|target| {
        let value = (target.value)(outcome)?;
        let (word, bound) = target.bound.words();
        Some(json!({
            "what": target.what,
            "unit": target.unit.trim(),
            "value": value,
            "bound": format!("{word} {bound}"),
            "met": target.bound.is_met(value),
        }))
    });
    json!({
        "rounds": outcome.rounds,
        "real_time": outcome.real_time,
        "ring": outcome.ring,
        "two_cores": outcome.has_two_cores,
        "lines": lines,
        "targets": targets.collect::<Vec<_>>(),
        "skipped": outcome.skipped,
    })
}

fn line_json(line: &Line) -> Value {
    json!({
        "work": word_of(line.work),
        "backend": line.backend.and_then(word_of),
        "size": word_of(line.size),
        "doorbell": line.doorbell,
        "million_frames_per_second": median(line, millions),
        "gbit_per_second": median(line, |round| bits(line, round)),
        "server_cpu_us_per_frame": median(line, processor_us),
        "server_system_calls_per_frame": line.calls,
        "frames_per_interrupt": median(line, frames_per_interrupt),
        "lost_frames": line.rounds.iter().map(|round| round.lost).sum::<u64>(),
        "lost_interrupts": line.rounds.iter().map(|round| round.lost_interrupts).sum::<u64>(),
        "p50_ns": median(line, |round| round.p50_ns),
        "p99_ns": median(line, |round| round.p99_ns),
    })
}

/// The word that the command line has for it.
fn word_of(value: impl ValueEnum) -> Option<String> {
    value
        .to_possible_value()
        .map(|value| value.get_name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(work: Work, backend: Option<Backend>, frames: &[u64]) -> Line {
        let figures = |frames: &u64| Figures {
            frames: *frames,
            seconds: 1.0,
            ..Figures::default()
        };
        Line {
            work,
            backend,
            size: Size::Large,
            doorbell: if backend.is_some() { 64 } else { 0 },
            rounds: frames.iter().map(figures).collect(),
            calls: None,
        }
    }

    fn outcome(lines: Vec<Line>) -> Outcome {
        Outcome {
            lines,
            skipped: Vec::new(),
            rounds: 1,
            real_time: true,
            ring: 1024,
            has_two_cores: true,
        }
    }

    #[test]
    fn a_disturbed_round_disturbs_no_ratio() {
        let outcome = outcome(vec![
            line(Work::Tap, None, &[1_000_000, 200_000, 1_000_000]),
            line(Work::Send, Some(Backend::Tap), &[900_000, 180_000, 100]),
        ]);
        let ratio = outcome.to_tap(Size::Large).unwrap();
        assert!((ratio - 0.9).abs() < 1e-9);
        assert!(judge(&outcome, true).is_ok());
    }

    #[test]
    fn a_missed_target_is_an_error_only_when_asked() {
        let outcome = outcome(vec![line(Work::Send, Some(Backend::Stream), &[100_000])]);
        assert!(judge(&outcome, false).is_ok());
        assert!(judge(&outcome, true).is_err());
    }

    #[test]
    fn one_lost_interrupt_is_one_too_many() {
        let mut lost = line(Work::Send, Some(Backend::Null), &[5_000_000]);
        assert!(judge(&outcome(vec![]), true).is_ok());
        lost.rounds[0].lost_interrupts = 1;
        assert!(judge(&outcome(vec![lost]), true).is_err());
    }
}
