//! The device processes, each with its driver and the station at the other end of its backend.

use std::{collections::HashMap, fs::File, os::unix::net::UnixListener, path::Path};

use ::tests::Netns;
use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{
    driver::Driver,
    frame::MAC,
    peer::{self, Giver, Outlet, Taker},
    plan::{Backend, Line, Work},
    tap,
};
use crate::bench::process::Process;

/// Names of interfaces.
const BRIDGE: &str = "br0";
const SENDING: &str = "sending";
const RECEIVING: &str = "receiving";
const PEER: &str = "peer";
const RAW: &str = "raw";

/// A device, its driver and its peer.
pub(super) struct Station {
    pub(super) process: Process,
    pub(super) driver: Driver,
    pub(super) taker: Option<Taker>,
    pub(super) giver: Option<Giver>,
}

/// Where servers run, and how many descriptors their drivers' rings have.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) processor: usize,
    pub(super) ring: u64,
}

/// What a device is for: a TAP that is in a bridge would have its frames forwarded, and those that are sent are only
/// to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Role {
    Null,
    Stream,
    SendingTap,
    ReceivingTap,
}

pub(super) struct Servers {
    stations: HashMap<Role, Station>,
    raw_tap: Option<File>,
    /// Dropped last: what was in it is closed.
    _netns: Option<Netns>,
}

impl Servers {
    /// Starts what the lines need. Where the host has no TAP, the lines that need one are skipped.
    pub(super) fn start(
        lines: &[Line],
        folder: &Path,
        place: Place,
        skipped: &mut Vec<String>,
    ) -> Result<Self> {
        let mut servers = Self {
            stations: HashMap::new(),
            raw_tap: None,
            _netns: None,
        };
        let needs_tap = |line: &Line| line.backend == Some(Backend::Tap) || line.work == Work::Tap;
        if lines.iter().any(needs_tap)
            && let Err(error) = servers.start_taps(folder, place)
        {
            skipped.push(format!("tap: {error:#}"));
        }
        if lines.iter().any(|line| role(line) == Some(Role::Null)) {
            let config = json!({"null": {}});
            let station = station(&folder.join("null"), &config, place)?;
            servers.stations.insert(Role::Null, station);
        }
        if lines.iter().any(|line| role(line) == Some(Role::Stream)) {
            let path = folder.join("peer.sock");
            let listener = UnixListener::bind(&path).context("listen for the device's stream")?;
            let config = json!({"stream": {"path": path, "mode": "connect"}});
            let mut station = station(&folder.join("stream"), &config, place)?;
            let (taker, giver) = peer::accept(&listener)?;
            (station.taker, station.giver) = (Some(taker), Some(giver));
            servers.stations.insert(Role::Stream, station);
        }
        Ok(servers)
    }

    fn start_taps(&mut self, folder: &Path, place: Place) -> Result<()> {
        let netns = Netns::new()?;
        let path = netns.path();
        self._netns = Some(netns);
        let netns = self._netns.as_ref().context("just made")?;
        // No frames but ours.
        let quiet = "echo 1 | tee /proc/sys/net/ipv6/conf/all/disable_ipv6 \
                     /proc/sys/net/ipv6/conf/default/disable_ipv6";
        ::tests::command::run(netns.command("sh").args(["-c", quiet]))?;
        netns.ip(&format!("link add {BRIDGE} type bridge mcast_snooping 0"))?;
        netns.ip(&format!("link set {BRIDGE} up"))?;
        let (raw, outlet) = netns.inside(|| Ok((tap::open(RAW)?, tap::open(PEER)?)))?;
        netns.ip(&format!("link set {PEER} master {BRIDGE}"))?;
        for name in [RAW, PEER] {
            netns.ip(&format!("link set {name} up"))?;
        }
        let config = json!({"tap": {"ifname": SENDING, "netns": path}});
        let sending = station(&folder.join("tap"), &config, place)?;
        let config = json!({"tap": {"ifname": RECEIVING, "netns": path, "bridge": BRIDGE}});
        let mut receiving = station(&folder.join("tap-in"), &config, place)?;
        receiving.giver = Some(Giver::start(Outlet::Tap(outlet))?);
        self.raw_tap = Some(raw);
        self.stations.insert(Role::SendingTap, sending);
        self.stations.insert(Role::ReceivingTap, receiving);
        Ok(())
    }

    /// Whether what the line needs is there.
    pub(super) fn has(&self, line: &Line) -> bool {
        match role(line) {
            Some(role) => self.stations.contains_key(&role),
            None => line.work != Work::Tap || self.raw_tap.is_some(),
        }
    }

    pub(super) fn station(&mut self, line: &Line) -> Result<&mut Station> {
        let role = role(line).context("a limit has no server")?;
        self.stations
            .get_mut(&role)
            .context("a server that was started")
    }

    pub(super) fn raw_tap(&self) -> Result<&File> {
        self.raw_tap.as_ref().context("a TAP")
    }

    /// What the line's server printed.
    pub(super) fn log(&self, line: &Line) -> String {
        let station = role(line).and_then(|role| self.stations.get(&role));
        station.map_or(String::new(), |station| station.process.log())
    }
}

fn role(line: &Line) -> Option<Role> {
    Some(match (line.backend?, line.work) {
        (Backend::Null, _) => Role::Null,
        (Backend::Stream, _) => Role::Stream,
        (Backend::Tap, Work::Send | Work::SendOne) => Role::SendingTap,
        (Backend::Tap, _) => Role::ReceivingTap,
    })
}

fn station(socket: &Path, net: &Value, place: Place) -> Result<Station> {
    let mac = MAC.map(|byte| format!("{byte:02x}")).join(":");
    let config = json!({"mac": mac, "net": net}).to_string();
    let args = [
        "bench-server",
        "device",
        "--socket",
        &socket.display().to_string(),
        "--config",
        &config,
    ]
    .map(str::to_owned);
    let process = Process::start(&args, socket.with_extension("log"))?;
    process.pin(place.processor)?;
    let driver = Driver::connect(socket, place.ring).with_context(|| process.log())?;
    Ok(Station {
        process,
        driver,
        taker: None,
        giver: None,
    })
}
