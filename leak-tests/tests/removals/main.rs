//! Every piece of clean-up code, taken out one at a time: some test has to notice.
//!
//! `cargo test` only checks that the list is complete and can be done. Doing it takes long:
//!
//! ```sh
//! cargo test -p driftless-leak-tests --test removals -- --run ["part of a row"] [--from "part of one"]
//! ```
#![allow(
    clippy::unwrap_used,
    reason = "a panic is how a test says what is wrong"
)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test's own main: its output is the result"
)]

mod checks;
mod client;
mod run;
mod server;
mod targets;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A piece of clean-up code, and how the sources look without it.
pub(crate) struct Removal {
    /// What is taken out, in a few words (a row of the README's table).
    pub(crate) what: &'static str,
    /// The file, from the workspace's root.
    pub(crate) file: &'static str,
    /// The code: it occurs exactly once in the file.
    pub(crate) code: &'static str,
    /// What stands there instead.
    pub(crate) instead: &'static str,
    /// What notices: a test target, as [`targets`] calls it, and the name of a scenario or a part of
    /// a test's name.
    pub(crate) caught_by: (&'static str, &'static str),
}

/// All of them.
fn removals() -> impl Iterator<Item = &'static Removal> {
    client::REMOVALS.iter().chain(server::REMOVALS)
}

fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap().to_owned()
}

fn main() -> ExitCode {
    let (mut run, mut everything, mut table, mut list) = (false, false, false, false);
    let mut parts = Vec::new();
    let mut from = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--from" => from = arguments.next(),
            "--run" => run = true,
            "--all" => everything = true,
            "--table" => table = true,
            "--list" => list = true,
            // What cargo and its tools say to every test program.
            "--test-threads" | "--skip" | "--format" | "--color" | "--logfile" | "-Z" => {
                arguments.next();
            }
            _ if argument.starts_with('-') => {}
            _ => parts.push(argument),
        }
    }
    let wanted = |name: &str| parts.is_empty() || parts.iter().any(|part| name.contains(part));
    if table {
        print!("{}", checks::table());
        ExitCode::SUCCESS
    } else if run {
        let is_first = |row: &str| from.as_ref().is_none_or(|from| row.contains(from));
        let rest = removals().skip_while(|removal| !is_first(&checks::row(removal)));
        run::all(rest.filter(|it| wanted(&checks::row(it))), everything)
    } else {
        checks::all(list, wanted)
    }
}
