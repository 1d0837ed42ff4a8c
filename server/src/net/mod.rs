//! The server's edge below HTTP: listening sockets, and TLS from files that reload.
//!
//! A leaf: it knows neither settings nor gRPC. Nothing else in this crate uses rustls.

mod coalesce;
mod listen;
mod tls;

pub(crate) use coalesce::Coalesce;
pub(crate) use listen::{Listener, listen};
pub use tls::TlsError;
pub(crate) use tls::{NamedFile, Reloader, Tls, TlsFiles, load_tls, peer_certificates};
