//! Prints results: lines during the run, and a table, JSON and plots at the end.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the only place that prints"
)]

mod budgets;
mod plots;
mod svg;
mod table;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use crate::row::Row;
use crate::{Failure, machine};

/// For another process, or for people.
pub(crate) fn say(line: &str) {
    println!("{line}");
}

pub(crate) fn complain(line: &str) {
    eprintln!("{line}");
}

pub(crate) fn progress(line: &str) {
    eprintln!("{line}");
}

/// All rows, and what they were measured on.
#[derive(Debug)]
pub(crate) struct Results {
    machine: Vec<String>,
    load_before: String,
    rows: Vec<Row>,
}

impl Results {
    pub(crate) fn begin() -> Self {
        Self {
            machine: machine::describe(),
            load_before: machine::load(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn push(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Writes what there is so far, for programs.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn save(&self) -> Result<PathBuf, Failure> {
        let rows: Vec<_> = self.rows.iter().map(Row::to_json).collect();
        let results = json!({ "machine": self.machine, "rows": rows });
        let path = folder()?.join("fanout.json");
        fs::write(&path, serde_json::to_string_pretty(&results)?)?;
        Ok(path)
    }

    /// Prints the tables and writes the files.
    ///
    /// # Errors
    /// When they cannot be written, or a row is missing.
    pub(crate) fn finish(mut self, took: Duration) -> Result<(), Failure> {
        self.machine.push(format!(
            "took {} s; load average {} before, {} after",
            took.as_secs(),
            self.load_before,
            machine::load()
        ));
        for line in &self.machine {
            say(&format!("{line}  "));
        }
        let budgets = budgets::all(&self.rows);
        say(&format!(
            "\n{}\n{}",
            table::rows(&self.rows),
            table::budgets(&budgets)
        ));
        say(&self.save()?.display().to_string());
        for (name, plot) in plots::all(&self.rows) {
            let path = folder()?.join(name);
            fs::write(&path, plot)?;
            say(&path.display().to_string());
        }
        match self.rows.iter().filter(|row| row.missing.is_some()).count() {
            0 => Ok(()),
            missing => Err(format!("{missing} rows could not be measured").into()),
        }
    }
}

/// Where files go: `target/bench`.
fn folder() -> Result<PathBuf, Failure> {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("../bench");
    fs::create_dir_all(&folder)?;
    Ok(folder.canonicalize()?)
}
