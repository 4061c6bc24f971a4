//! `vfuctl stats`
//!
//! The agent sends the counters of one device after the other. Those that come together are one round, and a round is
//! shown beside the one before it, which gives the rates.

use std::{collections::BTreeMap, time::Duration};

use proto::v1::{Stat, WatchStatsRequest, WatchStatsResponse, stat::Kind};
use serde_json::json;
use tonic::Streaming;

use super::device_name;
use crate::{
    args::Stats,
    client::Client,
    error::Error,
    output::{Format, Output, id, json, table},
};

/// How long nothing comes after the last of a round.
const GAP: Duration = Duration::from_millis(50);

/// How much later than due the agent may be.
const PATIENCE: Duration = Duration::from_secs(5);

/// Shows the counters.
pub(crate) async fn run(
    args: Stats,
    client: &Client,
    output: &mut Output<'_>,
) -> Result<(), Error> {
    let interval = Duration::try_from(args.interval)
        .map_err(|why| Error::Usage(format!("--interval: {why}")))?;
    let request = WatchStatsRequest {
        name: device_name(args.id.as_deref().unwrap_or("-")),
        interval: Some(args.interval),
    };
    let mut devices = client.devices();
    let stream = client.answer(devices.watch_stats(request)).await?;
    let mut rounds = Rounds {
        client,
        stream,
        next: None,
        // Who watches all devices also waits for the first of them.
        limit: (!args.watch).then_some(interval.saturating_add(PATIENCE)),
    };
    let data = matches!(output.format(), Format::Json | Format::Yaml);
    let mut before = Round::new();
    let mut first = true;
    while let Some(round) = rounds.next().await? {
        match output.format() {
            format @ (Format::Json | Format::Yaml) if args.watch => {
                for counters in round.values() {
                    output.text(&format.item(&json("WatchStatsResponse", counters)?))?;
                }
            }
            Format::Json | Format::Yaml => {
                let counters = round.values();
                let counters = counters.map(|it| json("WatchStatsResponse", it));
                let counters = counters.collect::<Result<Vec<_>, _>>()?;
                return match (&args.id, &counters[..]) {
                    (Some(_), [only]) => output.value(only),
                    _ => output.value(&json!({ "stats": counters })),
                };
            }
            Format::Name => {
                let names = round.keys().map(|name| format!("{name}\n"));
                return output.text(&names.collect::<String>());
            }
            // The first has no rates.
            Format::Table | Format::Wide if first => {}
            Format::Table | Format::Wide => {
                output.text(&page(&before, &round, args.all))?;
                if !args.watch {
                    return Ok(());
                }
                output.text("\n")?;
            }
        }
        first = false;
        before = round;
    }
    // The device has gone, or there is none that counts.
    match data {
        true if args.watch => Ok(()),
        true => output.value(&json!({ "stats": [] })),
        false => output.text(&page(&Round::new(), &before, args.all)),
    }
}

/// The counters of each device, at about one time.
type Round = BTreeMap<String, WatchStatsResponse>;

struct Rounds<'a> {
    client: &'a Client,
    stream: Streaming<WatchStatsResponse>,
    /// What came first after the last round.
    next: Option<Result<WatchStatsResponse, Error>>,
    /// How long to wait for a round.
    limit: Option<Duration>,
}

impl Rounds<'_> {
    /// The next round; None at the end of the stream, and when nothing comes.
    async fn next(&mut self) -> Result<Option<Round>, Error> {
        let first = match self.next.take() {
            Some(first) => Some(first?),
            None => match self.client.next(&mut self.stream, self.limit).await {
                Err(Error::Late(_)) => None,
                first => first?,
            },
        };
        let Some(first) = first else { return Ok(None) };
        let mut round = Round::from([(first.name.clone(), first)]);
        loop {
            match self.client.next(&mut self.stream, Some(GAP)).await {
                Ok(Some(next)) if round.contains_key(&next.name) => {
                    self.next = Some(Ok(next));
                    return Ok(Some(round));
                }
                Ok(Some(next)) => {
                    round.insert(next.name.clone(), next);
                }
                Ok(None) | Err(Error::Late(_)) => return Ok(Some(round)),
                Err(error) => {
                    self.next = Some(Err(error));
                    return Ok(Some(round));
                }
            }
        }
    }
}

fn page(before: &Round, round: &Round, all: bool) -> String {
    let rows = round.values().flat_map(|counters| {
        let stats = counters.stats.iter();
        let stats = stats.filter(move |it| all || it.value != 0);
        stats.map(|stat| {
            let before = before.get(&counters.name);
            vec![
                id(&counters.name).to_owned(),
                stat.name.clone(),
                stat.value.to_string(),
                stat.unit.clone(),
                rate(before, counters, stat).unwrap_or_default(),
            ]
        })
    });
    table(&["DEVICE", "COUNTER", "VALUE", "UNIT", "PER SECOND"], rows)
}

/// How much `stat` grew in a second since `before`. None where that can't be told: it goes up and down, or began anew.
fn rate(
    before: Option<&WatchStatsResponse>,
    now: &WatchStatsResponse,
    stat: &Stat,
) -> Option<String> {
    // Another process began at 0.
    let before = before.filter(|it| it.start_time == now.start_time)?;
    if stat.kind() != Kind::Counter {
        return None;
    }
    let nanos = |counters: &WatchStatsResponse| {
        let time = counters.time?;
        Some(i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos))
    };
    let nanos = nanos(now)?.checked_sub(nanos(before)?)?;
    let old = before.stats.iter().find(|it| it.name == stat.name)?;
    let grown = stat.value.checked_sub(old.value)?;
    #[expect(clippy::cast_precision_loss, reason = "people read three digits")]
    let rate = grown as f64 * 1e9 / nanos as f64;
    (nanos > 0).then(|| match rate {
        0.0 => "0".to_owned(),
        ..100.0 => format!("{rate:.1}"),
        _ => format!("{rate:.0}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(nanos: i32, values: [u64; 3]) -> Round {
        let kinds = [Kind::Counter, Kind::Gauge, Kind::Counter];
        let names = ["region.reads", "queue.depth", "errors"];
        let stats = names.iter().zip(kinds).zip(values);
        let stats = stats.map(|((name, kind), value)| Stat {
            name: (*name).to_owned(),
            kind: kind.into(),
            unit: "{it}".to_owned(),
            value,
        });
        let counters = WatchStatsResponse {
            name: "devices/nic0".into(),
            time: Some(prost_types::Timestamp { seconds: 7, nanos }),
            stats: stats.collect(),
            ..WatchStatsResponse::default()
        };
        Round::from([(counters.name.clone(), counters)])
    }

    #[test]
    fn rates_are_those_of_counters() {
        let before = round(0, [100, 3, 0]);
        let after = round(500_000_000, [105, 4, 0]);
        assert_eq!(
            page(&before, &after, false),
            "\
DEVICE   COUNTER        VALUE   UNIT   PER SECOND
nic0     region.reads   105     {it}   10.0
nic0     queue.depth    4       {it}   <none>
"
        );
        let all = page(&before, &after, true);
        assert!(
            all.ends_with("nic0     errors         0       {it}   0\n"),
            "{all}"
        );
    }

    #[test]
    fn what_began_anew_has_no_rate() {
        let before = round(0, [100, 3, 0]);
        let mut other = round(500, [105, 4, 0]);
        for counters in other.values_mut() {
            counters.start_time = Some(prost_types::Timestamp::default());
        }
        for after in [round(500, [5, 4, 0]), round(0, [105, 4, 0]), other] {
            let page = page(&before, &after, false);
            assert!(
                page.contains("{it}   <none>\nnic0     queue.depth"),
                "{page}"
            );
        }
        let page = page(&Round::new(), &before, false);
        assert!(page.contains("100     {it}   <none>\n"), "{page}");
    }
}
