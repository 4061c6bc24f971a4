//! A Linux guest with one card, and what is at the other end of its cable.

use std::{collections::HashMap, net::TcpListener, os::unix::net::UnixListener};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::{Device, Guest, Netns, Peer, guest::Builder, traffic};

/// The address that the card's EEPROM has.
pub(super) const MAC: &str = "52:54:00:12:34:56";
/// The host's address and the guest's.
pub(super) const HOST: &str = "198.18.0.1";
pub(super) const GUEST: &str = "198.18.0.2";
/// The guest's driver, as `insmod` takes it.
pub(super) const DRIVER: &str = "/modules/*-e1000.ko";

/// A guest whose cable goes to a TAP in a namespace of its own. The guest ends first, and the namespace last.
pub(super) struct Wired {
    pub(super) guest: Guest,
    _device: Device,
    pub(super) netns: Netns,
}

impl Wired {
    /// Boots Linux with a card of this configuration beside its address and its TAP.
    pub(super) fn boot(config: Value) -> Result<Self> {
        let (device, netns) = plugged(config)?;
        let guest = Guest::builder().nic(device.socket()).boot()?;
        Self::new(guest, device, netns)
    }

    /// A guest that has booted with a card that is [`plugged`].
    pub(super) fn new(guest: Guest, device: Device, netns: Netns) -> Result<Self> {
        let mut wired = Self {
            guest,
            _device: device,
            netns,
        };
        wired.configure()?;
        Ok(wired)
    }

    /// Gives the guest its address again, as after a new load of the driver.
    pub(super) fn configure(&mut self) -> Result<()> {
        traffic::configure(&mut self.guest, "eth0", &format!("{GUEST}/30"))
    }

    /// The same after the driver is gone and here again, with these parameters.
    pub(super) fn reload(&mut self, parameters: &str) -> Result<()> {
        self.guest
            .sh(&format!("rmmod e1000 && insmod {DRIVER} {parameters}"))?;
        self.configure()
    }

    /// Checks that pings are answered and that a MiB goes each way unharmed.
    pub(super) fn works(&mut self) -> Result<()> {
        self.guest.sh(&wait_up("eth0"))?;
        traffic::ping(&mut self.guest, HOST.parse()?, 3)?;
        self.transfer(HOST)
    }

    /// A MiB each way, from and to this address of the host.
    pub(super) fn transfer(&mut self, host: &str) -> Result<()> {
        let listener = self.netns.inside(|| Ok(TcpListener::bind((host, 0))?))?;
        traffic::to_host(&mut self.guest, &listener, 1)?;
        traffic::to_guest(&mut self.guest, &listener, 1)?;
        Ok(())
    }

    /// Runs a command in the guest, and checks that the card works after it.
    pub(super) fn works_after(&mut self, script: &str) -> Result<String> {
        let output = self.guest.sh(script)?;
        self.works().with_context(|| format!("after {script}"))?;
        Ok(output)
    }
}

/// A card whose cable goes to a TAP in a namespace of its own, which has the host's address.
pub(super) fn plugged(mut config: Value) -> Result<(Device, Netns)> {
    let netns = Netns::new()?;
    config["mac"] = json!(MAC);
    config["net"] = json!({"tap": {"ifname": "vfu0", "netns": netns.path()}});
    let device = Device::start(Device::dir()?, "e1000", &config.to_string())?;
    netns.ip(&format!("addr add {HOST}/30 dev vfu0"))?;
    netns.ip("link set vfu0 up")?;
    Ok((device, netns))
}

/// A guest whose cable goes to a station that the test plays.
pub(super) struct Staffed {
    pub(super) guest: Guest,
    pub(super) peer: Peer,
    _device: Device,
}

impl Staffed {
    /// Boots a guest with such a card.
    pub(super) fn boot(builder: Builder) -> Result<Self> {
        let dir = Device::dir()?;
        let path = dir.path().join("wire.sock");
        let listener = UnixListener::bind(&path)?;
        let config = json!({"mac": MAC, "net": {"stream": {"path": path, "mode": "connect"}}});
        let device = Device::start(dir, "e1000", &config.to_string())?;
        let peer = Peer::accept(&listener)?;
        Ok(Self {
            guest: builder.nic(device.socket()).boot()?,
            peer,
            _device: device,
        })
    }
}

/// A script that waits until the link of an interface is up.
pub(super) fn wait_up(interface: &str) -> String {
    format!(
        "for try in $(seq 200); do
             test \"$(cat /sys/class/net/{interface}/operstate)\" = up && exit 0; usleep 50000
         done
         echo the link of {interface} stays down; exit 1"
    )
}

/// The card's statistics, as the driver shows them.
pub(super) fn statistics(guest: &mut Guest) -> Result<HashMap<String, u64>> {
    let mut counters = HashMap::new();
    for line in guest.sh("ethtool -S eth0")?.lines().skip(1) {
        let (name, value) = line.split_once(": ").with_context(|| line.to_owned())?;
        counters.insert(name.trim().to_owned(), value.parse()?);
    }
    ensure!(counters.len() > 30, "only {} counters", counters.len());
    Ok(counters)
}

/// By how much each counter has grown that did.
pub(super) fn growth(
    before: &HashMap<String, u64>,
    after: &HashMap<String, u64>,
) -> HashMap<String, u64> {
    let grown = after.iter().map(|(name, value)| {
        let before = before.get(name).copied().unwrap_or(0);
        (name.clone(), value - before)
    });
    grown.filter(|(_, growth)| *growth > 0).collect()
}
