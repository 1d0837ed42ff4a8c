//! A connection to one endpoint, and the reads that a source makes on it.
//!
//! One client per endpoint: etcd-client does not avoid a dead endpoint, so the source fails over by
//! itself. Each read has a time limit, because a stopped etcd (not a dead one) keeps its connections
//! open.

use std::future::Future;
use std::time::Duration;

use driftless_proto::{Entry, Key, KeyRange, MAX_KEY_BYTES, MAX_VALUE_BYTES, Revision};
use etcd_client::proto::{PbKeyValue, PbTxnOpResponse};
use etcd_client::{Client, ConnectOptions, GetOptions, KvClient, Txn, TxnOp, WatchClient};
use tokio::time::Instant;

use super::history::{Observation, Probe};
use super::transactions::OutOfOrder;
use super::version::orders_progress;

/// How long connecting to an endpoint may take. Endpoints are near; the next one is worth trying soon.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a small read may take. etcd needs milliseconds; without a leader it may wait for an
/// election, which takes one to two seconds with default settings.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(3);

/// Interval of pings on an idle connection. etcd closes connections that ping more often than every
/// 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// How long the answer to a ping may take.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest message accepted from etcd. It holds several values of the largest size, since etcd may
/// put the events of many transactions into one message.
const MAX_MESSAGE_BYTES: usize = 4 * MAX_VALUE_BYTES;

/// gRPC's status code for an unknown call, or for an answer that is not gRPC.
const UNIMPLEMENTED: i32 = 12;

/// The one text for a connection that was closed: how that is noticed depends on timing.
const CLOSED: &str = "the connection was closed";

/// Why an operation on a connection failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("no answer to {what} within {} s", limit.as_secs_f32())]
    Timeout { what: &'static str, limit: Duration },
    #[error("{0}")]
    Etcd(String),
    #[error("etcd has compacted the requested revision")]
    Compacted {
        /// The first revision that is left; unknown when a read reports it.
        at: Option<Revision>,
    },
    #[error("etcd's answer is larger than {MAX_MESSAGE_BYTES} bytes")]
    TooLarge,
    #[error("the requested span has more than {most} bytes")]
    TooMuch { most: usize },
    #[error("the watch was ended: {0}")]
    Ended(String),
    #[error("another cluster answers on the same connection")]
    OtherCluster,
    #[error("etcd went back in revision on the same connection")]
    WentBack,
    #[error("etcd has been silent for {} s", silence.as_secs_f32())]
    Silent { silence: Duration },
    #[error(transparent)]
    OutOfOrder(#[from] OutOfOrder),
    #[error("etcd broke its contract: {0}")]
    Malformed(&'static str),
}

impl From<etcd_client::Error> for Error {
    fn from(error: etcd_client::Error) -> Self {
        let etcd_client::Error::GRpcStatus(status) = &error else {
            return Self::Etcd(root_cause(&error).unwrap_or_else(|| error.to_string()));
        };
        // A compacted read and a message over the limit share a status code: only the text differs.
        let message = status.message();
        if message.contains("revision has been compacted") {
            Self::Compacted { at: None }
        } else if message.contains("message length too large") {
            Self::TooLarge
        } else {
            Self::Etcd(match (root_cause(status), status.code() as i32) {
                (Some(failure), _) => failure,
                (None, UNIMPLEMENTED) => "it is not etcd's port for clients".to_owned(),
                (None, _) if message.is_empty() => status.code().description().to_owned(),
                (None, _) => message.to_owned(),
            })
        }
    }
}

/// The innermost cause of a transport error; the outer ones only say "transport error". `None` for an
/// error that etcd itself reported.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    use std::io::{self, ErrorKind};
    let mut root = error.source()?;
    while let Some(source) = root.source() {
        root = source;
    }
    let h2 = || root.downcast_ref().and_then(h2::Error::get_io);
    Some(match root.downcast_ref().or_else(h2).map(io::Error::kind) {
        // Which of these it is depends on timing.
        Some(
            ErrorKind::BrokenPipe
            | ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
            | ErrorKind::NotConnected
            | ErrorKind::UnexpectedEof,
        ) => CLOSED.to_owned(),
        // What hyper calls it.
        _ if root.to_string() == "connection closed" => CLOSED.to_owned(),
        _ => root.to_string(),
    })
}

/// Waits for an answer, up to a time limit.
pub(super) async fn within<T, E: Into<Error>>(
    limit: Duration,
    what: &'static str,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, Error> {
    match tokio::time::timeout(limit, answer).await {
        Ok(answer) => answer.map_err(Into::into),
        Err(_) => Err(Error::Timeout { what, limit }),
    }
}

/// The range in etcd's terms.
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    pub(super) start: Vec<u8>,
    /// Exclusive; `None` for a single key.
    pub(super) end: Option<Vec<u8>>,
}

impl Bounds {
    pub(super) fn of(range: &KeyRange) -> Self {
        let start = range.start().as_ref().to_vec();
        let end = match range {
            KeyRange::Key(_) => None,
            KeyRange::Prefix(_) => Some(end_of_prefix(&start)),
        };
        Self { start, end }
    }
}

/// The first key after all keys with this prefix. When there is none, the key that means "no end" to
/// etcd.
fn end_of_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

/// A connection to one endpoint. Dropping it closes the connection, and etcd drops all that it holds
/// for it.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) kv: KvClient,
    pub(super) watch: WatchClient,
    /// True if an answer to a manual progress request is ordered after the events.
    pub(super) orders_progress: bool,
    pub(super) cluster: u64,
}

impl Connection {
    /// Connects, and reads etcd's identity and the probed keys.
    pub(super) async fn open(
        endpoint: &str,
        bounds: &Bounds,
        probes: Vec<Probe>,
    ) -> Result<(Self, Observation), Error> {
        let options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            // etcd treats pings on a connection without streams as an attack.
            .with_keep_alive_while_idle(false)
            // A member without a leader then ends its watches instead of going silent.
            .with_require_leader(true);
        let mut client = within(
            CONNECT_TIMEOUT,
            "connect",
            Client::connect([endpoint], Some(options)),
        )
        .await?;
        let mut kv = client
            .kv_client()
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        let watch = client
            .watch_client()
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        let mut observation = probe(&mut kv, bounds, probes).await?;
        // After the read, so that the member has applied every revision known before it.
        let status = within(READ_TIMEOUT, "status", client.status()).await?;
        observation.applied = status.raft_applied_index();
        let connection = Self {
            kv,
            watch,
            orders_progress: orders_progress(status.version()),
            cluster: observation.cluster,
        };
        Ok((connection, observation))
    }

    /// etcd's revision now, by a linearizable read of the key that is the prefix itself: the cheapest
    /// read that every right to the prefix allows.
    pub(super) async fn revision(mut self, bounds: Bounds) -> Result<Revision, Error> {
        let options = GetOptions::new().with_count_only();
        let read = self.kv.get(bounds.start, Some(options));
        let response = within(READ_TIMEOUT, "read", read).await?;
        self.header(response.header())
    }

    /// How many keys the range had at this revision.
    pub(super) async fn keys_at(
        &mut self,
        bounds: &Bounds,
        revision: Revision,
    ) -> Result<i64, Error> {
        let options = GetOptions::new()
            .with_revision(revision.get())
            .with_count_only();
        let options = match &bounds.end {
            Some(end) => options.with_range(end.as_slice()),
            None => options,
        };
        let read = self.kv.get(bounds.start.as_slice(), Some(options));
        let response = within(READ_TIMEOUT, "read", read).await?;
        self.header(response.header())?;
        Ok(response.count())
    }

    /// etcd's revision now, by a linearizable read, and whether the range, which had `keys` keys at
    /// `since`, is unchanged.
    ///
    /// The proof: no key of the range is newer than `since`, so none was put; and the number of keys is
    /// the same, so none was deleted. etcd visits each key for that but sends none.
    pub(super) async fn unchanged(
        mut self,
        bounds: Bounds,
        since: Revision,
        keys: i64,
    ) -> Result<(Revision, bool), Error> {
        let options = GetOptions::new()
            .with_min_mod_revision(since.next().get())
            .with_keys_only()
            .with_limit(1);
        let options = match bounds.end {
            Some(end) => options.with_range(end),
            None => options,
        };
        let read = self.kv.get(bounds.start, Some(options));
        let response = within(READ_TIMEOUT, "read", read).await?;
        let revision = self.header(response.header())?;
        Ok((
            revision,
            response.kvs().is_empty() && response.count() == keys,
        ))
    }

    /// The revision in a header, which must be this cluster's.
    pub(super) fn header(
        &self,
        header: Option<&etcd_client::ResponseHeader>,
    ) -> Result<Revision, Error> {
        let header = header.ok_or(Error::Malformed("a response has no header"))?;
        if header.cluster_id() != self.cluster {
            return Err(Error::OtherCluster);
        }
        Ok(Revision::new(header.revision()))
    }
}

/// Reads the keys to probe at one revision, by a linearizable read.
async fn probe(
    kv: &mut KvClient,
    bounds: &Bounds,
    probes: Vec<Probe>,
) -> Result<Observation, Error> {
    // At least one read, or etcd answers without asking the other members.
    let first = TxnOp::get(
        bounds.start.as_slice(),
        Some(GetOptions::new().with_count_only()),
    );
    let reads = probes.into_iter().map(|probe| {
        let options = probe.key_only.then(|| GetOptions::new().with_keys_only());
        TxnOp::get(probe.key.as_ref(), options)
    });
    let reads: Vec<TxnOp> = std::iter::once(first).chain(reads).collect();
    let asked_at = Instant::now();
    let response = within(READ_TIMEOUT, "read", kv.txn(Txn::new().and_then(reads))).await?;
    let header = response
        .header()
        .ok_or(Error::Malformed("a response has no header"))?;
    let (cluster, revision) = (header.cluster_id(), Revision::new(header.revision()));
    let entries =
        response
            .0
            .responses
            .into_iter()
            .skip(1)
            .map(|response| match response.response {
                Some(PbTxnOpResponse::ResponseRange(mut range)) => {
                    range.kvs.pop().and_then(|kv| entry(kv).ok())
                }
                _ => None,
            });
    Ok(Observation {
        asked_at,
        cluster,
        revision,
        applied: 0,
        entries: entries.collect(),
    })
}

/// Converts a key and its value to the protocol's type.
///
/// # Errors
/// Returns the input when it cannot be served: the key or the value is over the limit.
pub(super) fn entry(kv: PbKeyValue) -> Result<Entry, PbKeyValue> {
    if kv.key.len() > MAX_KEY_BYTES || kv.value.len() > MAX_VALUE_BYTES {
        return Err(kv);
    }
    let mut kv = kv;
    let Some(key) = Key::new(std::mem::take(&mut kv.key)) else {
        return Err(kv);
    };
    Ok(Entry {
        key,
        value: kv.value.into(),
        create_revision: Revision::new(kv.create_revision),
        mod_revision: Revision::new(kv.mod_revision),
        version: kv.version,
    })
}

/// Converts a key to the protocol's type. `None` for a key that cannot be served.
pub(super) fn key(key: Vec<u8>) -> Option<Key> {
    if key.len() > MAX_KEY_BYTES {
        None
    } else {
        Key::new(key)
    }
}

/// Logs that a key is not served, with the beginning of its name.
pub(super) fn log_not_served(kv: &PbKeyValue) {
    /// Enough bytes of the name to find the key.
    const SHOWN: usize = 100;
    let beginning = Key::new(kv.key.iter().copied().take(SHOWN).collect::<Vec<_>>());
    tracing::error!(
        key = beginning.map(tracing::field::display),
        key_bytes = kv.key.len(),
        value_bytes = kv.value.len(),
        max_key_bytes = MAX_KEY_BYTES,
        max_value_bytes = MAX_VALUE_BYTES,
        "a key is not served: it or its value is too long; the name is cut off",
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_ends_at_the_first_key_after_it() {
        assert_eq!(end_of_prefix(b"/a/"), b"/a0");
        assert_eq!(end_of_prefix(b"a\xff\xff"), b"b");
        assert_eq!(end_of_prefix(b"\xff"), b"\0", "no end");
    }

    #[test]
    fn oversized_keys_and_values_are_not_served() {
        let kv = |key: usize, value: usize| PbKeyValue {
            key: vec![b'k'; key],
            value: vec![b'v'; value],
            ..Default::default()
        };
        assert!(entry(kv(MAX_KEY_BYTES, MAX_VALUE_BYTES)).is_ok());
        assert!(entry(kv(MAX_KEY_BYTES + 1, 0)).is_err());
        assert!(entry(kv(1, MAX_VALUE_BYTES + 1)).is_err());
        assert!(entry(kv(0, 0)).is_err());
    }
}
