//! One change or entry as a field of its message.

use bytes::{BufMut, Bytes, BytesMut};
use driftless_proto::apply::Edit;
use driftless_proto::{Entry, MAX_CHUNK_BYTES, Revision, v1};
use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};

use super::frame::{Frame, Segments};
use super::message::tag;

/// One change or entry as a field of its message. A value that is larger than a message may be is
/// split into several fields, for several messages.
#[derive(Debug)]
pub struct Fields(pub(super) Vec<Frame>);

impl Fields {
    /// Bytes of all fields.
    pub fn len(&self) -> usize {
        self.0.iter().map(Frame::len).sum()
    }

    /// True if there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An entry as the field `field`, with the value as field 2 (as in `Entry`). `wrap`, if given, is the
/// field number of a message between the two (as in `Change`).
pub(super) fn entry_field(field: u8, wrap: Option<u8>, entry: &Entry) -> Fields {
    let whole = entry.value.len() <= MAX_CHUNK_BYTES;
    let total = if whole { 0 } else { entry.value.len() as u64 };
    // An empty value is one piece too.
    let starts = (0..entry.value.len().max(1)).step_by(MAX_CHUNK_BYTES);
    let pieces = starts.map(|start| {
        let value = entry
            .value
            .slice(start..entry.value.len().min(start + MAX_CHUNK_BYTES));
        let header = v1::Entry {
            value: Bytes::new(),
            offset: start as u64,
            total,
            ..v1::Entry::from(entry)
        };
        let value_len = if value.is_empty() {
            0
        } else {
            1 + encoded_len_varint(value.len() as u64) + value.len()
        };
        let entry_len = header.encoded_len() + value_len;
        let outer_len = wrap.map_or(entry_len, |_| {
            1 + encoded_len_varint(entry_len as u64) + entry_len
        });
        let mut out = Segments::default();
        out.write(|out| {
            out.put_u8(tag(field));
            encode_varint(outer_len as u64, out);
            if let Some(inner) = wrap {
                out.put_u8(tag(inner));
                encode_varint(entry_len as u64, out);
            }
            header.encode_raw(out);
            if !value.is_empty() {
                out.put_u8(tag(2));
                encode_varint(value.len() as u64, out);
            }
        });
        out.share(&value);
        out.finish()
    });
    Fields(pieces.collect())
}

/// A change as field 3 of `Diff`.
pub(super) fn change_field(edit: &Edit) -> Fields {
    match edit {
        Edit::Put(entry) => entry_field(3, Some(1), entry),
        Edit::Delete { key, mod_revision } => {
            let delete = v1::Delete {
                key: key.as_bytes().clone(),
                mod_revision: mod_revision.get(),
            };
            let change = v1::Change {
                change: Some(v1::change::Change::Delete(delete)),
            };
            let mut out = Segments::default();
            out.write(|out| prost::encoding::message::encode(3, &change, out));
            Fields(vec![out.finish()])
        }
    }
}

/// A put as field 3 of `Diff`, as a patch: `ops` make the new value from the one that the key had at
/// `base`.
pub(super) fn patch_field(entry: &Entry, base: Revision, ops: Vec<v1::DeltaOp>) -> Fields {
    let patch = v1::Patch {
        key: entry.key.as_bytes().clone(),
        base_mod_revision: base.get(),
        create_revision: entry.create_revision.get(),
        mod_revision: entry.mod_revision.get(),
        version: entry.version,
        length: entry.value.len() as u64,
        ops,
    };
    let change = v1::Change {
        change: Some(v1::change::Change::Patch(patch)),
    };
    let mut encoded = BytesMut::new();
    prost::encoding::message::encode(3, &change, &mut encoded);
    let mut out = Segments::default();
    out.share(&encoded.freeze());
    Fields(vec![out.finish()])
}
