//! What became of the state that is held, as a report carries it.

use driftless_proto::{KeyRange, Revision, v1};

use crate::decode::Outcome;
use crate::error::Rejection;
use crate::transport::truncate;

/// The report of what the decoders made of the state at `held`; all of it was used if there is none.
pub(super) fn report(outcome: Option<Outcome>, held: Revision, diverged: u64) -> v1::Outcome {
    let (accepted, rejected) = match outcome {
        Some(outcome) => (outcome.accepted, outcome.rejected),
        None => (held, None),
    };
    v1::Outcome {
        applied_revision: accepted.get(),
        rejection: rejected.map(|rejected| rejection(rejected.revision, &rejected.rejection)),
        diverged,
    }
}

/// Leaves out a key that is longer than a range may be, and cuts off such a path.
fn rejection(revision: Revision, rejection: &Rejection) -> v1::Rejection {
    let key = rejection.key().map(|key| key.as_bytes());
    let key = key.filter(|key| key.len() <= KeyRange::MAX_LEN);
    v1::Rejection {
        revision: revision.get(),
        kind: rejection.kind().as_str().to_owned(),
        key: key.cloned().unwrap_or_default(),
        path: truncate(rejection.path().to_owned(), KeyRange::MAX_LEN),
    }
}
