//! The `driftless` command: parses arguments and runs a subcommand.
//!
//! Each subcommand has a module. Only [`output`] writes to the standard output, and only [`stderr`] to
//! the standard error.

mod allocator;
mod color;
mod dev;
mod etcd_process;
mod exit;
mod get;
mod http;
mod human;
mod json;
mod limits;
mod logging;
mod output;
mod rate_limit;
mod serve;
mod signals;
mod stderr;
mod target;
mod usage;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use driftless_server::settings::check_variables;

use crate::exit::{EXIT_CODES, Failure};
use crate::logging::LogArgs;

/// Returns freed memory to the system, and fragments little in a process that runs for months.
#[global_allocator]
static ALLOCATOR: jemallocator::Jemalloc = jemallocator::Jemalloc;

/// Pushes configuration from etcd to services, and shows what they see
///
/// Admins write keys to etcd with etcdctl. `driftless serve` watches etcd prefixes and pushes each
/// change to the services that link the client library.
#[derive(Debug, Parser)]
#[command(name = "driftless", version, after_long_help = EXIT_CODES, after_help = "Start with: driftless dev")]
struct Cli {
    #[command(flatten)]
    log: LogArgs,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<serve::Args>),
    Dev(dev::Args),
    Watch(watch::Args),
    Get(get::Args),
    #[command(name = etcd_process::GUARD_COMMAND, hide = true)]
    Guard(etcd_process::GuardArgs),
}

fn main() -> ExitCode {
    let cli = Cli::try_parse().map_err(|error| usage::failure(&error));
    let code = match cli.and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    };
    stderr::finish();
    code
}

fn run(cli: Cli) -> Result<(), Failure> {
    let log = &cli.log;
    // Variables of server settings affect only `serve`. A misspelt one is an error for the others too.
    if matches!(
        cli.command,
        Command::Dev(_) | Command::Watch(_) | Command::Get(_)
    ) {
        check_variables(std::env::vars_os().map(|(name, _)| name))?;
    }
    match cli.command {
        Command::Serve(args) => log.init("info").and_then(|()| serve::run(*args)),
        Command::Dev(args) => log.init("warn").and_then(|()| dev::run(args)),
        Command::Watch(args) => log.init("error").and_then(|()| watch::run(args)),
        Command::Get(args) => log.init("error").and_then(|()| get::run(&args)),
        Command::Guard(args) => Err(etcd_process::guard(&args)),
    }
}
