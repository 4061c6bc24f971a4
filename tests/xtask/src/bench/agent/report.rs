//! What was measured, for people and for programs, beside what is aimed at.

use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::{super::bound::Bound, Agent, Round, load::Times};

/// A figure of every round, and what is aimed at on two cores.
struct Kind {
    what: &'static str,
    unit: &'static str,
    bound: Option<Bound>,
    value: fn(&Round) -> Option<f64>,
}

const KINDS: &[Kind] = &[
    Kind {
        what: "limit: record on the disk, p50",
        unit: "ms",
        bound: None,
        value: |it| ms(it.record.percentile(50)),
    },
    Kind {
        what: "limit: process that says its version, p50",
        unit: "ms",
        bound: None,
        value: |it| ms(it.process.percentile(50)),
    },
    Kind {
        what: "create, one caller, p50",
        unit: "ms",
        bound: Some(Bound::AtMost(10.0)),
        value: |it| ms(it.create_alone.percentile(50)),
    },
    Kind {
        what: "create, one caller, p50, to the limits",
        unit: "x",
        bound: None,
        value: |it| Some(ms(it.create_alone.percentile(50))? / floor(it)?),
    },
    Kind {
        what: "create, one caller, p99",
        unit: "ms",
        bound: None,
        value: |it| ms(it.create_alone.percentile(99)),
    },
    Kind {
        what: "create, many callers, p50",
        unit: "ms",
        bound: None,
        value: |it| ms(it.create_together.percentile(50)),
    },
    Kind {
        what: "create, many callers, p99",
        unit: "ms",
        bound: None,
        value: |it| ms(it.create_together.percentile(99)),
    },
    Kind {
        what: "create, many callers, all devices",
        unit: "s",
        bound: Some(Bound::AtMost(15.0)),
        value: |it| Some(it.create_together.total.as_secs_f64()),
    },
    Kind {
        what: "list of all devices, p50",
        unit: "ms",
        bound: Some(Bound::AtMost(10.0)),
        value: |it| ms(it.list.percentile(50)),
    },
    Kind {
        what: "list of all devices, p99",
        unit: "ms",
        bound: None,
        value: |it| ms(it.list.percentile(99)),
    },
    Kind {
        what: "adoption after kill -9, from the start of the agent",
        unit: "s",
        bound: Some(Bound::AtMost(1.0)),
        value: |it| Some(it.adoption.as_secs_f64()),
    },
    Kind {
        what: "delete, one caller, p50",
        unit: "ms",
        bound: None,
        value: |it| ms(it.delete_alone.percentile(50)),
    },
    Kind {
        what: "delete, many callers, all devices",
        unit: "s",
        bound: None,
        value: |it| Some(it.delete_together.total.as_secs_f64()),
    },
    Kind {
        what: "agent, resident",
        unit: "MiB",
        bound: Some(Bound::AtMost(64.0)),
        value: |it| Some(mib(it.agent_memory.resident as f64)),
    },
    Kind {
        what: "agent, private",
        unit: "MiB",
        bound: None,
        value: |it| Some(mib(it.agent_memory.private as f64)),
    },
    Kind {
        what: "idle device, private, mean",
        unit: "MiB",
        bound: Some(Bound::AtMost(1.0)),
        value: |it| Some(mib(it.device_private)),
    },
    Kind {
        what: "idle device, private, most",
        unit: "MiB",
        bound: Some(Bound::AtMost(1.0)),
        value: |it| Some(mib(it.device_private_most)),
    },
    Kind {
        what: "idle device, proportional, mean",
        unit: "MiB",
        bound: None,
        value: |it| Some(mib(it.device_proportional)),
    },
    Kind {
        what: "idle agent, CPU",
        unit: "%",
        bound: None,
        value: |it| Some(100.0 * it.idle_agent),
    },
    Kind {
        what: "idle devices together, CPU",
        unit: "%",
        bound: None,
        value: |it| Some(100.0 * it.idle_devices),
    },
    Kind {
        what: "all that is idle, CPU",
        unit: "%",
        bound: Some(Bound::AtMost(1.0)),
        value: |it| Some(100.0 * (it.idle_agent + it.idle_devices)),
    },
];

fn ms(time: Option<Duration>) -> Option<f64> {
    Some(time?.as_secs_f64() * 1e3)
}

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

/// What a record and a process take together.
fn floor(round: &Round) -> Option<f64> {
    let p50 = |times: &Times| ms(times.percentile(50));
    Some(p50(&round.record)? + p50(&round.process)?)
}

/// One figure over all rounds.
pub(super) struct Figure {
    what: &'static str,
    unit: &'static str,
    bound: Option<&'static Bound>,
    median: f64,
    least: f64,
    most: f64,
}

impl Figure {
    fn is_met(&self) -> Option<bool> {
        Some(self.bound?.is_met(self.median))
    }
}

/// The middle of the rounds, and how far they are apart.
pub(super) fn figures(rounds: &[Round]) -> Vec<Figure> {
    let figure = |kind: &'static Kind| {
        let mut values: Vec<f64> = rounds.iter().filter_map(kind.value).collect();
        values.sort_by(f64::total_cmp);
        Some(Figure {
            what: kind.what,
            unit: kind.unit,
            bound: kind.bound.as_ref(),
            median: *values.get(values.len() / 2)?,
            least: *values.first()?,
            most: *values.last()?,
        })
    };
    KINDS.iter().filter_map(figure).collect()
}

pub(super) fn print(options: &Agent, figures: &[Figure]) {
    let heading = format!("{} devices, {} callers", options.devices, options.callers);
    println!(
        "\n{heading:52} {:>9} {:>9} {:>9}",
        "median", "least", "most"
    );
    for figure in figures {
        println!(
            "  {:50} {:>9.2} {:>9.2} {:>9.2} {}",
            figure.what, figure.median, figure.least, figure.most, figure.unit
        );
    }
    println!(
        "\n{} rounds; the state directory is under /tmp",
        options.rounds
    );
}

/// Prints the targets. Fails when one is missed and `assert` is set.
pub(super) fn judge(figures: &[Figure], assert: bool) -> Result<()> {
    println!("\n{:52} {:>9}  target", "targets", "measured");
    let (mut judged, mut missed) = (0, 0);
    for figure in figures {
        let (Some(bound), Some(met)) = (figure.bound, figure.is_met()) else {
            continue;
        };
        judged += 1;
        missed += usize::from(!met);
        let (word, limit) = bound.words();
        println!(
            "  {:50} {:>9.2}  {word} {limit} {}: {}",
            figure.what,
            figure.median,
            figure.unit,
            if met { "met" } else { "NOT MET" }
        );
    }
    if assert && missed > 0 {
        bail!("{missed} of {judged} targets are missed");
    }
    Ok(())
}

pub(super) fn json(options: &Agent, figures: &[Figure]) -> Value {
    let lines = figures.iter().map(|figure| {
        json!({
            "what": figure.what,
            "unit": figure.unit,
            "median": figure.median,
            "least": figure.least,
            "most": figure.most,
            "bound": figure.bound.map(Bound::words).map(|(word, limit)| format!("{word} {limit}")),
            "met": figure.is_met(),
        })
    });
    json!({
        "devices": options.devices,
        "callers": options.callers,
        "rounds": options.rounds,
        "figures": lines.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(adoption_ms: u64) -> Round {
        Round {
            adoption: Duration::from_millis(adoption_ms),
            ..Round::default()
        }
    }

    #[test]
    fn a_disturbed_round_misses_no_target_and_two_of_three_do() {
        let figures_of = |times: [u64; 3]| figures(&times.map(round));
        assert!(judge(&figures_of([300, 400, 9000]), true).is_ok());
        assert!(judge(&figures_of([300, 1400, 9000]), true).is_err());
        assert!(judge(&figures_of([300, 1400, 9000]), false).is_ok());
    }
}
