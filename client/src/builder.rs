//! Options of a client, validated once. `build()` spawns and dials nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use driftless_proto::v1;

use crate::client::Client;
use crate::error::BuildError;
use crate::jitter::Jitter;
use crate::net::{Connect, Endpoint, Files, Resolver, Tcp};
#[cfg(feature = "tls")]
use crate::net::{Tls, TlsOptions};
use crate::resources::ResourceTracker;
use crate::transport::{Security, TokenFile, Transport};

/// The longest instance id, label name or label value, in bytes, by the protocol.
const MAX_TEXT: usize = 256;

/// The most labels, by the protocol.
const MAX_LABELS: usize = 32;

/// The default of [`ClientBuilder::range_limit`]: 256 MiB. Far more than any configuration, and little enough
/// that a prefix watched by mistake does not end the process.
const DEFAULT_RANGE_LIMIT: usize = 256 * 1024 * 1024;

/// Name and version of this library, as a server's list of clients shows them.
const LIBRARY: &str = concat!("driftless-rust/", env!("CARGO_PKG_VERSION"));

/// Options of a [`Client`].
///
/// ```
/// use driftless_client::Client;
///
/// let client = Client::builder()
///     .endpoint("http://10.0.0.1:7400")
///     .endpoint("http://10.0.0.2:7400")
///     .label("service", "shop")
///     .build()?;
/// # Ok::<(), driftless_client::BuildError>(())
/// ```
#[must_use = "a builder does nothing before `build`"]
pub struct ClientBuilder {
    endpoints: Vec<String>,
    instance: Option<String>,
    labels: BTreeMap<String, String>,
    connector: Option<Box<dyn Connect>>,
    range_limit: usize,
    token: Option<PathBuf>,
    #[cfg(feature = "tls")]
    tls: TlsOptions,
    jitter: Jitter,
}

impl ClientBuilder {
    pub(crate) fn new() -> Self {
        Self {
            endpoints: Vec::new(),
            instance: None,
            labels: BTreeMap::new(),
            connector: None,
            range_limit: DEFAULT_RANGE_LIMIT,
            token: None,
            #[cfg(feature = "tls")]
            tls: TlsOptions::default(),
            jitter: Jitter::default(),
        }
    }

    /// Adds a server, such as `http://127.0.0.1:7400` or `https://config.example:7400`; without a port,
    /// 80 and 443. At least one is needed. Of several, one is chosen at random and kept while it
    /// works.
    pub fn endpoint(mut self, url: impl Into<String>) -> Self {
        self.endpoints.push(url.into());
        self
    }

    /// Identifies this process in the server's list of clients; it should not change at reconnects. At most 256 bytes. Default: 128 random bits, in hexadecimal.
    pub fn instance(mut self, id: impl Into<String>) -> Self {
        self.instance = Some(id.into());
        self
    }

    /// Adds a label to the server's list of clients, or replaces the one of that name.
    /// At most 32, names and values of at most 256 bytes each. Default: none.
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(name.into(), value.into());
        self
    }

    /// Opens connections with `connector`. Default: TCP.
    pub fn connector(mut self, connector: impl Connect) -> Self {
        self.connector = Some(Box::new(connector));
        self
    }

    /// Trusts servers with a certificate of a CA in this PEM file, and no others. Read for every connection, so
    /// a replaced file is used from the next one on. One that cannot be used is an error in
    /// [`Status::last_error`](crate::Status::last_error) and in the log. Default: the CAs that the system
    /// trusts.
    #[cfg(feature = "tls")]
    pub fn tls_ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.tls.ca = Some(path.into());
        self
    }

    /// Authenticates this client to servers with a certificate, followed by its chain, and its key, in PEM files
    /// (PKCS#8, PKCS#1 or SEC1, not encrypted). Read for every connection, as
    /// [`tls_ca_file`](Self::tls_ca_file) is. Default: none.
    #[cfg(feature = "tls")]
    pub fn tls_client_files(mut self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.tls.identity = Some((cert.into(), key.into()));
        self
    }

    /// The host name or address that the servers' certificates must be for. Default: the host of the endpoint.
    #[cfg(feature = "tls")]
    pub fn tls_server_name(mut self, name: impl Into<String>) -> Self {
        self.tls.server_name = Some(name.into());
        self
    }

    /// Sends the bearer token in this file with every call (`authorization: Bearer …`). Read for each call, so a
    /// rotated token needs no notice; white space around it is ignored. At most 16 KiB of printable ASCII. If
    /// reading the file takes longer than three seconds, a `get` fails and a watch tries again; both errors
    /// name the file. Default: none.
    ///
    /// It is never sent in clear text over a network: together with an `http://` endpoint of another machine,
    /// [`build`](Self::build) refuses it.
    pub fn token_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.token = Some(path.into());
        self
    }

    /// The largest range, in bytes of keys and values, and 256 more for each key. A larger one is refused
    /// ([`RefusedReason::TooLarge`](crate::RefusedReason::TooLarge)) while it arrives; what is held stays meanwhile,
    /// so a range may take twice as much for a moment. Default: 256 MiB.
    pub fn range_limit(mut self, bytes: usize) -> Self {
        self.range_limit = bytes;
        self
    }

    /// Derives the order of endpoints and the jitter of backoffs from `seed`, so that a simulation can be
    /// repeated. Clients that share a seed act at the same moment, which jitter must prevent: not for
    /// services. Default: from the thread's generator.
    #[doc(hidden)]
    pub fn simulated(mut self, seed: u64) -> Self {
        self.jitter = Jitter::seeded(seed);
        self
    }

    /// Checks the options and makes the client. Spawns nothing, dials nothing and reads no file: the
    /// first watch does.
    ///
    /// # Errors
    /// When an option is not valid, or no endpoint was given.
    pub fn build(self) -> Result<Client, BuildError> {
        if self.endpoints.is_empty() {
            return Err(BuildError::NoEndpoint);
        }
        let endpoints: Vec<Endpoint> = self
            .endpoints
            .iter()
            .map(|url| Endpoint::parse(url))
            .collect::<Result<_, _>>()?;
        let instance = self
            .instance
            .unwrap_or_else(|| format!("{:032x}", rand::random::<u128>()));
        if !(1..=MAX_TEXT).contains(&instance.len()) {
            return Err(BuildError::Instance {
                len: instance.len(),
                max: MAX_TEXT,
            });
        }
        if self.labels.len() > MAX_LABELS {
            return Err(BuildError::TooManyLabels {
                count: self.labels.len(),
                max: MAX_LABELS,
            });
        }
        for (name, value) in &self.labels {
            if name.is_empty() || name.len() > MAX_TEXT || value.len() > MAX_TEXT {
                return Err(BuildError::Label {
                    name: name.chars().take(MAX_TEXT).collect(),
                    max: MAX_TEXT,
                });
            }
        }
        let info = v1::ClientInfo {
            instance,
            labels: self.labels.into_iter().collect(),
            library: LIBRARY.to_owned(),
        };
        if self.token.is_some() {
            let in_clear = |endpoint: &&Endpoint| !endpoint.is_tls() && !endpoint.is_loopback();
            if let Some(endpoint) = endpoints.iter().find(in_clear) {
                return Err(BuildError::TokenInClear {
                    url: endpoint.to_string(),
                });
            }
        }
        let tracker = ResourceTracker::new();
        let files = Files::new(tracker.clone());
        let security = Security {
            #[cfg(feature = "tls")]
            tls: Some(Tls::new(
                self.tls,
                &endpoints,
                files.clone(),
                tracker.clone(),
            )?),
            token: self.token.map(|path| TokenFile::new(path, files)),
        };
        let connector = self
            .connector
            .unwrap_or_else(|| Box::new(Tcp::new(Resolver::system(tracker.clone()))));
        let transport = Transport::new(endpoints, connector, info, tracker)
            .secured(security)
            .with_jitter(self.jitter);
        Ok(Client::new(transport, self.range_limit))
    }
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Endpoints are not validated yet and may hold a password.
        f.debug_struct("ClientBuilder")
            .field("endpoints", &self.endpoints.len())
            .field("instance", &self.instance)
            .field("labels", &self.labels)
            .field("range_limit", &self.range_limit)
            .field("token_file", &self.token)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builder() -> ClientBuilder {
        ClientBuilder::new().endpoint("http://h:1")
    }

    #[test]
    fn limits_of_the_protocol_are_checked() {
        assert_eq!(
            ClientBuilder::new().build().err(),
            Some(BuildError::NoEndpoint)
        );
        assert!(builder().instance("i".repeat(256)).build().is_ok());
        for bad in ["".to_owned(), "i".repeat(257)] {
            let error = builder().instance(bad).build().err();
            assert!(matches!(error, Some(BuildError::Instance { .. })));
        }
        for (name, value) in [
            ("", "v"),
            ("n", &*"v".repeat(257)),
            (&*"n".repeat(257), "v"),
        ] {
            let error = builder().label(name, value).build().err();
            assert!(matches!(error, Some(BuildError::Label { .. })));
        }
        let labelled = |count: usize| {
            (0..count).fold(builder(), |builder, n| builder.label(n.to_string(), "v"))
        };
        assert!(labelled(32).build().is_ok());
        assert!(matches!(
            labelled(33).build().err(),
            Some(BuildError::TooManyLabels { count: 33, .. })
        ));
    }

    #[test]
    fn token_in_clear_text_to_another_machine_is_refused() {
        for here in ["http://127.0.0.1:1", "http://[::1]:1", "http://localhost:1"] {
            let builder = ClientBuilder::new().endpoint(here).token_file("/token");
            assert!(builder.build().is_ok(), "{here}");
        }
        let mixed = ClientBuilder::new()
            .endpoint("http://localhost:1")
            .endpoint("http://config.example:1");
        let error = mixed.token_file("/token").build().err().unwrap();
        assert_eq!(
            error.to_string(),
            "endpoint \"http://config.example:1\" would get the token in clear text; use https://, or \
             http:// on this machine only"
        );
    }

    #[test]
    #[cfg(feature = "tls")]
    fn token_is_allowed_with_tls_and_names_are_checked() {
        let secure = || ClientBuilder::new().endpoint("https://config.example");
        assert!(secure().token_file("/token").build().is_ok());
        // The files are read when they are needed.
        let files = secure()
            .tls_ca_file("/none/ca.pem")
            .tls_client_files("/none/cert.pem", "/none/key.pem")
            .tls_server_name("10.0.0.1");
        assert!(files.build().is_ok());
        for name in ["", "two words", "-"] {
            let error = secure().tls_server_name(name).build().err().unwrap();
            assert!(matches!(error, BuildError::ServerName { .. }), "{name}");
        }
    }

    #[test]
    #[cfg(feature = "tls")]
    fn tls_options_without_a_tls_endpoint_are_refused() {
        let plain = || ClientBuilder::new().endpoint("http://config.example");
        for given in [
            plain().tls_ca_file("/ca.pem"),
            plain().tls_client_files("/cert.pem", "/key.pem"),
            plain().tls_server_name("config.example"),
        ] {
            assert_eq!(given.build().err(), Some(BuildError::TlsUnused));
        }
        // One endpoint with TLS is enough.
        let mixed = plain().endpoint("https://config.example");
        assert!(mixed.tls_ca_file("/ca.pem").build().is_ok());
    }

    #[test]
    fn build_needs_no_runtime() {
        assert!(tokio::runtime::Handle::try_current().is_err());
        assert!(builder().build().is_ok());
    }
}
