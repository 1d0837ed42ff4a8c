//! `Debug` for the generated messages with values or digests, which shows neither.
//!
//! A digest is as secret as the value, because a value with little entropy can be found by trying.
//! Messages that contain these messages derive `Debug`, which is safe.

use std::fmt;

use crate::v1;

/// Bytes that must not be shown.
struct Hidden(usize);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes>", self.0)
    }
}

impl fmt::Debug for v1::Have {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Have")
            .field("epoch", &self.epoch)
            .field("revision", &self.revision)
            .field("digest", &Hidden(self.digest.len()))
            .field("token", &Hidden(self.token.len()))
            .finish()
    }
}

impl fmt::Debug for v1::Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("key", &self.key)
            .field("value", &Hidden(self.value.len()))
            .field("create_revision", &self.create_revision)
            .field("mod_revision", &self.mod_revision)
            .field("version", &self.version)
            .field("offset", &self.offset)
            .field("total", &self.total)
            .finish()
    }
}

impl fmt::Debug for v1::Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("revision", &self.revision)
            .field("entries", &self.entries)
            .field("more", &self.more)
            .field("digest", &Hidden(self.digest.len()))
            .field("reset", &self.reset)
            .field("epoch", &self.epoch)
            .field("contact_ms", &self.contact_ms)
            .finish()
    }
}

impl fmt::Debug for v1::Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Diff")
            .field("from", &self.from)
            .field("to", &self.to)
            .field("changes", &self.changes)
            .field("more", &self.more)
            .field("digest", &Hidden(self.digest.len()))
            .field("conflated", &self.conflated)
            .field("contact_ms", &self.contact_ms)
            .finish()
    }
}

impl fmt::Debug for v1::Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Current")
            .field("revision", &self.revision)
            .field("digest", &Hidden(self.digest.len()))
            .field("contact_ms", &self.contact_ms)
            .finish()
    }
}

impl fmt::Debug for v1::Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress")
            .field("revision", &self.revision)
            .field("digest", &Hidden(self.digest.len()))
            .field("contact_ms", &self.contact_ms)
            .finish()
    }
}

impl fmt::Debug for v1::DeltaOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.op.fmt(f)
    }
}

impl fmt::Debug for v1::delta_op::Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Copy(copy) => copy.fmt(f),
            Self::Insert(bytes) => f.debug_tuple("Insert").field(&Hidden(bytes.len())).finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::bytes::Bytes;

    use super::*;

    /// Every message that can hold a value or a digest, filled with a canary.
    #[test]
    fn debug_hides_values_and_digests() {
        let secret = || Bytes::from_static(b"CANARY");
        let entry = v1::Entry {
            value: secret(),
            ..Default::default()
        };
        let patch = v1::Patch {
            ops: vec![v1::DeltaOp {
                op: Some(v1::delta_op::Op::Insert(secret())),
            }],
            ..Default::default()
        };
        let change = |change| v1::Change {
            change: Some(change),
        };
        let diff = v1::Diff {
            changes: vec![
                change(v1::change::Change::Put(entry.clone())),
                change(v1::change::Change::Patch(patch)),
            ],
            digest: secret(),
            ..Default::default()
        };
        let snapshot = v1::Snapshot {
            entries: vec![entry],
            digest: secret(),
            ..Default::default()
        };
        let frames = [
            v1::watch_response::Frame::Diff(diff),
            v1::watch_response::Frame::Snapshot(snapshot.clone()),
            v1::watch_response::Frame::Current(v1::Current {
                digest: secret(),
                ..Default::default()
            }),
            v1::watch_response::Frame::Progress(v1::Progress {
                digest: secret(),
                ..Default::default()
            }),
        ];
        for frame in frames {
            let shown = format!("{:?}", v1::WatchResponse { frame: Some(frame) });
            assert!(!shown.contains("CANARY"), "{shown}");
        }
        let request = v1::WatchRequest {
            have: Some(v1::Have {
                digest: secret(),
                token: secret(),
                ..Default::default()
            }),
            ..Default::default()
        };
        assert!(!format!("{request:?}").contains("CANARY"));
        assert!(
            !format!(
                "{:?}",
                v1::GetResponse {
                    snapshot: Some(snapshot)
                }
            )
            .contains("CANARY")
        );
    }
}
