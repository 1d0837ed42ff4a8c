//! Runs the scenarios, each in a process of its own, and prints the results.

use std::collections::VecDeque;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode, Output, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_current_process_group, kill_process_group};

use leak_tests::{HEAP_PROFILE, Record, rounds, write_report};

use crate::options::{Budget, Options};
use crate::scenario::{Pace, Scenario};
use crate::scenarios;

/// What comes before the record in a process's output.
const RECORD: &str = "record: ";

/// The witness whose leaks a heap profile explains.
const BYTES: &str = "allocated bytes";

/// How long a scenario may take when all of its allocations are recorded.
const BRIEFLY: Duration = Duration::from_secs(4);

/// How many rounds run then: enough for what was found already.
const PROFILED: u64 = 200;

/// How many scenarios that mostly wait run at a time, beside those that work.
const WAITING_JOBS: usize = 4;

/// What a scenario may take besides its rounds: to set up, for a round that hangs, and for the minute that
/// a short one's repeat takes.
const BESIDE_ROUNDS: Duration = Duration::from_secs(300);

/// The rounds, and as long again where something grew.
const WITH_REPEAT: u32 = 2;

/// How much of a failed process's output is kept, in bytes from its end.
const MOST_WORDS: usize = 2000;

/// Runs one here and prints its record.
pub(crate) fn here(name: &str, options: &Options) -> ExitCode {
    let Some(scenario) = scenarios().find(|scenario| scenario.name == name) else {
        eprintln!("there is no scenario \"{name}\"; --list names them");
        return ExitCode::from(2);
    };
    let Budget::Each(each) = options.budget else {
        eprintln!("one scenario takes --milliseconds-each, not --minutes");
        return ExitCode::from(2);
    };
    if options.until_stdin_ends {
        std::thread::spawn(end_with_stdin);
    }
    let rounds = rounds(options.rounds).named(name).within(each);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
    let outcome = runtime.block_on((scenario.run)(rounds));
    let record = Record::new(&outcome, scenario.about).fault_for(scenario.fault_for);
    println!("{RECORD}{}", serde_json::to_string(&record).unwrap());
    ExitCode::SUCCESS
}

/// Ends this process and its children when its standard input ends: with the process that started it,
/// which may be killed, or interrupted by a terminal that does not know this one.
fn end_with_stdin() {
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    let _ = kill_current_process_group(Signal::KILL);
}

/// Runs all selected scenarios, writes the report, and prints how many passed.
pub(crate) fn all(options: &Options) -> ExitCode {
    let start = Instant::now();
    let wanted: Vec<&Scenario> = scenarios().filter(|s| options.wants(s)).collect();
    // Not where cargo asks every test program for a name that some other one has.
    if wanted.is_empty() && options.for_this_suite {
        eprintln!("no scenario is called so; --list names them");
        return ExitCode::from(2);
    }
    let left_out = scenarios().count() - wanted.len();
    println!("\nrunning {} scenarios", wanted.len());
    let done: Mutex<Vec<(usize, Record)>> = Mutex::default();
    let run = |index: usize, scenario: &Scenario, each: Duration| {
        let begun = Instant::now();
        let record = one(scenario, options, each);
        tell(&record, begun.elapsed());
        done.lock().unwrap().push((index, record));
    };
    let of_pace = |pace| {
        let all = wanted.iter().enumerate();
        let these = all.filter(move |(_, scenario)| options.pace(scenario) == pace);
        these.collect::<VecDeque<_>>()
    };
    let soaking = of_pace(Pace::Soaks);
    let working = options.jobs.saturating_sub(soaking.len()).max(1);
    let queues = [
        (working, Mutex::new(of_pace(Pace::Works))),
        (WAITING_JOBS, Mutex::new(of_pace(Pace::Waits))),
    ];
    std::thread::scope(|scope| {
        for (index, scenario) in soaking {
            let run = &run;
            scope.spawn(move || run(index, scenario, options.whole()));
        }
        for (jobs, queue) in &queues {
            for _ in 0..*jobs {
                scope.spawn(|| {
                    loop {
                        let (next, left) = {
                            let mut queue = queue.lock().unwrap();
                            (queue.pop_front(), queue.len() + 1)
                        };
                        let Some((index, scenario)) = next else {
                            return;
                        };
                        let each = options.next(left, *jobs, start.elapsed());
                        run(index, scenario, each);
                    }
                });
            }
        }
    });
    let mut done = done.into_inner().unwrap();
    done.sort_by_key(|(index, _)| *index);
    let records: Vec<Record> = done.into_iter().map(|(_, record)| record).collect();
    if let Some(folder) = &options.report {
        let title = "Driftless: what is dropped is gone";
        match write_report(folder, title, &records) {
            Ok(()) => println!("\nreport: {}", folder.join("index.html").display()),
            Err(error) => {
                eprintln!("{}: {error}", folder.display());
                return ExitCode::FAILURE;
            }
        }
    }
    summary(
        &records,
        left_out,
        start.elapsed(),
        options.report.is_some(),
    )
}

/// Runs one in a process of its own, and for a report once more where it grew.
fn one(scenario: &Scenario, options: &Options, each: Duration) -> Record {
    let mut record = in_a_process(scenario, options.rounds, each, &[]);
    let grew = record.noticed_by.iter().any(|name| name == BYTES);
    if grew && options.report.is_some() {
        // Slowly, minutes where much is set up, to say where.
        let rounds = options.rounds.min(PROFILED);
        record.stacks = in_a_process(scenario, rounds, BRIEFLY, &[HEAP_PROFILE]).stacks;
    }
    record
}

/// One line for each, and more where it failed.
fn tell(record: &Record, took: Duration) {
    let verdict = if record.passed() { "ok" } else { "FAILED" };
    // Whole lines: several threads tell.
    let mut line = format!("test {} ... {verdict}", record.name);
    let seconds = took.as_secs();
    line += &format!(
        " ({} rounds, {seconds} s: {})",
        record.rounds,
        record.verdict()
    );
    for stack in record.stacks.iter().filter(|_| !record.passed()) {
        line += &format!("\n{stack}");
    }
    line.push('\n');
    let _ = std::io::stdout().lock().write_all(line.as_bytes());
}

fn summary(records: &[Record], left_out: usize, took: Duration, for_people: bool) -> ExitCode {
    let failed: Vec<&Record> = records.iter().filter(|record| !record.passed()).collect();
    if !failed.is_empty() {
        println!("\nfailures:");
        for record in &failed {
            println!("    {}", record.name);
        }
    }
    let passed = records.len() - failed.len();
    let word = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {passed} passed; {} failed; 0 ignored; 0 measured; {left_out} filtered out; \
         finished in {:.2}s\n",
        failed.len(),
        took.as_secs_f64(),
    );
    if for_people {
        let names: Vec<&str> = failed.iter().map(|record| record.name.as_str()).collect();
        let which = if names.is_empty() { "" } else { ": " };
        let names = names.join(", ");
        let passes = records.iter().filter(|record| record.passed());
        let few = passes.filter(|record| record.fault_for.is_empty() && !record.can_judge_growth());
        match few.count() {
            0 => {}
            few => println!("{few} of them had too few rounds to tell of growth"),
        }
        println!("{passed} passed, {} failed{which}{names}", failed.len());
    }
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        // As other test programs do.
        ExitCode::from(101)
    }
}

fn in_a_process(
    scenario: &Scenario,
    rounds: u64,
    each: Duration,
    variables: &[(&str, &str)],
) -> Record {
    let failed = |why: String| {
        Record::failed(scenario.name, scenario.about, why).fault_for(scenario.fault_for)
    };
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return failed(format!("this program is not found: {error}")),
    };
    let mut command = Command::new(program);
    command
        .args(["--here", scenario.name])
        .args(["--rounds", &rounds.to_string()])
        .args(["--milliseconds-each", &each.as_millis().to_string()])
        .arg("--until-stdin-ends")
        // What it says last is to be the reason.
        .env("RUST_BACKTRACE", "0")
        .envs(variables.iter().copied());
    let within = each * WITH_REPEAT + BESIDE_ROUNDS;
    let output = match ended_within(command, within) {
        Ok(Some(output)) => output,
        Ok(None) => return failed(format!("it did not end within {within:?}")),
        Err(error) => return failed(format!("it does not start: {error}")),
    };
    let said = String::from_utf8_lossy(&output.stdout);
    let record = said.lines().find_map(|line| line.strip_prefix(RECORD));
    match record.and_then(|record| serde_json::from_str(record).ok()) {
        Some(record) if output.status.success() => record,
        _ => {
            let words = String::from_utf8_lossy(&output.stderr);
            let from = words.len().saturating_sub(MOST_WORDS);
            let end = words.char_indices().find(|(at, _)| *at >= from);
            let words = end.map_or("", |(at, _)| &words[at..]);
            failed(format!("{}: {}", output.status, words.trim()))
        }
    }
}

/// Runs it in its own process group, which is killed afterwards. `None` when it took too long. Its
/// standard input ends when this process does, however that happens.
fn ended_within(mut command: Command, within: Duration) -> std::io::Result<Option<Output>> {
    command.process_group(0);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let group = Pid::from_child(&child);
    // Otherwise it would be closed while the child is waited for.
    let alive = child.stdin.take();
    let (tell, ended) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || drop(tell.send(child.wait_with_output())));
        let output = ended.recv_timeout(within);
        // None is left, unless something went wrong.
        let _ = kill_process_group(group, Signal::KILL);
        drop(alive);
        output.ok().transpose()
    })
}
