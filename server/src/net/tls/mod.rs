//! TLS with certificates from files, which are read again when they change.
//!
//! [`load_tls`] reads the files once, before anything listens. From then on one task,
//! [`Reloader::run`], checks them now and then; new connections get what it finds, open ones keep what
//! they have. [`Tls`] is what connections use, and never reads a file.

mod accept;
mod expiry;
mod files;
mod reload;
#[cfg(test)]
mod tests;

pub(crate) use accept::{Tls, peer_certificates};
pub use files::TlsError;
pub(crate) use files::{NamedFile, TlsFiles};
pub(crate) use reload::{Reloader, load_tls};
