//! How old the published state is, and whether it is behind etcd. Pure.
//!
//! A [`Proof`] counts once the published state has reached its revision, and only then. Changes that
//! arrive move the revision and prove nothing about now: they may have been sent long ago.

use driftless_proto::Revision;
use tokio::time::Instant;

use crate::store::Proof;

/// What is proven of the published state, and what is not yet.
#[derive(Debug)]
pub(super) struct Proofs {
    published: Revision,
    /// The state was etcd's at this time. `None` if that is not known of any time.
    proven: Option<Instant>,
    /// The first proof that the state has not reached.
    next: Option<Proof>,
    /// The last one, if there are several. Those in between are dropped: however long the state is
    /// behind, two are enough to move on as soon as it catches up.
    last: Option<Proof>,
}

impl Proofs {
    /// Before the first state.
    pub(super) const fn new() -> Self {
        Self {
            published: Revision::NONE,
            proven: None,
            next: None,
            last: None,
        }
    }

    /// When the published state was last known to be etcd's.
    pub(super) const fn proven(&self) -> Option<Instant> {
        self.proven
    }

    /// The first proof that the published state has not reached: etcd has this revision.
    pub(super) const fn behind(&self) -> Option<Proof> {
        self.next
    }

    /// Takes an answer of etcd. Returns whether it counts already.
    pub(super) fn add(&mut self, proof: Proof) -> bool {
        if proof.revision <= self.published {
            self.prove(proof);
            return true;
        }
        if self.next.is_none() {
            self.next = Some(proof);
        } else {
            self.last = Some(proof);
        }
        false
    }

    /// The published state is at this revision of the same history. Returns whether a proof counts
    /// from now on.
    pub(super) fn reach(&mut self, revision: Revision) -> bool {
        self.published = revision;
        let mut counts = false;
        while let Some(proof) = self.next.take_if(|proof| proof.revision <= revision) {
            self.prove(proof);
            self.next = self.last.take();
            counts = true;
        }
        counts
    }

    /// The first state, or one of another history, is published: what was known before means nothing.
    pub(super) const fn restart(&mut self, revision: Revision, asked_at: Option<Instant>) {
        *self = Self {
            published: revision,
            proven: asked_at,
            ..Self::new()
        };
    }

    /// etcd is lost. Once it is found again, it is asked again.
    pub(super) const fn disconnect(&mut self) {
        self.next = None;
        self.last = None;
    }

    fn prove(&mut self, proof: Proof) {
        self.proven = self.proven.max(Some(proof.asked_at));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(revision: i64) -> Revision {
        Revision::new(revision)
    }

    /// Proofs of a state at revision 10 that was asked for at second 0, and a way to name times.
    fn proofs() -> (Proofs, impl Fn(u64) -> Instant) {
        let start = Instant::now();
        let second = move |seconds| start + Duration::from_secs(seconds);
        let mut proofs = Proofs::new();
        proofs.restart(at(10), Some(second(0)));
        (proofs, second)
    }

    #[test]
    fn proof_counts_once_its_revision_is_reached() {
        let (mut proofs, second) = proofs();
        let proof = |asked_at, revision| Proof {
            asked_at: second(asked_at),
            revision: at(revision),
        };
        proofs.add(proof(1, 10));
        assert_eq!(proofs.proven(), Some(second(1)));
        assert_eq!(proofs.behind(), None);

        proofs.add(proof(2, 12));
        proofs.reach(at(11));
        assert_eq!(proofs.proven(), Some(second(1)), "a change proves nothing");
        assert_eq!(proofs.behind(), Some(proof(2, 12)));
        proofs.reach(at(12));
        assert_eq!(proofs.proven(), Some(second(2)));
        assert_eq!(proofs.behind(), None);
    }

    #[test]
    fn state_that_catches_up_is_proven_step_by_step() {
        let (mut proofs, second) = proofs();
        for n in 1..=9 {
            proofs.add(Proof {
                asked_at: second(n),
                revision: at(10 + 10 * i64::try_from(n).unwrap()),
            });
        }
        proofs.reach(at(20));
        assert_eq!(proofs.proven(), Some(second(1)));
        assert_eq!(proofs.behind().map(|proof| proof.revision), Some(at(100)));
        proofs.reach(at(99));
        assert_eq!(proofs.proven(), Some(second(1)));
        proofs.reach(at(100));
        assert_eq!(proofs.proven(), Some(second(9)));
        assert_eq!(proofs.behind(), None);
    }

    #[test]
    fn several_proofs_are_reached_at_once() {
        let (mut proofs, second) = proofs();
        for (asked_at, revision) in [(1, 11), (2, 12)] {
            proofs.add(Proof {
                asked_at: second(asked_at),
                revision: at(revision),
            });
        }
        proofs.reach(at(15));
        assert_eq!((proofs.proven(), proofs.behind()), (Some(second(2)), None));
    }

    #[test]
    fn earlier_question_does_not_make_the_state_older() {
        let (mut proofs, second) = proofs();
        let revision = at(10);
        for asked_at in [5, 3] {
            let asked_at = second(asked_at);
            proofs.add(Proof { asked_at, revision });
        }
        assert_eq!(proofs.proven(), Some(second(5)));
    }

    #[test]
    fn other_history_forgets_what_was_proven() {
        let (mut proofs, second) = proofs();
        let ahead = Proof {
            asked_at: second(5),
            revision: at(20),
        };
        proofs.add(ahead);
        proofs.restart(at(3), None);
        assert_eq!((proofs.proven(), proofs.behind()), (None, None));
        proofs.add(ahead);
        proofs.disconnect();
        assert_eq!(proofs.behind(), None);
        proofs.reach(at(20));
        assert_eq!(proofs.proven(), None);
    }
}
