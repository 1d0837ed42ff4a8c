//! Keys and ranges of keys. Keys are bytes, as in etcd; most of them are text.

use std::borrow::Borrow;
use std::fmt;

use bytes::Bytes;

use crate::v1;

/// One key: any bytes, at least one.
///
/// Cheap to clone. `Display` shows text as it is and escapes what is not.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Bytes);

impl Key {
    /// A key of these bytes. `None` if there are none: etcd has no empty key either.
    pub fn new(bytes: impl Into<Bytes>) -> Option<Self> {
        let bytes = bytes.into();
        (!bytes.is_empty()).then_some(Self(bytes))
    }

    /// The bytes on the wire.
    pub const fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// For messages: as `Display` shows it, but at most the first 200 bytes of it, and its length.
    pub fn shortened(&self) -> impl fmt::Display {
        Shortened(self)
    }

    /// The key as text, if it is UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

// `Bytes` compares and hashes like its slice, so a map can be searched with a slice.
impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_escaped(&self.0, f)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// How much of a key a message shows, in bytes. Long enough for keys that people write.
const SHOWN_BYTES: usize = 200;

/// A key in a message.
struct Shortened<'a>(&'a Key);

impl fmt::Display for Shortened<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.as_ref();
        match bytes.get(..SHOWN_BYTES) {
            Some(start) if bytes.len() > SHOWN_BYTES => {
                write_escaped(start, f)?;
                write!(f, "... ({} bytes)", bytes.len())
            }
            _ => write_escaped(bytes, f),
        }
    }
}

/// Shows printable text as it is, and everything else as `\xNN` or Rust's escapes. Control characters
/// are escaped so that a key cannot change a terminal's state.
fn write_escaped(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    use fmt::Write;
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() {
                write!(f, "{}", c.escape_default())?;
            } else {
                f.write_char(c)?;
            }
        }
        for byte in chunk.invalid() {
            write!(f, "\\x{byte:02x}")?;
        }
    }
    Ok(())
}

/// What one stream subscribes to: one key, or every key with a prefix.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyRange {
    /// One key.
    Key(Key),
    /// Every key that starts with these bytes.
    Prefix(Key),
}

/// Why a range is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RangeError {
    /// The key or prefix is missing or empty.
    #[error("the {what} is empty; name at least one byte, such as \"/config/\"")]
    Empty {
        /// "key", "prefix" or "range".
        what: &'static str,
    },
    /// It is longer than [`KeyRange::MAX_LEN`].
    #[error("the {what} is {len} bytes long; at most {max} are allowed", max = KeyRange::MAX_LEN)]
    TooLong {
        /// "key" or "prefix".
        what: &'static str,
        /// Its length in bytes.
        len: usize,
    },
}

impl KeyRange {
    /// The longest key or prefix that can be watched, in bytes: 4096.
    ///
    /// The limit of a path on Linux. There has to be one, because a server keeps a range in memory
    /// while somebody watches it.
    pub const MAX_LEN: usize = 4096;

    /// One key.
    ///
    /// # Errors
    /// When it is empty or longer than [`KeyRange::MAX_LEN`].
    pub fn key(key: impl AsRef<[u8]>) -> Result<Self, RangeError> {
        Self::checked("key", Bytes::copy_from_slice(key.as_ref())).map(Self::Key)
    }

    /// Every key that starts with `prefix`.
    ///
    /// # Errors
    /// When it is empty or longer than [`KeyRange::MAX_LEN`].
    pub fn prefix(prefix: impl AsRef<[u8]>) -> Result<Self, RangeError> {
        Self::checked("prefix", Bytes::copy_from_slice(prefix.as_ref())).map(Self::Prefix)
    }

    fn checked(what: &'static str, bytes: Bytes) -> Result<Key, RangeError> {
        if bytes.len() > Self::MAX_LEN {
            return Err(RangeError::TooLong {
                what,
                len: bytes.len(),
            });
        }
        Key::new(bytes).ok_or(RangeError::Empty { what })
    }

    /// Whether `key` is in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::Key(own) => own.as_ref() == key,
            Self::Prefix(prefix) => key.starts_with(prefix.as_ref()),
        }
    }

    /// Whether every key of `other` is in this range.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Key(_), Self::Prefix(_)) => false,
            (_, Self::Key(key) | Self::Prefix(key)) => self.contains(key.as_ref()),
        }
    }

    /// The first key that can be in the range: where a scan in key order starts.
    pub const fn start(&self) -> &Key {
        match self {
            Self::Key(key) | Self::Prefix(key) => key,
        }
    }
}

impl fmt::Display for KeyRange {
    /// The key, or the prefix with a `*` behind it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(key) => write!(f, "{key}"),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}

impl fmt::Debug for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl TryFrom<Option<v1::Range>> for KeyRange {
    type Error = RangeError;

    fn try_from(range: Option<v1::Range>) -> Result<Self, RangeError> {
        match range.and_then(|range| range.kind) {
            Some(v1::range::Kind::Key(key)) => Self::checked("key", key).map(Self::Key),
            Some(v1::range::Kind::Prefix(prefix)) => {
                Self::checked("prefix", prefix).map(Self::Prefix)
            }
            None => Err(RangeError::Empty { what: "range" }),
        }
    }
}

impl From<&KeyRange> for v1::Range {
    fn from(range: &KeyRange) -> Self {
        Self {
            kind: Some(match range {
                KeyRange::Key(key) => v1::range::Kind::Key(key.as_bytes().clone()),
                KeyRange::Prefix(prefix) => v1::range::Kind::Prefix(prefix.as_bytes().clone()),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_contain_and_cover() {
        let prefix = KeyRange::prefix("/a/").unwrap();
        let key = KeyRange::key("/a/b").unwrap();
        assert!(prefix.contains(b"/a/") && prefix.contains(b"/a/b") && !prefix.contains(b"/a"));
        assert!(key.contains(b"/a/b") && !key.contains(b"/a/b/c"));
        assert!(prefix.covers(&key) && prefix.covers(&prefix) && !key.covers(&prefix));
        assert!(
            !key.covers(&KeyRange::prefix("/a/b").unwrap()),
            "a prefix of the same bytes is wider than the key"
        );
        assert!(
            KeyRange::prefix("/a").unwrap().covers(&prefix)
                && !prefix.covers(&KeyRange::prefix("/a").unwrap())
        );
    }

    #[test]
    fn invalid_ranges_name_what_is_wrong() {
        assert_eq!(KeyRange::key(""), Err(RangeError::Empty { what: "key" }));
        assert_eq!(
            KeyRange::prefix([]),
            Err(RangeError::Empty { what: "prefix" })
        );
        assert!(KeyRange::key(vec![b'k'; 4096]).is_ok());
        assert_eq!(
            KeyRange::key(vec![b'k'; 4097]),
            Err(RangeError::TooLong {
                what: "key",
                len: 4097
            })
        );
        assert_eq!(
            KeyRange::try_from(None),
            Err(RangeError::Empty { what: "range" })
        );
    }

    #[test]
    fn long_keys_are_cut_in_messages() {
        let shown = |len: usize| Key::new(vec![b'k'; len]).unwrap().shortened().to_string();
        assert_eq!(shown(200), "k".repeat(200));
        assert_eq!(shown(201), format!("{}... (201 bytes)", "k".repeat(200)));
    }

    #[test]
    fn control_characters_in_keys_are_escaped() {
        let key = Key::new(&b"/a\x1b[2J\n\xff/\xc3\xbc"[..]).unwrap();
        assert_eq!(key.to_string(), "/a\\u{1b}[2J\\n\\xff/\u{fc}");
    }
}
