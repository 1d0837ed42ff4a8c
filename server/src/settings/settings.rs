//! What a server does and with what. One that exists is valid.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use driftless_proto::KeyRange;

use super::builder::SettingsBuilder;
use super::table::Values;

/// What a server does and with what. Made by [`Settings::builder`]; one that exists is valid.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Settings {
    pub(super) values: Values,
    pub(super) prefixes: Vec<KeyRange>,
    pub(super) tls: Option<TlsFiles>,
    pub(super) client_timeouts: Option<Duration>,
}

impl Settings {
    /// Starts with the defaults that [`SettingsBuilder`]'s methods state.
    pub fn builder() -> SettingsBuilder {
        SettingsBuilder::default()
    }

    /// URLs of the members of one etcd cluster; at least one.
    pub fn etcd(&self) -> &[String] {
        &self.values.etcd
    }

    /// The served prefixes: at least one, each a [`KeyRange::Prefix`], none inside another.
    pub fn prefixes(&self) -> &[KeyRange] {
        &self.prefixes
    }

    /// Address to serve health and metrics on. `None`: they are not served. Port 0: a free one.
    pub const fn admin(&self) -> Option<SocketAddr> {
        self.values.admin
    }

    /// The TLS files for gRPC. `None`: gRPC is served without TLS.
    pub const fn tls(&self) -> Option<&TlsFiles> {
        self.tls.as_ref()
    }

    /// The operator's part of the [epoch](driftless_proto::Epoch).
    pub fn generation(&self) -> &str {
        &self.values.generation
    }

    /// The same, with so many connections at most, and one at least: for a process whose descriptors
    /// allow fewer than `max_connections`.
    #[must_use]
    pub fn with_connections_at_most(mut self, most: usize) -> Self {
        let connections = &mut self.values.max_connections;
        *connections = most.clamp(1, *connections);
        self
    }

    /// One timeout in place of all that clients have; for tests.
    pub(crate) const fn client_timeouts(&self) -> Option<Duration> {
        self.client_timeouts
    }
}

/// The TLS files for gRPC. They are read when a server starts, and again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
    pub(super) client_ca: Option<PathBuf>,
}

impl TlsFiles {
    /// The server's certificate, followed by those that lead to its CA; PEM.
    pub fn cert(&self) -> &Path {
        &self.cert
    }

    /// Its key; PEM.
    pub fn key(&self) -> &Path {
        &self.key
    }

    /// The CAs that clients must have a certificate from; PEM. `None`: clients need none.
    pub fn client_ca(&self) -> Option<&Path> {
        self.client_ca.as_deref()
    }
}
