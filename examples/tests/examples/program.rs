//! A program under test: ended with its test, its output read all the time.

use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::etcd::DEADLINE;

/// How often new output is looked for.
const POLL: Duration = Duration::from_millis(5);

pub(crate) struct Program {
    child: Child,
    pub(crate) out: Output,
    pub(crate) err: Output,
}

/// One of its outputs, line by line.
pub(crate) struct Output {
    name: &'static str,
    lines: Arc<Mutex<Vec<String>>>,
    /// How many lines were taken.
    taken: usize,
    reader: AbortOnDropHandle<()>,
}

impl Program {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let out = Output::of("standard output", child.stdout.take().unwrap());
        let err = Output::of("standard error", child.stderr.take().unwrap());
        Self { child, out, err }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.child.id().expect("it was not waited for");
        let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits for its end, after which all that it said can be taken.
    pub(crate) async fn end(&mut self) -> ExitStatus {
        let ended = timeout(DEADLINE, self.child.wait()).await;
        let status = ended.unwrap_or_else(|_| panic!("it does not end; {}", self.said()));
        for output in [&mut self.out, &mut self.err] {
            (&mut output.reader).await.unwrap();
        }
        status.unwrap()
    }

    /// Everything that it said so far.
    pub(crate) fn said(&self) -> String {
        format!("{}{}", self.out.said(), self.err.said())
    }
}

impl Output {
    fn of(name: &'static str, pipe: impl AsyncRead + Send + Unpin + 'static) -> Self {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&lines);
        let reader = AbortOnDropHandle::new(tokio::spawn(async move {
            let mut pipe = BufReader::new(pipe).lines();
            while let Some(line) = pipe.next_line().await.unwrap() {
                into.lock().unwrap().push(line);
            }
        }));
        Self {
            name,
            lines,
            taken: 0,
            reader,
        }
    }

    /// The next line.
    pub(crate) async fn line(&mut self) -> String {
        let start = Instant::now();
        loop {
            let next = self.lines.lock().unwrap().get(self.taken).cloned();
            if let Some(line) = next {
                self.taken += 1;
                return line;
            }
            assert!(
                start.elapsed() < DEADLINE,
                "not within {DEADLINE:?}: another line; {}",
                self.said()
            );
            sleep(POLL).await;
        }
    }

    /// The next lines are these.
    pub(crate) async fn expect(&mut self, lines: &[&str]) {
        for line in lines {
            assert_eq!(self.line().await, *line, "{}", self.said());
        }
    }

    /// Takes lines up to one that starts like this, and returns it.
    pub(crate) async fn skip_to(&mut self, start: &str) -> String {
        loop {
            let line = self.line().await;
            if line.starts_with(start) {
                return line;
            }
        }
    }

    fn said(&self) -> String {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        // A dump of large values helps nobody.
        let lines = lines.iter().map(|line| line.chars().take(500).collect());
        let lines: Vec<String> = lines.collect();
        format!("its {} so far:\n{}\n", self.name, lines.join("\n"))
    }
}
