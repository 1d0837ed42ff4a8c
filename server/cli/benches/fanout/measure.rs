//! One run: starts fresh processes, applies the load, and measures the cost of each process.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use driftless_test_support::guarded;
use driftless_test_support::proc::{self, Usage};

use crate::contenders::{Contender, ETCD_WATCHERS, World};
use crate::plan::{GO, Job, LOAD_COMMAND, Outcome, Plan, Said};
use crate::report::{self, Results};
use crate::row::{self, Row};
use crate::scenarios::{Scenario, Selection};
use crate::{Failure, machine};

/// How long processes are idle before their memory is measured. Work after the last connection or change
/// (allocators, garbage collection) is over by then.
const SETTLE: Duration = Duration::from_secs(1);

/// How many streams there have to be for memory per stream to mean something: what a process grows by
/// besides is then small for each.
const ENOUGH: usize = 100;

/// Counters of the server under names that say more.
const RENAMED: [(&str, &str); 1] = [("chunks_encoded", "snapshot_chunks_encoded")];

/// Counters that make a column of their own, by difference.
const COUNTS: [&str; 10] = [
    "changes",
    "changes_encoded",
    "frames_encoded",
    "chunks_encoded",
    "syncs_current",
    "syncs_replay",
    "syncs_snapshot",
    "syncs_deferred",
    "conflated",
    "sent_bytes",
];

/// Measures everything that was selected, and writes it down.
pub(crate) fn run(selection: &Selection) -> Result<(), Failure> {
    let start = Instant::now();
    let scenarios = selection.scenarios();
    if scenarios.is_empty() {
        return Err("nothing of that name is measured here".into());
    }
    let mut results = Results::begin();
    for scenario in &scenarios {
        for row in rows(scenario) {
            results.push(row);
        }
        // A run that is broken off leaves what it has.
        results.save()?;
    }
    results.finish(start.elapsed())
}

/// Runs the contenders in turn, repeatedly, so that other load on the machine affects all of them.
fn rows(scenario: &Scenario) -> Vec<Row> {
    let mut runs: Vec<Vec<Row>> = vec![Vec::new(); scenario.contenders.len()];
    for repeat in 0..scenario.repeats {
        for (&contender, runs) in scenario.contenders.iter().zip(&mut runs) {
            report::progress(&format!(
                "{} of {} subscribers, {} ({} of {})",
                scenario.name,
                scenario.subscribers(),
                contender.name(),
                repeat + 1,
                scenario.repeats
            ));
            let missing = |why| {
                Row::missing(
                    contender.name(),
                    &scenario.name,
                    scenario.subscribers(),
                    why,
                )
            };
            let run = match too_large(scenario) {
                Some(why) => missing(why),
                None => {
                    attempt(contender, scenario).unwrap_or_else(|error| missing(error.to_string()))
                }
            };
            if let Some(why) = &run.missing {
                report::complain(&format!("  not measured: {why}"));
            }
            runs.push(run);
        }
    }
    let mut rows: Vec<Row> = runs.iter().filter_map(|runs| Row::median(runs)).collect();
    if scenario.job == Job::Read {
        rows = rows.iter().flat_map(ways_of_reading).collect();
    }
    rows
}

/// Why the system does not let this be measured.
fn too_large(scenario: &Scenario) -> Option<String> {
    let most = machine::most_connections();
    (scenario.connections > most).then(|| {
        format!(
            "{} connections, and the hard limit on descriptors allows {most}: raise it (ulimit -Hn)",
            scenario.connections
        )
    })
}

/// As [`once`]. Code shared with the tests panics when a process misbehaves; that fails only one row.
fn attempt(contender: Contender, scenario: &Scenario) -> Result<Row, Failure> {
    std::panic::catch_unwind(|| once(contender, scenario))
        .unwrap_or_else(|_| Err("a process did not do what it should, see above".into()))
}

fn once(contender: Contender, scenario: &Scenario) -> Result<Row, Failure> {
    let mut world = World::start(contender, scenario)?;
    std::thread::sleep(SETTLE);
    let empty = world.usage()?;
    let mut load = Load::start(&Plan {
        speaks: contender.speaks(),
        subscribe: world.subscribe()?,
        put: world.put()?,
        job: scenario.job,
        connections: scenario.connections,
        streams: scenario.streams,
        payload: scenario.payload,
        changes: scenario.changes,
        period_us: (1e6 / scenario.per_second.max(1.0)) as u64,
    })?;
    let Said::Ready = load.hear()? else {
        return Err("the generator did not get ready".into());
    };
    if scenario.job == Job::Return {
        world = world.restart_server()?;
    }
    std::thread::sleep(SETTLE);
    let idle = world.usage()?;
    for (_, pid) in world.processes() {
        proc::forget_peak(pid)?;
    }

    let counted = world.counters();
    let before = world.usage()?;
    load.go()?;
    let Said::Done(mut outcome) = load.hear()? else {
        return Err("the generator did not get done".into());
    };
    if contender == Contender::Library {
        // Its watchers report the newest value and skip those in between. The server sent all of them.
        outcome.delivered = (scenario.changes * scenario.subscribers()) as u64;
    }
    let after = world.usage()?;
    let counters = world.counters();
    std::thread::sleep(SETTLE);
    let settled = world.usage()?;

    load.go()?;
    let Said::Verified(verified) = load.hear()? else {
        return Err("the generator did not verify".into());
    };
    if verified != scenario.subscribers() {
        return Err(format!("only {verified} subscribers hold the final state").into());
    }
    let spent = Spent {
        empty: if scenario.job == Job::Return {
            None
        } else {
            Some(empty)
        },
        idle,
        before,
        after,
        settled,
    };
    let mut figures = figures(scenario, &spent, &outcome);
    let counting = scenario.job != Job::Read;
    for name in COUNTS.into_iter().filter(|_| counting) {
        if let (Some(old), Some(new)) = (counted.get(name), counters.get(name)) {
            let renamed = RENAMED.iter().find(|(from, _)| *from == name);
            let name = renamed.map_or(name, |(_, to)| to);
            figures.insert(name.to_owned(), new - old);
        }
    }
    if let Some(watchers) = counters.get(ETCD_WATCHERS).filter(|_| counting) {
        figures.insert(ETCD_WATCHERS.to_owned(), *watchers);
    }
    Ok(Row {
        contender: contender.name().to_owned(),
        scenario: scenario.name.clone(),
        subscribers: scenario.subscribers(),
        figures,
        missing: None,
    })
}

/// The cost of each process at five moments, by name.
struct Spent {
    /// Before there were subscribers; `None` when these are other processes than later.
    empty: Option<BTreeMap<&'static str, Usage>>,
    /// With subscribers, before the load.
    idle: BTreeMap<&'static str, Usage>,
    before: BTreeMap<&'static str, Usage>,
    after: BTreeMap<&'static str, Usage>,
    /// A while after the load.
    settled: BTreeMap<&'static str, Usage>,
}

fn figures(scenario: &Scenario, spent: &Spent, outcome: &Outcome) -> BTreeMap<String, f64> {
    let mut figures: BTreeMap<String, f64> = outcome.more.iter().cloned().collect();
    let mut set = |name: &str, figure: f64| {
        figures.insert(name.to_owned(), figure);
    };
    if scenario.job == Job::Read {
        return figures;
    }
    let streams = scenario.subscribers() + scenario.unrelated();
    let deliveries = outcome.delivered.max(1) as f64;
    let follows = matches!(scenario.job, Job::Follow { .. });
    let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
    for (&name, after) in &spent.after {
        let (before, settled) = (spent.before[name], spent.settled[name]);
        let cpu = (after.cpu_ms - before.cpu_ms) * 1000.0 / deliveries;
        let switches = (after.switches - before.switches) / deliveries;
        set(&format!("{name}_{}", row::CPU), cpu);
        set(&format!("{name}_switches_per_delivery"), switches);
        *sums.entry(row::CPU).or_default() += cpu;
        *sums.entry("switches_per_delivery").or_default() += switches;
        // With the server restarted, it had no subscribers when it was idle.
        let empty = spent.empty.as_ref().unwrap_or(&spent.idle)[name].rss_kib;
        let memory = [
            (row::RSS_IDLE, spent.idle[name].rss_kib, follows),
            (row::RSS_AFTER, settled.rss_kib, true),
            (row::RSS_PEAK, settled.peak_kib, true),
        ];
        for (figure, rss, known) in memory {
            if known && streams >= ENOUGH {
                let each = (rss - empty) / streams as f64;
                set(&format!("{name}_{figure}"), each);
                *sums.entry(figure).or_default() += each;
            }
        }
    }
    for (name, sum) in sums {
        set(name, sum);
    }
    if outcome.bytes > 0 {
        set(row::WIRE, outcome.bytes as f64 / deliveries);
    }
    set(row::P50, outcome.p50_ms);
    set(row::P99, outcome.p99_ms);
    set("max_ms", outcome.max_ms);
    set("wall_ms", outcome.wall_ms);
    set("deliveries", outcome.delivered as f64);
    set(
        "generator_cpu_us_per_delivery",
        outcome.generator_cpu_ms * 1000.0 / deliveries,
    );
    figures
}

/// The row of reads as one row for each way to read.
fn ways_of_reading(row: &Row) -> Vec<Row> {
    if row.missing.is_some() {
        return vec![row.clone()];
    }
    let ways = row.figures.iter().filter(|(name, _)| *name != "runs");
    ways.map(|(name, nanos)| Row {
        contender: name.clone(),
        figures: BTreeMap::from([("ns_per_read".to_owned(), *nanos)]),
        ..row.clone()
    })
    .collect()
}

/// The load generator; it ends when this is dropped.
struct Load {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Load {
    fn start(plan: &Plan) -> Result<Self, Failure> {
        let mut child = guarded(std::env::current_exe()?)
            .arg(LOAD_COMMAND)
            .arg(serde_json::to_string(plan)?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take().ok_or("no input")?;
        let output = BufReader::new(child.stdout.take().ok_or("no output")?);
        Ok(Self {
            child,
            input,
            output,
        })
    }

    /// The generator's next message. The generator has deadlines, so this ends.
    fn hear(&mut self) -> Result<Said, Failure> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        if line.is_empty() {
            return Err(format!("the generator ended: {}", self.child.wait()?).into());
        }
        match serde_json::from_str(&line)? {
            Said::Failed(why) => Err(why.into()),
            said => Ok(said),
        }
    }

    fn go(&mut self) -> Result<(), Failure> {
        Ok(writeln!(self.input, "{GO}")?)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
