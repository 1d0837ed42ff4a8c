//! YAML: the only user of its decoder.
//!
//! It is read as YAML 1.2 where the two versions differ in what people trip over: `yes`, `no`, `on`
//! and `off` are text and no booleans. Anchors, aliases and merge keys work. A document can therefore
//! stand for far more than it holds, so what it stands for is bounded, by the constants below.

use serde::de::Error as _;
use serde_saphyr::options::DuplicateKeyPolicy;
use serde_saphyr::{Options, budget, options};

use super::failure::Failure;
use super::number;
use super::track::{Track, track};
use crate::error::RejectionKind;

/// How deep a document may be nested: it protects the stack, which a level costs more of than in
/// other formats, and no configuration is a tenth as deep.
const MAX_DEPTH: usize = 64;

/// How many values a document may stand for, aliases followed: what decodes in well under a second.
const MAX_NODES: usize = 250_000;

/// How many bytes of text a document may stand for, aliases followed: 64 MiB, many times the largest
/// value that etcd takes as it comes.
const MAX_TEXT: usize = 64 * 1024 * 1024;

/// How many pieces of a document may be kept aside for aliases: a few MiB. Anchors within anchors
/// keep the same pieces several times.
const MAX_KEPT: usize = 50_000;

type Decoder<'de, 'e> = serde_saphyr::Deserializer<'de, 'e>;
type Error = serde_saphyr::Error;

/// Reads one document, which is all of the text.
pub(super) fn read<'de, R>(
    text: &'de str,
    read: impl for<'t, 'e> FnOnce(Track<'t, Decoder<'de, 'e>, Error>) -> Result<R, Failure>,
) -> Result<R, Failure> {
    let mut aside = None;
    let result =
        serde_saphyr::with_deserializer_from_str_with_options(text, limited(), |document| {
            track(document, read).map_err(|(failure, said)| {
                aside = Some(failure);
                said.unwrap_or_else(|| Error::custom(""))
            })
        });
    result.map_err(|said| {
        let failure = aside.unwrap_or_else(|| Failure::by_decoder("the end"));
        let found = scalar(text, &said).and_then(|scalar| {
            let asked = failure.facts().expected.filter(|_| failure.by_decoder)?;
            Some(number::text(asked, scalar))
        });
        let (is, position) = (sort(&said), position(text, &said));
        failure.found(found).told(is, position)
    })
}

fn limited() -> Options {
    options! {
        budget: budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_total_scalar_bytes: MAX_TEXT,
            max_recorded_anchor_events: MAX_KEPT,
            // One anchor that a hundred places refer to is what anchors are for; the limits above
            // count what that comes to.
            enforce_alias_anchor_ratio: false,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        strict_booleans: true,
        // Nothing of the document belongs in an error, and finding it costs time.
        with_snippet: false,
    }
}

/// What the decoder's own errors are about, where that is not the type.
fn sort(said: &Error) -> Option<(RejectionKind, &'static str)> {
    let syntax = |detail| Some((RejectionKind::Syntax, detail));
    match said {
        Error::AliasError { error, .. } => sort(error),
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

/// The scalar that does not parse as what was asked for.
fn scalar<'t>(text: &'t str, said: &Error) -> Option<&'t str> {
    match said {
        Error::AliasError { error, .. } => scalar(text, error),
        Error::InvalidScalar { location, .. } => {
            let start = usize::try_from(location.span().byte_offset()?).ok()?;
            let len = usize::try_from(location.span().byte_len()?).ok()?;
            text.get(start..start.checked_add(len)?)
        }
        _ => None,
    }
}

/// In bytes where the decoder knows them: it counts columns in characters.
fn position(text: &str, said: &Error) -> Option<(usize, usize)> {
    let found = said.location().filter(|found| found.line() > 0)?;
    let line = usize::try_from(found.line()).ok()?;
    let column = usize::try_from(found.column()).ok()?;
    let bytes = || {
        let offset = usize::try_from(found.span().byte_offset()?).ok()?;
        let before = text.get(..offset)?;
        Some(offset - before.rfind('\n').map_or(0, |end| end + 1) + 1)
    };
    Some((line, bytes().unwrap_or(column)))
}
