//! All that this process logs, the client's part and its dependencies', at every level.

use std::io;
use std::sync::{Mutex, Once, PoisonError};

static LOGGED: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Log;

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut logged = LOGGED.lock().unwrap_or_else(PoisonError::into_inner);
        logged.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Begins to listen, for the whole process and its tests side by side.
pub(crate) fn listen() {
    static LISTENING: Once = Once::new();
    LISTENING.call_once(|| {
        tracing_subscriber::fmt()
            .with_writer(|| Log)
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .init();
    });
}

/// The lines that hold all of these texts.
pub(crate) fn lines(texts: &[&str]) -> Vec<String> {
    let logged = LOGGED.lock().unwrap_or_else(PoisonError::into_inner);
    let logged = String::from_utf8_lossy(&logged);
    let holds = |line: &&str| texts.iter().all(|text| line.contains(text));
    logged.lines().filter(holds).map(str::to_owned).collect()
}
