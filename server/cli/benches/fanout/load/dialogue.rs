//! The generator's side of the protocol with the process that started it.

use std::io::BufRead;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::Failure;
use crate::plan::{GO, Said};
use crate::report;

/// Lines in and out.
pub(super) struct Dialogue {
    lines: UnboundedReceiver<String>,
}

impl Dialogue {
    pub(super) fn start() -> Self {
        let (send, lines) = unbounded_channel();
        // Ends with its input, at the latest when the other process ends.
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Self { lines }
    }

    pub(super) fn say(&self, said: &Said) -> Result<(), Failure> {
        report::say(&serde_json::to_string(said)?);
        Ok(())
    }

    /// Waits until it is told to go on.
    pub(super) async fn go(&mut self) -> Result<(), Failure> {
        match self.lines.recv().await.as_deref() {
            Some(GO) => Ok(()),
            Some(other) => Err(format!("was told: {other}").into()),
            None => Err("whoever started this is gone".into()),
        }
    }
}
