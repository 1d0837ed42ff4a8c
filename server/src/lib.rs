//! The driftless server as a library.
//!
//! * [`Server`] serves etcd prefixes over TCP, with TLS where it is given a certificate.
//! * [`Engine`] is all of it but the ports and etcd: it takes any [source](source::Source) and any
//!   connection.
//! * [`Settings`] is what both are told.
//! * [`session`] is what an engine knows of its clients.
//!
//! # How it works
//!
//! ```text
//! source ─▶ ingest ─▶ store {snapshot, batch} ─▶ fanout {change log} ─▶ session ─▶ service
//! ```
//!
//! A source reports the changes of one served prefix. The prefix's ingest task has the store compute
//! the next state and what changed, and hands both to the fan-out, which wakes the streams whose range
//! was touched. A stream is a cursor: when its connection has room, it asks for what comes next, which
//! was encoded once for everybody. Where a large value changed in a few places, ingest has the delta
//! computed first, while everything else goes on. The session room knows who is connected, and the
//! service is gRPC.
//!
//! The rooms use each other in one direction only: `tests/rooms.rs` has the table and checks it.

mod auth;
mod backfill;
mod delta;
mod encode;
mod engine;
mod fanout;
mod ingest;
mod memory;
pub mod metrics;
mod net;
mod ops;
mod server;
mod service;
pub mod session;
pub mod settings;
pub mod source;
mod store;
#[cfg(test)]
mod testing;

pub use engine::Engine;
pub use metrics::Metrics;
pub use net::TlsError;
pub use server::{ServeError, Server, StartError};
pub use settings::{Settings, SettingsBuilder, SettingsError};
pub use source::Source;

/// What benchmarks and tests of this workspace reach into. No part of the API: it changes without
/// notice.
#[doc(hidden)]
pub mod internals {
    pub mod backfill {
        pub use crate::backfill::*;
    }
    pub mod delta {
        pub use crate::delta::*;
    }
    pub mod encode {
        pub use crate::encode::*;
    }
    pub mod fanout {
        pub use crate::fanout::*;
    }
    pub mod store {
        pub use crate::store::*;
    }
}
