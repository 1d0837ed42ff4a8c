//! The digest of a range: 16 bytes that prove that two ends hold the same state.
//!
//! It is the sum, modulo 2^128, of one 128-bit hash per entry. So it does not depend on the order of
//! the entries, and a changed key costs O(1): subtract the old entry's hash, add the new one's. The
//! digest of an empty range is 0. It depends on the state alone: a replay of every change and one
//! conflated diff lead to the same digest.
//!
//! The hash of an entry is XXH3-128 with seed 0 over these bytes, integers little-endian:
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | length of the key |
//! | n | the key |
//! | 8 | create revision |
//! | 8 | mod revision |
//! | 8 | version |
//! | 8 | length of the value |
//! | n | the value |
//!
//! On the wire a digest is 16 bytes, big-endian. Vectors are in `proto/testdata/digest.json`.
//!
//! The digest detects accidents, not attacks: XXH3 is not a cryptographic hash. Whoever can forge a
//! stream can forge its digest; TLS protects against that. A digest is as secret as the values,
//! because a value with little entropy can be found by trying.

use std::fmt;
use std::ops::{Add, AddAssign, Sub, SubAssign};

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use crate::Entry;

/// The digest of a set of entries, or the difference of two. `Debug` does not show it.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Digest(u128);

impl Digest {
    /// The digest of an empty range.
    pub const EMPTY: Self = Self(0);

    /// The digest of a range with only this entry. Reads the whole value: about 0.1 ms per MiB.
    pub fn of(entry: &Entry) -> Self {
        let mut hash = Xxh3::new();
        let mut length_prefixed = |bytes: &[u8], then: &[i64]| {
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
            for number in then {
                hash.update(&number.to_le_bytes());
            }
        };
        let revisions = [
            entry.create_revision.get(),
            entry.mod_revision.get(),
            entry.version,
        ];
        length_prefixed(entry.key.as_ref(), &revisions);
        length_prefixed(&entry.value, &[]);
        Self(hash.digest128())
    }

    /// The 16 bytes on the wire, big-endian.
    pub fn to_bytes(self) -> Bytes {
        Bytes::copy_from_slice(&self.0.to_be_bytes())
    }

    /// A digest from the wire. `None` if it is not 16 bytes long.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes
            .try_into()
            .ok()
            .map(|bytes| Self(u128::from_be_bytes(bytes)))
    }
}

impl Add for Digest {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }
}

impl Sub for Digest {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(self.0.wrapping_sub(other.0))
    }
}

impl AddAssign for Digest {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl SubAssign for Digest {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

impl std::iter::Sum for Digest {
    fn sum<I: Iterator<Item = Self>>(digests: I) -> Self {
        digests.fold(Self::EMPTY, Add::add)
    }
}

impl<'a> FromIterator<&'a Entry> for Digest {
    fn from_iter<I: IntoIterator<Item = &'a Entry>>(entries: I) -> Self {
        entries.into_iter().map(Self::of).sum()
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest(..)")
    }
}
