//! Measures what watchers cost their process: memory, descriptors, and CPU for each change.
//!
//! `cargo bench -p driftless --bench footprint`. Uses a real etcd and a real server. The watching process is
//! this program again, without anything else. Prints a table and asserts nothing.
#![allow(clippy::unwrap_used, reason = "a benchmark may fail by panicking")]
#![allow(clippy::print_stdout, reason = "the table")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use driftless_client::{Client, Watcher};
use driftless_test_support::{Driftless, Etcd, guarded, proc};

/// The program under test.
const DRIFTLESS: Driftless = Driftless::at(env!("CARGO_BIN_EXE_driftless"));

/// Why something could not be measured.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The hidden argument of the watching process.
const WATCH: &str = "__watch";

/// How long a process is idle before its memory is measured.
const SETTLE: Duration = Duration::from_secs(1);

/// How long the idle cost is measured: two of the server's progress intervals.
const IDLE: Duration = Duration::from_secs(20);

/// How many changes each case is shown, one after the other.
const CHANGES: usize = 2000;

/// Watchers, and how many ranges they share.
const CASES: [(&str, usize, usize); 4] = [
    ("1 watcher", 1, 1),
    ("1,000 watchers of one key", 1000, 1),
    ("100 watchers of 100 keys", 100, 100),
    ("1,000 watchers of 1,000 keys", 1000, 1000),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some(WATCH) => watch(&arguments[1], &arguments[2], &arguments[3]),
        // `cargo bench` adds this argument. Without it, nobody wants to measure.
        Some("--bench") => measure().unwrap(),
        _ => {}
    }
}

/// A key of the case.
fn key(n: usize) -> String {
    format!("/bench/key/{n:04}")
}

/// Watches and says so, and says again when it has seen so many changes.
fn watch(server: &str, watchers: &str, ranges: &str) {
    let (watchers, ranges): (usize, usize) = (watchers.parse().unwrap(), ranges.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let client = Client::connect(server).unwrap();
        let mut lines = BufReader::new(std::io::stdin()).lines();
        println!("empty");
        lines.next().unwrap().unwrap();
        let mut held: Vec<Watcher<u64>> = Vec::new();
        for n in 0..watchers {
            held.push(client.watch(key(n % ranges)).await.unwrap());
        }
        println!("watching");
        lines.next().unwrap().unwrap();
        // The last key that is put is that of the first range.
        let last = u64::try_from(CHANGES).unwrap();
        while *held[0].load() != last {
            held[0].changed().await.unwrap();
        }
        println!("seen");
        lines.next().unwrap().unwrap();
    });
}

/// The process that watches; it ends when this is dropped.
struct Watching {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Watching {
    fn start(server: &str, watchers: usize, ranges: usize) -> Self {
        let mut child = guarded(std::env::current_exe().unwrap())
            .args([WATCH, server, &watchers.to_string(), &ranges.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    fn hear(&mut self, expected: &str) {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), expected, "the process that watches");
    }

    fn go_on(&mut self) {
        writeln!(self.child.stdin.as_mut().unwrap()).unwrap();
    }

    fn usage(&self) -> Result<proc::Usage, Failure> {
        proc::usage(i32::try_from(self.child.id())?)
    }

    fn count(&self, what: &str) -> usize {
        let folder = format!("/proc/{}/{what}", self.child.id());
        std::fs::read_dir(folder).unwrap().count()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn measure() -> Result<(), Failure> {
    println!(
        "| | KiB more than without, all | for each | descriptors more | threads more | CPU, idle | CPU for a change |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for (name, watchers, ranges) in CASES {
        let etcd = Etcd::started_for_a_benchmark();
        let server = DRIFTLESS.serve(&etcd, &["/bench/"]);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let mut puts = runtime.block_on(etcd_client::Client::connect([etcd.url()], None))?;
        let mut put = |n: usize, value: usize| -> Result<(), Failure> {
            runtime.block_on(puts.put(key(n), value.to_string(), None))?;
            Ok(())
        };
        for n in 0..ranges {
            put(n, 0)?;
        }
        let mut watching = Watching::start(&server.url(), watchers, ranges);
        watching.hear("empty");
        std::thread::sleep(SETTLE);
        let empty = watching.usage()?;
        let counts = |watching: &Watching| (watching.count("fd"), watching.count("task"));
        let (descriptors, threads) = counts(&watching);
        watching.go_on();
        watching.hear("watching");
        std::thread::sleep(SETTLE);
        let held = watching.usage()?;
        let (more_descriptors, more_threads) = counts(&watching);
        std::thread::sleep(IDLE);
        let idle = watching.usage()?;
        watching.go_on();
        let start = Instant::now();
        for n in 1..=CHANGES {
            // All keys in turn, and at the end the first.
            put((CHANGES - n) % ranges, n)?;
        }
        watching.hear("seen");
        let took = start.elapsed();
        let seen = watching.usage()?;
        let more = held.rss_kib - empty.rss_kib;
        println!(
            "| {name} | {more:.0} | {:.1} | {} | {} | {:.3} % | {:.0} µs ({:.0} changes/s) |",
            more / watchers as f64,
            more_descriptors - descriptors,
            more_threads - threads,
            (idle.cpu_ms - held.cpu_ms) / IDLE.as_secs_f64() / 10.0,
            (seen.cpu_ms - idle.cpu_ms) * 1000.0 / CHANGES as f64,
            CHANGES as f64 / took.as_secs_f64(),
        );
    }
    Ok(())
}
