//! The kinds of resource that a client may hold.

use std::fmt;

/// Something that a client holds, by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Resource {
    /// The task of a subscription, by its range.
    Subscription(String),
    /// A connection, or an attempt at one, by its endpoint.
    Connection(String),
    /// A task of a connection, by its endpoint.
    ConnectionTask(String),
    /// A `get` in progress, by its range.
    Get(String),
    /// A callback of [`Watcher::on_change`](crate::Watcher::on_change), by its range.
    Callback(String),
    /// A look-up of a host name: a job on the runtime's blocking pool, which cannot be cancelled.
    Lookup(String),
    /// A file that is being read: a job on the same pool.
    File(String),
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Subscription(range) => write!(f, "the subscription to {range}"),
            Self::Connection(endpoint) => write!(f, "a connection to {endpoint}"),
            Self::ConnectionTask(endpoint) => write!(f, "a task of a connection to {endpoint}"),
            Self::Get(range) => write!(f, "a read of {range}"),
            Self::Callback(range) => write!(f, "a callback for {range}"),
            Self::Lookup(host) => write!(f, "the look-up of {host}"),
            Self::File(path) => write!(f, "the reading of {path}"),
        }
    }
}
