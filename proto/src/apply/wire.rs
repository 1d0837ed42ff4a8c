//! What every field of a frame must fulfil, whatever state is held. All frames are checked here.
//!
//! What is kept longer than its message is copied: the decoder returns slices of the message, and a
//! few bytes of it would keep all of it in memory.

use bytes::Bytes;

use super::ApplyError;
use crate::digest::Digest;
use crate::{Entry, Epoch, Key, KeyRange, MAX_KEY_BYTES, Revision, v1};

/// The longest `Hello.epoch`, in bytes. A server makes it of a number and a short text.
pub const MAX_EPOCH_BYTES: usize = 256;

/// The longest `Hello.token`, in bytes. It travels in each request, which may be 64 KiB long.
pub const MAX_TOKEN_BYTES: usize = 4096;

/// The longest `Hello.watch_id`, in bytes: four times what the contract says today. A report carries
/// up to 1024 of them.
pub const MAX_WATCH_ID_BYTES: usize = 64;

/// What a client keeps of a `Hello`, checked and copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// The history that the stream's revisions belong to.
    pub epoch: Epoch,
    /// Identifies the stream in reports.
    pub watch_id: Bytes,
    /// What to send back to resume.
    pub token: Bytes,
}

impl TryFrom<&v1::Hello> for Greeting {
    type Error = ApplyError;

    fn try_from(hello: &v1::Hello) -> Result<Self, ApplyError> {
        Ok(Self {
            epoch: Epoch::new(kept("Hello.epoch", &hello.epoch, MAX_EPOCH_BYTES)?),
            watch_id: kept("Hello.watch_id", &hello.watch_id, MAX_WATCH_ID_BYTES)?,
            token: kept("Hello.token", &hello.token, MAX_TOKEN_BYTES)?,
        })
    }
}

/// A copy of a field that is not too long.
fn kept(field: &'static str, bytes: &[u8], max: usize) -> Result<Bytes, ApplyError> {
    match bytes.len() {
        len if len > max => Err(ApplyError::TooLong { field, len, max }),
        _ => Ok(Bytes::copy_from_slice(bytes)),
    }
}

/// A revision of etcd.
pub(super) fn revision(field: &'static str, number: i64) -> Result<Revision, ApplyError> {
    positive(field, number).map(Revision::new)
}

/// The same, or 0: before every revision.
pub(super) fn revision_or_none(field: &'static str, number: i64) -> Result<Revision, ApplyError> {
    match number {
        0 => Ok(Revision::NONE),
        number => revision(field, number),
    }
}

const fn positive(field: &'static str, number: i64) -> Result<i64, ApplyError> {
    if number > 0 {
        Ok(number)
    } else {
        Err(ApplyError::NotPositive { field, number })
    }
}

/// A copy of a key in the range.
pub(super) fn key(range: &KeyRange, bytes: &Bytes) -> Result<Key, ApplyError> {
    if bytes.len() > MAX_KEY_BYTES {
        return Err(ApplyError::TooLong {
            field: "a key",
            len: bytes.len(),
            max: MAX_KEY_BYTES,
        });
    }
    let key = Key::new(Bytes::copy_from_slice(bytes)).ok_or(ApplyError::Malformed {
        what: "a key is empty",
    })?;
    if range.contains(key.as_ref()) {
        Ok(key)
    } else {
        Err(ApplyError::Foreign { key })
    }
}

/// An entry with this value, which has memory of its own. The rest is copied from the message.
pub(super) fn entry(range: &KeyRange, head: &v1::Entry, value: Bytes) -> Result<Entry, ApplyError> {
    Ok(Entry {
        key: key(range, &head.key)?,
        value,
        create_revision: revision("Entry.create_revision", head.create_revision)?,
        mod_revision: revision("Entry.mod_revision", head.mod_revision)?,
        version: positive("Entry.version", head.version)?,
    })
}

/// The entry that a patch makes of this value.
pub(super) fn patched(key: Key, patch: &v1::Patch, value: Bytes) -> Result<Entry, ApplyError> {
    Ok(Entry {
        key,
        value,
        create_revision: revision("Patch.create_revision", patch.create_revision)?,
        mod_revision: revision("Patch.mod_revision", patch.mod_revision)?,
        version: positive("Patch.version", patch.version)?,
    })
}

pub(super) fn digest(bytes: &[u8]) -> Result<Digest, ApplyError> {
    Digest::from_bytes(bytes).ok_or(ApplyError::Malformed {
        what: "a digest is not 16 bytes long",
    })
}
