//! The driftless wire contract.
//!
//! Everything that both ends must agree on lives here, once: the generated messages ([`v1`]), the
//! newtypes they are turned into at the edge, [the rule of application](apply), [the
//! digest](digest) that proves that nothing drifted and [the value delta](delta). All of it is pure
//! code: no I/O, no clock, no task. The default build holds no tokio.
//!
//! Who owns it: both ends depend on this crate and never on each other.

pub mod apply;
pub mod delta;
pub mod digest;
mod entry;
mod key;
mod redact;
mod revision;

pub use entry::Entry;
pub use key::{Key, KeyRange, RangeError};
pub use revision::{Epoch, Revision};

/// The generated messages, and the service stubs behind the features `client` and `server`.
///
/// Made from `proto/driftless/v1/*.proto` and checked in; a test makes them anew and compares.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod v1 {
    include!("generated/driftless.v1.rs");
}

/// The contract as a serialised `FileDescriptorSet`, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/descriptors.bin");

/// Upper bound of the values in one message, in bytes; what is larger travels in chunks.
///
/// gRPC implementations refuse messages over 4 MiB unless told otherwise. A quarter of that leaves
/// room for keys, and bounds what a receiver has to hold before it can let go.
pub const MAX_CHUNK_BYTES: usize = 1024 * 1024;

/// Longest value that either end handles, in bytes: 16 MiB.
///
/// etcd refuses requests over 1.5 MiB by default and its documentation advises against raising that
/// above 10 MiB, so nothing real comes near; a peer that claims more is broken or hostile.
pub const MAX_VALUE_BYTES: usize = 16 * 1024 * 1024;
