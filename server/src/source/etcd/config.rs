//! How an [`EtcdSource`](super::EtcdSource) reaches etcd.

use std::time::Duration;

/// How an [`EtcdSource`](super::EtcdSource) reaches etcd, and how it reads from it.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// Endpoints of one cluster, such as `http://127.0.0.1:2379`; the scheme is optional. The source
    /// tries them in order, beginning with the first.
    pub endpoints: Vec<String>,
    /// Part of the [`Epoch`](driftless_proto::Epoch): a text that is the same on all servers, and that
    /// the operator changes after restoring etcd from a backup. Default: empty.
    pub generation: String,
    /// How often the source asks etcd how far it is: by a small linearizable read, and by a request for
    /// progress on the watch. After three such intervals without a message of the watch, or with failed
    /// reads, etcd counts as lost. Default: 5 s.
    pub progress_interval: Duration,
    /// The longest wait before the source tries etcd again; the first waits are shorter. Default: 5 s.
    pub retry_within: Duration,
    /// The most bytes of keys and values, previous values included, that a backfill reads of the
    /// changes before the source's first state. etcd reads all of them into its memory before it sends
    /// any. When there are more, less of the past is requested. Default: 64 MiB.
    pub backfill_bytes: usize,
}

/// Default of [`EtcdConfig::progress_interval`]: how far off a client's "age of the data" may
/// reasonably be, at a cost for etcd that cannot be measured.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// Default of [`EtcdConfig::retry_within`]: how much longer than etcd's own absence a service may have
/// to wait.
const RETRY_WITHIN: Duration = Duration::from_secs(5);

/// Default of [`EtcdConfig::backfill_bytes`]: what a change log of the default size has room for.
const BACKFILL_BYTES: usize = 64 * 1024 * 1024;

impl EtcdConfig {
    /// For these endpoints, with defaults for the rest.
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            generation: String::new(),
            progress_interval: PROGRESS_INTERVAL,
            retry_within: RETRY_WITHIN,
            backfill_bytes: BACKFILL_BYTES,
        }
    }

    pub(super) fn check(&self) -> Result<(), EtcdConfigError> {
        if self.endpoints.is_empty() {
            return Err(EtcdConfigError::NoEndpoint);
        }
        if self.progress_interval.is_zero() {
            return Err(EtcdConfigError::NoInterval);
        }
        for endpoint in &self.endpoints {
            let reject = |reason| EtcdConfigError::Endpoint {
                endpoint: endpoint.clone(),
                reason,
            };
            let uri: http::Uri = endpoint.parse().map_err(|_| reject("it is not a URL"))?;
            if uri
                .authority()
                .is_none_or(|authority| authority.host().is_empty())
            {
                return Err(reject("it names no host"));
            }
            match uri.scheme_str() {
                None | Some("http") => {}
                Some("https") => return Err(reject("TLS is not supported yet, use http")),
                Some(_) => return Err(reject("its scheme is not http")),
            }
        }
        Ok(())
    }
}

/// Why an [`EtcdConfig`] cannot be used. Trying again does not help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EtcdConfigError {
    /// No endpoint was given.
    #[error("no etcd endpoint is given; name at least one, such as http://127.0.0.1:2379")]
    NoEndpoint,
    /// An endpoint cannot be used.
    #[error("etcd endpoint {endpoint:?} cannot be used: {reason}")]
    Endpoint {
        /// As it was given.
        endpoint: String,
        /// Why.
        reason: &'static str,
    },
    /// [`EtcdConfig::progress_interval`] is zero.
    #[error("the progress interval of etcd is zero; leave it at 5 s")]
    NoInterval,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(endpoints: &[&str]) -> Result<(), EtcdConfigError> {
        EtcdConfig::new(endpoints.iter().copied()).check()
    }

    #[test]
    fn unusable_endpoints_are_rejected() {
        assert_eq!(check(&[]), Err(EtcdConfigError::NoEndpoint));
        for good in [
            "http://127.0.0.1:2379",
            "http://[::1]:2379/",
            "etcd-0.example:2379",
            "etcd",
        ] {
            assert_eq!(check(&[good]), Ok(()), "{good}");
        }
        for bad in [
            "",
            "https://etcd:2379",
            "ftp://etcd",
            "/etcd",
            "http://",
            "a b",
            "http://:1",
        ] {
            let rejected = check(&["http://good:1", bad]);
            assert!(
                matches!(rejected, Err(EtcdConfigError::Endpoint { .. })),
                "{bad}"
            );
        }
    }

    #[test]
    fn zero_progress_interval_is_rejected() {
        let mut config = EtcdConfig::new(["etcd"]);
        config.progress_interval = Duration::ZERO;
        assert_eq!(config.check(), Err(EtcdConfigError::NoInterval));
    }
}
