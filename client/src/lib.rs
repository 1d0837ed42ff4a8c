//! Configuration from etcd, as a typed value that is always current.
//!
//! A driftless server watches etcd and pushes what changes. This library holds the state of the ranges that a
//! process watches, proves with a digest that it equals the server's, and decodes it into typed values.
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
//! let client = Client::connect("http://127.0.0.1:7400")?; // validates; does not dial yet
//! let mut limits = client.watch::<Limits>("/config/shop/limits").await?; // has the first value
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
//! * **Its age is known.** Each value tells how long ago it was last proven to be etcd's, and a watch can set a
//!   maximum age.
//! * **The last good value wins.** A value that does not decode or validate is refused, appears in [`Status`], is
//!   reported to the server, and never replaces a good one.
//! * **It stays available.** With the server or etcd gone, readers keep the last value; the library reconnects
//!   with jittered backoff and resumes with what changed meanwhile.
//! * **What is dropped is gone.** Watchers of one range share one stream and one task; dropping the last watcher
//!   ends both at once, in any state. An idle [`Client`] holds neither a task nor a socket.
//! * **Values stay private.** They appear in no log, error or `Debug` of this library.
//!
//! # What to use
//!
//! [`Client::watch`] for a value (see [`decoding`] for how keys become one), [`Client::entries`] for keys and
//! their changes (tools), and [`Client::get`] for a single read. All of them need a tokio runtime with I/O and
//! time enabled. There are several ways to read a watched value:
//!
//! | where | use | cost |
//! | --- | --- | --- |
//! | a request, a job | [`Watcher::load`] | some nanoseconds, no lock, no allocation; keeps the value in memory while it is held |
//! | a hot loop in one thread | [`Watcher::reader`] | about a nanosecond; keeps the value that was read last |
//! | a component that uses one part | [`Watcher::map`] | wakes only when that part differs |
//! | where an old value must not be used | [`WatchBuilder::max_age`] and [`Watcher::load_fresh`] | one reading of the clock |
//! | an async task that follows changes | [`Watcher::changed`], in a loop | a state that shares memory with the current one |
//! | the same, with old and new | [`Watcher::into_stream`] | keeps both values |
//! | code that is not async | [`Watcher::on_change`] | a task, until its guard is dropped |
//! | a health check | [`Watcher::status`], [`Watcher::watch_status`] | |
//!
//! Each of these except the status keeps the watch alive; dropping the last one ends it. To follow several watches,
//! use `select!` in a loop: every future of this library may be dropped at any moment and loses nothing (see its
//! section "Cancel safety").
//!
//! ```
//! # async fn follow(mut limits: driftless_client::Watcher<u32>, mut banner: driftless_client::Watcher<String>) -> Result<(), driftless_client::Closed> {
//! loop {
//!     tokio::select! {
//!         changed = limits.changed() => println!("limits at revision {}", changed?.revision),
//!         changed = banner.changed() => println!("banner at revision {}", changed?.revision),
//!     }
//! }
//! # }
//! ```
//!
//! [`Client::shutdown`] ends everything and names what is still active; with [`Client::resources`] a
//! service's own tests assert that nothing is left.
//!
//! # What it costs
//!
//! A process with nothing but watchers of one `u64` each, as `cargo bench -p driftless --bench
//! footprint` prints it (27 November 2026; two cores of an AMD EPYC, Linux 6.18, glibc's allocator,
//! rustc 1.95; resident memory more than with a client that watches nothing, and user and system time
//! for each put, some 3,500 a second):
//!
//! | | all | each | sockets | CPU while idle | CPU for a put |
//! | --- | --- | --- | --- | --- | --- |
//! | 1 watcher | 1.3 MiB | 1.3 MiB | 1 | 0 | 5 µs |
//! | 1,000 watchers of one key | 2.7 MiB | 2.8 KiB | 1 | 0 | 200 µs: each decodes a value of its own |
//! | 100 watchers of 100 keys | 4 MiB | 41 KiB | 1 | 0 | 35 µs |
//! | 1,000 watchers of 1,000 keys | 29 MiB | 30 KiB | 1 | 0 | 25 µs |
//!
//! However many watches it has, a client has one connection and no thread of its own. Watchers of one range
//! share a stream, a task and the state; one watcher of a prefix costs less than one for each key
//! below it.
//!
//! # Security
//!
//! A connection to an `https://` endpoint uses TLS 1.2 or 1.3. The server must have a certificate for the endpoint's
//! host, from a CA that the system trusts or from the CA in a given file. A server may require that clients
//! authenticate, with a certificate, a bearer token, or both.
//!
#![cfg_attr(feature = "tls", doc = "```")]
#![cfg_attr(not(feature = "tls"), doc = "```ignore")]
//! use driftless_client::Client;
//!
//! let client = Client::builder()
//!     .endpoint("https://config-1.example:7400")
//!     .endpoint("https://config-2.example:7400")
//!     .tls_ca_file("/etc/driftless/ca.pem") // default: the CAs that the system trusts
//!     .tls_client_files("/etc/driftless/client.pem", "/etc/driftless/client.key")
//!     .token_file("/run/secrets/driftless/token")
//!     .build()?;
//! # Ok::<(), driftless_client::BuildError>(())
//! ```
//!
//! To rotate these files, replace them: the CA, the certificate and its key are read for each connection, the token
//! for each call. [`build`](ClientBuilder::build) reads none of them, so they may be created later. An error in one
//! of them, or at the other end, appears in [`Status::last_error`] and in the log, with what to do. The token and
//! the key never appear. A token is not sent in clear text over a network: `build` refuses one together with an
//! `http://` endpoint of another machine.
//!
//! # Features
//!
//! * `tls`, on by default: `https://` endpoints, with rustls. Without it they are refused.
//! * `toml`, `yaml`: values may be documents in these formats, if a key's suffix or
//!   [`WatchBuilder::format`] says so. JSON is always supported.
//!
//! # What is logged
//!
//! Through `tracing`, in targets that begin with `driftless_client`. Values never appear.
//!
//! * `warn`, once for as long as it lasts: a state is refused; a server refuses a range; no server is in sync; a
//!   watch begins with its default because no value came.
//! * `warn`: a server replaces the state by another history of etcd, the only way back to an older revision.
//! * `info`: the end of what was warned of; a prefix without any key; why a first value takes more than a second.
//! * `debug`: connections, TLS, calls and streams, with their endpoint or range.
//!
//! The text of a validator's error is dropped, except for [reasons](WatchBuilder::validate) that are part of the
//! program. But a panic in a `Deserialize` or a validator runs the process's panic hook, with whatever its message
//! quotes, before this library catches it.

mod builder;
mod client;
mod decode;
#[doc = include_str!("decode/rules.md")]
pub mod decoding {}
mod error;
mod get;
mod jitter;
mod net;
mod range;
mod resources;
mod shutdown;
mod subscription;
mod transport;
mod value;
mod watch;

pub use builder::ClientBuilder;
pub use client::Client;
pub use decode::Format;
pub use driftless_proto::{Entry, Key, KeyRange, RangeError, Revision};
pub use error::{
    BuildError, Closed, GetError, NoValue, Refused, RefusedReason, Rejection, RejectionKind, Stale,
    WatchError,
};
pub use get::GetBuilder;
pub use net::{Connect, Connecting, Endpoint, Io};
pub use range::IntoRange;
pub use resources::{Resource, Resources, StillActive};
pub use shutdown::Shutdown;
pub use value::{
    Entries, EntriesChange, EntryChange, Loaded, RejectedState, Status, ValueSource, WatchState,
};
pub use watch::{
    CallbackGuard, EntriesBuilder, EntriesWatcher, LoadedPart, PartWatcher, StatusWatcher,
    ValueChange, ValueReader, ValueUpdate, ValueUpdates, WatchBuilder, Watcher,
};
