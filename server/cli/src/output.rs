//! Writes to the standard output, and hands what is for the standard error to its thread. No other
//! module uses either, but for the log.
//!
//! A reader that goes away is not an error: the caller learns it and ends quietly. Nothing here panics
//! on a closed descriptor, as `println!` would.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::exit::Failure;
use crate::stderr;

/// Whether the standard output still has a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Reader {
    There,
    Gone,
}

/// Writes to the standard output. Blocks until the system has taken all of it, for as long as the
/// reader needs.
///
/// # Errors
/// When the write fails for another reason than a reader that has gone, such as a full disk.
pub(crate) fn write(bytes: &[u8]) -> Result<Reader, Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(Reader::There),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(Failure::system("write to the standard output", &error)),
    }
}

/// Writes text that nothing depends on to the standard output. Does not wait until it is written, which
/// a reader that does not read could prevent for ever; a thread does, and ends with the process.
pub(crate) fn announce(text: String) {
    let write = move || {
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(text.as_bytes());
        match written.and_then(|()| stdout.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                tracing::warn!(%error, "cannot write to the standard output");
            }
            // It is no error when nobody reads it.
            _ => {}
        }
    };
    let thread = std::thread::Builder::new().name("announce".to_owned());
    if let Err(error) = thread.spawn(write) {
        tracing::warn!(%error, "cannot write to the standard output");
    }
}

/// Returns when the reader of the standard output has gone, even if nothing is written. Never returns
/// if the output is a file.
///
/// Waits on a thread of its own, which nothing can wake and which ends with the process. Call it once.
///
/// # Cancel safety
/// Cancel-safe; the thread stays.
pub(crate) async fn reader_gone() {
    let (gone, told) = tokio::sync::oneshot::channel();
    let wait = move || {
        let stdout = io::stdout();
        // Without requested events, poll reports only that the other end has closed.
        let mut polled = [PollFd::new(&stdout, PollFlags::empty())];
        loop {
            match poll(&mut polled, None) {
                Ok(_) => {
                    // The waiting future may have been dropped.
                    let _ = gone.send(());
                    break;
                }
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
    };
    // Without the thread, the next write finds out.
    let thread = std::thread::Builder::new().name("reader-gone".to_owned());
    if thread.spawn(wait).is_err() || told.await.is_err() {
        std::future::pending().await
    }
}

/// Prints one line on the standard error. Waits until it is written, for a second at most.
pub(crate) fn note(message: &str) {
    stderr::write(&format!("driftless: {}\n", escaped(message)));
    stderr::flush();
}

/// The text with control characters escaped, so that a server's message cannot move the cursor.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            let _ = write!(escaped, "{}", c.escape_default());
        } else {
            escaped.push(c);
        }
    }
    escaped
}
