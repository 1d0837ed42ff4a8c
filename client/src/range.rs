//! What may be passed as a range.

use driftless_proto::{KeyRange, RangeError};

/// Converts to a range. A string is exactly that key, also if it ends in `/`; for everything under a prefix use
/// [`KeyRange::prefix`], with or without a `?` behind it.
///
/// ```
/// use driftless_client::{IntoRange, KeyRange};
///
/// assert_eq!("/a".into_range(), KeyRange::key("/a"));
/// assert_eq!(KeyRange::prefix("/a/").into_range(), KeyRange::prefix("/a/"));
/// ```
pub trait IntoRange {
    /// The range.
    ///
    /// # Errors
    /// When it is empty or too long.
    fn into_range(self) -> Result<KeyRange, RangeError>;
}

impl IntoRange for &str {
    fn into_range(self) -> Result<KeyRange, RangeError> {
        KeyRange::key(self)
    }
}

impl IntoRange for &String {
    fn into_range(self) -> Result<KeyRange, RangeError> {
        KeyRange::key(self)
    }
}

impl IntoRange for String {
    fn into_range(self) -> Result<KeyRange, RangeError> {
        KeyRange::key(self)
    }
}

impl IntoRange for KeyRange {
    fn into_range(self) -> Result<KeyRange, RangeError> {
        Ok(self)
    }
}

impl IntoRange for &KeyRange {
    fn into_range(self) -> Result<KeyRange, RangeError> {
        Ok(self.clone())
    }
}

impl IntoRange for Result<KeyRange, RangeError> {
    fn into_range(self) -> Result<KeyRange, RangeError> {
        self
    }
}
