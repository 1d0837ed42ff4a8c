//! The threads of this process, by the kernel's own list.

use std::fs;

use crate::witness::{Reading, Rule, Unreadable, Witness, counted};

/// Where the kernel lists them.
const FOLDER: &str = "/proc/self/task";

/// How the threads of a tokio runtime are named where nobody named them, as far as all versions
/// agree: workers and the blocking pool alike.
const RUNTIME: &str = "tokio-r";

/// How many threads this process has, by the kernel's own list. Works on Linux.
///
/// A runtime's blocking pool comes and goes by itself, so threads that carry a runtime's name are
/// not counted by [`Threads::but_the_runtimes`]. A thread that nobody gave a name has that of the
/// thread that made it, which may be a runtime's: those are found among [`Threads::all`], with
/// [a slack](Threads::with_slack) for the pool. They may not grow; that they return exactly cannot be
/// asked of a process with threads of others in it.
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

    /// These without those whose name begins so. The kernel knows no more of a name than its first
    /// 15 bytes.
    #[must_use = "it counts less, and does nothing else"]
    pub fn without(mut self, prefix: impl Into<String>) -> Self {
        self.without.push(prefix.into());
        self
    }

    /// So many more are not called growth. Default: none.
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
