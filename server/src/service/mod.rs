//! gRPC: the only user of tonic, and of hyper's HTTP/2 for it.
//!
//! [`Connections`] accepts connections and drives each with all its streams in one task. All calls go
//! through [`Service`]. `Watch` and `Get` answer with a body of our own, so that one encoded frame
//! serves all streams; health checking and reflection are tonic's, mounted beside them.
//!
//! What a client can make the server hold is bounded before any of them: every request arrives under the
//! guard of `arrival`, and every answer leaves under that of `answer`, or with a stream of the registry.
//!
//! Who is connected, and what is known of it, is [`session`](crate::session)'s affair. Nothing here
//! knows a source: what a client says that etcd is ahead by is asked of ingest.

mod answer;
mod arrival;
mod body;
mod connections;
mod dispatch;
mod driver;
mod flood;
mod frames;
mod get;
mod grpc;
mod health;
mod idle;
mod lookup;
mod patience;
mod places;
mod refusals;
mod relief;
mod repeated;
mod report;
mod resume;
#[cfg(test)]
mod tests;
mod watch;
mod write_clock;

pub(crate) use connections::{ConnectionLimits, Connections, Timeouts};
pub(crate) use dispatch::{Intervals, Served, Service};
