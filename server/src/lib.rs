//! The driftless server as a library.
//!
//! ```text
//! source ─▶ ingest ─▶ store {snapshot, log} ─▶ fanout ─▶ service
//! ```
//!
//! A [`source`] says what etcd says about one served prefix. The [`ingest`] loop, the only one,
//! has the [`store`] work out the next state and what changed, and hands both to the
//! [`fanout`], which wakes the streams whose range was touched. A stream is a cursor: when
//! its connection has room it asks for what comes next, which was encoded ([`encode`]) once for
//! everybody. Where a large value changed, some bytes of it, ingest has the [`delta`] computed
//! first, while everything else goes on. The [`service`] is gRPC, and [`Server`] puts it all together.
//!
//! [`Server`] runs over etcd and TCP, with TLS where it is given a certificate; [`Engine`] over any
//! source and any connection.

pub mod auth;
pub mod backfill;
pub mod delta;
pub mod encode;
mod engine;
pub mod fanout;
pub mod ingest;
pub mod metrics;
mod net;
mod ops;
pub mod server;
pub mod service;
pub mod session;
pub mod settings;
pub mod source;
pub mod store;
#[cfg(test)]
mod testing;

pub use engine::Engine;
pub use net::TlsError;
pub use server::{ServeError, Server, StartError};
pub use settings::{Settings, SettingsBuilder, SettingsError};
