//! The standard error. A thread writes it, so that nothing else waits when nobody reads it.
//!
//! What does not fit into the queue is dropped and counted. The thread starts with the first line and
//! ends with the process.

use std::io::{self, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use crate::rate_limit::RATE_LIMIT;

/// What may wait to be written, in bytes: thousands of lines, far more than a start or a loss of etcd
/// logs at once.
const QUEUE_BYTES: usize = 1024 * 1024;

/// What the queue keeps of its memory after a burst, in bytes.
const KEPT_BYTES: usize = 16 * 1024;

/// How long a line that must not be lost waits for a reader, and how long the process does at its end.
const FLUSHED_WITHIN: Duration = Duration::from_secs(1);

/// The lines on their way to the standard error of this process.
static LINES: Lines = Lines::new();

/// Writes text, in whole lines, as soon as the standard error takes it. Does not wait for that.
pub(crate) fn write(text: &str) {
    let is_first = LINES.push(text.as_bytes());
    if is_first {
        let thread = std::thread::Builder::new().name("stderr".to_owned());
        let writes = || LINES.write_to(&mut Patient(io::stderr()));
        if thread.spawn(writes).is_err() {
            LINES.lock().is_written = false;
        }
    }
}

/// Waits until everything is written, for a second at most.
pub(crate) fn flush() {
    LINES.flush(FLUSHED_WITHIN);
}

/// As [`flush`], at the end of the process: says also what the log has left out until now.
pub(crate) fn finish() {
    for report in RATE_LIMIT.take_reports(None) {
        write(&report);
    }
    flush();
}

/// Wakes the writing thread, which has something to say itself.
pub(crate) fn wake() {
    // With the lock, or the thread could look just before and sleep just after.
    let _queue = LINES.lock();
    LINES.changed.notify_all();
}

/// Where log lines go.
#[derive(Debug)]
pub(crate) struct LogLines;

impl Write for LogLines {
    /// Takes a whole line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        write(&String::from_utf8_lossy(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A bounded queue of lines.
#[derive(Debug)]
struct Lines {
    queue: Mutex<Queue>,
    /// Notified of each change of the queue.
    changed: Condvar,
}

#[derive(Debug)]
struct Queue {
    waiting: Vec<u8>,
    /// How many lines did not fit.
    dropped: u64,
    /// Whether there is a thread that writes.
    is_written: bool,
    /// Whether it has taken lines that are not written yet.
    is_writing: bool,
}

impl Lines {
    const fn new() -> Self {
        Self {
            queue: Mutex::new(Queue {
                waiting: Vec::new(),
                dropped: 0,
                is_written: false,
                is_writing: false,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds text, if it fits. Returns whether somebody has to begin to write.
    fn push(&self, text: &[u8]) -> bool {
        let mut queue = self.lock();
        if queue.waiting.len() + text.len() > QUEUE_BYTES {
            queue.dropped += 1;
        } else {
            queue.waiting.extend_from_slice(text);
        }
        self.changed.notify_all();
        !std::mem::replace(&mut queue.is_written, true)
    }

    fn flush(&self, within: Duration) {
        let queue = self.lock();
        let unwritten =
            |queue: &mut Queue| queue.is_written && (!queue.waiting.is_empty() || queue.is_writing);
        drop(self.changed.wait_timeout_while(queue, within, unwritten));
    }

    /// Writes what comes, for ever.
    fn write_to(&self, sink: &mut impl Write) {
        let mut taken = Vec::new();
        loop {
            self.write_next(sink, &mut taken);
        }
    }

    /// Waits for lines and writes them.
    fn write_next(&self, sink: &mut impl Write, taken: &mut Vec<u8>) {
        let mut queue = self.lock();
        loop {
            let now = Instant::now();
            for report in RATE_LIMIT.take_reports(Some(now)) {
                queue.waiting.extend_from_slice(report.as_bytes());
            }
            if !queue.waiting.is_empty() || queue.dropped > 0 {
                break;
            }
            queue = match RATE_LIMIT.next_report() {
                None => self
                    .changed
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(at) => {
                    let within = at.saturating_duration_since(now);
                    let waited = self.changed.wait_timeout(queue, within);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        taken.clear();
        taken.shrink_to(KEPT_BYTES);
        std::mem::swap(&mut queue.waiting, taken);
        let dropped = std::mem::take(&mut queue.dropped);
        queue.is_writing = true;
        drop(queue);
        if dropped > 0 {
            let note = format!(
                "driftless: dropped {dropped} lines of the log: the standard error was not read in time\n"
            );
            taken.extend_from_slice(note.as_bytes());
        }
        // There is nowhere left to report a failure.
        let _ = sink.write_all(taken);
        self.lock().is_writing = false;
        self.changed.notify_all();
    }
}

/// A standard error that may be set not to block, by whoever started this process: waits all the same.
#[derive(Debug)]
struct Patient<S>(S);

impl Write for Patient<io::Stderr> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], None)?;
                }
                done => return done,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_queue_are_dropped_and_counted() {
        let lines = Lines::new();
        let line = [b'x'; 1023];
        let line = [&line[..], b"\n"].concat();
        for _ in 0..2000 {
            lines.push(&line);
        }
        assert_eq!(lines.lock().waiting.len(), QUEUE_BYTES);
        let (mut sink, mut taken) = (Vec::new(), Vec::new());
        lines.write_next(&mut sink, &mut taken);
        let text = String::from_utf8(sink).unwrap();
        let written: Vec<&str> = text.lines().collect();
        assert_eq!(written.len(), 1024 + 1);
        assert!(
            written[1024].contains("dropped 976 lines"),
            "{}",
            written[1024]
        );
        // There is room again, and nothing is reported twice.
        lines.push(b"next\n");
        let mut sink = Vec::new();
        lines.write_next(&mut sink, &mut taken);
        assert_eq!(sink, b"next\n");
    }

    /// Flushing waits for a line that is being written, too, and for none that nobody reads.
    #[test]
    fn flush_waits_for_the_last_line_within_its_time() {
        static LINES: Lines = Lines::new();
        let (mut reader, writer) = io::pipe().unwrap();
        assert!(LINES.push(b"first\n"));
        LINES.flush(Duration::ZERO);
        assert!(!LINES.lock().waiting.is_empty(), "nobody writes yet");
        std::thread::spawn(move || LINES.write_to(&mut { writer }));
        LINES.flush(Duration::from_secs(30));
        let mut read = [0; 6];
        io::Read::read_exact(&mut reader, &mut read).unwrap();
        assert_eq!(&read, b"first\n");
        assert!(!LINES.lock().is_writing);
        // More than a pipe holds.
        for _ in 0..1000 {
            LINES.push(&[b'x'; 1000]);
        }
        LINES.flush(Duration::from_millis(1));
        assert!(LINES.lock().is_writing, "it waits for the reader");
    }
}
