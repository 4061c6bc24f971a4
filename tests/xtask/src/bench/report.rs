//! What was measured, for people and for programs, beside what is aimed at.

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde_json::{Value, json};

use super::{
    bound::Bound,
    protocol::{Cores, Figures, Line, Outcome, Workload},
    server::Kind,
};

/// A figure that is aimed at.
struct Target {
    what: &'static str,
    unit: &'static str,
    workload: Workload,
    cores: &'static [Cores],
    bound: Bound,
    value: fn(&Outcome, &Line) -> Option<f64>,
}

const BOTH: &[Cores] = &[Cores::One, Cores::Two];

const TARGETS: &[Target] = &[
    Target {
        what: "replied read, p50",
        unit: " x limit",
        workload: Workload::Read,
        cores: BOTH,
        bound: Bound::AtMost(1.05),
        value: |outcome, line| ratio(line, outcome.find(line, Kind::Limit)?, |round| round.p50_ns),
    },
    Target {
        what: "replied read, p50, spinning",
        unit: " x sleeping limit",
        workload: Workload::Spin,
        cores: &[Cores::Two],
        bound: Bound::AtMost(0.25),
        value: |outcome, line| {
            let limit = outcome.line(Workload::Read, line.cores, Kind::Limit)?;
            ratio(line, limit, |round| round.p50_ns)
        },
    },
    Target {
        what: "replied read, server CPU",
        unit: " x limit",
        workload: Workload::Read,
        cores: BOTH,
        bound: Bound::AtMost(1.10),
        value: |outcome, line| {
            let limit = outcome.find(line, Kind::Limit)?;
            ratio(line, limit, |round| Some(round.processor_ns))
        },
    },
    Target {
        what: "16 pipelined reads",
        unit: " x crate",
        workload: Workload::Pipelined,
        cores: BOTH,
        bound: Bound::AtLeast(5.0),
        value: |outcome, line| rate_ratio(line, outcome.find(line, Kind::Crate)?),
    },
    Target {
        what: "posted writes, 16 glued",
        unit: " M/s",
        workload: Workload::Posted,
        cores: BOTH,
        bound: Bound::AtLeast(5.0),
        value: |_, line| Some(median(line, |round| Some(round.per_second))? / 1e6),
    },
    Target {
        what: "posted writes, 16 glued",
        unit: " x crate",
        workload: Workload::Posted,
        cores: BOTH,
        bound: Bound::AtLeast(8.0),
        value: |outcome, line| rate_ratio(line, outcome.find(line, Kind::Crate)?),
    },
];

impl Outcome {
    fn line(&self, workload: Workload, cores: Cores, kind: Kind) -> Option<&Line> {
        self.lines
            .iter()
            .find(|line| (line.workload, line.cores, line.kind) == (workload, cores, kind))
    }

    /// Another server under the same workload.
    fn find(&self, line: &Line, kind: Kind) -> Option<&Line> {
        self.line(line.workload, line.cores, kind)
    }

    /// What the bare socket itself comes to.
    fn limit(&self, target: &Target, line: &Line) -> Option<f64> {
        (target.value)(self, self.find(line, Kind::Limit)?)
    }

    /// Each target that this project's servers were measured for, with the value.
    fn judged(&self) -> Vec<(&Target, &Line, f64)> {
        let mut judged = Vec::new();
        for target in TARGETS {
            for cores in target.cores {
                for kind in [Kind::Library, Kind::Device] {
                    let line = self.line(target.workload, *cores, kind);
                    let value = line.and_then(|line| Some((line, (target.value)(self, line)?)));
                    judged.extend(value.map(|(line, value)| (target, line, value)));
                }
            }
        }
        judged
    }
}

/// Of what the rounds have, the middle.
fn median(line: &Line, figure: impl Fn(&Figures) -> Option<f64>) -> Option<f64> {
    middle(line.rounds.iter().filter_map(figure).collect())
}

/// The middle of the rounds' ratios: what disturbs a round disturbs both sides of it.
fn ratio(line: &Line, to: &Line, figure: impl Fn(&Figures) -> Option<f64>) -> Option<f64> {
    let pairs = line.rounds.iter().zip(&to.rounds);
    let ratios = pairs.filter_map(|(ours, theirs)| Some(figure(ours)? / figure(theirs)?));
    middle(ratios.collect())
}

fn rate_ratio(line: &Line, to: &Line) -> Option<f64> {
    ratio(line, to, |round| Some(round.per_second))
}

fn middle(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Limit => "limit: bare socket",
        Kind::Library => "vfio-user, this crate",
        Kind::Device => "vfu-device e1000",
        Kind::Crate => "crate vfio_user",
    }
}

fn title(workload: Workload, cores: Cores) -> String {
    let what = match workload {
        Workload::Read => "replied read of 4 bytes, sleeping",
        Workload::Spin => "replied read of 4 bytes, spinning",
        Workload::Pipelined => "16 pipelined reads of 4 bytes",
        Workload::Posted => "posted writes of 4 bytes, 16 glued",
    };
    format!("{what}, {}", words(cores))
}

fn words(cores: Cores) -> &'static str {
    match cores {
        Cores::One => "one core",
        Cores::Two => "two cores",
    }
}

pub(super) fn print(outcome: &Outcome) {
    let mut before = None;
    for line in &outcome.lines {
        if before.replace((line.workload, line.cores)) != Some((line.workload, line.cores)) {
            println!(
                "\n{:40} {:>9} {:>9} {:>11} {:>11} {:>9} {:>8}",
                title(line.workload, line.cores),
                "p50 us",
                "p99 us",
                "messages/s",
                "CPU us/msg",
                "calls/msg",
                "x limit"
            );
        }
        print_line(outcome, line);
    }
    let priority = if outcome.real_time {
        "real-time priority"
    } else {
        "ordinary priority: other programs disturb"
    };
    println!("\nmedians of {} rounds, {priority}", outcome.rounds);
    for reason in &outcome.skipped {
        println!("SKIPPED {reason}");
    }
}

fn print_line(outcome: &Outcome, line: &Line) {
    let us = |ns: Option<f64>| shown(ns.map(|ns| ns / 1e3), 2);
    println!(
        "  {:38} {:>9} {:>9} {:>11} {:>11} {:>9} {:>8}",
        name(line.kind),
        us(median(line, |round| round.p50_ns)),
        us(median(line, |round| round.p99_ns)),
        shown(median(line, |round| Some(round.per_second)), 0),
        shown(median(line, |round| Some(round.processor_ns / 1e3)), 3),
        shown(line.calls, 3),
        shown(to_limit(outcome, line), 2),
    );
}

fn shown(value: Option<f64>, digits: usize) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
}

/// How the time of a reply, or the rate where there is none, stands to the limit's.
fn to_limit(outcome: &Outcome, line: &Line) -> Option<f64> {
    let limit = outcome.find(line, Kind::Limit)?;
    ratio(line, limit, |round| round.p50_ns).or_else(|| rate_ratio(line, limit))
}

/// Prints the targets. Fails when one is missed and `assert` is set.
pub(super) fn judge(outcome: &Outcome, assert: bool) -> Result<()> {
    let judged = outcome.judged();
    println!(
        "\n{:61} {:>9} {:>7}  target",
        "targets", "measured", "limit"
    );
    let mut missed = 0;
    for (target, line, value) in &judged {
        let met = target.bound.is_met(*value);
        missed += usize::from(!met);
        let (word, bound) = target.bound.words();
        println!(
            "  {:28} {:9}  {:21} {value:>9.2} {:>7}  {word} {bound}{}: {}",
            target.what,
            words(line.cores),
            name(line.kind),
            shown(outcome.limit(target, line), 2),
            target.unit,
            if met { "met" } else { "NOT MET" }
        );
    }
    if assert && missed > 0 {
        bail!("{missed} of {} targets are missed", judged.len());
    }
    Ok(())
}

pub(super) fn json(outcome: &Outcome) -> Value {
    let lines: Vec<Value> = outcome
        .lines
        .iter()
        .map(|line| line_json(outcome, line))
        .collect();
    let targets: Vec<Value> = outcome
        .judged()
        .into_iter()
        .map(|(target, line, value)| {
            let (word, bound) = target.bound.words();
            json!({
                "what": target.what,
                "unit": target.unit.trim(),
                "cores": cores_number(line.cores),
                "server": word_of(line.kind),
                "value": value,
                "limit": outcome.limit(target, line),
                "bound": format!("{word} {bound}"),
                "met": target.bound.is_met(value),
            })
        })
        .collect();
    json!({
        "rounds": outcome.rounds,
        "real_time": outcome.real_time,
        "lines": lines,
        "targets": targets,
        "skipped": outcome.skipped,
    })
}

fn line_json(outcome: &Outcome, line: &Line) -> Value {
    json!({
        "workload": word_of(line.workload),
        "cores": cores_number(line.cores),
        "server": word_of(line.kind),
        "p50_ns": median(line, |round| round.p50_ns),
        "p99_ns": median(line, |round| round.p99_ns),
        "messages_per_second": median(line, |round| Some(round.per_second)),
        "server_cpu_ns_per_message": median(line, |round| Some(round.processor_ns)),
        "server_system_calls_per_message": line.calls,
        "to_limit": to_limit(outcome, line),
    })
}

/// The word that the command line has for it.
fn word_of(value: impl ValueEnum) -> Option<String> {
    value
        .to_possible_value()
        .map(|value| value.get_name().to_owned())
}

fn cores_number(cores: Cores) -> u8 {
    match cores {
        Cores::One => 1,
        Cores::Two => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(kind: Kind, p50_ns: &[f64]) -> Line {
        let figures = |p50_ns: &f64| Figures {
            p50_ns: Some(*p50_ns),
            p99_ns: None,
            per_second: 1e9 / p50_ns,
            processor_ns: *p50_ns,
        };
        Line {
            workload: Workload::Read,
            cores: Cores::One,
            kind,
            rounds: p50_ns.iter().map(figures).collect(),
            calls: None,
        }
    }

    #[test]
    fn a_disturbed_round_disturbs_no_ratio() {
        let outcome = Outcome {
            lines: vec![
                line(Kind::Limit, &[100.0, 900.0, 100.0]),
                line(Kind::Library, &[104.0, 936.0, 990.0]),
            ],
            skipped: Vec::new(),
            rounds: 3,
            real_time: true,
        };
        let judged = outcome.judged();
        let p50 = judged
            .iter()
            .find(|(target, ..)| target.what == "replied read, p50")
            .unwrap();
        assert!((p50.2 - 1.04).abs() < 1e-9);
        assert!(judge(&outcome, true).is_ok());
    }

    #[test]
    fn a_missed_target_is_an_error_only_when_asked() {
        let outcome = Outcome {
            lines: vec![line(Kind::Limit, &[100.0]), line(Kind::Device, &[120.0])],
            skipped: Vec::new(),
            rounds: 1,
            real_time: true,
        };
        assert!(judge(&outcome, false).is_ok());
        assert!(judge(&outcome, true).is_err());
    }
}
