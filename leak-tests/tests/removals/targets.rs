//! The tests that may notice what was taken out, and how cargo is told to run them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::workspace;

/// A test target.
pub(crate) struct Target {
    /// As removals name it.
    pub(crate) name: &'static str,
    package: &'static str,
    /// What tells cargo that it is this one.
    selects: &'static [&'static str],
    /// Where its sources are, from the workspace's root.
    sources: &'static str,
}

/// The suite, which has scenarios for tests, and arguments of its own.
const SUITE: &str = "suite";

/// Rounds of a scenario: enough for the growth of little, and for what has room for 256 to be full.
const ROUNDS: &str = "300";

/// How long a scenario may take, in milliseconds: what is restarted in each round gets some rounds.
const EACH: &str = "15000";

/// How long each may take where all of them are run.
const EACH_OF_ALL: &str = "2000";

/// Scenarios at a time, for each processor: most of a round is waiting.
const JOBS: usize = 2;

/// How long the test that should notice may take: what was taken out may make it wait for ever. A
/// round of a scenario that does so ends after a minute.
const TEST_WITHIN: Duration = Duration::from_secs(60);
const SCENARIO_WITHIN: Duration = Duration::from_secs(5 * 60);

pub(crate) const TARGETS: &[Target] = &[
    Target::of_leak_tests(SUITE, &["--test", SUITE], "leak-tests/tests/suite"),
    Target::of_leak_tests(
        "cancelled",
        &["--test", "cancelled"],
        "leak-tests/tests/cancelled",
    ),
    Target::of_leak_tests(
        "stalled",
        &["--test", "stalled"],
        "leak-tests/tests/stalled.rs",
    ),
    Target::of_leak_tests(
        "dropped",
        &["--test", "dropped"],
        "leak-tests/tests/dropped.rs",
    ),
    Target::of_leak_tests(
        "service",
        &["--test", "service"],
        "leak-tests/tests/service",
    ),
    // For what cannot be seen from outside, or takes too long there.
    Target {
        name: "client",
        package: "driftless-client",
        selects: &["--lib"],
        sources: "client/src",
    },
    Target {
        name: "scripted",
        package: "driftless-client",
        selects: &["--test", "scripted"],
        sources: "client/tests/scripted",
    },
    Target {
        name: "server",
        package: "driftless-server",
        selects: &["--lib"],
        sources: "server/src",
    },
    Target {
        name: "etcd_source",
        package: "driftless-server",
        selects: &["--test", "etcd_source"],
        sources: "server/tests/etcd_source.rs",
    },
    Target {
        name: "heap",
        package: "driftless",
        selects: &["--test", "heap"],
        sources: "server/cli/tests/heap.rs",
    },
];

impl Target {
    const fn of_leak_tests(
        name: &'static str,
        selects: &'static [&'static str],
        sources: &'static str,
    ) -> Self {
        Self {
            name,
            package: "driftless-leak-tests",
            selects,
            sources,
        }
    }

    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|target| target.name == name)
    }

    /// Those that are run where what should notice does not: all, this one first.
    pub(crate) fn all_that_may_notice(&self) -> impl Iterator<Item = &'static Self> {
        let expected = TARGETS.iter().filter(|target| target.name == self.name);
        expected.chain(TARGETS.iter().filter(|target| target.name != self.name))
    }

    /// What builds it, for cargo.
    pub(crate) fn build(&self) -> Vec<String> {
        let mut arguments = vec!["test", "--locked", "--no-run", "-p", self.package];
        arguments.extend(self.selects);
        arguments.into_iter().map(str::to_owned).collect()
    }

    /// What runs these tests of it, or all of them.
    pub(crate) fn run(&self, tests: &[&str]) -> Vec<String> {
        let mut arguments = vec!["test", "--locked", "-p", self.package];
        arguments.extend(self.selects);
        arguments.push("--");
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let jobs = (JOBS * processors).to_string();
        if self.name == SUITE {
            let each = if tests.is_empty() { EACH_OF_ALL } else { EACH };
            arguments.extend(["--exact", "--rounds", ROUNDS, "--milliseconds-each", each]);
            arguments.extend(["--jobs", &jobs]);
        }
        arguments.extend(tests);
        arguments.into_iter().map(str::to_owned).collect()
    }

    /// How long one test of it may take.
    pub(crate) fn within(&self) -> Duration {
        match self.name {
            SUITE => SCENARIO_WITHIN,
            _ => TEST_WITHIN,
        }
    }

    /// Whether it has such a test.
    pub(crate) fn has(&self, test: &str) -> bool {
        let mut sources = Vec::new();
        read(&workspace().join(self.sources), &mut sources);
        let scenario = format!("name: \"{test}\",");
        sources.iter().any(|(_, text)| match self.name {
            SUITE => text.contains(&scenario),
            _ => has_test(text, test),
        })
    }
}

fn has_test(text: &str, part: &str) -> bool {
    let mut is_test = false;
    text.lines().any(|line| {
        let line = line.trim();
        if line.starts_with("#[") {
            is_test |= line.contains("test");
            return false;
        }
        let is_test = std::mem::take(&mut is_test);
        let function = line.split_once("fn ").map(|(_, rest)| rest);
        let name = function.and_then(|function| function.split('(').next());
        is_test && name.is_some_and(|name| name.contains(part))
    })
}

/// The Rust sources there: of a file itself, or of a folder and the folders in it.
pub(crate) fn read(path: &Path, sources: &mut Vec<(String, String)>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            read(&entry.unwrap().path(), sources);
        }
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        let name = path.strip_prefix(workspace()).unwrap_or(path);
        let text = fs::read_to_string(path).unwrap();
        sources.push((name.display().to_string(), text));
    }
}
