//! `vfu-device probe`: what is served on a socket, as a client sees it.
//!
//! It asks and never writes: sizes come from the description of regions, not from writing BARs. A server takes one client
//! at a time, so that a device in use is left alone.

mod other;
mod report;
mod space;
mod spec;
mod text;

use std::time::{Duration, Instant};

use models::Kind;
use nix::errno::Errno;
use vfio_user::client::{Client, Error, Feature, Method, NoMemory, Options};

use self::{
    other::Socket,
    report::{Irq, Protocol, Region, Report},
    space::Space,
};
use crate::{args::Probe, failure::Failure};

/// The indexes that PCI devices have ("VFIO PCI"), by which a report names them.
const CONFIG_REGION: u32 = 7;
/// More indexes than any device has; a server that claims more is asked for these.
const MAX_INDEXES: u32 = 64;
/// As much of configuration space at once as a guest's processor reads. Some servers know no more, and one dies of it.
const REGISTER_BYTES: usize = 4;
/// Configuration space of PCI Express.
const MAX_SPACE_BYTES: u64 = 4096;

/// Probes, and returns what to print.
pub(crate) fn run(args: &Probe) -> Result<String, Failure> {
    let deadline = Instant::now() + args.timeout;
    let socket = Socket::new(&args.socket);
    socket.check_free()?;
    let stream = socket.connect(deadline)?;
    socket.greeting(&stream)?;
    let options = Options {
        timeout: left(deadline),
        ..Options::default()
    };
    let report = Client::with_memory(stream, &options, NoMemory)
        .map_err(|error| socket.explain(error, deadline))
        .and_then(|mut client| {
            describe(&mut client, args, deadline)
                .map_err(|error| socket.explain_end(error, deadline))
        })?;
    if args.json {
        let value = serde_json::to_value(&report);
        let value = value.map_err(|error| Failure::internal(format!("write JSON: {error}")))?;
        Ok(format!("{value:#}\n"))
    } else {
        Ok(text::page(&report))
    }
}

/// What is left until `deadline`; something always is, so that what has arrived is seen.
fn left(deadline: Instant) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    left.max(Duration::from_millis(1))
}

/// Everything that can be asked.
fn describe(client: &mut Client, args: &Probe, deadline: Instant) -> Result<Report, Error> {
    let mut client = Paced { client, deadline };
    let info = client.get().device_info()?;
    let mut regions = Vec::new();
    for index in 0..info.region_count.min(MAX_INDEXES) {
        if let Some(region) = allowed(client.get().region_info(index))? {
            regions.push(Region::new(index, info.pci, &region));
        }
    }
    let mut irqs = Vec::new();
    for index in 0..info.irq_count.min(MAX_INDEXES) {
        if let Some(irq) = allowed(client.get().irq_info(index))? {
            irqs.push(Irq::new(index, info.pci, irq));
        }
    }
    let size = regions.iter().find(|region| region.index == CONFIG_REGION);
    let size = size.map_or(0, |region| region.size_bytes.min(MAX_SPACE_BYTES));
    let mut function = None;
    if info.pci && size > 0 {
        let mut bytes = vec![0; size as usize];
        for (at, part) in (0..)
            .step_by(REGISTER_BYTES)
            .zip(bytes.chunks_mut(REGISTER_BYTES))
        {
            client.get().region_read(CONFIG_REGION, at, part)?;
        }
        function = Space::new(&bytes).map(|space| space.function(&regions));
    }
    let migration = feature(client.get().migration_flags())?;
    let dma_logging = match migration {
        Some(_) => {
            let start = Feature::DMA_LOGGING_START;
            feature(client.get().feature_probe(start, Method::Set))?.is_some()
        }
        // It serves migration and nothing else.
        None => false,
    };
    Ok(Report {
        socket: args.socket.clone(),
        protocol: Protocol::new(client.client.negotiated()),
        resettable: info.reset,
        migration: migration.map(report::migration),
        dma_logging,
        function,
        regions,
        irqs,
    })
}

/// A client each of whose calls ends before the probe has to.
struct Paced<'a> {
    client: &'a mut Client,
    deadline: Instant,
}

impl Paced<'_> {
    fn get(&mut self) -> &mut Client {
        self.client.set_timeout(left(self.deadline));
        self.client
    }
}

/// What the server refuses to say is not known.
fn allowed<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Error::Refused { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The same for features, which are asked last: a server that knows none of them may take the rest of the question for
/// another message, and answer that too.
fn feature<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match allowed(result) {
        Err(Error::Protocol(_) | Error::Closed) => Ok(None),
        other => other,
    }
}

fn failure(kind: Kind, message: String) -> Failure {
    Failure {
        field: None,
        kind,
        message,
    }
}

fn unavailable(errno: Errno, message: String) -> Failure {
    let kind = match errno {
        Errno::EACCES | Errno::EPERM => Kind::Permission,
        _ => Kind::Unavailable,
    };
    failure(kind, message)
}
