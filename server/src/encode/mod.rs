//! From changes and entries to the bytes that streams send: each made once, shared by all.
//!
//! - [`EncodedBatch`]: a batch of the store with its encodings: each change whole and as a patch, and
//!   the diff of each scope.
//! - [`SyncResponse`]: a snapshot or conflated diff, encoded chunk by chunk as readers ask for it.
//! - [`Frame`]: encoded messages, ready for the wire.
//!
//! The messages are those of the `.proto`. They are written here and not through generated code so
//! that a change is encoded once as a field of a diff, whatever diffs it ends up in, and so that
//! large values are never copied: a frame holds slices of the value that the store holds. Generated
//! code writes all headers, and reads everything back in the tests.
//!
//! Protobuf allows fields in any order. A message here is its header (every field but the repeated
//! one, written by generated code), then the repeated fields, already encoded.
//!
//! This room knows the store. It must not know about scopes or streams.

mod batch;
mod chunk_cache;
mod fields;
mod frame;
mod message;
mod pinned;
mod response;
#[cfg(test)]
mod tests;

pub use batch::{EncodedBatch, EncodedPatch, ScopeDiff, Variant};
pub use chunk_cache::ChunkCache;
pub use fields::Fields;
pub use frame::Frame;
pub use message::{is_small, padded, unary};
pub use pinned::{PinnedOfPrefix, PinnedStates};
pub use response::{Chunk, SyncKind, SyncReader, SyncResponse};
