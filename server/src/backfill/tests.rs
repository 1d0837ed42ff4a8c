//! Each transition of the state machine, and the checks of a verification. How far it reaches, and the
//! requests of streams, are in the modules below.

mod reach;
mod requests;

use std::time::Duration;

use driftless_proto::apply::Edit;
use driftless_proto::{Entry, Epoch, Key, Revision};
use tokio::time::Instant;

use super::*;
use crate::store::{BackfillEvent, History, PastChange, PastTransaction, Span, Writer};
use crate::testing::entry;

const ROOM: usize = 8 * 1024;

/// Where the change log of [`Prefix`] begins.
const FLOOR: i64 = 1_000_000;

fn at(revision: i64) -> Revision {
    Revision::new(revision)
}

fn writer(revision: i64, entries: Vec<Entry>) -> Writer {
    Writer::new(crate::store::State {
        epoch: Epoch::of_cluster(1, ""),
        revision: at(revision),
        entries,
        history: History::Continues,
        asked_at: None,
    })
}

fn span(after: i64, up_to: i64) -> Span {
    Span {
        after: at(after),
        up_to: at(up_to),
        last_put: Some(at(100)),
    }
}

/// A prefix whose only key was put at revision 100, long before any span.
struct Prefix {
    backfill: Backfill,
    writer: Writer,
    floor: i64,
    /// Bytes of batches that fit in front of the log.
    room: usize,
    now: Instant,
}

impl Prefix {
    /// Connected, with an empty change log.
    fn started() -> Self {
        let mut prefix = Self {
            backfill: Backfill::new(),
            writer: writer(FLOOR, vec![entry("/c/a", "1", 100)]),
            floor: FLOOR,
            room: ROOM,
            now: Instant::now(),
        };
        let floor = at(FLOOR);
        prefix.quiet(Event::Connected);
        prefix.quiet(Event::LogStarted { floor });
        prefix
    }

    fn step(&mut self, event: Event<'_>) -> Option<Action> {
        self.backfill.step(event, self.now)
    }

    /// A step without an action.
    fn quiet(&mut self, event: Event<'_>) {
        let action = self.step(event);
        assert!(action.is_none(), "{action:?}");
    }

    /// What a stream's request leads to.
    fn request(&mut self, revision: i64) {
        let floor = at(self.floor);
        let reach = self.backfill.reachable().reach(at(revision));
        let reaches = reach.into_iter().collect();
        self.quiet(Event::Requested { reaches, floor });
    }

    fn due(&mut self) -> Option<Action> {
        if let Due::At(moment) = self.backfill.due() {
            self.now = moment;
        }
        let log = LogStart {
            floor: at(self.floor),
            room: self.room,
            is_empty: true,
        };
        let writer = &mut self.writer;
        self.backfill.step(Event::Due { log, writer }, self.now)
    }

    /// The span that the source is asked for.
    fn requested(&mut self) -> Span {
        assert!(self.collects());
        match self.due() {
            Some(Action::Request(span)) => span,
            other => panic!("no request but {other:?}"),
        }
    }

    /// In `Requesting`, for what changed after this revision.
    fn requesting(revision: i64) -> Self {
        let mut prefix = Self::started();
        prefix.request(revision);
        prefix.requested();
        prefix
    }

    /// In `Verifying`: nothing changed in the span.
    fn verifying(revision: i64) -> Self {
        let mut prefix = Self::requesting(revision);
        prefix.receive_nothing();
        prefix
    }

    fn receive_nothing(&mut self) {
        let State::Requesting(received) = self.backfill.state() else {
            panic!("{:?}", self.backfill.state());
        };
        let after = received.span().after;
        self.quiet(Event::Received(BackfillEvent::Begin { after }));
        self.quiet(Event::Received(BackfillEvent::End));
    }

    /// The source cannot read the span.
    fn fail(&mut self) {
        let reason = "too much".to_owned();
        let action = self.step(Event::Received(BackfillEvent::Failed { reason }));
        assert!(
            matches!(&action, Some(Action::Abandon(Abandoned::Unavailable { reason, .. })) if reason == "too much"),
            "{action:?}"
        );
    }

    /// Verifies, and puts the batches in front of the log, where nothing is dropped.
    fn adopt(&mut self) {
        for _ in 0..10 {
            assert_eq!(self.backfill.due(), Due::Soon);
            if let Some(Action::Adopt { floor, up_to, .. }) = self.due() {
                assert_eq!(up_to, at(self.floor));
                self.floor = floor.get();
                return self.quiet(Event::Adopted { floor: Some(floor) });
            }
        }
        panic!("not adopted: {:?}", self.backfill.state());
    }

    fn is_idle(&self) -> bool {
        matches!(self.backfill.state(), State::Idle)
    }

    fn collects(&self) -> bool {
        matches!(self.backfill.state(), State::Collecting { .. })
    }

    fn reaches(&self, revision: i64) -> bool {
        self.backfill.reachable().contains(at(revision))
    }

    /// Idle, and nothing before the log can be reached.
    fn is_exhausted(&self) -> bool {
        self.is_idle() && !self.reaches(self.floor - 1)
    }
}

#[tokio::test(start_paused = true)]
async fn request_starts_the_collection() {
    let mut prefix = Prefix::started();
    assert!(prefix.is_idle());
    assert_eq!(prefix.backfill.due(), Due::Never);
    prefix.request(FLOOR);
    prefix.request(FLOOR - 16_385);
    assert!(prefix.is_idle(), "neither can be reached");
    prefix.request(FLOOR - 1);
    assert!(prefix.collects());
    let until = prefix.now + Duration::from_millis(200);
    assert_eq!(prefix.backfill.due(), Due::At(until));
}

#[tokio::test(start_paused = true)]
async fn request_does_not_begin_before_revision_one() {
    let mut prefix = Prefix::started();
    let floor = at(5);
    prefix.quiet(Event::LogStarted { floor });
    prefix.floor = 5;
    prefix.request(4);
    assert_eq!(prefix.requested().after, at(1));
}

#[tokio::test(start_paused = true)]
async fn last_put_is_unknown_once_the_log_has_changes() {
    let mut prefix = Prefix::started();
    prefix.request(FLOOR - 1);
    let log = LogStart {
        floor: at(FLOOR),
        room: ROOM,
        is_empty: false,
    };
    let writer = &mut prefix.writer;
    let action = prefix.backfill.step(Event::Due { log, writer }, prefix.now);
    let Some(Action::Request(span)) = action else {
        panic!("{action:?}");
    };
    assert_eq!(span.last_put, None);
}

#[tokio::test(start_paused = true)]
async fn whole_answer_is_verified_and_adopted() {
    let mut prefix = Prefix::verifying(FLOOR - 1);
    assert!(matches!(prefix.backfill.state(), State::Verifying(_)));
    assert!(prefix.reaches(FLOOR - 1), "by what is under way");
    prefix.adopt();
    assert!(prefix.is_idle());
    assert_eq!(prefix.floor, FLOOR - 1_024);
    assert!(!prefix.reaches(FLOOR - 1), "the log has it");
}

#[tokio::test(start_paused = true)]
async fn requests_that_the_log_reaches_now_are_dropped() {
    let mut prefix = Prefix::verifying(FLOOR - 1);
    prefix.request(FLOOR - 500);
    prefix.adopt();
    assert!(prefix.is_idle());
}

#[tokio::test(start_paused = true)]
async fn disconnect_requests_the_span_again() {
    for mut prefix in [
        Prefix::requesting(FLOOR - 5_000),
        Prefix::verifying(FLOOR - 5_000),
    ] {
        prefix.quiet(Event::Disconnected);
        assert!(prefix.is_idle(), "until it is connected");
        prefix.quiet(Event::Connected);
        assert_eq!(prefix.requested(), span(FLOOR - 1_024, FLOOR));
    }
}

#[tokio::test(start_paused = true)]
async fn collection_waits_for_the_connection() {
    let mut prefix = Prefix::started();
    prefix.request(FLOOR - 5_000);
    prefix.quiet(Event::Disconnected);
    assert!(prefix.is_idle());
    prefix.request(FLOOR - 6_000);
    assert!(prefix.is_idle());
    prefix.quiet(Event::Connected);
    assert_eq!(prefix.requested(), span(FLOOR - 1_024, FLOOR));
}

#[tokio::test(start_paused = true)]
async fn new_state_requests_the_span_again() {
    for mut prefix in [
        Prefix::requesting(FLOOR - 5_000),
        Prefix::verifying(FLOOR - 5_000),
    ] {
        prefix.quiet(Event::Interrupted);
        assert_eq!(prefix.requested(), span(FLOOR - 1_024, FLOOR));
    }
    let mut prefix = Prefix::started();
    prefix.quiet(Event::Interrupted);
    assert!(prefix.is_idle(), "there was nothing to interrupt");
}

#[tokio::test(start_paused = true)]
async fn unsent_request_is_collected_again() {
    let mut prefix = Prefix::requesting(FLOOR - 5_000);
    prefix.quiet(Event::NotSent);
    assert_eq!(prefix.requested(), span(FLOOR - 1_024, FLOOR));
}

#[tokio::test(start_paused = true)]
async fn requests_end_after_three_interruptions() {
    let mut prefix = Prefix::requesting(FLOOR - 5_000);
    for _ in 0..3 {
        prefix.quiet(Event::Interrupted);
        prefix.requested();
    }
    prefix.quiet(Event::Interrupted);
    assert!(prefix.is_exhausted());
}

#[tokio::test(start_paused = true)]
async fn contradictory_answer_is_abandoned() {
    let mut prefix = Prefix::requesting(FLOOR - 1);
    let outside = vec![transaction(FLOOR + 1, Vec::new())];
    let action = prefix.step(Event::Received(BackfillEvent::Transactions(outside)));
    let revision = at(FLOOR + 1);
    assert!(
        matches!(&action, Some(Action::Abandon(Abandoned::Mismatch(why))) if *why == Mismatch::Order { revision }),
        "{action:?}"
    );
    assert!(prefix.is_exhausted());
}

#[tokio::test(start_paused = true)]
async fn answer_that_differs_from_the_state_is_abandoned() {
    let mut prefix = Prefix::requesting(FLOOR - 1);
    let put = Edit::Put(entry("/c/other", "1", FLOOR - 5));
    let put = vec![transaction(FLOOR - 5, vec![(put, None)])];
    prefix.quiet(Event::Received(BackfillEvent::Transactions(put)));
    prefix.quiet(Event::Received(BackfillEvent::End));
    let action = (0..10).find_map(|_| prefix.due());
    assert!(
        matches!(action, Some(Action::Abandon(Abandoned::Mismatch(_)))),
        "{action:?}"
    );
    assert!(prefix.is_exhausted());
}

#[tokio::test(start_paused = true)]
async fn late_answer_is_ignored() {
    let mut prefix = Prefix::requesting(FLOOR - 1);
    prefix.quiet(Event::Disconnected);
    let outside = vec![transaction(FLOOR + 1, Vec::new())];
    prefix.quiet(Event::Received(BackfillEvent::Transactions(outside)));
    prefix.quiet(Event::Received(BackfillEvent::End));
    assert!(prefix.is_idle());
}

#[tokio::test(start_paused = true)]
async fn compacted_beginning_ends_the_backfill() {
    let mut prefix = Prefix::requesting(FLOOR - 5_000);
    let after = at(FLOOR - 300);
    prefix.quiet(Event::Received(BackfillEvent::Begin { after }));
    prefix.quiet(Event::Received(BackfillEvent::End));
    prefix.adopt();
    assert_eq!(prefix.floor, FLOOR - 300);
    assert!(prefix.is_exhausted());
}

#[tokio::test(start_paused = true)]
async fn batches_that_do_not_meet_the_log_end_the_backfill() {
    let mut prefix = Prefix::verifying(FLOOR - 1);
    let action = (0..10).find_map(|_| prefix.due());
    assert!(matches!(action, Some(Action::Adopt { .. })), "{action:?}");
    prefix.quiet(Event::Adopted { floor: None });
    assert!(prefix.is_exhausted());
}

#[tokio::test(start_paused = true)]
async fn full_log_ends_the_backfill() {
    let mut prefix = Prefix::started();
    prefix.floor += 1;
    prefix.request(FLOOR - 1);
    assert!(prefix.is_exhausted(), "when it is requested");

    let mut prefix = Prefix::started();
    prefix.request(FLOOR - 1);
    prefix.floor += 1;
    assert!(prefix.due().is_none());
    assert!(prefix.is_exhausted(), "when the source would be asked");

    let mut prefix = Prefix::requesting(FLOOR - 1);
    prefix.floor += 1;
    prefix.request(FLOOR - 1);
    assert!(prefix.is_exhausted(), "while the answer is received");
}

#[tokio::test(start_paused = true)]
async fn new_log_starts_anew() {
    let mut prefix = Prefix::requesting(FLOOR - 1);
    let floor = at(50);
    prefix.quiet(Event::LogStarted { floor });
    prefix.floor = 50;
    assert!(prefix.is_idle());
    assert!(prefix.reaches(49) && !prefix.reaches(50));
    prefix.request(49);
    assert_eq!(prefix.requested(), span(1, 50));
}

#[tokio::test(start_paused = true)]
async fn new_log_keeps_requests_that_it_can_reach() {
    let mut prefix = Prefix::started();
    prefix.request(FLOOR - 1);
    let before = prefix.backfill.reachable();
    let floor = at(FLOOR);
    prefix.quiet(Event::LogStarted { floor });
    assert_eq!(prefix.backfill.reachable(), before, "nobody is woken");
    assert_eq!(prefix.requested(), span(FLOOR - 1_024, FLOOR));
}

/// The batches' floor after verifying these transactions after revision 10 with a state at 20, which
/// has `/c/a` of 15 and `/c/b` of 5.
fn verified(transactions: Vec<PastTransaction>) -> Result<Revision, Mismatch> {
    let entries = vec![entry("/c/a", "2", 15), entry("/c/b", "1", 5)];
    let mut writer = writer(20, entries);
    let span = Span {
        after: at(10),
        up_to: at(20),
        last_put: Some(at(15)),
    };
    let mut received = received::Received::new(span, ROOM);
    received.begin(span.after);
    received.receive(transactions)?;
    let mut verification = received.verify();
    loop {
        if let verification::Slice::Verified { floor, .. } = verification.slice(&mut writer)? {
            return Ok(floor);
        }
    }
}

fn transaction(revision: i64, changes: Vec<(Edit, Option<Entry>)>) -> PastTransaction {
    let changes = changes.into_iter();
    let changes = changes.map(|(edit, previous)| PastChange { edit, previous });
    PastTransaction {
        revision: at(revision),
        changes: changes.collect(),
    }
}

#[test]
fn transactions_that_do_not_lead_to_the_state_are_rejected() {
    let put = |key, value: &'static str, at| Edit::Put(entry(key, value, at));
    let old = || Some(entry("/c/a", "1", 5));
    let delete = |key: &'static str, revision| Edit::Delete {
        key: Key::new(key).unwrap(),
        mod_revision: at(revision),
    };
    let right = || transaction(15, vec![(put("/c/a", "2", 15), old())]);
    let also = |at, changes| vec![right(), transaction(at, changes)];
    assert!(verified(vec![right()]).is_ok());
    let c = || Some(entry("/c/c", "1", 5));
    let with_delete = verified(also(16, vec![(delete("/c/c", 16), c())]));
    assert_eq!(with_delete, Ok(at(10)));

    let cases = [
        (
            vec![],
            Mismatch::State { revision: at(15) },
            "a put is missing",
        ),
        (
            vec![transaction(15, vec![(put("/c/a", "3", 15), old())])],
            Mismatch::State { revision: at(15) },
            "another value",
        ),
        (
            also(16, vec![(delete("/c/b", 16), Some(entry("/c/b", "1", 5)))]),
            Mismatch::State { revision: at(16) },
            "it still exists",
        ),
        (
            also(16, vec![(put("/c/c", "1", 16), None)]),
            Mismatch::State { revision: at(16) },
            "it does not exist",
        ),
        (
            also(16, vec![(delete("/c/a", 16), old())]),
            Mismatch::Previous { revision: at(16) },
            "another previous entry",
        ),
        (
            also(15, vec![]),
            Mismatch::Order { revision: at(15) },
            "twice",
        ),
        (
            also(21, vec![]),
            Mismatch::Order { revision: at(21) },
            "beyond the span",
        ),
        (
            vec![transaction(10, vec![])],
            Mismatch::Order { revision: at(10) },
            "before the span",
        ),
    ];
    for (transactions, mismatch, what) in cases {
        assert_eq!(verified(transactions), Err(mismatch), "{what}");
    }
}
