//! The leak suite: scenarios that must not leak, and controls that must, each in its own process.
//!
//! Without arguments, as `cargo test` runs it, it runs a short list with few rounds. `make leak-tests`
//! runs all scenarios with many, and writes a report. The program runs itself once for each scenario:
//! counts are those of the whole process, and what one scenario has warmed up must not hide what another
//! one leaks.
#![allow(clippy::unwrap_used, reason = "a panic is how a scenario fails")]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test's own main: its output is the result"
)]

#[path = "../common/mod.rs"]
mod common;

mod blocked_workers;
mod changes;
mod client;
mod controls;
mod endings;
mod handles;
mod metrics;
mod mixed;
mod on_etcd;
mod one_way;
mod options;
mod outages;
mod peers;
mod readers;
mod returning;
mod runner;
mod scenario;
mod scripted;
mod server;
mod shutdowns;
mod slow_network;
mod tls;
mod whole_server;
mod writer;

use std::process::ExitCode;

use options::Options;
use scenario::Scenario;

leak_tests::use_jemalloc!();

/// All of them, in the order of the report. Those with cheap rounds come first: the time that they
/// leave goes to the others.
fn scenarios() -> impl Iterator<Item = &'static Scenario> {
    let groups = [
        controls::SCENARIOS,
        client::SCENARIOS,
        handles::SCENARIOS,
        server::SCENARIOS,
        returning::SCENARIOS,
        shutdowns::SCENARIOS,
        endings::SCENARIOS,
        peers::SCENARIOS,
        readers::SCENARIOS,
        changes::SCENARIOS,
        outages::SCENARIOS,
        metrics::SCENARIOS,
        tls::SCENARIOS,
        mixed::SCENARIOS,
    ];
    groups.into_iter().flatten()
}

fn main() -> ExitCode {
    let options = match Options::read(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(wrong) => {
            eprintln!("{wrong}");
            return ExitCode::from(2);
        }
    };
    if let Some(name) = Options::unknown(scenarios()).next() {
        eprintln!("the short run names a scenario that there is not: \"{name}\"");
        return ExitCode::FAILURE;
    }
    match &options.only_here {
        Some(name) => runner::here(name, &options),
        None if options.list => {
            for scenario in scenarios() {
                println!("{}: test", scenario.name);
            }
            ExitCode::SUCCESS
        }
        None => runner::all(&options),
    }
}
