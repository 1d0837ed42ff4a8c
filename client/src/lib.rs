//! Configuration from etcd, as a typed value that is always current.
//!
//! A driftless server watches etcd and pushes what changes; this library holds the state of the
//! ranges that a process watches, proves with a digest that it is the server's, and shows it as
//! typed values.
//!
//! ```no_run
//! use driftless_client::Client;
//!
//! #[derive(serde::Deserialize)]
//! struct Limits {
//!     rps: u32,
//! }
//!
//! # fn serve(_rps: u32) {}
//! # async fn service() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect("http://127.0.0.1:7400")?; // validates; dials nothing yet
//! let mut limits = client.watch::<Limits>("/config/shop/limits").await?; // holds the first value
//! loop {
//!     serve(limits.load().rps); // wait-free, from any thread
//!     limits.changed().await?; // dropping this future loses nothing
//! }
//! // dropping `limits` ends everything that it caused
//! # }
//! ```
//!
//! # What it promises
//!
//! * **The last good value wins.** A value that does not decode or validate is refused, shown in
//!   [`Status`], reported to the server, and never replaces a good one.
//! * **It outlives everything.** With the server or etcd gone, readers keep what they have; the
//!   library reconnects with jittered backoff and resumes with what changed meanwhile.
//! * **What is dropped is gone.** Watchers of one range share one stream and one task; dropping the
//!   last ends both at once, whatever they were doing. A [`Client`] that nobody uses holds neither a
//!   task nor a socket.
//! * **Values stay private.** They appear in no log, error or `Debug` of this library.
//!
//! # What to use
//!
//! [`Client::watch`] for a value (see [`decoding`] for what becomes of keys), [`Client::entries`]
//! for keys and their changes (tools), and [`Client::get`] for one look. All of them need a tokio
//! runtime with I/O and time enabled.
//!
//! # Features
//!
//! * `toml`, `yaml`: values may be documents in these formats, as a key's suffix or
//!   [`WatchBuilder::format`] says. JSON can always be read.
//!
//! # What is logged
//!
//! Through `tracing`, in the target `driftless_client`: a `warn` when a state is refused, when a
//! server refuses a range, when no server is in sync, and when a watch begins with its default for
//! want of a value, once each for as long as it lasts; an `info` when that is over, when there is no
//! key at all under a prefix, and what a first value that takes more than a second waits for;
//! connections and streams at `debug`.
//!
//! What is yours is yours to keep quiet: the text of a validator's error goes nowhere (but for
//! [reasons](WatchBuilder::validate) that are part of the program), but a panic in a `Deserialize` or a validator runs the process's panic hook, with whatever its message quotes,
//! before this library catches it.

mod builder;
mod cell;
mod client;
mod connect;
mod decode;
#[doc = include_str!("decode/rules.md")]
pub mod decoding {}
mod dice;
mod entries;
mod error;
mod get;
mod range;
mod registry;
mod replica;
mod report;
mod sink;
mod status;
mod subscription;
mod transport;
mod watcher;

pub use builder::ClientBuilder;
pub use cell::Loaded;
pub use client::Client;
pub use connect::{Connect, Connecting, Endpoint, Io};
pub use decode::{Format, Rejection, RejectionKind};
pub use driftless_proto::{Entry, Key, KeyRange, RangeError, Revision};
pub use entries::{Entries, EntriesBuilder, EntriesChange, EntriesWatcher, EntryChange};
pub use error::{BuildError, Closed, GetError, NoValue, Refused, RefusedReason, WatchError};
pub use get::GetBuilder;
pub use range::IntoRange;
pub use status::{RejectedState, State, Status, StatusWatcher};
pub use watcher::{Changed, WatchBuilder, Watcher};
