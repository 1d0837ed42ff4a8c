//! TOML: the only user of its library.

use super::failure::Failure;
use super::track::{Track, track};
use crate::error::RejectionKind;

type Decoder<'de> = ::toml::Deserializer<'de>;
type Error = ::toml::de::Error;

/// Reads one document.
///
/// The library's own limit of 80 levels protects the stack. TOML has no references, so a document does not
/// expand.
pub(super) fn read<'de, R>(
    text: &'de str,
    read: impl FnOnce(Track<'_, Decoder<'de>, Error>) -> Result<R, Failure>,
) -> Result<R, Failure> {
    let document = Decoder::parse(text).map_err(|error| {
        Failure::by_decoder("a document").described(SYNTAX, position(text, &error))
    })?;
    track(document, read).map_err(|(failure, error)| {
        let position = error.and_then(|error| position(text, &error));
        failure.described(None, position)
    })
}

const SYNTAX: Option<(RejectionKind, &str)> = Some((RejectionKind::Syntax, "not TOML"));

/// The library knows byte offsets; people count lines and columns.
fn position(text: &str, error: &Error) -> Option<(usize, usize)> {
    let before = text.as_bytes().get(..error.span()?.start)?;
    let line_start = before
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |end| end + 1);
    let lines = before.iter().filter(|byte| **byte == b'\n').count();
    Some((lines + 1, before.len() - line_start + 1))
}
