//! Relates a server's clock to ours.

use std::time::Duration;

use driftless_proto::v1;
use tokio::time::Instant;

/// When etcd was last heard of, on the server's clock and on ours.
#[derive(Clone, Copy, Default)]
pub(super) struct Clock {
    /// When the request was made, and the server's clock in its hello, in milliseconds. The hello was made
    /// after the request, so etcd's answers may seem older than they are, and never younger.
    origin: Option<(Instant, u64)>,
    /// The server's newest contact with etcd, on the server's clock. It counts as proof once the state is
    /// known to be the server's.
    contact: u64,
}

impl Clock {
    /// Starts from a stream's hello.
    pub(super) fn begin(&mut self, hello: &v1::Hello, requested: Instant) {
        // A server that does not send its time leaves both at 0.
        self.origin = (hello.clock_ms != 0).then_some((requested, hello.clock_ms));
        self.contact = hello.contact_ms;
    }

    /// Takes the contact that a frame carries.
    pub(super) fn contact(&mut self, contact_ms: u64) {
        self.contact = self.contact.max(contact_ms);
    }

    /// When etcd was last heard of, on our clock; at most now.
    pub(super) fn proven(&self, now: Instant) -> Option<Instant> {
        let (requested, clock) = self.origin?;
        if self.contact <= clock {
            let before = Duration::from_millis(clock - self.contact);
            requested.checked_sub(before)
        } else {
            let after = Duration::from_millis(self.contact - clock);
            requested.checked_add(after).map(|proven| proven.min(now))
        }
    }
}
