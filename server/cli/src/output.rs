//! The only place that writes to the standard output and the standard error.
//!
//! A reader that goes away is no failure of ours: whoever writes is told and ends quietly. Nothing
//! here panics on a closed descriptor, as `println!` would.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::exit::Failure;

/// What became of the reader of the standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Reader {
    There,
    Gone,
}

/// Writes to the standard output and waits until the system has taken it, which takes as long as
/// the reader likes. Blocks.
///
/// # Errors
/// When it cannot be written for another reason than the reader's being gone, such as a full disk.
pub(crate) fn write(bytes: &[u8]) -> Result<Reader, Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(Reader::There),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(Failure::system("write to the standard output", &error)),
    }
}

/// Returns when the reader of the standard output is gone, also while nothing is written. Never,
/// where the output is a file.
///
/// Waits in a thread of its own, which nothing can wake: to be called once in a process, whose end
/// is the thread's.
///
/// # Cancel safety
/// Cancel-safe; the thread stays.
pub(crate) async fn reader_gone() {
    let (gone, told) = tokio::sync::oneshot::channel();
    let wait = move || {
        let stdout = io::stdout();
        // No event is asked for: what is left is that there is no other end any more.
        let mut polled = [PollFd::new(&stdout, PollFlags::empty())];
        loop {
            match poll(&mut polled, None) {
                Ok(_) => {
                    // Whoever waited may be gone too.
                    let _ = gone.send(());
                    break;
                }
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
    };
    // Without the thread, or where it gave up, the next write is what tells.
    let thread = std::thread::Builder::new().name("reader-gone".to_owned());
    if thread.spawn(wait).is_err() || told.await.is_err() {
        std::future::pending().await
    }
}

/// Tells people something, in one line on the standard error.
pub(crate) fn note(message: &str) {
    // Nobody left to tell that nobody is left to tell.
    let _ = writeln!(io::stderr(), "driftless: {}", escaped(message));
}

/// Text without what could move a terminal's cursor: other people's words are in it.
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
