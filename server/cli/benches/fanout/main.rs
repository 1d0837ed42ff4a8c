//! The fan-out benchmark, `make bench`: compares driftless with other ways to carry the same changes.
//!
//! `../README.md` explains the method and the results. This process starts all others, one after the other,
//! and adds up their cost: the contender's processes, and the load generator, which is this program again
//! ([`load`]).

mod contenders;
mod floor;
mod load;
mod machine;
mod measure;
mod payload;
mod plan;
mod report;
mod row;
mod scenarios;
mod seed;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use driftless_test_support::Driftless;

/// The program under test.
const DRIFTLESS: Driftless = Driftless::at(env!("CARGO_BIN_EXE_driftless"));

/// Why something could not be measured.
type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// What cargo adds
    #[arg(long, global = true, hide = true)]
    bench: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measures
    Run(scenarios::Selection),
    /// The load generator
    #[command(name = plan::LOAD_COMMAND, hide = true)]
    Load { plan: String },
    /// The bare TCP broadcast
    #[command(name = floor::COMMAND, hide = true)]
    Floor,
}

fn main() -> ExitCode {
    // `cargo test --all-targets` runs this program too, but not to measure.
    let named = std::env::args().nth(1);
    let commands = ["run", "help", "--help", plan::LOAD_COMMAND, floor::COMMAND];
    if !named.is_some_and(|name| commands.contains(&name.as_str())) {
        return ExitCode::SUCCESS;
    }
    let result = match Cli::parse().command {
        Command::Run(selection) => measure::run(&selection),
        Command::Load { plan } => load::run(&plan),
        Command::Floor => floor::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::complain(&format!("bench: {error}"));
            ExitCode::FAILURE
        }
    }
}
