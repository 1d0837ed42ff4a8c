//! Reads the TLS files at the start, and again while the server runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::accept::Tls;
use super::expiry::NotAfter;
use super::files::{Contents, Found, TlsError, TlsFiles, UNREAD, read_changed};

/// How often the files are read: soon enough for somebody who waits for a new certificate to be used,
/// and cheap, since they are at most three small files.
const RELOAD_INTERVAL: Duration = Duration::from_secs(10);

/// How long to wait before files that do not fit each other are read again and reported: somebody who
/// replaces a certificate and then its key is between the two for a moment.
const SETTLE: Duration = Duration::from_secs(1);

/// Keeps a [`Tls`] at what the files hold.
#[derive(Debug)]
pub(crate) struct Reloader {
    files: TlsFiles,
    tls: Tls,
    /// What is in use.
    used: Arc<Contents>,
    not_after: Option<NotAfter>,
    /// Whether its expiry was reported.
    pub(super) expiry_reported: bool,
    /// What is wrong with the files, once that was reported.
    pub(super) problem: Option<TlsError>,
}

/// Reads the files for the first time.
///
/// # Errors
/// When one cannot be read or used, or the key is not that of the certificate.
///
/// # Cancel safety
/// Cancel-safe. A read of a file that hangs goes on in its thread.
pub(crate) async fn load_tls(files: TlsFiles) -> Result<(Tls, Reloader), TlsError> {
    // Nothing is in use yet, so nothing is the same.
    let Some(found) = read_changed(files.clone(), None).await? else {
        return Err(TlsError::new(&files.cert, UNREAD));
    };
    let tls = Tls::new(found.config);
    let reloader = Reloader {
        files,
        tls: tls.clone(),
        used: Arc::new(found.contents),
        not_after: found.not_after,
        expiry_reported: false,
        problem: None,
    };
    Ok((tls, reloader))
}

impl Reloader {
    /// Reads the files now and then. Runs until it is dropped.
    pub(crate) async fn run(mut self) {
        loop {
            self.warn_of_expiry();
            sleep(RELOAD_INTERVAL).await;
            let mut found = self.read().await;
            if found.is_err() {
                sleep(SETTLE).await;
                found = self.read().await;
            }
            self.apply(found);
        }
    }

    pub(super) async fn read(&self) -> Result<Option<Found>, TlsError> {
        read_changed(self.files.clone(), Some(Arc::clone(&self.used))).await
    }

    pub(super) fn apply(&mut self, found: Result<Option<Found>, TlsError>) {
        match found {
            Ok(None) => {
                if self.problem.take().is_some() {
                    tracing::info!("the TLS files are as they were, and can be used again");
                }
            }
            Ok(Some(found)) => {
                self.tls.replace(found.config);
                self.used = Arc::new(found.contents);
                self.not_after = found.not_after;
                self.expiry_reported = false;
                self.problem = None;
                let not_after = self.not_after.map(tracing::field::display);
                tracing::info!(
                    not_after,
                    "the certificate was reloaded; new connections get it"
                );
            }
            Err(problem) if self.problem.as_ref() != Some(&problem) => {
                tracing::error!(
                    %problem,
                    "the TLS files cannot be used; the last good ones stay in use"
                );
                self.problem = Some(problem);
            }
            Err(_) => {}
        }
    }

    pub(super) fn warn_of_expiry(&mut self) {
        let Some(not_after) = self.not_after.filter(NotAfter::is_past) else {
            return;
        };
        if !std::mem::replace(&mut self.expiry_reported, true) {
            let cert = self.files.cert.path.display();
            tracing::warn!(%cert, %not_after, "the server's certificate has expired; clients refuse it");
        }
    }
}
