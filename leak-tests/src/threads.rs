//! The threads of this process, as the kernel lists them.

use std::fs;

use crate::witness::{Reading, Rule, Unreadable, Witness, counted};

/// Where the kernel lists them.
const FOLDER: &str = "/proc/self/task";

/// How the threads of a tokio runtime are named where nobody named them, as far as all versions
/// agree: workers and the blocking pool alike.
const RUNTIME: &str = "tokio-r";

/// How many threads this process has, by the kernel's own list. Works on Linux.
///
/// A runtime's blocking pool starts and ends threads by itself, so [`Threads::but_the_runtimes`] leaves
/// out threads with a runtime's name. An unnamed thread has the name of the thread that started it,
/// which may be a runtime's: [`Threads::all`] finds those, with [a slack](Threads::with_slack) for the
/// pool. The counts may not grow; they need not return, because a process also has threads of others.
#[derive(Clone, Debug)]
pub struct Threads {
    name: &'static str,
    without: Vec<String>,
    slack: i64,
}

impl Threads {
    /// All of them.
    pub const fn all() -> Self {
        Self {
            name: "threads",
            without: Vec::new(),
            slack: 0,
        }
    }

    /// All but those that a tokio runtime made under its default name.
    pub fn but_the_runtimes() -> Self {
        Self {
            name: "own threads",
            ..Self::all().without(RUNTIME)
        }
    }

    /// Leaves out threads whose name starts with this. The kernel keeps the first 15 bytes of a name.
    #[must_use = "it counts less, and does nothing else"]
    pub fn without(mut self, prefix: impl Into<String>) -> Self {
        self.without.push(prefix.into());
        self
    }

    /// This many more are no growth. Default: none.
    #[must_use = "it allows more, and does nothing else"]
    pub const fn with_slack(mut self, threads: i64) -> Self {
        self.slack = threads;
        self
    }

    /// The names of those that are counted.
    ///
    /// # Errors
    /// Where there is no `/proc`.
    pub fn names(&self) -> Result<Vec<String>, Unreadable> {
        let entries = fs::read_dir(FOLDER).map_err(|error| {
            Unreadable::new(
                self.name,
                format!("{FOLDER}: {error}; counting needs Linux"),
            )
        })?;
        // A thread that ended meanwhile has no name, and is none any more.
        let names = entries
            .flatten()
            .flat_map(|entry| fs::read_to_string(entry.path().join("comm")));
        let counted = |name: &String| !self.without.iter().any(|prefix| name.starts_with(prefix));
        let names = names.map(|name| name.trim_end().to_owned());
        Ok(names.filter(counted).collect())
    }
}

impl Witness for Threads {
    fn name(&self) -> &str {
        self.name
    }

    fn rule(&self) -> Rule {
        Rule::MayNotGrow { slack: self.slack }
    }

    fn read(&self) -> Reading<'_> {
        let names = self.names();
        counted(names.map(|names| i64::try_from(names.len()).unwrap_or(i64::MAX)))
    }

    fn details(&self) -> Option<String> {
        self.names().ok().map(|names| names.join(", "))
    }
}
