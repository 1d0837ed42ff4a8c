//! How far back a backfill reaches: to one of a few distances, so that neither what one client requests
//! nor how many request something decides what the others get.

use driftless_proto::Revision;

/// How many revisions back from where the change log began.
///
/// The farthest: etcd sends some 10,000 revisions a second, and clients wait for three seconds, in which
/// nearer ones may be read first. Each is four times the one before, so all of them together cost
/// little more than the farthest.
const DISTANCES: [i64; 6] = [16, 64, 256, 1024, 4096, 16_384];

/// One of these distances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reach(u8);

impl Reach {
    /// What is read first, whoever comes first: etcd sends some 1,000 revisions at a time, which take
    /// 0.1 s. The nearer ones are for values so large that these are too much.
    pub(super) const FIRST: Self = Self(3);

    /// The nearest one that leads from `origin` back to `revision`. `None` if that is too far.
    pub(super) fn back_to(revision: Revision, origin: Revision) -> Option<Self> {
        let mut reaches = (0..).map(Self).take(DISTANCES.len());
        reaches.find(|reach| reach.leads_to(origin) <= revision)
    }

    /// Where it leads from `origin`: at least to revision 1, before which there is nothing.
    pub(super) fn leads_to(self, origin: Revision) -> Revision {
        Revision::new((origin.get() - DISTANCES[usize::from(self.0)]).max(1))
    }
}

/// A set of them. However many streams request something, this is what they request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reaches(u8);

impl Reaches {
    /// None.
    pub const NONE: Self = Self(0);

    /// Every one.
    pub(super) const ALL: Self = Self((1 << DISTANCES.len()) - 1);

    /// Those that are nearer than this one.
    pub(super) const fn nearer_than(reach: Reach) -> Self {
        Self((1 << reach.0) - 1)
    }

    /// True if there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) const fn contains(self, reach: Reach) -> bool {
        self.0 & (1 << reach.0) != 0
    }

    pub(super) const fn add(&mut self, reach: Reach) {
        self.0 |= 1 << reach.0;
    }

    pub(super) const fn union(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    pub(super) const fn intersection(self, others: Self) -> Self {
        Self(self.0 & others.0)
    }

    /// From the nearest to the farthest.
    pub(super) fn iter(self) -> impl DoubleEndedIterator<Item = Reach> {
        (0..DISTANCES.len() as u8)
            .map(Reach)
            .filter(move |reach| self.contains(*reach))
    }
}

impl FromIterator<Reach> for Reaches {
    fn from_iter<I: IntoIterator<Item = Reach>>(reaches: I) -> Self {
        let mut all = Self::NONE;
        reaches.into_iter().for_each(|reach| all.add(reach));
        all
    }
}
