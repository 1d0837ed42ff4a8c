//! From changes and entries to the bytes that streams send: each made once, shared by all.
//!
//! The messages are those of the `.proto`; they are written here and not through generated code so
//! that a change is encoded once as a field of a diff, whatever diffs it ends up in, and so that
//! large values are never copied: they travel as slices of the value that the store holds.
//! Generated code writes all heads and reads everything back in the tests.
//!
//! Fields may come in any order in protobuf, so a message is its head (every field but the repeated
//! one, by generated code), then the repeated fields, already encoded.

use bytes::{BufMut, Bytes, BytesMut};
use driftless_proto::apply::Edit;
use driftless_proto::digest::Digest;
use driftless_proto::{Entry, KeyRange, MAX_CHUNK_BYTES, Revision, v1};
use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};

mod answer;

use crate::metrics::Metrics;
use crate::store::Batch;
pub use answer::{Answer, Chunk, Kind, Reader, Shelf};

/// Values from this size on are not copied into the encoding but shared with the store, in bytes. A
/// slice of its own costs a system call's worth of bookkeeping on its way out, so small ones are
/// cheaper copied.
const SHARE_FROM: usize = 4096;

/// Largest segment that a stream hands to its connection at a time, in bytes: two of them are what a
/// stalled stream can pin.
const SEGMENT: usize = 64 * 1024;

/// What the head of a message may have, in bytes: a few numbers, a digest, an epoch.
const HEAD: usize = 256;

/// What streams get again and again is at least this long, in bytes, or padded until it is.
///
/// HTTP/2 peers take many small unread frames for an attack: h2 (0.4.20) counts each as 256 bytes
/// less its length and ends the whole connection once that comes to half its window. Without
/// padding, some 150 unread changes or signs of life do that to a client with the protocol's default
/// windows, however slowly they come.
const SMALL: usize = 256;

/// The field of `WatchResponse` that padding is in: none that the contract names, so it is skipped.
const PADDING: u8 = 15;

/// gRPC's prefix of a message: a flag and a length.
const PREFIX: usize = 5;

/// Protobuf's tag of a length-delimited field. All field numbers here are below 16, so it is one byte.
const fn tag(field: u8) -> u8 {
    field << 3 | 2
}

/// Shared bytes, ready for the wire: one or more whole gRPC messages.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    segments: Vec<Bytes>,
    len: usize,
    /// When the frame is small: the same, long enough to travel alone.
    padded: Option<Bytes>,
}

impl Frame {
    /// In order; each at most 64 KiB.
    pub fn segments(&self) -> &[Bytes] {
        &self.segments
    }

    /// As [`Frame::segments`], for a frame that is sent by itself: not too small for that.
    pub fn alone(&self) -> &[Bytes] {
        match &self.padded {
            Some(padded) => std::slice::from_ref(padded),
            None => &self.segments,
        }
    }

    /// Bytes of all segments.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// How a change is said: to those who know patches, and to all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// Every value whole.
    Whole,
    /// A value as a patch of the old one where that pays.
    Patched,
}

impl Variant {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Whole, Self::Patched];
}

/// One change or entry as a field of its message: in several pieces, for several messages, when the
/// value is larger than a message may be.
#[derive(Debug)]
pub struct Fields(Vec<Frame>);

impl Fields {
    /// Bytes of all pieces.
    pub fn len(&self) -> usize {
        self.0.iter().map(Frame::len).sum()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Puts segments together: copies what is small, shares what is large.
#[derive(Default)]
struct Segments {
    done: Vec<Bytes>,
    open: BytesMut,
    len: usize,
}

impl Segments {
    fn close(&mut self) {
        if !self.open.is_empty() {
            self.done.push(self.open.split().freeze());
        }
    }

    fn share(&mut self, bytes: &Bytes) {
        self.len += bytes.len();
        if bytes.len() < SHARE_FROM {
            if self.open.len() + bytes.len() > SEGMENT {
                self.close();
            }
            self.open.put_slice(bytes);
            return;
        }
        self.close();
        for start in (0..bytes.len()).step_by(SEGMENT) {
            self.done
                .push(bytes.slice(start..bytes.len().min(start + SEGMENT)));
        }
    }

    fn append(&mut self, frame: &Frame) {
        frame
            .segments
            .iter()
            .for_each(|segment| self.share(segment));
    }

    /// Something short, such as a head.
    fn write(&mut self, write: impl FnOnce(&mut BytesMut)) {
        if self.open.len() > SEGMENT - HEAD {
            self.close();
        }
        let before = self.open.len();
        write(&mut self.open);
        self.len += self.open.len() - before;
    }

    fn finish(mut self) -> Frame {
        self.close();
        Frame {
            segments: self.done,
            len: self.len,
            padded: None,
        }
    }

    /// As [`Segments::finish`], of whole messages.
    fn finish_messages(self) -> Frame {
        let mut frame = self.finish();
        if frame.len < SMALL
            && let [message] = &frame.segments[..]
        {
            frame.padded = Some(padded(message));
        }
        frame
    }
}

/// The field `field` with the message in `head` and, in it, `value` as field 2 (as in `Entry`).
/// `wrap`, if given, is the number of the field inside a message between the two (as in `Change`).
fn entry_field(field: u8, wrap: Option<u8>, entry: &Entry) -> Fields {
    let whole = entry.value.len() <= MAX_CHUNK_BYTES;
    let total = if whole { 0 } else { entry.value.len() as u64 };
    // An empty value is one piece too.
    let starts = (0..entry.value.len().max(1)).step_by(MAX_CHUNK_BYTES);
    let pieces = starts.map(|start| {
        let value = entry
            .value
            .slice(start..entry.value.len().min(start + MAX_CHUNK_BYTES));
        let head = v1::Entry {
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
        let entry_len = head.encoded_len() + value_len;
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
            head.encode_raw(out);
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
fn change_field(edit: &Edit) -> Fields {
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

/// A put as field 3 of `Diff`, said as a patch: `ops` make it from what the key had at `base`.
pub fn patch(entry: &Entry, base: Revision, ops: Vec<v1::DeltaOp>) -> Fields {
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

/// A whole gRPC message: `WatchResponse` with `head` and the repeated `fields` as its field `frame`.
fn message(out: &mut Segments, frame: u8, head: &impl Message, fields: &[&Frame]) {
    let inner = head.encoded_len() + fields.iter().map(|field| field.len).sum::<usize>();
    let outer = 1 + encoded_len_varint(inner as u64) + inner;
    out.write(|out| {
        // gRPC's prefix: not compressed, and the length, which MAX_CHUNK_BYTES keeps far below 2^32.
        out.put_u8(0);
        out.put_u32(outer as u32);
        out.put_u8(tag(frame));
        encode_varint(inner as u64, out);
        head.encode_raw(out);
    });
    fields.iter().for_each(|field| out.append(field));
}

/// Any message with gRPC's prefix.
pub fn unary(message: &impl Message) -> Bytes {
    let len = message.encoded_len();
    let mut out = BytesMut::with_capacity(5 + len);
    out.put_u8(0);
    out.put_u32(len as u32);
    message.encode_raw(&mut out);
    out.freeze()
}

/// The same message, gRPC's prefix included, made long enough to travel alone again and again.
pub fn padded(message: &[u8]) -> Bytes {
    let Some((_, content)) = message.split_at_checked(PREFIX) else {
        return Bytes::copy_from_slice(message);
    };
    // The padding's own tag and length take two bytes at least.
    let zeros = SMALL.saturating_sub(message.len() + 2);
    let len = content.len() + 1 + encoded_len_varint(zeros as u64) + zeros;
    let mut out = BytesMut::with_capacity(PREFIX + len);
    out.put_u8(0);
    out.put_u32(len as u32);
    out.put_slice(content);
    out.put_u8(tag(PADDING));
    encode_varint(zeros as u64, &mut out);
    out.put_bytes(0, zeros);
    out.freeze()
}

/// Whether a piece of a stream is too small to travel alone again and again.
pub fn is_small(bytes: &[u8]) -> bool {
    bytes.len() < SMALL
}

/// The diff of one scope for one batch: one or more messages, at most [`MAX_CHUNK_BYTES`] of values
/// in each.
pub fn diff(
    range: &KeyRange,
    batch: &Batch,
    variant: Variant,
    from: Revision,
    digest: Digest,
    metrics: &Metrics,
) -> Frame {
    let fields = batch.within(range).flat_map(|change| {
        let patch = match variant {
            Variant::Patched => change.patch(),
            Variant::Whole => None,
        };
        let fields = patch.unwrap_or_else(|| {
            change.encoded.get_or_init(|| {
                metrics.changes_encoded.inc();
                change_field(&change.edit)
            })
        });
        &fields.0
    });
    let mut messages: Vec<Vec<&Frame>> = vec![Vec::new()];
    let mut len = 0;
    for field in fields {
        if len + field.len > MAX_CHUNK_BYTES && len > 0 {
            messages.push(Vec::new());
            len = 0;
        }
        len += field.len;
        if let Some(last) = messages.last_mut() {
            last.push(field);
        }
    }
    let count = messages.len();
    let mut out = Segments::default();
    for (index, fields) in messages.into_iter().enumerate() {
        let last = index + 1 == count;
        let head = v1::Diff {
            from: from.get(),
            to: batch.to.get(),
            changes: Vec::new(),
            more: !last,
            digest: if last {
                digest.to_bytes()
            } else {
                Bytes::new()
            },
            conflated: batch.conflated,
            contact_ms: if last { batch.contact_ms } else { 0 },
        };
        message(&mut out, 3, &head, &fields);
    }
    metrics.frames_encoded.inc();
    out.finish_messages()
}

#[cfg(test)]
mod tests;
