//! Applying a value delta: pure, total and bounded.
//!
//! A delta is a list of copies from the old value and insertions. [`apply`] checks it as a whole
//! before it allocates anything, so a hostile one costs no more than reading it.

use bytes::{Bytes, BytesMut};

use crate::MAX_VALUE_BYTES;
use crate::v1::{DeltaOp, delta_op::Op};

/// Why a delta cannot be applied: it was made for another value, or is broken. A retry does not help;
/// asking for the whole value does.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeltaError {
    /// A copy reaches beyond the end of the old value.
    #[error("op {op} of a delta copies beyond the old value's {base} bytes")]
    OutOfBounds {
        /// Index of the op, from 0.
        op: usize,
        /// Length of the old value in bytes.
        base: usize,
    },
    /// The ops do not produce the length that the delta claims.
    #[error("a delta claims {said} bytes and makes {made}")]
    WrongLength {
        /// The length that the delta claims, in bytes.
        said: u64,
        /// The length that its ops make, in bytes.
        made: u64,
    },
    /// The value would be longer than [`MAX_VALUE_BYTES`].
    #[error("a delta makes {said} bytes; at most {max} are allowed", max = MAX_VALUE_BYTES)]
    TooLong {
        /// The length that the delta claims, in bytes.
        said: u64,
    },
    /// An op of a kind that this version does not know.
    #[error("op {op} of a delta is of an unknown kind")]
    UnknownOp {
        /// Index of the op, from 0.
        op: usize,
    },
}

/// Makes the value, `length` bytes long, that `ops` describe over `base`.
///
/// # Errors
/// When `ops` do not make exactly that. Nothing is allocated then.
pub fn apply(base: &[u8], ops: &[DeltaOp], length: u64) -> Result<Bytes, DeltaError> {
    if length > MAX_VALUE_BYTES as u64 {
        return Err(DeltaError::TooLong { said: length });
    }
    let mut made: u64 = 0;
    for (index, op) in ops.iter().enumerate() {
        let length = match &op.op {
            Some(Op::Copy(copy)) => {
                let end = copy.offset.checked_add(copy.length);
                if end.is_none_or(|end| end > base.len() as u64) {
                    return Err(DeltaError::OutOfBounds {
                        op: index,
                        base: base.len(),
                    });
                }
                copy.length
            }
            Some(Op::Insert(bytes)) => bytes.len() as u64,
            None => return Err(DeltaError::UnknownOp { op: index }),
        };
        made = made.saturating_add(length);
    }
    if made != length {
        return Err(DeltaError::WrongLength { said: length, made });
    }
    // Checked above: `made` is at most MAX_VALUE_BYTES, and every copy is within `base`.
    let mut value = BytesMut::with_capacity(made as usize);
    for op in ops {
        match &op.op {
            Some(Op::Copy(copy)) => {
                let start = copy.offset as usize;
                value.extend_from_slice(&base[start..start + copy.length as usize]);
            }
            Some(Op::Insert(bytes)) => value.extend_from_slice(bytes),
            None => {}
        }
    }
    Ok(value.freeze())
}
