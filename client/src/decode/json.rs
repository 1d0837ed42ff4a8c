//! JSON: the only user of serde_json for values.

use super::failure::Failure;
use super::track::{Track, track};
use crate::error::RejectionKind;

type Decoder<'de> = serde_json::Deserializer<serde_json::de::StrRead<'de>>;
type Error = serde_json::Error;

/// Reads one document, which must be the whole text.
///
/// The library's own limit of 128 levels protects the stack.
pub(super) fn read<'de, R>(
    text: &'de str,
    read: impl FnOnce(Track<'_, &mut Decoder<'de>, Error>) -> Result<R, Failure>,
) -> Result<R, Failure> {
    let mut json = serde_json::Deserializer::from_str(text);
    let read = track(&mut json, read).map_err(|(failure, error)| annotate(failure, error));
    let value = read?;
    // Text behind the document is an error.
    let end = json.end();
    end.map_err(|error| annotate(Failure::by_decoder("the end"), Some(error)))?;
    Ok(value)
}

/// Adds what may be revealed of the library's error: the position, and the kind.
fn annotate(failure: Failure, error: Option<Error>) -> Failure {
    let Some(error) = error else { return failure };
    let is = (!error.is_data()).then(|| {
        let detail = if error.is_eof() {
            "not JSON: it ends too early"
        } else {
            "not JSON"
        };
        (RejectionKind::Syntax, detail)
    });
    // Line 0 means unknown.
    let position = (error.line() > 0).then(|| (error.line(), error.column()));
    let found = if failure.by_decoder {
        kind(&error)
    } else {
        None
    };
    failure.found(found).described(is, position)
}

/// The kind of thing that the library found, by the beginning of serde's text; the value comes after it. `None`
/// for other texts.
fn kind(error: &Error) -> Option<&'static str> {
    const KINDS: [(&str, &str); 6] = [
        ("string ", "a string"),
        ("boolean ", "a boolean"),
        ("null,", "null"),
        ("sequence,", "a list"),
        ("map,", "a map"),
        ("floating point ", "a number"),
    ];
    let text = error.to_string();
    let rest = text.strip_prefix("invalid type: ")?;
    let kind = |(begins, kind): &(&str, _)| rest.starts_with(begins).then_some(*kind);
    KINDS.iter().find_map(kind)
}
