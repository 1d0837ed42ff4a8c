//! One run: a quiet start, the schedule's faults, a repair, and the end of all clients.

use std::collections::VecDeque;
use std::time::Duration;

use driftless_server::metrics::Metrics;
use driftless_server::source::scripted::Op;

use crate::checks::{Pair, Promise, Violation};
use crate::clients::client_name;
use crate::journal::{Failure, Journal};
use crate::model::PREFIX;
use crate::plant::Plant;
use crate::schedule::{Event, OUTSIDE, Schedule, Weather};
use crate::servers::server_name;
use crate::world::{Shown, World};

/// How long it may take until all clients watch, without faults.
const BEGUN_WITHIN: Duration = Duration::from_secs(20);

/// How long it may take until all hold what etcd holds once nothing is in the way any more: whoever
/// believes in a dead connection finds out after three progress intervals, or after ten seconds for a
/// first answer; then there is a backoff of five, and the next may well be spoilt by the same fault.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);

/// How long either end may believe in a connection that is none: a ping's interval and its answer's.
/// So servers may hold on to clients that are gone, if their end was lost on the way.
const LEFT_WITHIN: Duration = Duration::from_secs(30);

/// How long an idle range's revision may stand still: until the source says that nothing happened, and
/// the server does, and somebody looks.
const BOOKMARKED_WITHIN: Duration = Duration::from_secs(12);

/// Counts what happened in a run, to show that runs are worth something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) current: u64,
    pub(crate) replayed: u64,
    pub(crate) diffs: u64,
    pub(crate) snapshots: u64,
    pub(crate) patched: u64,
    pub(crate) audits: u64,
    /// Histories that were replaced.
    pub(crate) histories: u64,
    /// Runs in which it was checked that no client receives a snapshot twice.
    pub(crate) claimed: u64,
    /// Simulated seconds.
    pub(crate) seconds: u64,
}

impl std::ops::AddAssign for Report {
    fn add_assign(&mut self, other: Self) {
        self.current += other.current;
        self.replayed += other.replayed;
        self.diffs += other.diffs;
        self.snapshots += other.snapshots;
        self.patched += other.patched;
        self.audits += other.audits;
        self.histories += other.histories;
        self.claimed += other.claimed;
        self.seconds += other.seconds;
    }
}

/// Runs a seed.
pub(crate) fn run(seed: u64, plant: Plant) -> Result<Report, Failure> {
    run_with_journal(seed, plant).0
}

/// The same; with all that happened.
pub(crate) fn run_with_journal(seed: u64, plant: Plant) -> (Result<Report, Failure>, Journal) {
    let mut schedule = Schedule::of(seed);
    if plant == Plant::Forget {
        schedule.weather = Weather::Windy;
        schedule
            .events
            .retain(|(_, event)| matches!(event, Event::Write(_)));
        let middle = schedule.events.len() / 2;
        let at = schedule.events[middle].0;
        let forget = (at, Event::Reopen { client: 0 });
        schedule.events.insert(middle, forget);
    }
    let mut world = World::new(seed, plant);
    for _ in 0..schedule.servers {
        world.add_server();
    }
    for (order, seed) in &schedule.minds {
        world.add_client(order, *seed);
    }
    let journal = world.shared.journal.clone();
    let mut run = Run { world, schedule };
    run.go();
    let result = match journal.broken() {
        Some(failure) => Err(failure),
        None => Ok(run.report()),
    };
    (result, journal)
}

struct Run {
    world: World,
    schedule: Schedule,
}

impl Run {
    /// All of it, or up to the first promise that is broken.
    fn go(&mut self) {
        self.world.shared.etcd.txn([
            Op::put("/c/a", "first"),
            Op::put(Pair::LEFT, "0"),
            Op::put(Pair::RIGHT, "0"),
        ]);
        self.world.shared.note();
        let (within, promise) = (BEGUN_WITHIN, Promise::Available);
        self.expect(within, promise, "not everybody begins", |world| {
            lagging(world).is_none()
        });
        let snapshots = self.total(|metrics| metrics.syncs_snapshot.get());

        self.weather();
        self.note("all is well again");
        self.world.heal_all();
        // The last word is one of which nobody is told but by the way.
        self.world.step();
        for op in [Op::put("/c/a/last", "1"), Op::put(OUTSIDE, "1")] {
            self.world.shared.etcd.txn([op]);
            self.world.shared.note();
        }
        self.expect(SETTLED_WITHIN, Promise::Reliable, "", |world| {
            lagging(world).is_none()
        });
        if self.schedule.calm {
            self.calm();
        }
        self.check_servers(snapshots);

        self.note("everybody leaves");
        self.world.leave();
        self.expect(LEFT_WITHIN, Promise::NothingLeft, "", |world| {
            left_behind(world).is_none()
        });
    }

    /// Lets the schedule happen, one thing a tick.
    fn weather(&mut self) {
        let begin = self.world.now();
        let mut events: VecDeque<_> = self.schedule.events.clone().into();
        while let Some((at, event)) = events.front() {
            if self.is_broken() {
                return;
            }
            if begin + *at <= self.world.now() {
                self.note(event);
                self.world.happen(event);
                events.pop_front();
            }
            self.world.step();
        }
    }

    /// Ticks until it is so. Where it is not in time, the promise is broken.
    fn expect(
        &mut self,
        within: Duration,
        promise: Promise,
        what: &str,
        is_so: impl Fn(&World) -> bool,
    ) {
        if self.world.wait(within, |world| is_so(world)) {
            return;
        }
        let lagging = lagging(&self.world);
        let (promise, why) = match promise {
            Promise::NothingLeft => (promise, left_behind(&self.world).unwrap_or_default()),
            _ => match lagging {
                Some((Lag::Revision, who)) => (Promise::Bookmarked, who),
                Some((_, who)) => (promise, who),
                None => (promise, String::new()),
            },
        };
        let what = format!("{what} {why}, {within:?} later");
        let violation = Violation::new(promise, what.trim_start());
        self.world.shared.journal.check("the end", Err(violation));
    }

    /// With nothing wrong and nothing to tell, streams stay, and their revisions move on.
    fn calm(&mut self) {
        let step = |_: &mut World| false;
        self.world.wait(LEFT_WITHIN, step);
        let begun = self.streams();
        self.world.shared.etcd.txn([Op::put(OUTSIDE, "2")]);
        self.world.shared.note();
        self.expect(BOOKMARKED_WITHIN, Promise::Bookmarked, "", |world| {
            lagging(world).is_none()
        });
        self.world.wait(BOOKMARKED_WITHIN, step);
        let more = self.streams() - begun;
        if more > 0 {
            let what = format!("{more} streams were begun anew, with nothing wrong");
            let violation = Violation::new(Promise::Available, what);
            self.world.shared.journal.check("the end", Err(violation));
        }
    }

    /// How many were ever answered.
    fn streams(&self) -> u64 {
        self.total(|metrics| {
            let counters = [
                &metrics.syncs_current,
                &metrics.syncs_replay,
                &metrics.syncs_diff,
                &metrics.syncs_snapshot,
            ];
            counters.iter().map(|counter| counter.get()).sum()
        })
    }

    /// What servers counted.
    fn check_servers(&mut self, snapshots: u64) {
        let journal = self.world.shared.journal.clone();
        let differed = self.total(|metrics| metrics.audit_differences.get());
        if differed > 0 {
            let what = format!("{differed} audits found a difference");
            journal.check("the end", Err(Violation::new(Promise::SelfVerifying, what)));
        }
        let more = self.total(|metrics| metrics.syncs_snapshot.get()) - snapshots;
        if self.schedule.weather == Weather::Windy && more > 0 {
            let what = format!("{more} who were there before were sent everything");
            journal.check("the end", Err(Violation::new(Promise::Resumable, what)));
        }
    }

    fn is_broken(&self) -> bool {
        self.world.shared.journal.is_broken()
    }

    fn note(&self, line: impl std::fmt::Display) {
        self.world.shared.journal.note(line);
    }

    fn total(&self, count: impl Fn(&Metrics) -> u64) -> u64 {
        let servers = self.world.servers.iter();
        servers
            .flat_map(|server| server.lives())
            .map(|life| count(&life))
            .sum()
    }

    fn report(&self) -> Report {
        Report {
            current: self.total(|metrics| metrics.syncs_current.get()),
            replayed: self.total(|metrics| metrics.syncs_replay.get()),
            diffs: self.total(|metrics| metrics.syncs_diff.get()),
            snapshots: self.total(|metrics| metrics.syncs_snapshot.get()),
            patched: self.total(|metrics| metrics.deltas_computed.get()),
            audits: self.total(|metrics| metrics.audits.get()),
            histories: self.world.shared.etcd.history(),
            claimed: u64::from(self.schedule.weather == Weather::Windy),
            seconds: self.world.now().as_secs(),
        }
    }
}

/// How a watcher differs from etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lag {
    Absent,
    State,
    Revision,
}

/// Who is, and how.
fn lagging(world: &World) -> Option<(Lag, String)> {
    let (etcd, board) = (&world.shared.etcd, world.shared.board());
    if board.len() < world.watchers() {
        let missing = world.watchers() - board.len();
        return Some((Lag::Absent, format!("{missing} watchers show nothing")));
    }
    let all = driftless_client::KeyRange::prefix(PREFIX).unwrap();
    let pair = Pair::of(&etcd.state(&all));
    // A different state says more than a lower revision.
    let mut found = None;
    for ((client, _), shown) in board.iter() {
        let name = client_name(*client);
        match shown {
            Shown::Pair(shown) if *shown != pair => {
                return Some((Lag::State, format!("{name} {} is behind", Pair::PREFIX)));
            }
            Shown::Entries(range, entries) if !entries.iter().eq(etcd.state(range).iter()) => {
                return Some((Lag::State, format!("{name} {range} is behind")));
            }
            Shown::Entries(range, entries) if entries.revision() != etcd.revision() => {
                let (at, of) = (entries.revision(), etcd.revision());
                let who = format!("{name} {range} is at revision {at} of {of}");
                found = Some((Lag::Revision, who));
            }
            Shown::Pair(_) | Shown::Entries(..) => {}
        }
    }
    found
}

/// What servers still hold of clients that have gone.
fn left_behind(world: &World) -> Option<String> {
    let servers = world.servers.iter().enumerate();
    let mut all = servers.flat_map(|(number, server)| {
        let name = server_name(number);
        server.lives().into_iter().map(move |life| (name, life))
    });
    all.find_map(|(name, life)| {
        let held = [
            ("connections", life.connections.get()),
            ("streams", life.streams.get()),
            ("scopes", life.scopes.get()),
            ("answers", life.syncs_in_progress.get()),
        ];
        let (what, count) = held.into_iter().find(|(_, count)| *count != 0)?;
        Some(format!("{name} holds {count} {what}"))
    })
}
