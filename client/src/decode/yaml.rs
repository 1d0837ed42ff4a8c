//! YAML: the only user of its library.
//!
//! It is read as YAML 1.2: `yes`, `no`, `on` and `off` are text, not booleans. Anchors, aliases and merge keys
//! work, so a document can expand to far more than it holds. The constants below limit the expansion.

use serde::de::Error as _;
use serde_saphyr::options::DuplicateKeyPolicy;
use serde_saphyr::{Options, budget, options};

use super::failure::Failure;
use super::number;
use super::track::{Track, track};
use crate::error::RejectionKind;

/// The most levels of a document. It protects the stack: a level costs more than in other formats, and no
/// configuration has a tenth of it.
const MAX_DEPTH: usize = 64;

/// The most values in a document, with aliases expanded: they decode in well under a second.
const MAX_NODES: usize = 250_000;

/// The most text in a document, in bytes, with aliases expanded: 64 MiB, many times the largest value of an
/// etcd with default settings.
const MAX_TEXT: usize = 64 * 1024 * 1024;

/// The most parser events that may be recorded for aliases: a few MiB. Nested anchors record the same events
/// several times.
const MAX_KEPT: usize = 50_000;

type Decoder<'de, 'e> = serde_saphyr::Deserializer<'de, 'e>;
type Error = serde_saphyr::Error;

/// Reads one document, which must be the whole text.
pub(super) fn read<'de, R>(
    text: &'de str,
    read: impl for<'t, 'e> FnOnce(Track<'t, Decoder<'de, 'e>, Error>) -> Result<R, Failure>,
) -> Result<R, Failure> {
    let mut aside = None;
    let result =
        serde_saphyr::with_deserializer_from_str_with_options(text, limited(), |document| {
            track(document, read).map_err(|(failure, error)| {
                aside = Some(failure);
                error.unwrap_or_else(|| Error::custom(""))
            })
        });
    result.map_err(|error| {
        let failure = aside.unwrap_or_else(|| Failure::by_decoder("the end"));
        let found = scalar(text, &error).and_then(|scalar| {
            let asked = failure.facts().expected.filter(|_| failure.by_decoder)?;
            Some(number::text(asked, scalar))
        });
        let (is, position) = (kind(&error), position(text, &error));
        failure.found(found).described(is, position)
    })
}

fn limited() -> Options {
    options! {
        budget: budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_total_scalar_bytes: MAX_TEXT,
            max_recorded_anchor_events: MAX_KEPT,
            // Many aliases of one anchor are normal; the limits above count their expansion.
            enforce_alias_anchor_ratio: false,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        strict_booleans: true,
        // Errors must not quote the document, and a snippet costs time.
        with_snippet: false,
    }
}

/// The kind of a library error that is not about the type.
fn kind(error: &Error) -> Option<(RejectionKind, &'static str)> {
    let syntax = |detail| Some((RejectionKind::Syntax, detail));
    match error {
        Error::AliasError { error, .. } => kind(error),
        Error::Eof { .. } => syntax("not YAML: it ends too early"),
        Error::MultipleDocuments { .. } => syntax("not one YAML document: another one follows"),
        Error::UnknownAnchor { .. } => syntax("not YAML: an alias has no anchor"),
        Error::ExternalMessage { .. }
        | Error::UnexpectedSequenceEnd { .. }
        | Error::UnexpectedMappingEnd { .. }
        | Error::ContainerEndMismatch { .. }
        | Error::FoldedBlockScalarMustIndentContent { .. }
        | Error::MergeValueNotMapOrSeqOfMaps { .. } => syntax("not YAML, or nested too deep"),
        Error::DuplicateMappingKey { .. } => Some((RejectionKind::Conflict, "given twice")),
        Error::Budget { .. }
        | Error::AliasReplayCounterOverflow { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => Some((
            RejectionKind::TooLarge,
            "the document is nested too deep, or its aliases stand for too much",
        )),
        _ => None,
    }
}

/// The scalar that does not parse as the requested type.
fn scalar<'t>(text: &'t str, error: &Error) -> Option<&'t str> {
    match error {
        Error::AliasError { error, .. } => scalar(text, error),
        Error::InvalidScalar { location, .. } => {
            let start = usize::try_from(location.span().byte_offset()?).ok()?;
            let len = usize::try_from(location.span().byte_len()?).ok()?;
            text.get(start..start.checked_add(len)?)
        }
        _ => None,
    }
}

/// The column is in bytes if the offset is known: the library counts characters.
fn position(text: &str, error: &Error) -> Option<(usize, usize)> {
    let found = error.location().filter(|found| found.line() > 0)?;
    let line = usize::try_from(found.line()).ok()?;
    let column = usize::try_from(found.column()).ok()?;
    let bytes = || {
        let offset = usize::try_from(found.span().byte_offset()?).ok()?;
        let before = text.get(..offset)?;
        Some(offset - before.rfind('\n').map_or(0, |end| end + 1) + 1)
    };
    Some((line, bytes().unwrap_or(column)))
}
