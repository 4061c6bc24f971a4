//! What is measured, and in which order.

use std::{collections::HashMap, path::Path, time::Duration};

use ::tests::command::check_interrupted;
use anyhow::{Context, Result};
use clap::ValueEnum;
use tempfile::TempDir;

use super::{
    Protocol,
    client::{Client, GLUED, READ_BYTES, READ_REPLY_BYTES, STRETCH_BYTES, Stretch, Wait},
    process::{self, Process},
    rounds,
    server::Kind,
};

/// How long a server's turn is at least.
const TURN: Duration = Duration::from_millis(100);
/// No round begins later than this.
const LAST_ROUND: Duration = Duration::from_secs(130);
/// Messages before a turn that are not measured: caches and the scheduler get used to the new processor.
const WARM_UP: usize = 256;
/// Replies to wait for while system calls are counted: each is slow then.
const COUNTED: usize = 300;

/// What the client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub(crate) enum Workload {
    /// A read with its reply, both sides sleep in between
    Read,
    /// A read with its reply, both sides spin in between
    Spin,
    /// 16 reads at a time
    Pipelined,
    /// 16 posted writes at a time
    Posted,
}

/// Where client and server run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub(crate) enum Cores {
    #[value(name = "1")]
    One,
    #[value(name = "2")]
    Two,
}

/// One server under one workload: a line of the table.
pub(super) struct Line {
    pub(super) workload: Workload,
    pub(super) cores: Cores,
    pub(super) kind: Kind,
    pub(super) rounds: Vec<Figures>,
    /// System calls of the server per message.
    pub(super) calls: Option<f64>,
}

/// One round's, per message but for the waits.
pub(super) struct Figures {
    /// Times from request to reply; none where there is no reply.
    pub(super) p50_ns: Option<f64>,
    pub(super) p99_ns: Option<f64>,
    pub(super) per_second: f64,
    pub(super) processor_ns: f64,
}

pub(super) struct Outcome {
    pub(super) lines: Vec<Line>,
    /// What could not be measured, and why.
    pub(super) skipped: Vec<String>,
    pub(super) rounds: u16,
    pub(super) real_time: bool,
}

/// A server may be in several processes: the bare socket knows no messages, and has to be told what to answer.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Manner {
    Sleeping,
    Spinning,
    /// A bare socket that takes a stretch of posted writes, and answers the read at its end.
    Draining,
}

struct Running {
    process: Process,
    client: Client,
}

impl Workload {
    /// Those that take part, the limit first.
    fn kinds(self) -> &'static [Kind] {
        match self {
            Self::Spin => &[Kind::Limit, Kind::Library, Kind::Device],
            _ => &[Kind::Limit, Kind::Library, Kind::Device, Kind::Crate],
        }
    }

    fn manner(self, kind: Kind) -> Manner {
        match (self, kind) {
            (Self::Spin, _) => Manner::Spinning,
            (Self::Posted, Kind::Limit) => Manner::Draining,
            _ => Manner::Sleeping,
        }
    }

    fn stretch(self, client: &mut Client, time: Duration, most: usize) -> Result<Stretch> {
        match self {
            Self::Read | Self::Spin => client.reads(1, time, most),
            Self::Pipelined => client.reads(GLUED, time, most),
            Self::Posted => client.writes(time, most),
        }
    }
}

pub(super) fn run(options: &Protocol) -> Result<Outcome> {
    let folder = tempfile::Builder::new().prefix("vfu-bench-").tempdir()?;
    let (first, second) = process::processors()?;
    let mut skipped = Vec::new();
    let mut lines = plan(options, second.is_some(), &mut skipped);
    let mut servers = start_servers(&lines, &folder)?;
    process::pin_self(first)?;
    let rounds = rounds::measure(options.rounds, LAST_ROUND, &mut skipped, |round| {
        for group in lines.chunk_by_mut(|a, b| (a.workload, a.cores) == (b.workload, b.cores)) {
            // Another one begins each time, so that it does not matter what ran before.
            let begin = usize::from(round) % group.len();
            for index in (begin..group.len()).chain(0..begin) {
                let line = &mut group[index];
                check_interrupted()?;
                let server = server_of(&mut servers, line)?;
                server.process.pin(match (line.cores, second) {
                    (Cores::Two, Some(second)) => second,
                    _ => first,
                })?;
                let figures = turn(server, line.workload);
                let figures = figures.with_context(|| failed(line, server))?;
                line.rounds.push(figures);
            }
        }
        Ok(())
    })?;
    rounds::count_calls(options.skip_system_calls, &mut skipped, || {
        count_calls(&mut lines, &mut servers)
    })?;
    Ok(Outcome {
        lines,
        skipped,
        rounds,
        real_time: options.real_time,
    })
}

/// All lines, group by group; within a group the servers take turns.
fn plan(options: &Protocol, has_two: bool, skipped: &mut Vec<String>) -> Vec<Line> {
    let mut lines = Vec::new();
    for workload in Workload::value_variants() {
        if !options.workload.is_empty() && !options.workload.contains(workload) {
            continue;
        }
        for cores in [Cores::One, Cores::Two] {
            // Two that spin on one core only wait for each other's time to be over.
            if options.cores.is_some_and(|only| only != cores)
                || (*workload, cores) == (Workload::Spin, Cores::One)
            {
                continue;
            }
            if cores == Cores::Two && !has_two {
                skipped.push(format!("{workload:?} on two cores: there is one"));
                continue;
            }
            lines.extend(workload.kinds().iter().map(|kind| Line {
                workload: *workload,
                cores,
                kind: *kind,
                rounds: Vec::new(),
                calls: None,
            }));
        }
    }
    lines
}

type Servers = HashMap<(Kind, Manner), Running>;

fn start_servers(lines: &[Line], folder: &TempDir) -> Result<Servers> {
    let mut servers = Servers::new();
    for line in lines {
        let manner = line.workload.manner(line.kind);
        if !servers.contains_key(&(line.kind, manner)) {
            let path = folder.path().join(format!("{}.sock", servers.len()));
            servers.insert((line.kind, manner), start(line.kind, manner, &path)?);
        }
    }
    Ok(servers)
}

fn start(kind: Kind, manner: Manner, socket: &Path) -> Result<Running> {
    let name = kind.to_possible_value().context("a server's name")?;
    let mut args = vec!["bench-server".to_owned(), name.get_name().to_owned()];
    args.extend(["--socket".to_owned(), socket.display().to_string()]);
    if kind == Kind::Limit {
        let take = match manner {
            Manner::Draining => STRETCH_BYTES,
            Manner::Sleeping | Manner::Spinning => READ_BYTES,
        };
        args.extend([
            format!("--take={take}"),
            format!("--give={READ_REPLY_BYTES}"),
        ]);
    }
    if manner == Manner::Spinning {
        args.push("--spin".to_owned());
    }
    let process = Process::start(&args, socket.with_extension("log"))?;
    let wait = if manner == Manner::Spinning {
        Wait::Spin
    } else {
        Wait::Block
    };
    let ready = || -> Result<Client> {
        let mut client = Client::connect(socket, wait)?;
        if kind != Kind::Limit {
            client.negotiate()?;
            client.check()?;
        }
        Ok(client)
    };
    let client = ready().with_context(|| format!("{kind:?}\n{}", process.log()))?;
    Ok(Running { process, client })
}

fn server_of<'a>(servers: &'a mut Servers, line: &Line) -> Result<&'a mut Running> {
    servers
        .get_mut(&(line.kind, line.workload.manner(line.kind)))
        .context("a server that was started")
}

fn failed(line: &Line, server: &Running) -> String {
    format!(
        "{:?}, {:?}\n{}",
        line.kind,
        line.workload,
        server.process.log()
    )
}

fn turn(server: &mut Running, workload: Workload) -> Result<Figures> {
    if workload != Workload::Posted {
        workload.stretch(&mut server.client, TURN, WARM_UP)?;
    }
    let before = server.process.processor_time()?;
    let stretch = workload.stretch(&mut server.client, TURN, usize::MAX)?;
    let processor = server.process.processor_time()?.saturating_sub(before);
    let messages = stretch.messages as f64;
    Ok(Figures {
        p50_ns: percentile(&stretch.waits_ns, 50),
        p99_ns: percentile(&stretch.waits_ns, 99),
        per_second: messages / stretch.time.as_secs_f64(),
        processor_ns: processor.as_nanos() as f64 / messages,
    })
}

fn percentile(sorted: &[u64], percent: usize) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get(last * percent / 100).map(|ns| *ns as f64)
}

/// In a pass of its own, because whoever is traced is slow.
fn count_calls(lines: &mut [Line], servers: &mut Servers) -> Result<()> {
    for line in lines {
        check_interrupted()?;
        // Whoever spins makes as many as fit into the time.
        if line.workload == Workload::Spin {
            continue;
        }
        let Running { process, client } = server_of(servers, line)?;
        let mut messages = 0;
        let calls = process.system_calls(|| {
            let most = if line.workload == Workload::Posted {
                1
            } else {
                COUNTED
            };
            let stretch = line.workload.stretch(client, Duration::MAX, most)?;
            messages = stretch.messages;
            Ok(())
        })?;
        line.calls = Some(calls as f64 / messages as f64);
    }
    Ok(())
}
