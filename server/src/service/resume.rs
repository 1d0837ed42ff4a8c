//! Decides the cheapest truthful answer to what a client says that it has. Pure.

use driftless_proto::digest::Digest;
use driftless_proto::{Epoch, Revision};

/// What a client says that it has.
#[derive(Clone, Debug)]
pub(super) struct Have {
    pub(super) epoch: Epoch,
    pub(super) revision: Revision,
    pub(super) digest: Digest,
}

/// What the server has, of one moment.
#[derive(Debug)]
pub(super) struct Has<'a> {
    pub(super) epoch: &'a Epoch,
    pub(super) revision: Revision,
    /// Of the range.
    pub(super) digest: Digest,
    /// From which revision on deletes are known.
    pub(super) floor: Revision,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// "You have it all."
    Current,
    /// What changed after the client's revision; one by one where the log allows it, else in one.
    Changes,
    /// Everything; `reset` lets it lower the client's revision.
    Snapshot {
        /// The client's revision means nothing in this history.
        reset: bool,
    },
    /// The client is ahead: it depends on whether etcd is, too.
    Ahead,
}

impl Have {
    /// True if the answer depends on the range's digest at the client's revision.
    pub(super) fn is_of_the_past(&self, has: &Has<'_>) -> bool {
        self.epoch == *has.epoch && self.revision < has.revision && self.digest != has.digest
    }
}

/// Decides. `past` is the range's digest at the client's revision, where it is known and
/// [`Have::is_of_the_past`]: nothing is built on a state that the client does not have.
pub(super) fn answer(have: Option<&Have>, has: &Has<'_>, past: Option<Digest>) -> Answer {
    let Some(have) = have else {
        return Answer::Snapshot { reset: false };
    };
    if have.epoch != *has.epoch {
        return Answer::Snapshot { reset: true };
    }
    if have.revision > has.revision {
        return Answer::Ahead;
    }
    if have.digest == has.digest {
        return Answer::Current;
    }
    let holds_what_was = have.revision < has.revision && past == Some(have.digest);
    if holds_what_was && has.floor <= have.revision {
        Answer::Changes
    } else {
        Answer::Snapshot { reset: false }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use driftless_proto::{Entry, Key};

    use super::*;

    fn digest(version: i64) -> Digest {
        Digest::of(&Entry {
            key: Key::new("k").unwrap(),
            value: Bytes::new(),
            create_revision: Revision::new(1),
            mod_revision: Revision::new(1),
            version,
        })
    }

    #[test]
    fn the_cheapest_truthful_answer_wins() {
        let epoch = Epoch::of_cluster(1, "");
        let has = Has {
            epoch: &epoch,
            revision: Revision::new(20),
            digest: digest(2),
            floor: Revision::new(10),
        };
        let have = |epoch: &Epoch, revision, digest| Have {
            epoch: epoch.clone(),
            revision: Revision::new(revision),
            digest,
        };
        let decide = |have: Have, past: Option<Digest>| answer(Some(&have), &has, past);

        assert_eq!(answer(None, &has, None), Answer::Snapshot { reset: false });
        assert_eq!(
            decide(have(&Epoch::of_cluster(2, ""), 20, digest(2)), None),
            Answer::Snapshot { reset: true }
        );
        assert_eq!(
            decide(have(&Epoch::of_cluster(1, "b"), 20, digest(2)), None),
            Answer::Snapshot { reset: true }
        );
        assert_eq!(decide(have(&epoch, 20, digest(2)), None), Answer::Current);
        assert_eq!(
            decide(have(&epoch, 3, digest(2)), None),
            Answer::Current,
            "nothing changed, however long ago"
        );
        assert_eq!(
            decide(have(&epoch, 15, digest(1)), Some(digest(1))),
            Answer::Changes
        );
        assert_eq!(
            decide(have(&epoch, 15, digest(1)), Some(digest(3))),
            Answer::Snapshot { reset: false },
            "diverged"
        );
        assert_eq!(
            decide(have(&epoch, 15, digest(1)), None),
            Answer::Snapshot { reset: false },
            "unknown past"
        );
        assert_eq!(
            decide(have(&epoch, 9, digest(1)), Some(digest(1))),
            Answer::Snapshot { reset: false },
            "forgotten deletes"
        );
        assert_eq!(
            decide(have(&epoch, 20, digest(1)), Some(digest(1))),
            Answer::Snapshot { reset: false },
            "diverged"
        );
        assert_eq!(decide(have(&epoch, 21, digest(2)), None), Answer::Ahead);
    }
}
