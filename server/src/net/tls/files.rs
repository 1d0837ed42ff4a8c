//! The TLS files: reading them, and what rustls makes of them.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig};

use super::expiry::{NotAfter, not_after};

/// The most that each file may hold, in bytes: hundreds of certificates.
pub(super) const MAX_FILE: usize = 1024 * 1024;

/// HTTP/2's name in ALPN.
pub(super) const H2: &[u8] = b"h2";

/// A file, and the setting that names it, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamedFile {
    pub(crate) setting: &'static str,
    pub(crate) path: PathBuf,
}

/// The files that a server's TLS is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// The server's certificate, with those that lead to its CA behind it; PEM.
    pub(crate) cert: NamedFile,
    /// Its key; PEM, not encrypted.
    pub(crate) key: NamedFile,
    /// The CAs whose clients are let in; PEM. `None`: every client is.
    pub(crate) client_ca: Option<NamedFile>,
}

/// A TLS file that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("{setting}: {}: {problem}", path.display())]
pub struct TlsError {
    /// The setting that names it.
    pub setting: &'static str,
    /// Its path, as it was given.
    pub path: PathBuf,
    /// What is wrong with it and what it takes, without its content.
    pub problem: String,
}

impl TlsError {
    pub(super) fn new(file: &NamedFile, problem: impl Into<String>) -> Self {
        Self {
            setting: file.setting,
            path: file.path.clone(),
            problem: problem.into(),
        }
    }
}

pub(super) const UNREAD: &str = "it was not read to its end; try again";

/// What the files hold, to tell whether they changed.
#[derive(PartialEq, Eq)]
pub(super) struct Contents {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl fmt::Debug for Contents {
    /// One of them is a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contents").finish_non_exhaustive()
    }
}

/// What was made of files that changed.
pub(super) struct Found {
    pub(super) contents: Contents,
    pub(super) config: ServerConfig,
    pub(super) not_after: Option<NotAfter>,
}

/// Reads the files, in a thread for blocking work; the caller waits, so it is one at a time. `None`:
/// they hold what is in use.
pub(super) async fn read_changed(
    files: TlsFiles,
    used: Option<Arc<Contents>>,
) -> Result<Option<Found>, TlsError> {
    let cert = files.cert.clone();
    let read = tokio::task::spawn_blocking(move || {
        let contents = Contents::read(&files)?;
        if used.is_some_and(|used| *used == contents) {
            return Ok(None);
        }
        let (config, not_after) = contents.config(&files)?;
        Ok(Some(Found {
            contents,
            config,
            not_after,
        }))
    });
    let panicked = |_| Err(TlsError::new(&cert, UNREAD));
    read.await.unwrap_or_else(panicked)
}

impl Contents {
    fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let read = |file: &NamedFile| {
            read_small(&file.path).map_err(|problem| TlsError::new(file, problem))
        };
        Ok(Self {
            cert: read(&files.cert)?,
            key: read(&files.key)?,
            client_ca: files.client_ca.as_ref().map(read).transpose()?,
        })
    }

    fn config(&self, files: &TlsFiles) -> Result<(ServerConfig, Option<NotAfter>), TlsError> {
        let bad_cert = |problem: String| TlsError::new(&files.cert, problem);
        let bad_key = |problem: String| TlsError::new(&files.key, problem);
        let provider = Arc::new(ring::default_provider());
        let chain = certificates(&self.cert).map_err(bad_cert)?;
        let not_after = chain.first().and_then(|leaf| not_after(leaf));
        // Whatever is wrong with it, what it holds is not quoted.
        let unusable = || "it holds no private key that can be used; it takes PEM, not encrypted";
        let key =
            PrivateKeyDer::from_pem_slice(&self.key).map_err(|_| bad_key(unusable().to_owned()))?;
        provider
            .key_provider
            .load_private_key(key.clone_key())
            .map_err(|_| bad_key(unusable().to_owned()))?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| bad_cert(error.to_string()))?;
        let builder = match files.client_ca.as_ref().zip(self.client_ca.as_ref()) {
            None => builder.with_no_client_auth(),
            Some((file, pem)) => {
                let bad = |problem: String| TlsError::new(file, problem);
                let roots = roots(pem).map_err(bad)?;
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                let verifier = verifier.build().map_err(|error| bad(error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => bad_key(format!(
                    "it is not the key of the certificate in {}",
                    files.cert.path.display()
                )),
                error => bad_cert(format!("it cannot be used: {error}")),
            })?;
        config.alpn_protocols = vec![H2.to_vec()];
        // Connections last for days: resuming a session would save nothing, and would let in whoever
        // was let in before.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok((config, not_after))
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let found = found.ok().filter(|found| !found.is_empty());
    found.ok_or_else(|| "it holds no certificate that can be read; it takes PEM".to_owned())
}

pub(super) fn roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for cert in certificates(pem)? {
        let added = roots.add(cert);
        added.map_err(|_| "it holds a certificate that cannot be a CA's".to_owned())?;
    }
    Ok(roots)
}

fn read_small(path: &Path) -> Result<Vec<u8>, String> {
    let cannot = |error: io::Error| format!("it cannot be read: {error}");
    let file = File::open(path).map_err(cannot)?;
    let mut bytes = Vec::new();
    // One more than is allowed, so that too much is noticed.
    let most = u64::try_from(MAX_FILE)
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    file.take(most).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() > MAX_FILE {
        return Err("it is longer than 1 MiB; name another file".to_owned());
    }
    Ok(bytes)
}
