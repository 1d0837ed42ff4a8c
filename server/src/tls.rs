//! TLS of the gRPC listener: certificates from files, read again when these change.
//!
//! The only user of rustls. [`load`] reads the files once, before anything listens. From then on one
//! task, [`Reloader::run`], looks at them now and then; what it makes of them is for connections to
//! come, and those that are open go on. [`Tls`] is what connections use, and never reads a file.

mod expiry;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;

use self::expiry::{NotAfter, not_after};
use crate::settings::{Setting, TlsFiles};

/// How often the files are looked at: soon enough for whoever waits for a new certificate to be used,
/// and three small files each time.
const RELOAD_INTERVAL: Duration = Duration::from_secs(10);

/// How long after files that do not fit they are looked at again before that is said: whoever replaces
/// a certificate and then its key is between the two for a moment.
const SETTLE: Duration = Duration::from_secs(1);

/// How long, and for how many bytes, a client that was turned down is listened to, so that it hears
/// why: a socket that is closed with something unread in it takes back what was written last.
const LINGER: (Duration, usize) = (Duration::from_secs(1), 64 * 1024);

/// The most that each file may hold, in bytes: hundreds of certificates.
const MAX_FILE: usize = 1024 * 1024;

/// What HTTP/2 is called where protocols are agreed on.
const H2: &[u8] = b"h2";

/// A file of TLS that cannot be used.
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
    fn new(setting: Setting, path: &Path, problem: impl Into<String>) -> Self {
        Self {
            setting: setting.name(),
            path: path.to_owned(),
            problem: problem.into(),
        }
    }
}

/// Agrees on TLS with clients, with the newest certificate that can be used. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Tls(Arc<Mutex<Arc<ServerConfig>>>);

impl Tls {
    /// Agrees on TLS over `io`, within so long. Says why when that fails; whoever is at the other end
    /// was told.
    ///
    /// # Cancel safety
    /// Dropping it closes the connection.
    pub(crate) async fn accept<S>(&self, io: S, within: Duration) -> Result<TlsStream<S>, String>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let accept = TlsAcceptor::from(config).accept(io).into_fallible();
        match timeout(within, accept).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err((error, io))) => {
                let _ = timeout(LINGER.0, linger(io)).await;
                Err(error.to_string())
            }
            Err(_) => Err(format!("it was not agreed on within {within:?}")),
        }
    }

    fn replace(&self, config: ServerConfig) {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(config);
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

/// The certificates that the client showed, its own first, as DER.
pub(crate) fn peer_certificates<S>(stream: &TlsStream<S>) -> impl Iterator<Item = &[u8]> {
    let (_, session) = stream.get_ref();
    let certificates = session.peer_certificates().unwrap_or_default();
    certificates.iter().map(AsRef::as_ref)
}

/// Reads until the other end has closed, or has said too much.
async fn linger(mut io: impl AsyncRead + AsyncWrite + Unpin) {
    let _ = io.shutdown().await;
    let (mut heard, mut buffer) = (0, [0; 1024]);
    while heard < LINGER.1 {
        match io.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => heard += read,
        }
    }
}

/// Keeps a [`Tls`] at what the files say.
#[derive(Debug)]
pub(crate) struct Reloader {
    files: TlsFiles,
    tls: Tls,
    /// What is used.
    used: Arc<Contents>,
    not_after: Option<NotAfter>,
    /// That it has expired was said.
    expiry_told: bool,
    /// What is wrong with the files as they are, once that was said.
    problem: Option<TlsError>,
}

/// Reads the files.
///
/// # Errors
/// When one cannot be read or used, or the key is not that of the certificate.
///
/// # Cancel safety
/// Cancel-safe; the reading of a file that hangs goes on.
pub(crate) async fn load(files: TlsFiles) -> Result<(Tls, Reloader), TlsError> {
    let found = look(files.clone(), None).await?;
    // Nothing is used yet, so nothing is the same.
    let Some(found) = found else {
        return Err(TlsError::new(Setting::TlsCert, files.cert(), UNREAD));
    };
    let tls = Tls(Arc::new(Mutex::new(Arc::new(found.config))));
    let reloader = Reloader {
        files,
        tls: tls.clone(),
        used: Arc::new(found.contents),
        not_after: found.not_after,
        expiry_told: false,
        problem: None,
    };
    Ok((tls, reloader))
}

const UNREAD: &str = "it was not read to its end; try again";

impl Reloader {
    /// Looks at the files until it is dropped.
    pub(crate) async fn run(mut self) {
        loop {
            self.warn_of_expiry();
            sleep(RELOAD_INTERVAL).await;
            let mut found = self.look().await;
            if found.is_err() {
                sleep(SETTLE).await;
                found = self.look().await;
            }
            self.take(found);
        }
    }

    async fn look(&self) -> Result<Option<Found>, TlsError> {
        look(self.files.clone(), Some(Arc::clone(&self.used))).await
    }

    fn take(&mut self, found: Result<Option<Found>, TlsError>) {
        match found {
            Ok(None) => {
                if self.problem.take().is_some() {
                    tracing::info!("the files of TLS are as they were, and can be used again");
                }
            }
            Ok(Some(found)) => {
                self.tls.replace(found.config);
                self.used = Arc::new(found.contents);
                self.not_after = found.not_after;
                self.expiry_told = false;
                self.problem = None;
                let not_after = self.not_after.map(tracing::field::display);
                tracing::info!(
                    not_after,
                    "the certificate was read anew; new connections get it"
                );
            }
            Err(problem) if self.problem.as_ref() != Some(&problem) => {
                tracing::error!(
                    %problem,
                    "the files of TLS cannot be used as they are; the last good ones stay in use"
                );
                self.problem = Some(problem);
            }
            Err(_) => {}
        }
    }

    fn warn_of_expiry(&mut self) {
        let Some(not_after) = self.not_after.filter(NotAfter::is_past) else {
            return;
        };
        if !std::mem::replace(&mut self.expiry_told, true) {
            let cert = self.files.cert().display();
            tracing::warn!(%cert, %not_after, "the server's certificate has expired; clients refuse it");
        }
    }
}

/// What the files hold, to tell whether they are others.
#[derive(PartialEq, Eq)]
struct Contents {
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

/// What was made of files that are others than before.
struct Found {
    contents: Contents,
    config: ServerConfig,
    not_after: Option<NotAfter>,
}

/// Looks at the files, in a thread for blocking work; the caller waits, so it is one at a time. `None`:
/// they are what is used.
async fn look(files: TlsFiles, used: Option<Arc<Contents>>) -> Result<Option<Found>, TlsError> {
    let cert = files.cert().to_owned();
    let looked = tokio::task::spawn_blocking(move || {
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
    let gone = |_| Err(TlsError::new(Setting::TlsCert, &cert, UNREAD));
    looked.await.unwrap_or_else(gone)
}

impl Contents {
    fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let read = |setting, path: &Path| {
            read_small(path).map_err(|problem| TlsError::new(setting, path, problem))
        };
        let client_ca = files.client_ca();
        Ok(Self {
            cert: read(Setting::TlsCert, files.cert())?,
            key: read(Setting::TlsKey, files.key())?,
            client_ca: client_ca
                .map(|path| read(Setting::TlsClientCa, path))
                .transpose()?,
        })
    }

    fn config(&self, files: &TlsFiles) -> Result<(ServerConfig, Option<NotAfter>), TlsError> {
        let bad_cert = |problem: String| TlsError::new(Setting::TlsCert, files.cert(), problem);
        let bad_key = |problem: String| TlsError::new(Setting::TlsKey, files.key(), problem);
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
        let builder = match files.client_ca().zip(self.client_ca.as_ref()) {
            None => builder.with_no_client_auth(),
            Some((path, pem)) => {
                let bad = |problem: String| TlsError::new(Setting::TlsClientCa, path, problem);
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
                    files.cert().display()
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

fn roots(pem: &[u8]) -> Result<RootCertStore, String> {
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

#[cfg(test)]
mod tests;
