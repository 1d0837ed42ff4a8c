//! The state of one served prefix in a real etcd: list, then watch.
//!
//! One watch at etcd, however many clients there are. A lost connection costs no list: the watch
//! continues after the last revision that it reported, once a check showed that etcd still has the
//! same history. The source lists again only when etcd has compacted that revision away, or has
//! another history.
//!
//! The ingest task of the prefix owns it, through [`Source`](super::Source). It spawns nothing; the
//! client's connection has tasks of its own, which end with it. It is the only user of etcd-client in
//! the crate. It must not keep a copy of the keyspace.
//!
//! | file | its one job |
//! | --- | --- |
//! | `source.rs` | list, then watch: connect, list, watch, back off |
//! | `live.rs` | an open watch: applies its events, answers requests |
//! | `live/state.rs` | what an open watch does next (pure) |
//! | `history.rs` | whether etcd still has the history that it had (pure) |
//! | `transactions.rs` | events to whole transactions (pure) |
//! | `connection.rs`, `list.rs`, `watch.rs`, `past.rs` | what is read from etcd |
//! | `subtask.rs` | a read that runs beside the watch |
//! | `backoff.rs`, `version.rs` | when to try again; which etcd versions order progress (pure) |

mod backoff;
mod config;
mod connection;
mod history;
mod list;
mod live;
mod past;
mod source;
mod subtask;
mod transactions;
mod version;
mod watch;

pub use config::{EtcdConfig, EtcdConfigError};
pub use source::EtcdSource;

/// The target of the source's log lines. Operators filter by it, so it does not follow the files.
const LOG_TARGET: &str = "driftless_server::source::etcd";
