//! Every setting, declared once: see [`declare`](super::declare) for what an entry means.
//!
//! To add a setting, add an entry and use `settings.its_name()` where it matters; then
//! `DRIFTLESS_REGENERATE=1 cargo test -p driftless --test docs --test wrong_inputs` adds it to
//! `server/README.md` and `server/WRONG_INPUTS.md`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::builder::SettingsBuilder;
use super::declare::{Bound, Declaration, Fallback, settings};
use super::error::Origin;
use super::kind::{
    Address, Bytes, Count, File, Kind, Memory, MemoryLimit, Off, Prefixes, Text, Time, Urls,
    at_least, at_most,
};
use super::settings::Settings;

settings! {
    /// URLs of the members of one etcd cluster.
    ///
    /// The server tries them one after the other. In the environment, separate them with commas.
    Etcd, etcd: Vec<String> as Urls,
        required "no etcd to watch",
        adds url: impl Into<String> => url.into();

    /// Prefixes to serve, none inside another.
    ///
    /// Clients can watch each of them and what lies under it. In the environment, separate them
    /// with commas.
    Prefix, prefix: Vec<Vec<u8>> as Prefixes,
        required "no prefix to serve",
        adds prefix: impl AsRef<[u8]> => prefix.as_ref().to_vec();

    /// Address to serve gRPC on; port 0 takes a free one.
    Listen, listen: SocketAddr as Address,
        default "127.0.0.1:7400";

    /// Address to serve `/healthz`, `/readyz` and `/metrics` on, or `off`.
    ///
    /// Plain HTTP; port 0 takes a free one.
    Admin, admin: Option<SocketAddr> as Off<Address>,
        unset "off",
        command "127.0.0.1:7401",
        takes address: SocketAddr => Some(address);

    /// PEM file with the server's certificate; gRPC is then served over TLS only.
    ///
    /// The certificates that lead to its CA follow it in the file. Needs `tls_key`. TLS 1.2 and 1.3.
    /// The server looks at its TLS files every 10 s, and new connections get what changed.
    TlsCert, tls_cert: Option<PathBuf> as File,
        unset "no TLS",
        takes path: impl Into<PathBuf> => Some(path.into());

    /// PEM file with the key of the certificate.
    ///
    /// PKCS#8, PKCS#1 or SEC1, not encrypted. Needs `tls_cert`.
    TlsKey, tls_key: Option<PathBuf> as File,
        unset "no TLS",
        takes path: impl Into<PathBuf> => Some(path.into());

    /// PEM file with the CAs that clients must have a certificate from.
    ///
    /// Needs `tls_cert`.
    TlsClientCa, tls_client_ca: Option<PathBuf> as File,
        unset "clients need no certificate",
        takes path: impl Into<PathBuf> => Some(path.into());

    /// Text to change on all servers after etcd was restored from a backup.
    ///
    /// It is part of the identity of etcd's history, since etcd's own may survive a restore. The
    /// same on all servers of one etcd. At most 64 bytes.
    Generation, generation: String as Text,
        unset "empty",
        takes generation: impl Into<String> => generation.into();

    /// Memory for recent changes, for clients that were away.
    ///
    /// All prefixes share it. It includes what changed before the server's start, as far as etcd
    /// remembers, for up to 16,384 revisions. A client that was away for longer gets a snapshot.
    LogBytes, log_bytes: usize as Bytes,
        default "64MiB",
        min "1MiB": "a smaller log cannot hold one large value, and clients would get snapshots";

    /// Memory for what was overwritten while clients still read it.
    ///
    /// A snapshot is read at one revision, so a slow reader keeps old values. All prefixes share this.
    /// Beyond it, the client that began first gets the state of then from the start.
    PinnedBytes, pinned_bytes: usize as Bytes,
        default "256MiB",
        min "1MiB": "a client could not read one large value that changes meanwhile";

    /// Memory that the process may use, `cgroup` for the limit of its cgroup, or `off`.
    ///
    /// From 85 % of it the server refuses new snapshots, from 95 % new connections too. At least twice
    /// `log_bytes`. A cgroup without a limit is the same as `off`.
    MemoryLimit, memory_limit: MemoryLimit as Memory,
        default "off",
        command "cgroup";

    /// How often an idle stream tells its client that it is alive.
    ///
    /// Clients reconnect when they hear nothing for three intervals.
    ProgressInterval, progress_interval: Duration as Time,
        default "10s",
        min "100ms": "a shorter interval is load without use",
        max "1h": "clients would take hours to notice a dead server";

    /// How often the server pings each connection, to close those whose client is gone.
    PingInterval, ping_interval: Duration as Time,
        default "20s",
        min "100ms": "a shorter interval is load without use",
        max "1h": "connections to clients that are gone would stay open for hours";

    /// How often each client reports what it applied or refused, at most.
    ReportInterval, report_interval: Duration as Time,
        default "10s",
        min "100ms": "a shorter interval is load without use",
        max "1h": "reports would be hours old";

    /// How often the server compares its state with etcd, on average, or `off`.
    ///
    /// Each time it lists a prefix at one revision. It logs, counts and repairs a difference. Each
    /// wait is between half and one and a half of this.
    AuditInterval, audit_interval: Option<Duration> as Off<Time>,
        default "10m",
        min "100ms": "the server would do nothing else",
        max "1h": "a difference would last for hours; for no audits, use off";

    /// How long a client may leave data unread before the server closes its connection.
    ///
    /// The client reconnects with what it has. A stream with nothing to read may be idle for ever. A
    /// client that reads slowly has ten minutes for a snapshot, and less if the state changes
    /// (`pinned_bytes`). The server may take a quarter longer,
    /// 30 s at most. `driftless_slow_consumers_closed_total` counts the connections.
    StallTimeout, stall_timeout: Duration as Time,
        default "2m",
        min "1s": "each hiccup of a network would close connections",
        max "24h": "no connection that matters would be closed";

    /// How long a shutdown waits for streams to end before it cuts them off.
    ///
    /// The default lets a shutdown end within the 10 s that service managers commonly give.
    DrainTimeout, drain_timeout: Duration as Time,
        default "8s",
        max "1m": "service managers kill a process that takes longer";

    /// How many connections are served at a time; more wait to be accepted.
    ///
    /// When all are in use, a new one replaces the one that has had no open call for longest, 5 s at
    /// least. The limit on open descriptors can lower it.
    MaxConnections, max_connections: usize as Count,
        default "65536",
        min "1": "the server would serve nobody";

    /// How many calls one connection may have open at a time.
    ///
    /// Each `Watch` is one, and each other call while it lasts. Clients keep further calls waiting,
    /// without an error, until one ends. For more watches, let them open further connections.
    MaxStreamsPerConnection, max_streams_per_connection: usize as Count,
        default "1024",
        min "1": "no client could call",
        max "65536": "one client's settings would cost the server milliseconds each time they change";
}
