//! Programs that end with their test, and what they print.

use std::ffi::OsStr;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::process::Signal;

use crate::proc;
use crate::wait::{PATIENCE, POLL};

/// How much of a line is shown when a test fails, in characters: large values help nobody.
const SHOWN: usize = 500;

/// A program that the kernel kills together with the thread that starts it, with nothing of the
/// environment that driftless or etcd would listen to.
///
/// So a process must not outlive the thread of its test. Where `setpriv` (of util-linux) is not on
/// PATH, the program is started as it is.
#[must_use]
pub fn guarded(program: impl AsRef<OsStr>) -> Command {
    let mut command = match find_on_path("setpriv") {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).arg(program);
            command
        }
        None => Command::new(program),
    };
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["DRIFTLESS_", "ETCD", "RUST_LOG", "NO_COLOR"]
            .iter()
            .any(|start| text.starts_with(start))
        {
            command.env_remove(name);
        }
    }
    command
}

/// As [`guarded`], for a program on PATH.
///
/// # Panics
/// When it is not on PATH.
#[must_use]
#[track_caller]
pub fn guarded_on_path(program: &str) -> Command {
    guarded(find_on_path(program).unwrap_or_else(|| panic!("{program} is not on PATH")))
}

/// Where a program is.
#[must_use]
pub fn find_on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// Runs a program to its end. Blocks the thread.
///
/// # Panics
/// When that takes longer than [`PATIENCE`].
#[track_caller]
pub fn run(command: &mut Command) -> Finished {
    Process::spawn(command).finish()
}

/// What a process printed and how it ended.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What was not taken yet of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
}

/// A running process, whose output is read all the time by threads of its own. Dropping it kills the
/// process, and waits for its end.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// Its standard output.
    pub out: Output,
    /// Its standard error.
    pub err: Output,
}

/// One of the outputs of a process, line by line.
#[derive(Debug)]
pub struct Output {
    name: &'static str,
    shared: Arc<Shared>,
    /// How many bytes were taken.
    taken: usize,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    read: Mutex<Text>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Text {
    bytes: Vec<u8>,
    is_over: bool,
}

impl Process {
    /// Starts a program without input.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn spawn(command: &mut Command) -> Self {
        Self::spawn_with_stderr(command, Stdio::piped())
    }

    /// As [`spawn`](Self::spawn), with this standard error.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn spawn_with_stderr(command: &mut Command, stderr: impl Into<Stdio>) -> Self {
        let mut process = Self::spawn_onto(command, Stdio::piped(), stderr);
        let stdout = process.take_stdout();
        process.out = Output::of("standard output", stdout);
        process
    }

    /// Starts a program without input, and leaves its standard output to
    /// [`take_stdout`](Self::take_stdout).
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn spawn_unread(command: &mut Command) -> Self {
        Self::spawn_onto(command, Stdio::piped(), Stdio::piped())
    }

    /// Starts a program without input and with these outputs. Of those that are piped, the standard
    /// error is read, and the standard output left to [`take_stdout`](Self::take_stdout).
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn spawn_onto(
        command: &mut Command,
        stdout: impl Into<Stdio>,
        stderr: impl Into<Stdio>,
    ) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .expect("the program starts");
        let err = match child.stderr.take() {
            Some(stderr) => Output::of("standard error", stderr),
            None => Output::of("standard error", std::io::empty()),
        };
        Self {
            child,
            out: Output::of("standard output", std::io::empty()),
            err,
        }
    }

    /// The end of the pipe that nobody reads yet.
    ///
    /// # Panics
    /// When it is read already.
    #[track_caller]
    pub fn take_stdout(&mut self) -> ChildStdout {
        self.child.stdout.take().expect("it was not taken")
    }

    /// The id of the process.
    ///
    /// # Panics
    /// Never: Linux has no ids that are larger.
    #[must_use]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a process id is an int")
    }

    /// The next line of the standard output. Blocks the thread.
    ///
    /// # Panics
    /// When there is none within [`PATIENCE`].
    #[track_caller]
    pub fn line(&mut self) -> String {
        match self.out.next() {
            Ok(line) => line,
            Err(why) => panic!("{why}; standard error:\n{}", self.stderr()),
        }
    }

    /// Takes lines of the standard output up to one that holds `text`, and returns them all. Blocks
    /// the thread.
    ///
    /// # Panics
    /// When no such line comes within [`PATIENCE`].
    #[track_caller]
    pub fn lines_to(&mut self, text: &str) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            lines.push(self.line());
            if lines.last().is_some_and(|line| line.contains(text)) {
                return lines;
            }
        }
    }

    /// The next line, parsed as JSON. Blocks the thread.
    ///
    /// # Panics
    /// When there is none within [`PATIENCE`], or it is no JSON.
    #[track_caller]
    pub fn json(&mut self) -> serde_json::Value {
        let line = self.line();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// Whether every line of the standard output was taken.
    ///
    /// # Panics
    /// When one was not, which it names.
    #[track_caller]
    #[must_use]
    pub fn is_quiet(&mut self) -> bool {
        match self.out.try_next() {
            Some(line) => panic!("a line too many: {line}"),
            None => true,
        }
    }

    /// All that it printed on the standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.err.text()
    }

    /// All that it printed so far, cut to what helps in a failed test's message.
    #[must_use]
    pub fn printed(&self) -> String {
        format!("{}{}", self.out.shown(), self.err.shown())
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it was waited for.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        proc::signal(self.pid(), signal);
    }

    /// Waits for its end. Blocks the thread.
    ///
    /// # Panics
    /// When it does not end within [`PATIENCE`].
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is a child") {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "it does not end; {}",
                self.printed()
            );
            std::thread::sleep(POLL);
        }
    }

    /// Waits for its end and for that of its output, after which all of that can be taken. Blocks the
    /// thread.
    ///
    /// # Panics
    /// When it does not end within [`PATIENCE`].
    #[track_caller]
    pub fn end(&mut self) -> ExitStatus {
        let status = self.wait();
        for output in [&mut self.out, &mut self.err] {
            if let Some(reader) = output.reader.take() {
                reader.join().expect("readers do not panic");
            }
        }
        status
    }

    /// Waits for its end and takes the rest of what it printed. Blocks the thread.
    ///
    /// # Panics
    /// When it does not end within [`PATIENCE`].
    #[track_caller]
    pub fn finish(mut self) -> Finished {
        let status = self.end();
        let text = self.out.lock();
        let stdout = String::from_utf8_lossy(&text.bytes[self.out.taken..]).into_owned();
        drop(text);
        Finished {
            status,
            stdout,
            stderr: self.stderr(),
        }
    }
}

impl Drop for Process {
    #[allow(
        clippy::print_stderr,
        reason = "output is how a failed test explains itself"
    )]
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- standard error of {}:\n{}", self.pid(), self.stderr());
        }
    }
}

impl Output {
    fn of(name: &'static str, mut pipe: impl Read + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let into = Arc::clone(&shared);
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = pipe.read(&mut buffer) {
                lock(&into.read).bytes.extend_from_slice(&buffer[..n]);
                into.more.notify_all();
            }
            lock(&into.read).is_over = true;
            into.more.notify_all();
        });
        Self {
            name,
            shared,
            taken: 0,
            reader: Some(reader),
        }
    }

    /// The next line. Blocks the thread.
    ///
    /// # Panics
    /// When there is none within [`PATIENCE`].
    #[track_caller]
    pub fn line(&mut self) -> String {
        match self.next() {
            Ok(line) => line,
            Err(why) => panic!("{why}; {}", self.shown()),
        }
    }

    /// Takes as many lines as these, which they must be. Blocks the thread.
    ///
    /// # Panics
    /// When another line comes, or none within [`PATIENCE`].
    #[track_caller]
    pub fn expect(&mut self, lines: &[&str]) {
        for line in lines {
            assert_eq!(self.line(), *line, "{}", self.shown());
        }
    }

    /// Takes lines up to one that starts with `start`, and returns it. Blocks the thread.
    ///
    /// # Panics
    /// When no such line comes within [`PATIENCE`].
    #[track_caller]
    pub fn skip_to(&mut self, start: &str) -> String {
        loop {
            let line = self.line();
            if line.starts_with(start) {
                return line;
            }
        }
    }

    /// All of it so far.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock().bytes).into_owned()
    }

    /// The next line, once it is there; or why there is none.
    fn next(&mut self) -> Result<String, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(line) = self.try_next() {
                return Ok(line);
            }
            let text = self.lock();
            if text.is_over {
                drop(text);
                let last = self.try_next();
                return last.ok_or_else(|| format!("no more lines on the {}", self.name));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!(
                    "not within {PATIENCE:?}: another line on the {}",
                    self.name
                ));
            }
            let more = &self.shared.more;
            // A line may have come since the look at it.
            drop(more.wait_timeout(text, left.min(POLL)));
        }
    }

    /// The next line where it is there. The last one need not end.
    fn try_next(&mut self) -> Option<String> {
        let text = self.lock();
        let rest = &text.bytes[self.taken..];
        let (line, taken) = match rest.iter().position(|byte| *byte == b'\n') {
            Some(end) => (&rest[..end], end + 1),
            None if text.is_over && !rest.is_empty() => (rest, rest.len()),
            None => return None,
        };
        let line = String::from_utf8_lossy(line).into_owned();
        drop(text);
        self.taken += taken;
        Some(line)
    }

    fn shown(&self) -> String {
        let text = self.text();
        let lines = text
            .lines()
            .map(|line| line.chars().take(SHOWN).collect::<String>());
        let lines: Vec<String> = lines.collect();
        format!("its {} so far:\n{}\n", self.name, lines.join("\n"))
    }

    fn lock(&self) -> MutexGuard<'_, Text> {
        lock(&self.shared.read)
    }
}

fn lock(text: &Mutex<Text>) -> MutexGuard<'_, Text> {
    text.lock().unwrap_or_else(PoisonError::into_inner)
}
