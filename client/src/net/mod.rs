//! Byte streams to servers: addresses, TCP, TLS, the server's first bytes. Knows nothing of HTTP/2.

mod blocking;
mod connect;
mod endpoint;
mod error;
mod files;
mod preface;
mod resolve;
mod tcp;
#[cfg(feature = "tls")]
mod tls;
#[cfg(feature = "tls")]
mod tls_errors;

pub use connect::{Connect, Connecting, Io};
pub use endpoint::Endpoint;
pub(crate) use error::{explain, innermost, root_cause};
pub(crate) use files::Files;
pub(crate) use preface::{Preface, PrefaceStream};
pub(crate) use resolve::Resolver;
pub(crate) use tcp::Tcp;
#[cfg(feature = "tls")]
pub(crate) use tls::{Tls, TlsOptions};
