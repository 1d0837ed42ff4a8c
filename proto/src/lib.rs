//! The driftless wire contract.
//!
//! Everything that both ends must agree on: the generated messages ([`v1`]), the newtypes that they
//! become at the edge, [the rule of application](apply), [the digest](digest) that proves that nothing
//! drifted, and [the value delta](delta). All of it is pure code: no I/O, no clock, no task. The
//! default build has no tokio.
//!
//! Client and server depend on this crate and never on each other.

pub mod apply;
#[cfg(any(feature = "client", feature = "server"))]
pub mod codec;
pub mod delta;
pub mod digest;
pub mod elements;
mod entry;
mod key;
mod redact;
mod revision;

pub use entry::Entry;
pub use key::{Key, KeyRange, RangeError};
pub use revision::{Epoch, Revision};

/// The generated messages, and the service stubs behind the features `client` and `server`.
///
/// Generated from `proto/driftless/v1/*.proto` and checked in. A test generates them again and
/// compares.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod v1 {
    include!("generated/driftless.v1.rs");
}

/// The contract as a serialised `FileDescriptorSet`, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/descriptors.bin");

/// The most bytes of values in one message: 1 MiB. A larger frame travels in chunks.
///
/// gRPC implementations reject messages over 4 MiB by default. A quarter of that leaves room for
/// keys, and bounds what a receiver has to buffer.
pub const MAX_CHUNK_BYTES: usize = 1024 * 1024;

/// The longest value that either end handles, in bytes: 16 MiB.
///
/// etcd rejects requests over 1.5 MiB by default, and its documentation advises against more than
/// 10 MiB. So a peer that claims a longer value is broken or hostile.
pub const MAX_VALUE_BYTES: usize = 16 * 1024 * 1024;

/// The longest key that a message can carry, in bytes: 1 MiB. etcd rejects larger requests by default.
pub const MAX_KEY_BYTES: usize = 1024 * 1024;

/// The longest message that a server sends, in bytes: a piece of a value, its key, and room for the
/// other fields. A client refuses a longer one before it reserves memory for it.
pub const MAX_MESSAGE_BYTES: usize = MAX_CHUNK_BYTES + MAX_KEY_BYTES + 64 * 1024;
