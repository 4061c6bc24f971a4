//! What is counted of the device, by this loop and by those below it.

use pci::stats::{Interrupts, Sink};

use super::Server;

/// What the loop counts.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// Clients that were served.
    pub(super) connections: u64,
    /// Clients that were closed because there was one.
    pub(super) turned_away: u64,
    /// Of sessions that are over.
    pub(super) interrupts: Interrupts,
}

impl Server {
    /// Shows how much has been counted by now.
    pub(super) fn publish_stats(&mut self) {
        let resets = self.resets_by_now();
        let interrupts = self.interrupts_by_now();
        let Self {
            function,
            counts,
            stats,
            ..
        } = self;
        stats.publish(|sink: &mut dyn Sink| {
            sink.count("client.connections", "{connection}", counts.connections);
            sink.count("client.turned_away", "{connection}", counts.turned_away);
            sink.count("resets.device_reset", "{reset}", resets.device_reset);
            sink.count("resets.software", "{reset}", resets.software);
            sink.count("resets.lost_connection", "{reset}", resets.lost_connection);
            sink.count("resets.api", "{reset}", resets.api);
            interrupts.tell(sink);
            function.stats(sink);
        });
    }

    /// Of this session, too.
    pub(super) fn interrupts_by_now(&self) -> Interrupts {
        let session = self.session.as_ref();
        let now = session.map(|connected| Interrupts::of(connected.session.irqs()));
        self.counts.interrupts + now.unwrap_or_default()
    }
}
