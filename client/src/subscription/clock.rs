//! Relates a server's clock to ours.

use std::time::Duration;

use driftless_proto::v1;
use tokio::time::Instant;

/// When the state was last known to be etcd's, on the server's clock and on ours.
#[derive(Clone, Copy, Default)]
pub(super) struct Clock {
    /// When the request was made, and the server's clock in its hello, in milliseconds. The hello was made
    /// after the request, so the state may seem older than it is, and never younger.
    origin: Option<(Instant, u64)>,
    /// When the state was last known to be etcd's, on the server's clock; 0 if that is not known.
    contact: u64,
}

impl Clock {
    /// Starts from a stream's hello.
    pub(super) fn begin(&mut self, hello: &v1::Hello, requested: Instant) {
        // A server that does not send its time leaves both at 0.
        self.origin = (hello.clock_ms != 0).then_some((requested, hello.clock_ms));
        self.contact = 0;
    }

    /// Takes what a frame says of the state that it leads to.
    pub(super) fn contact(&mut self, contact_ms: u64) {
        self.contact = self.contact.max(contact_ms);
    }

    /// When the state was last known to be etcd's, on our clock; at most now. To be called once the
    /// frames that were taken are applied.
    pub(super) fn proven(&self, now: Instant) -> Option<Instant> {
        let (requested, clock) = self.origin.filter(|_| self.contact != 0)?;
        if self.contact <= clock {
            let before = Duration::from_millis(clock - self.contact);
            requested.checked_sub(before)
        } else {
            let after = Duration::from_millis(self.contact - clock);
            requested.checked_add(after).map(|proven| proven.min(now))
        }
    }
}
