//! TLS to servers, with the certificates and keys that the files hold at each connection.
//!
//! With `tls_errors`, the only user of rustls. Nothing is kept between connections, not even a session: rotated
//! files are used from the next connection on, and a server's certificate is checked every time.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::ClientConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{Error, RootCertStore};

use super::blocking::Jobs;
use super::connect::Io;
use super::endpoint::Endpoint;
use super::files::Files;
use super::preface::Explain;
use super::tls_errors::{NO_HTTP2, explain, explain_io, mismatched};
use crate::error::BuildError;
use crate::resources::{Resource, ResourceTracker};

/// The largest file of certificates or a key, in bytes: several times the size of a system's whole CA store.
const MAX_FILE: usize = 1024 * 1024;

/// The name of HTTP/2 in ALPN.
const H2: &[u8] = b"h2";

/// The name of the system's CAs in the resource tracker.
const SYSTEM: &str = "the system's CAs";

/// TLS options, as a builder collects them.
#[derive(Default)]
pub(crate) struct TlsOptions {
    pub(crate) ca: Option<PathBuf>,
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    pub(crate) server_name: Option<String>,
}

/// Wraps byte streams in TLS.
pub(crate) struct Tls {
    ca: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
    server_name: Option<ServerName<'static>>,
    files: Files,
    system: Jobs<Arc<RootCertStore>>,
}

impl Tls {
    /// Checks names; reads no file.
    ///
    /// # Errors
    /// When the server name cannot be in a certificate, or there are options and no endpoint with TLS.
    pub(crate) fn new(
        options: TlsOptions,
        endpoints: &[Endpoint],
        files: Files,
        tracker: ResourceTracker,
    ) -> Result<Self, BuildError> {
        let given =
            options.ca.is_some() || options.identity.is_some() || options.server_name.is_some();
        if given && !endpoints.iter().any(Endpoint::is_tls) {
            return Err(BuildError::TlsUnused);
        }
        let server_name = options.server_name.as_deref().map(parse_name).transpose()?;
        if server_name.is_none() {
            let secure = endpoints.iter().filter(|endpoint| endpoint.is_tls());
            secure
                .map(Endpoint::host)
                .try_for_each(|host| parse_name(host).map(drop))?;
        }
        Ok(Self {
            ca: options.ca,
            identity: options.identity,
            server_name,
            files,
            system: Jobs::new(tracker),
        })
    }

    /// Does the TLS handshake with the server at the other end of `io`. Errors are texts for people.
    ///
    /// # Cancel safety
    /// Dropping it closes the stream.
    pub(crate) async fn connect(
        &self,
        endpoint: &Endpoint,
        io: Box<dyn Io>,
    ) -> Result<TlsStream<Box<dyn Io>>, String> {
        let config = Arc::new(self.config().await?);
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => parse_name(endpoint.host()).map_err(|error| error.to_string())?,
        };
        let stream = TlsConnector::from(config)
            .connect(name, io)
            .await
            .map_err(|error| self.explain(&error).unwrap_or_else(|| explain_io(&error)))?;
        let (_, session) = stream.get_ref();
        if session.alpn_protocol() != Some(H2) {
            return Err(NO_HTTP2.to_owned());
        }
        tracing::debug!(
            %endpoint,
            version = ?session.protocol_version(),
            "TLS handshake done"
        );
        Ok(stream)
    }

    async fn config(&self) -> Result<ClientConfig, String> {
        let roots = match &self.ca {
            Some(path) => Arc::new(self.roots(path).await?),
            None => self.system_roots().await?,
        };
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let (chain, secret) = self.identity(cert, key).await?;
                builder
                    .with_client_auth_cert(chain, secret)
                    .map_err(|error| mismatched(cert, key, &error))?
            }
        };
        config.alpn_protocols = vec![H2.to_vec()];
        Ok(config)
    }

    async fn roots(&self, path: &Path) -> Result<RootCertStore, String> {
        const WHAT: &str = "the CA file";
        let chain = self.certificates(WHAT, path).await?;
        let mut roots = RootCertStore::empty();
        for cert in chain {
            roots.add(cert).map_err(|_| {
                let path = path.display();
                format!(
                    "{WHAT} {path}: it holds a certificate that cannot be a CA's; name another file"
                )
            })?;
        }
        Ok(roots)
    }

    async fn system_roots(&self) -> Result<Arc<RootCertStore>, String> {
        let load = || {
            let mut roots = RootCertStore::empty();
            // Uses the readable ones even if others are not.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            Arc::new(roots)
        };
        let roots = self
            .system
            .run(Resource::File(SYSTEM.to_owned()), load)
            .await;
        roots
            .filter(|roots| !roots.is_empty())
            .ok_or_else(|| "this system trusts no CA; give the file of the server's CA".to_owned())
    }

    async fn identity(
        &self,
        cert: &Path,
        key: &Path,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
        const WHAT: &str = "the client's key file";
        let chain = self
            .certificates("the client's certificate file", cert)
            .await?;
        let pem = self.files.read(WHAT, key, MAX_FILE).await?;
        // The error never quotes the file.
        let secret = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
            let path = key.display();
            format!(
                "{WHAT} {path}: it holds no private key that can be used; it takes PEM, not encrypted"
            )
        })?;
        Ok((chain, secret))
    }

    async fn certificates(
        &self,
        what: &'static str,
        path: &Path,
    ) -> Result<Vec<CertificateDer<'static>>, String> {
        let pem = self.files.read(what, path, MAX_FILE).await?;
        let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
        let found = found.ok().filter(|found| !found.is_empty());
        found.ok_or_else(|| {
            let path = path.display();
            format!("{what} {path}: it holds no certificate that can be read; it takes PEM")
        })
    }

    /// Explains an error of the handshake, or of the stream after it. `None` if it is not rustls's.
    fn explain(&self, error: &io::Error) -> Option<String> {
        let error = error.get_ref()?.downcast_ref::<Error>()?;
        Some(explain(error, self.ca.as_deref(), self.identity.is_some()))
    }

    /// The same, for a stream that outlives this borrow.
    pub(crate) fn explain_later(&self) -> Explain {
        let (ca, has_identity) = (self.ca.clone(), self.identity.is_some());
        Box::new(move |error| {
            let error = error.get_ref()?.downcast_ref::<Error>()?;
            Some(explain(error, ca.as_deref(), has_identity))
        })
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("ca", &self.ca)
            .field("identity", &self.identity)
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}

fn parse_name(name: &str) -> Result<ServerName<'static>, BuildError> {
    ServerName::try_from(name.to_owned()).map_err(|_| BuildError::ServerName {
        name: name.to_owned(),
    })
}
