//! Whole gRPC messages, and the padding of small ones.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};

use super::frame::{Frame, Segments};

/// Messages that streams get repeatedly have at least this many bytes, or are padded.
///
/// HTTP/2 peers treat many small unread frames as an attack: h2 (0.4.20) counts each as 256 bytes
/// less its length and ends the whole connection once the sum is half its window. Without
/// padding, some 150 unread changes or progress messages do that to a client with the protocol's
/// default windows, however slowly they come.
pub(super) const SMALL: usize = 256;

/// The field of `WatchResponse` that holds the padding. The contract names no such field, so readers
/// skip it.
const PADDING: u8 = 15;

/// gRPC's prefix of a message: a flag and a length.
const PREFIX: usize = 5;

/// Protobuf's tag of a length-delimited field. All field numbers here are below 16, so it is one byte.
pub(super) const fn tag(field: u8) -> u8 {
    field << 3 | 2
}

/// Writes a whole gRPC message: a `WatchResponse` whose field `frame` consists of `header` and the
/// repeated `fields`.
pub(super) fn message(out: &mut Segments, frame: u8, header: &impl Message, fields: &[&Frame]) {
    let inner = header.encoded_len() + fields.iter().map(|field| field.len()).sum::<usize>();
    let outer = 1 + encoded_len_varint(inner as u64) + inner;
    out.write(|out| {
        // gRPC's prefix: not compressed, and the length, which MAX_CHUNK_BYTES keeps far below 2^32.
        out.put_u8(0);
        out.put_u32(outer as u32);
        out.put_u8(tag(frame));
        encode_varint(inner as u64, out);
        header.encode_raw(out);
    });
    fields.iter().for_each(|field| out.append(field));
}

/// Encodes a message with gRPC's prefix.
pub fn unary(message: &impl Message) -> Bytes {
    let len = message.encoded_len();
    let mut out = BytesMut::with_capacity(PREFIX + len);
    out.put_u8(0);
    out.put_u32(len as u32);
    message.encode_raw(&mut out);
    out.freeze()
}

/// Pads a message, gRPC's prefix included, so that it may be sent alone repeatedly.
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

/// True if a piece of a stream is too small to be sent alone repeatedly.
pub fn is_small(bytes: &[u8]) -> bool {
    bytes.len() < SMALL
}
