//! TOML: the only user of its decoder.

use super::failure::Failure;
use super::track::{Track, track};
use crate::error::RejectionKind;

type Decoder<'de> = ::toml::Deserializer<'de>;
type Error = ::toml::de::Error;

/// Reads one document.
///
/// The decoder's own limit on depth, 80, protects the stack; the format has no references, so a
/// document stands for no more than what it holds.
pub(super) fn read<'de, R>(
    text: &'de str,
    read: impl FnOnce(Track<'_, Decoder<'de>, Error>) -> Result<R, Failure>,
) -> Result<R, Failure> {
    let document = Decoder::parse(text)
        .map_err(|said| Failure::by_decoder("a document").told(SYNTAX, position(text, &said)))?;
    track(document, read).map_err(|(failure, said)| {
        let position = said.and_then(|said| position(text, &said));
        failure.told(None, position)
    })
}

const SYNTAX: Option<(RejectionKind, &str)> = Some((RejectionKind::Syntax, "not TOML"));

/// The decoder knows bytes; people count lines and columns.
fn position(text: &str, said: &Error) -> Option<(usize, usize)> {
    let before = text.as_bytes().get(..said.span()?.start)?;
    let line_start = before
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |end| end + 1);
    let lines = before.iter().filter(|byte| **byte == b'\n').count();
    Some((lines + 1, before.len() - line_start + 1))
}
