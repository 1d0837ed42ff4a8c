//! The promises, checked on a simulated network: several servers, clients that use any of them, and
//! failures of networks, machines and etcd.
//!
//! # What is simulated
//!
//! Each server and each client is the real code, on its own host of `turmoil`, all in one thread. The
//! network loses, holds and delays bytes, and time passes as fast as it can be computed. Servers are
//! killed, vanish silently, or are told to stop, and start again. etcd is the scripted model, outside of
//! the network: servers lose it together or alone; it compacts its history, is restored from a backup, or
//! is replaced by another cluster. Two or three clients have all servers as endpoints, each in its own
//! order. They watch nested prefixes, keys, and a struct whose two fields are written in one transaction.
//! Transactions go on all the time.
//!
//! Every state of a watcher is compared with the record of etcd's states, see [`checks`]. At the end all
//! faults are repaired, and all clients must reach etcd's state; idle ranges must reach its revision. Some
//! runs also check that streams stay open and revisions move while nothing is wrong. Then the clients
//! leave, and no server may keep anything of them.
//!
//! There are two kinds of runs. In the first, only networks and etcd's connections fail, and no client
//! that was there before may receive a snapshot. In the second, everything above happens.
//!
//! One case is left out, see [`limits`]: a server that cannot reach etcd while its history is replaced.
//!
//! # Running a seed again
//!
//! The seed decides the hosts, the schedule, the order of each client's endpoints, which one it dials
//! first, and how long it backs off. So `DRIFTLESS_SEED=17 cargo test -p driftless --test simulation`
//! repeats a run, nearly always to the last line of its journal. `DRIFTLESS_SEEDS=5000` runs that many
//! instead of [`SEEDS`]. The seed does not decide tokio's own choices (which of two woken tasks runs
//! first), when audits take place, and whether a delta is computed in time on its own thread. If a failure
//! does not repeat, run its seed a few times.
//!
//! The schedule decides the latency of messages, to a tick. A random latency would depend on the number of
//! messages before. A network that fails loses the messages that are under way.
//!
//! A failure prints the broken promise, the watcher, the time, and what happened before: the events of the
//! schedule, the dials, the statuses of watchers and their revisions.
//!
//! # Controls
//!
//! A check that cannot fail proves nothing. So faults are planted, and each must be found as what it is:
//! below in whole runs, and in [`checks`] one by one.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "../model/mod.rs"]
mod model;

mod checks;
mod clients;
mod journal;
mod limits;
mod plant;
mod run;
mod schedule;
mod servers;
mod starts;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use checks::Promise;
use plant::Plant;
use run::{Report, run, run_with_journal};

/// How many runs: an hour or two of simulated time, in some seconds. `make simulation` runs more.
const SEEDS: u64 = 50;

/// With this many seeds, each kind of event must have happened in at least one run.
const ENOUGH: u64 = 50;

/// How many seeds a planted fault may take to be found.
const CONTROLS: u64 = 5;

/// How many seeds are repeated, and how often until two runs are equal: one of sixty differed at first.
const REPEATED: u64 = 2;
const ATTEMPTS: u64 = 3;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|error| panic!("{variable} is no number: {error}")))
}

/// Runs it, and says how to run it again where it fails.
fn attempt(seed: u64) -> Result<Report, String> {
    let again = || {
        format!(
            "run it again: DRIFTLESS_SEED={seed} cargo test -p driftless --test simulation every_promise"
        )
    };
    match catch_unwind(AssertUnwindSafe(|| run(seed, Plant::None))) {
        Ok(Ok(report)) => Ok(report),
        Ok(Err(failure)) => Err(format!("seed {seed}, {failure}{}", again())),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
            let text = text.unwrap_or_default();
            Err(format!("seed {seed} panicked: {text}\n{}", again()))
        }
    }
}

#[test]
fn every_promise_holds_under_random_failures() {
    if let Some(seed) = number("DRIFTLESS_SEED") {
        let report = attempt(seed).unwrap_or_else(|failure| panic!("{failure}"));
        println!("{report:?}");
        return;
    }
    let seeds = number("DRIFTLESS_SEEDS").unwrap_or(SEEDS);
    let (next, total) = (AtomicU64::new(0), Mutex::new(Report::default()));
    let failures = Mutex::new(std::collections::BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds || !failures.lock().unwrap().is_empty() {
                        return;
                    }
                    match attempt(seed) {
                        Ok(report) => *total.lock().unwrap() += report,
                        Err(failure) => drop(failures.lock().unwrap().insert(seed, failure)),
                    }
                }
            });
        }
    });
    if let Some((_, failure)) = failures.into_inner().unwrap().pop_first() {
        panic!("{failure}");
    }
    let total = total.into_inner().unwrap();
    println!("{total:?}");
    if seeds >= ENOUGH {
        let Report {
            current,
            replayed,
            diffs,
            snapshots,
            patched,
            audits,
            histories,
            claimed,
            seconds,
        } = total;
        let all = [
            ("current", current),
            ("replayed", replayed),
            ("diffs", diffs),
            ("snapshots", snapshots),
            ("patched", patched),
            ("audits", audits),
            ("histories", histories),
            ("claimed", claimed),
            ("seconds", seconds),
        ];
        for (what, count) in all {
            assert!(
                count > 0,
                "{what}: this never happened, so nothing was shown of it"
            );
        }
    }
}

/// Checks that the planted fault breaks this promise with one of a few seeds.
fn control(plant: Plant, promise: Promise) {
    let mut others = Vec::new();
    for seed in 0..CONTROLS {
        match run(seed, plant) {
            Err(failure) if failure.violation.promise == promise => return,
            other => others.push(other.err().map(|failure| failure.violation)),
        }
    }
    panic!("{plant:?} was not found as what it is: {others:?}");
}

#[test]
fn control_missed_change_is_found() {
    control(Plant::Swallow, Promise::Reliable);
}

#[test]
fn control_split_transaction_is_found() {
    control(Plant::Split, Promise::Atomic);
}

#[test]
fn control_frozen_revision_is_found() {
    control(Plant::Silence, Promise::Bookmarked);
}

#[test]
fn control_kept_watcher_is_found() {
    control(Plant::Keep, Promise::NothingLeft);
}

#[test]
fn control_forgetful_client_is_found() {
    control(Plant::Forget, Promise::Resumable);
}

#[test]
fn control_wrong_record_is_found() {
    control(Plant::WrongRecord, Promise::Reliable);
}

/// A failure shows what broke, at which client, when, and what happened before.
#[test]
fn failure_shows_what_happened_before() {
    let failure = run(0, Plant::WrongRecord).unwrap_err().to_string();
    for part in [
        "Reliable is broken: client-",
        "etcd: put",
        "reaches server-",
    ] {
        assert!(failure.contains(part), "{part} is missing in:\n{failure}");
    }
}

/// To the last line, except in the few runs in which tokio's own choices differ.
#[test]
fn seed_repeats_its_run() {
    let lines = |seed| {
        let (result, journal) = run_with_journal(seed, Plant::None);
        result.unwrap_or_else(|failure| panic!("{failure}"));
        let lines = journal.lines();
        assert!(lines.len() > 100, "much happens: {lines:?}");
        lines
    };
    for seed in 0..REPEATED {
        let mut attempts = 0..ATTEMPTS;
        let same = attempts.any(|_| lines(seed) == lines(seed));
        assert!(same, "seed {seed} went another way each time");
    }
    assert_ne!(lines(0), lines(1));
}
