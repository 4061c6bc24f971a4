//! What is different about a program whose monitor is QEMU's: it can be reset, it is asked whether it lives, and it is made to
//! serve again after its client has gone.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;
use tracing::{info, warn};

use super::{
    Phase, Shim,
    monitor::{Monitor, News, Purpose},
};
use crate::control::{Control, Refusal};

/// How often the monitor is asked whether the program lives, and how long that may take.
const ASK: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(20);

impl Shim {
    /// Has the program reset the device, or says why it can't. The answer goes to this peer of the control socket.
    pub(super) fn reset(&mut self, peer: usize, id: u64) -> Result<(), String> {
        let Some(monitor) = &mut self.monitor else {
            return Err(match self.launch.monitor {
                Some(_) => "its program's monitor is not connected; try again".to_owned(),
                None => "its program has no way to be reset; restart the device".to_owned(),
            });
        };
        let asked = monitor.ask(Purpose::Reset { peer, id }, "system_reset", json!({}));
        asked.map_err(|error| format!("its program's monitor: {error}"))
    }

    /// The connection is lost, or the program is. Who waits for a reset is told so.
    pub(super) fn forget_monitor(&mut self) {
        let monitor = self.monitor.take();
        self.unmet
            .extend(monitor.into_iter().flat_map(Monitor::resets));
    }

    /// Tells who waits for what can't come any more.
    pub(super) fn refuse_unmet(&mut self, control: &mut Control) {
        for (peer, id) in self.unmet.drain(..) {
            let why = "its program's monitor was lost before it answered; try again".to_owned();
            control.reply(peer, id, Err(Refusal::from(why)));
        }
    }

    pub(super) fn hear_monitor(&mut self, control: &mut Control) {
        let Some(monitor) = &mut self.monitor else {
            return;
        };
        let news = match monitor.receive() {
            Ok(news) => news,
            Err(error) => {
                // It comes back, or the program has ended.
                info!(%error, "the program's monitor is lost");
                self.forget_monitor();
                return;
            }
        };
        for news in news {
            match news {
                News::Answer(Purpose::Reset { peer, id }, answer) => {
                    if answer.is_ok() {
                        self.resets.api += 1;
                        info!("reset through the control socket");
                        control.send_status_to(peer, &self.status());
                    }
                    control.reply(peer, id, answer.map_err(Refusal::from));
                }
                News::Answer(purpose, Err(why)) => {
                    warn!(?purpose, why, "the program's monitor refused")
                }
                News::Answer(..) => {}
                News::HungUp { object, device } => self.serve_again(&object, &device),
            }
        }
    }

    /// QEMU's object serves one client, and goes with it. The device stays as that client left it.
    fn serve_again(&mut self, object: &str, device: &str) {
        let (Some(monitor), Some(socket)) = (&mut self.monitor, &self.launch.socket) else {
            return;
        };
        let made = socket.make_room().and_then(|()| {
            let path = socket.bind.to_string_lossy();
            let object = json!({
                "qom-type": "x-vfio-user-server", "id": object, "device": device,
                "socket": {"type": "unix", "path": path},
            });
            monitor.ask(Purpose::Serve, "object-add", object)?;
            // A reset that lowers an interrupt needs the object: QEMU aborts where there is none.
            monitor.ask(Purpose::Renew, "system_reset", json!({}))
        });
        if let Err(error) = made {
            warn!(%error, "the device can't be served again");
        }
        self.client_left();
        self.phase = Phase::Again(Instant::now());
    }

    /// Sees whether the program answers. One that hangs is ended, unless a client has it: that may be what it waits for.
    pub(super) fn keep_monitor(&mut self, now: Instant) {
        let Some(path) = &self.launch.monitor else {
            return;
        };
        let Some(monitor) = &mut self.monitor else {
            self.monitor = Monitor::connect(path).ok();
            self.asked = now;
            return;
        };
        if monitor.is_idle() && now.saturating_duration_since(self.asked) >= ASK {
            self.asked = now;
            // An error shows when its answer is read.
            let _ = monitor.ask(Purpose::Look, "query-status", json!({}));
        }
        let is_silent = monitor.silence(now).is_some_and(|it| it >= SILENCE);
        if is_silent && !self.is_connected && !self.stopping {
            warn!("killed: the program's monitor has not answered for {SILENCE:?}");
            self.end_child(Signal::SIGKILL);
        }
    }
}
