//! What goes over the wire between a guest and the host, and the checks that it arrives whole.
//!
//! The host's side is a plain socket: made inside a [`Netns`](crate::Netns) it works there, made outside on the host's
//! own network. The guest's side is busybox.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use sha2::{Digest, Sha256};

use crate::command;
use crate::guest::Guest;

/// How long one direction of a transfer may take, on a machine that emulates the guest's processor.
const LIMIT: Duration = Duration::from_secs(120);

/// How long the host's end waits at once.
const SLICE: Duration = Duration::from_millis(200);

/// A transfer that arrived whole.
#[derive(Debug, Clone)]
pub struct Transfer {
    /// SHA-256 of what was sent and of what arrived.
    pub sha256: String,
    /// How long it took.
    pub time: Duration,
}

/// The PCI device behind the guest's interface as lspci has it, and the driver that is bound to it.
pub fn pci_line(guest: &mut Guest, interface: &str) -> Result<String> {
    let line = guest.sh(&format!(
        "cd /sys/class/net/{interface}/device && read vendor <vendor && read device <device && read class <class &&
         echo $(basename $(pwd -P)) class ${{class#0x}} ${{vendor#0x}}:${{device#0x}} driver $(basename $(readlink driver))"
    ))?;
    Ok(line.trim().to_owned())
}

/// Gives the guest's interface an address and waits until its link is up.
pub fn configure(guest: &mut Guest, interface: &str, address: &str) -> Result<()> {
    guest.sh(&format!(
        "ip addr flush dev {interface} && ip addr add {address} dev {interface} && ip link set {interface} up &&
         for try in $(seq 200); do
             test \"$(cat /sys/class/net/{interface}/operstate)\" = up && exit 0; usleep 50000
         done
         echo the link of {interface} stays down; exit 1"
    ))?;
    Ok(())
}

/// Pings the address from the guest; a packet that is lost is an error. Returns the summary that ping prints.
pub fn ping(guest: &mut Guest, address: IpAddr, count: u32) -> Result<String> {
    let output = guest.sh(&format!("ping -c {count} -i 0.1 -W 5 {address}"))?;
    let summary = output
        .lines()
        .find(|line| line.contains("packet loss"))
        .context("ping's summary")?;
    ensure!(
        summary.contains(&format!(" {count} packets received")),
        "ping {address}: {summary}"
    );
    Ok(summary.to_owned())
}

/// Sends random bytes from the guest to the listener.
pub fn to_host(guest: &mut Guest, listener: &TcpListener, mebibytes: u32) -> Result<Transfer> {
    let address = listener.local_addr()?;
    let sha256 = guest.sh(&format!(
        "dd if=/dev/urandom of=/tmp/sent bs=1M count={mebibytes} 2>/dev/null; sha256sum </tmp/sent"
    ))?;
    let started = Instant::now();
    let script = format!(
        "nc {} {} </tmp/sent; rm /tmp/sent",
        address.ip(),
        address.port()
    );
    let received = meet(guest, listener, &script, |connection| connection.receive())?;
    let time = started.elapsed();
    compare(&sha256, &received)?;
    Ok(Transfer {
        sha256: received,
        time,
    })
}

/// Sends pseudo-random bytes from the listener to the guest.
pub fn to_guest(guest: &mut Guest, listener: &TcpListener, mebibytes: u32) -> Result<Transfer> {
    let address = listener.local_addr()?;
    let data = noise(1, (mebibytes as usize) << 20);
    let started = Instant::now();
    let script = format!(
        "nc {} {} </dev/null >/tmp/received",
        address.ip(),
        address.port()
    );
    meet(guest, listener, &script, |connection| {
        connection.send(&data)
    })?;
    let time = started.elapsed();
    let sha256 = hex(&Sha256::digest(&data));
    compare(
        &sha256,
        &guest.sh("sha256sum </tmp/received; rm /tmp/received")?,
    )?;
    Ok(Transfer { sha256, time })
}

/// Runs the script in the guest, and `action` on the connection that it makes.
fn meet<T: Send>(
    guest: &mut Guest,
    listener: &TcpListener,
    script: &str,
    action: impl FnOnce(&mut Connection<'_>) -> Result<T> + Send,
) -> Result<T> {
    let given_up = AtomicBool::new(false);
    thread::scope(|scope| {
        let host = scope.spawn(|| action(&mut Connection::accept(listener, &given_up)?));
        let guest = guest.sh_within(script, LIMIT);
        given_up.store(guest.is_err(), Ordering::Relaxed);
        let host = host
            .join()
            .map_err(|_| anyhow!("the host's side panicked"))?;
        match (guest, host) {
            (Ok(_), host) => host,
            (Err(error), Ok(_)) => Err(error),
            (Err(guest), Err(host)) => bail!("host: {host:#}; {guest:#}"),
        }
    })
}

/// The host's end. It waits in slices, so that it ends soon after the guest's side has failed.
struct Connection<'a> {
    stream: TcpStream,
    deadline: Instant,
    given_up: &'a AtomicBool,
}

impl<'a> Connection<'a> {
    fn accept(listener: &TcpListener, given_up: &'a AtomicBool) -> Result<Self> {
        let deadline = Instant::now() + LIMIT;
        listener.set_nonblocking(true)?;
        let (stream, _) =
            command::wait_for("a connection from the guest", LIMIT, || {
                match listener.accept() {
                    Ok(accepted) => Ok(Some(accepted)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        ensure!(
                            !given_up.load(Ordering::Relaxed),
                            "the guest did not connect"
                        );
                        Ok(None)
                    }
                    Err(error) => Err(error.into()),
                }
            })?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(SLICE))?;
        stream.set_write_timeout(Some(SLICE))?;
        Ok(Self {
            stream,
            deadline,
            given_up,
        })
    }

    /// Reads or writes once, however many slices it takes.
    fn once(
        &mut self,
        mut action: impl FnMut(&mut TcpStream) -> std::io::Result<usize>,
    ) -> Result<usize> {
        loop {
            command::check_interrupted()?;
            match action(&mut self.stream) {
                Err(error) if command::is_pause(&error) => {
                    ensure!(!self.given_up.load(Ordering::Relaxed), "the guest gave up");
                    ensure!(
                        Instant::now() < self.deadline,
                        "nothing moves, given up after {LIMIT:?}"
                    );
                }
                other => return Ok(other?),
            }
        }
    }

    /// Reads to the end and returns the hash of what came.
    fn receive(&mut self) -> Result<String> {
        let mut hash = Sha256::new();
        let mut chunk = vec![0; 64 << 10];
        loop {
            match self
                .once(|stream| stream.read(&mut chunk))
                .context("receive from the guest")?
            {
                0 => return Ok(hex(&hash.finalize())),
                count => hash.update(&chunk[..count]),
            }
        }
    }

    /// Writes everything, then waits until the guest has closed: only then has it all.
    fn send(&mut self, mut data: &[u8]) -> Result<()> {
        while !data.is_empty() {
            let count = self
                .once(|stream| stream.write(data))
                .context("send to the guest")?;
            data = &data[count..];
        }
        self.stream.shutdown(Shutdown::Write)?;
        self.receive().map(|_| ())
    }
}

fn compare(sent: &str, received: &str) -> Result<()> {
    let first = |text: &str| {
        text.split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    ensure!(
        first(sent) == first(received),
        "SHA-256 of what was sent {} and of what arrived {}",
        first(sent),
        first(received)
    );
    Ok(())
}

/// Bytes without a pattern (xorshift), the same ones for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(length).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
