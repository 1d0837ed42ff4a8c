//! JSON: the only user of its decoder for values.

use super::failure::Failure;
use super::track::{Track, track};
use crate::error::RejectionKind;

type Decoder<'de> = serde_json::Deserializer<serde_json::de::StrRead<'de>>;
type Error = serde_json::Error;

/// Reads one document, which is all of the text.
///
/// The decoder's own limit on depth, 128, protects the stack.
pub(super) fn read<'de, R>(
    text: &'de str,
    read: impl FnOnce(Track<'_, &mut Decoder<'de>, Error>) -> Result<R, Failure>,
) -> Result<R, Failure> {
    let mut json = serde_json::Deserializer::from_str(text);
    let read = track(&mut json, read).map_err(|(failure, said)| told(failure, said));
    let value = read?;
    // More behind the end of it is no JSON either.
    let end = json.end();
    end.map_err(|said| told(Failure::by_decoder("the end"), Some(said)))?;
    Ok(value)
}

/// Adds what may be known of what the decoder said: where, and which sort.
fn told(failure: Failure, said: Option<Error>) -> Failure {
    let Some(said) = said else { return failure };
    let is = (!said.is_data()).then(|| {
        let detail = if said.is_eof() {
            "not JSON: it ends too early"
        } else {
            "not JSON"
        };
        (RejectionKind::Syntax, detail)
    });
    // Line 0: it does not know.
    let position = (said.line() > 0).then(|| (said.line(), said.column()));
    let found = if failure.by_decoder {
        sort(&said)
    } else {
        None
    };
    failure.found(found).told(is, position)
}

/// What sort of thing the decoder found, by how its words begin: they are serde's, and the thing
/// itself comes after them. `None` where they are others.
fn sort(said: &Error) -> Option<&'static str> {
    const SORTS: [(&str, &str); 6] = [
        ("string ", "a string"),
        ("boolean ", "a boolean"),
        ("null,", "null"),
        ("sequence,", "a list"),
        ("map,", "a map"),
        ("floating point ", "a number"),
    ];
    let said = said.to_string();
    let rest = said.strip_prefix("invalid type: ")?;
    let sort = |(begins, sort): &(&str, _)| rest.starts_with(begins).then_some(*sort);
    SORTS.iter().find_map(sort)
}
