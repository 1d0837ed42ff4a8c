//! Who a peer says it is. A leaf: pure data, no I/O, nothing of gRPC or TLS.
//!
//! Identities are kept with each stream (see [`session`](crate::session)) and not judged yet: there
//! are no rules. Whoever can connect can read.

mod identity;

pub use identity::{BearerToken, CertificateChain, Identity};
