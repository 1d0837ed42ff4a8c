//! Ends what costs memory and is missed least, while memory is nearly used up.
//!
//! First come connections without streams; when there are none, the streams that are behind or read a
//! snapshot or conflated diff, since those pin states and hold chunks. Never a stream that keeps up: it
//! costs a cursor, and clients that have what they need would have to come back for it. Only where
//! another stream of its connection leaves its goodbye unread, it is closed with that one.

use std::time::Duration;

use driftless_proto::v1;
use tokio::task::yield_now;
use tokio::time::sleep;

use super::registry::{Clock, Registry, SLICE};
use super::stream::StreamId;
use crate::memory::RETRY_TIGHT;

/// How often something is ended: enough time for it to be gone, so that no more is ended than needed.
const ROUND: Duration = Duration::from_secs(1);

/// How many connections or streams are ended in a round. At a hundred KiB for one that reads a snapshot,
/// this frees some tens of MiB a second.
const AT_A_TIME: usize = 256;

/// A connection that is younger may be about to make its first call.
const IDLE_FOR: Duration = Duration::from_secs(5);

/// A stream whose piece is not taken for this long is behind. Streams that keep up take theirs in one
/// round trip.
const BEHIND_FOR: Duration = Duration::from_secs(5);

/// Ends connections and streams of a server.
#[derive(Debug)]
pub(crate) struct Shedding {
    registry: Registry,
}

impl Shedding {
    pub(crate) const fn new(registry: Registry) -> Self {
        Self { registry }
    }

    /// Ends some each second, until it is dropped.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub(crate) async fn run(&self) {
        loop {
            let mut ended = self.end_idle_connections().await;
            if ended == 0 {
                ended = self.end_slow_streams().await;
            }
            if ended > 0 {
                self.registry.metrics().memory_ended.inc_by(ended as u64);
                tracing::debug!(ended, "ended connections or streams for lack of memory");
            }
            sleep(ROUND).await;
        }
    }

    /// Closes connections that have no stream, the oldest first. Each is told to go in one round, and cut
    /// off in the next.
    async fn end_idle_connections(&self) -> usize {
        let mut ended = 0;
        for (seen, connection) in self.registry.connections().enumerate() {
            if seen % SLICE == SLICE - 1 {
                yield_now().await;
            }
            let is_idle = connection.streams() == 0 && connection.since().elapsed() >= IDLE_FOR;
            let control = connection.control();
            if !is_idle || control.is_closed() {
                continue;
            }
            if control.is_draining() {
                control.close();
            } else {
                control.drain();
            }
            ended += 1;
            if ended == AT_A_TIME {
                break;
            }
        }
        ended
    }

    /// Ends streams that are behind or read a snapshot or conflated diff, the oldest first: of those, each
    /// pins the oldest state.
    async fn end_slow_streams(&self) -> usize {
        let behind = Clock::millis(BEHIND_FOR);
        let (mut last, mut found) = (None, Vec::<StreamId>::new());
        loop {
            let now = self.registry.clock().now();
            last = self.registry.visit_streams(last, |stream| {
                if found.len() < AT_A_TIME && stream.is_slow(now, behind) {
                    found.push(stream.id());
                }
            });
            if last.is_none() || found.len() == AT_A_TIME {
                break;
            }
            yield_now().await;
        }
        for id in &found {
            self.registry.end_stream(*id, goodbye());
        }
        found.len()
    }
}

/// What those are told that are ended: to come back, to another server if there is one.
fn goodbye() -> v1::Goodbye {
    v1::Goodbye {
        reason: v1::goodbye::Reason::Rebalance.into(),
        retry_after_ms: u32::try_from(RETRY_TIGHT.as_millis()).unwrap_or(u32::MAX),
        purge: false,
    }
}
