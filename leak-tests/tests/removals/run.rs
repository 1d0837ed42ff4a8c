//! Takes each piece out of a copy of the sources, and runs the test that should notice.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::targets::Target;
use crate::{Removal, workspace};

/// How long building may take: everything, the first time.
const BUILD_WITHIN: Duration = Duration::from_secs(30 * 60);

/// How long all tests of a target may take.
const ALL_WITHIN: Duration = Duration::from_secs(20 * 60);

/// How much of what a test said is repeated, in bytes.
const MOST_WORDS: usize = 240;

/// What became of a command.
enum Ran {
    Well,
    /// With its last words.
    Failed(String),
    /// It was ended.
    TooLong,
}

/// What became of a removal.
enum Verdict {
    /// With what the test said.
    Caught(String),
    /// By what should, and what did instead.
    NotCaught(Vec<String>),
    DoesNotBuild(String),
}

/// A copy of the sources, and a folder to build them in.
struct Copy {
    sources: PathBuf,
    build: PathBuf,
    output: PathBuf,
}

/// Does them, and says how many were caught.
pub(crate) fn all(wanted: impl Iterator<Item = &'static Removal>, everything: bool) -> ExitCode {
    let wanted: Vec<&Removal> = wanted.collect();
    let copy = Copy::of_the_workspace();
    println!("{} removals, in {}", wanted.len(), copy.sources.display());
    // Otherwise that a test fails proves nothing.
    for target in wanted
        .iter()
        .map(|removal| removal.caught_by.0)
        .collect::<BTreeSet<_>>()
    {
        let tests = wanted.iter().map(|removal| removal.caught_by);
        let tests: BTreeSet<&str> = tests
            .filter(|test| test.0 == target)
            .map(|test| test.1)
            .collect();
        let tests: Vec<&str> = tests.into_iter().collect();
        let target = Target::named(target).unwrap();
        let ran = match copy.cargo(&target.build(), BUILD_WITHIN) {
            Ran::Well => copy.cargo(&target.run(&tests), ALL_WITHIN),
            failed => failed,
        };
        if !matches!(ran, Ran::Well) {
            println!(
                "nothing is taken out, and {} fails: {}",
                target.name,
                ran.words()
            );
            return ExitCode::FAILURE;
        }
        println!(
            "nothing is taken out: {} tests of {} pass",
            tests.len(),
            target.name
        );
    }
    let mut caught = 0;
    for removal in &wanted {
        let begun = Instant::now();
        let verdict = copy.without(removal, everything);
        let (what, (target, test)) = (removal.what, removal.caught_by);
        let seconds = begun.elapsed().as_secs();
        match verdict {
            Verdict::Caught(words) => {
                caught += 1;
                println!("{what} ... caught by {target}: {test} ({seconds} s): {words}");
            }
            Verdict::NotCaught(by) => {
                let by = if by.is_empty() {
                    "NOTHING".to_owned()
                } else {
                    by.join("; ")
                };
                println!("{what} ... NOT CAUGHT by {target}: {test} ({seconds} s), but by: {by}");
            }
            Verdict::DoesNotBuild(words) => {
                println!("{what} ... DOES NOT BUILD ({seconds} s): {words}");
            }
        }
    }
    let left = wanted.len() - caught;
    println!("\n{caught} caught, {left} not caught");
    if left == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

impl Copy {
    /// Written anew only where it differs, so that only that is built again.
    fn of_the_workspace() -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("removals");
        let copy = Self {
            sources: folder.join("sources"),
            build: folder.join("target"),
            output: folder.join("output.txt"),
        };
        let list = Command::new("git")
            .args([
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ])
            .current_dir(workspace())
            .output()
            .unwrap();
        assert!(list.status.success(), "git does not list the files");
        let list = String::from_utf8(list.stdout).unwrap();
        let files: BTreeSet<PathBuf> = list
            .split_terminator('\0')
            .map(PathBuf::from)
            .filter(|file| workspace().join(file).is_file())
            .collect();
        for file in &files {
            let (from, to) = (workspace().join(file), copy.sources.join(file));
            let content = fs::read(&from).unwrap();
            if fs::read(&to).is_ok_and(|there| there == content) {
                continue;
            }
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            // With its permissions.
            fs::copy(from, to).unwrap();
        }
        copy.forget(&copy.sources, &files);
        copy
    }

    /// Removes what is no file of the workspace any more.
    fn forget(&self, folder: &Path, files: &BTreeSet<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(&self.sources).unwrap();
            if path.is_dir() {
                self.forget(&path, files);
            } else if !files.contains(name) {
                fs::remove_file(&path).unwrap();
            }
        }
    }

    /// Takes it out, asks who notices, and puts it back.
    fn without(&self, removal: &Removal, everything: bool) -> Verdict {
        let file = self.sources.join(removal.file);
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(text.matches(removal.code).count(), 1, "{}", removal.what);
        fs::write(&file, text.replacen(removal.code, removal.instead, 1)).unwrap();
        let verdict = self.noticed(removal, everything);
        fs::write(&file, text).unwrap();
        verdict
    }

    fn noticed(&self, removal: &Removal, everything: bool) -> Verdict {
        let (name, test) = removal.caught_by;
        let target = Target::named(name).unwrap();
        match self.cargo(&target.build(), BUILD_WITHIN) {
            Ran::Well => {}
            failed => return Verdict::DoesNotBuild(failed.words()),
        }
        let ran = self.cargo(&target.run(&[test]), target.within());
        let caught = !matches!(ran, Ran::Well);
        if caught && !everything {
            return Verdict::Caught(ran.words());
        }
        let mut by = Vec::new();
        for other in target.all_that_may_notice() {
            match self.cargo(&other.build(), BUILD_WITHIN) {
                Ran::Well => {}
                failed => return Verdict::DoesNotBuild(failed.words()),
            }
            match self.cargo(&other.run(&[]), ALL_WITHIN) {
                Ran::Well => {}
                Ran::Failed(_) => by.extend(
                    self.failures()
                        .map(|test| format!("{}: {test}", other.name)),
                ),
                Ran::TooLong => by.push(format!("{}, which does not end", other.name)),
            }
            if !everything && !by.is_empty() {
                break;
            }
        }
        match caught {
            true => Verdict::Caught(format!("{}; and by: {}", ran.words(), by.join("; "))),
            false => Verdict::NotCaught(by),
        }
    }

    /// Runs it in the copy, with what it starts in a process group of its own, which is ended with it.
    fn cargo(&self, arguments: &[String], within: Duration) -> Ran {
        let output = File::create(&self.output).unwrap();
        let mut cargo = Command::new(env!("CARGO"));
        cargo
            .args(arguments)
            .current_dir(&self.sources)
            .env("CARGO_TARGET_DIR", &self.build)
            .env("CARGO_TERM_COLOR", "never")
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stderr(output.try_clone().unwrap())
            .stdout(output)
            .process_group(0);
        // What cargo tells a test of its package: some dependencies would be built anew for it.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
                cargo.env_remove(&name);
            }
        }
        let mut child = cargo.spawn().unwrap();
        let group = Pid::from_child(&child);
        let (tell, ended) = mpsc::channel();
        let waiting = std::thread::spawn(move || drop(tell.send(child.wait())));
        let status = ended.recv_timeout(within);
        // Also what a test left running.
        let _ = kill_process_group(group, Signal::KILL);
        waiting.join().unwrap();
        match status {
            Ok(status) if status.as_ref().is_ok_and(std::process::ExitStatus::success) => Ran::Well,
            Ok(_) => Ran::Failed(self.first_failure()),
            Err(_) => Ran::TooLong,
        }
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.output).unwrap()).into_owned()
    }

    /// The first line that says why: the compiler's, a scenario's verdict, or a panic's words.
    fn first_failure(&self) -> String {
        let said = self.said();
        let mut lines = said.lines();
        while let Some(line) = lines.next() {
            let words = if line.contains("panicked at ") {
                // What it says follows.
                lines.next().unwrap_or_default()
            } else if let Some((_, verdict)) = line.split_once(" ... FAILED (") {
                verdict
            } else if line.starts_with("error") {
                line
            } else {
                continue;
            };
            return words.chars().take(MOST_WORDS).collect();
        }
        "it says nothing".to_owned()
    }

    /// The names of all tests that failed.
    fn failures(&self) -> impl Iterator<Item = String> {
        let said = self.said();
        let failed = said.lines().filter_map(|line| {
            let (name, _) = line.strip_prefix("test ")?.split_once(" ... FAILED")?;
            Some(name.to_owned())
        });
        failed.collect::<Vec<_>>().into_iter()
    }
}

impl Ran {
    fn words(&self) -> String {
        match self {
            Self::Well => "it passes".to_owned(),
            Self::Failed(words) => words.clone(),
            Self::TooLong => "it does not end".to_owned(),
        }
    }
}
