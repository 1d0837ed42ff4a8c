//! Counts what a message repeats, before it is decoded.
//!
//! An element may take two bytes on the wire, and the decoder makes a structure of a hundred bytes of
//! it. So a limit on a message's length bounds what arrives, and not what is made of it.

use crate::v1;

/// The most elements in one message: entries, changes, the ops of all patches, and others that are
/// repeated. A [chunk](crate::MAX_CHUNK_BYTES) of changes has fewer: each takes more than eight bytes.
pub const MAX_ELEMENTS: usize = 128 * 1024;

/// Why a message is not decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ElementsError {
    /// It repeats too much.
    #[error("a message repeats more than {MAX_ELEMENTS} elements")]
    TooMany,
    /// It is no protobuf.
    #[error("a message is not valid protobuf")]
    Invalid,
}

/// A message of the contract whose elements can be counted.
pub trait Repeats {
    /// Its fields that repeat something, or hold a message that does.
    const FIELDS: &'static [Field];
}

/// A field that repeats something, or holds a message that does.
#[derive(Debug)]
pub struct Field {
    number: u64,
    counts: Counts,
    /// The fields of its message that do.
    inner: &'static [Field],
}

/// What counts as an element.
#[derive(Debug)]
enum Counts {
    /// Nothing: only what is inside.
    Inside,
    /// Each occurrence.
    Occurrences,
    /// Each number; packed ones take at least a byte each.
    Numbers,
}

const fn inside(number: u64, inner: &'static [Field]) -> Field {
    Field {
        number,
        counts: Counts::Inside,
        inner,
    }
}

const fn each(number: u64, inner: &'static [Field]) -> Field {
    Field {
        number,
        counts: Counts::Occurrences,
        inner,
    }
}

const fn numbers(number: u64) -> Field {
    Field {
        number,
        counts: Counts::Numbers,
        inner: &[],
    }
}

/// `ClientInfo.labels`.
const CLIENT_INFO: &[Field] = &[each(2, &[])];
/// `Hello.features`.
const HELLO: &[Field] = &[numbers(6)];
/// `Snapshot.entries`.
const SNAPSHOT: &[Field] = &[each(2, &[])];
/// `Patch.ops`.
const PATCH: &[Field] = &[each(7, &[])];
/// `Diff.changes`, which may be patches.
const DIFF: &[Field] = &[each(3, &[inside(2, PATCH)])];

impl Repeats for v1::WatchRequest {
    const FIELDS: &'static [Field] = &[inside(3, CLIENT_INFO), numbers(4)];
}

impl Repeats for v1::GetRequest {
    const FIELDS: &'static [Field] = &[inside(2, CLIENT_INFO)];
}

impl Repeats for v1::ReportRequest {
    const FIELDS: &'static [Field] = &[inside(1, CLIENT_INFO), each(2, &[])];
}

impl Repeats for v1::WatchResponse {
    const FIELDS: &'static [Field] = &[inside(1, HELLO), inside(2, SNAPSHOT), inside(3, DIFF)];
}

impl Repeats for v1::GetResponse {
    const FIELDS: &'static [Field] = &[inside(2, SNAPSHOT)];
}

impl Repeats for v1::ReportResponse {
    const FIELDS: &'static [Field] = &[each(1, &[])];
}

/// Checks that an encoded message has at most [`MAX_ELEMENTS`].
///
/// # Errors
/// When it has more, or cannot be read.
pub fn check<M: Repeats>(message: &[u8]) -> Result<(), ElementsError> {
    let mut left = MAX_ELEMENTS;
    count(message, M::FIELDS, &mut left)
}

fn count(mut bytes: &[u8], fields: &[Field], left: &mut usize) -> Result<(), ElementsError> {
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let field = fields.iter().find(|field| field.number == tag >> 3);
        let mut numbers = 1;
        let content = match tag & 7 {
            0 => {
                varint(&mut bytes)?;
                &[]
            }
            1 => {
                skip(&mut bytes, 8)?;
                &[]
            }
            2 => {
                let length = varint(&mut bytes)?;
                let content = skip(&mut bytes, length)?;
                numbers = content.len();
                content
            }
            5 => {
                skip(&mut bytes, 4)?;
                &[]
            }
            // Groups, which the contract does not have.
            _ => return Err(ElementsError::Invalid),
        };
        let Some(field) = field else { continue };
        let elements = match field.counts {
            Counts::Inside => 0,
            Counts::Occurrences => 1,
            Counts::Numbers => numbers,
        };
        *left = left.checked_sub(elements).ok_or(ElementsError::TooMany)?;
        if !field.inner.is_empty() {
            count(content, field.inner, left)?;
        }
    }
    Ok(())
}

/// Takes a variable-length number.
fn varint(bytes: &mut &[u8]) -> Result<u64, ElementsError> {
    let mut number = 0;
    // At most ten bytes of seven bits.
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or(ElementsError::Invalid)?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            return Ok(number);
        }
    }
    Err(ElementsError::Invalid)
}

/// Takes this many bytes.
fn skip<'a>(bytes: &mut &'a [u8], length: u64) -> Result<&'a [u8], ElementsError> {
    let length = usize::try_from(length).map_err(|_| ElementsError::Invalid)?;
    let (taken, rest) = bytes
        .split_at_checked(length)
        .ok_or(ElementsError::Invalid)?;
    *bytes = rest;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use v1::watch_response::Frame;

    use super::*;

    fn response(frame: Frame) -> Vec<u8> {
        v1::WatchResponse { frame: Some(frame) }.encode_to_vec()
    }

    fn snapshot(entries: usize) -> Vec<u8> {
        response(Frame::Snapshot(v1::Snapshot {
            revision: 7,
            entries: vec![v1::Entry::default(); entries],
            digest: vec![1; 16].into(),
            ..Default::default()
        }))
    }

    fn patches(ops: &[usize]) -> Vec<u8> {
        let change = |ops: &usize| v1::Change {
            change: Some(v1::change::Change::Patch(v1::Patch {
                key: "key".into(),
                length: 7,
                ops: vec![v1::DeltaOp::default(); *ops],
                ..Default::default()
            })),
        };
        response(Frame::Diff(v1::Diff {
            changes: ops.iter().map(change).collect(),
            conflated: true,
            ..Default::default()
        }))
    }

    fn features(features: usize) -> Vec<u8> {
        response(Frame::Hello(v1::Hello {
            features: vec![1; features],
            clock_ms: u64::MAX,
            ..Default::default()
        }))
    }

    #[test]
    fn elements_over_the_limit_are_too_many() {
        let check = check::<v1::WatchResponse>;
        let most = MAX_ELEMENTS;
        assert_eq!(check(&snapshot(most)), Ok(()));
        assert_eq!(check(&snapshot(most + 1)), Err(ElementsError::TooMany));
        assert_eq!(check(&features(most)), Ok(()));
        assert_eq!(check(&features(most + 1)), Err(ElementsError::TooMany));
        // The changes count, too.
        let half = most / 2 - 1;
        assert_eq!(check(&patches(&[half, half])), Ok(()));
        assert_eq!(
            check(&patches(&[half, half, 0])),
            Err(ElementsError::TooMany)
        );
        // A field that is sent twice is merged.
        let twice = [snapshot(half + 1), snapshot(half + 1)].concat();
        assert_eq!(check(&twice), Ok(()));
        let more = [twice, snapshot(1)].concat();
        assert_eq!(check(&more), Err(ElementsError::TooMany));
        let unknown = v1::ReportResponse {
            unknown_watch_ids: vec![Vec::new().into(); most + 1],
        };
        let unknown = super::check::<v1::ReportResponse>(&unknown.encode_to_vec());
        assert_eq!(unknown, Err(ElementsError::TooMany));
    }

    #[test]
    fn what_cannot_be_read_is_invalid() {
        for bytes in [
            &b"\x0a"[..],        // No length.
            b"\x0a\x02x",        // Cut off.
            b"\x09\x01",         // Fewer than eight bytes.
            b"\x0d\x01",         // Fewer than four.
            b"\x0b\x0c",         // A group.
            &[0xff; 11],         // A number without an end.
            b"\x12\x02\x12\x05", // An entry that is longer than its snapshot.
        ] {
            let result = check::<v1::WatchResponse>(bytes);
            assert_eq!(result, Err(ElementsError::Invalid), "{bytes:?}");
        }
        // Unknown fields of every kind are skipped.
        let unknown = b"\x78\x01\x79\x00\x00\x00\x00\x00\x00\x00\x00\x7a\x01x\x7d\x00\x00\x00\x00";
        assert_eq!(check::<v1::WatchResponse>(unknown), Ok(()));
    }

    /// What the limit is for: all elements of a message together take less than this.
    #[test]
    fn elements_take_less_than_16_mib_of_memory() {
        let largest = [
            size_of::<v1::Entry>(),
            size_of::<v1::Change>(),
            size_of::<v1::DeltaOp>(),
            size_of::<bytes::Bytes>(),
        ];
        assert!(largest.into_iter().all(|size| size <= 128), "{largest:?}");
        assert_eq!(MAX_ELEMENTS * 128, 16 * 1024 * 1024);
    }
}
