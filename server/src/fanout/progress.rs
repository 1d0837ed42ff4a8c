//! The latest progress of a scope: proof that its streams are up to date at a revision.

use bytes::Bytes;
use driftless_proto::digest::Digest;
use driftless_proto::{Revision, v1};

use crate::encode;

/// One progress, encoded once for all streams of the scope.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    /// Counts the scope's progress messages, from 1.
    pub(super) number: u64,
    /// The revision that the range is at.
    pub(super) at: Revision,
    /// The range's digest then, relative to the scope's base.
    pub(super) since_base: Digest,
    /// When the state was last known to be etcd's, on the server's clock; 0 if that is not known.
    pub(super) contact_ms: u64,
    /// Made when first needed.
    pub(super) message: Option<Bytes>,
}

impl Progress {
    /// The message, whose digest needs the scope's base. Padded, since it is sent again and again.
    pub(super) fn message(&mut self, base: Digest) -> Bytes {
        let message = self.message.get_or_insert_with(|| {
            encode::padded(&encode::unary(&v1::WatchResponse {
                frame: Some(v1::watch_response::Frame::Progress(v1::Progress {
                    revision: self.at.get(),
                    digest: (base + self.since_base).to_bytes(),
                    contact_ms: self.contact_ms,
                })),
            }))
        });
        message.clone()
    }
}
