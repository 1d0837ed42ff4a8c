//! The signals that stop the process.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::{Failure, Kind};

/// Receives the signals that stop the process. While it exists, they have no other effect.
#[derive(Debug)]
pub(crate) struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Hangup,
}

/// What SIGHUP does.
#[derive(Debug)]
enum Hangup {
    /// What it did when the process started.
    Unchanged,
    /// It stops the process.
    Stops(Signal),
    /// Nothing.
    Ignored(Signal),
}

/// A signal that was received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stop {
    pub(crate) name: &'static str,
    kind: SignalKind,
}

impl Stop {
    /// The failure that ends the process at once, after a second signal.
    pub(crate) fn at_once(self) -> Failure {
        let number = u8::try_from(self.kind.as_raw_value()).unwrap_or(0);
        Failure::new(
            Kind::Signal(number),
            format_args!("received {} again, ending at once", self.name),
        )
    }
}

impl StopSignals {
    /// Handles SIGINT (Ctrl-C) and SIGTERM from now on. Needs a runtime.
    ///
    /// # Errors
    /// When the system does not allow it.
    pub(crate) fn install() -> Result<Self, Failure> {
        Ok(Self {
            interrupt: install(SignalKind::interrupt())?,
            terminate: install(SignalKind::terminate())?,
            hangup: Hangup::Unchanged,
        })
    }

    /// As [`install`](Self::install), and SIGHUP has no effect but a line in the log.
    ///
    /// # Errors
    /// When the system does not allow it.
    pub(crate) fn install_without_hangup() -> Result<Self, Failure> {
        let mut signals = Self::install()?;
        signals.hangup = Hangup::Ignored(install(SignalKind::hangup())?);
        Ok(signals)
    }

    /// Handles SIGHUP too, which a closed terminal sends, unless `nohup` has made the process ignore it.
    ///
    /// # Errors
    /// When the system does not allow it.
    pub(crate) fn install_with_hangup() -> Result<Self, Failure> {
        let mut signals = Self::install()?;
        if !hangup_is_ignored() {
            signals.hangup = Hangup::Stops(install(SignalKind::hangup())?);
        }
        Ok(signals)
    }

    /// Waits for the next signal.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub(crate) async fn next(&mut self) -> Stop {
        loop {
            let hangup = async {
                match &mut self.hangup {
                    Hangup::Unchanged => None,
                    Hangup::Stops(signal) => signal.recv().await.map(|()| true),
                    Hangup::Ignored(signal) => signal.recv().await.map(|()| false),
                }
            };
            // `None` means that no more signals can arrive.
            let (name, kind) = tokio::select! {
                Some(()) = self.interrupt.recv() => ("SIGINT", SignalKind::interrupt()),
                Some(()) = self.terminate.recv() => ("SIGTERM", SignalKind::terminate()),
                Some(stops) = hangup => {
                    if !stops {
                        tracing::info!("SIGHUP has no effect: TLS files are read every 10 s, and other settings at the start");
                        continue;
                    }
                    ("SIGHUP", SignalKind::hangup())
                }
                else => std::future::pending().await,
            };
            return Stop { name, kind };
        }
    }
}

fn install(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error| Failure::system("handle signals", &error))
}

/// True if this process was started with SIGHUP ignored, according to the kernel.
fn hangup_is_ignored() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        status
            .lines()
            .find_map(|line| line.strip_prefix("SigIgn:"))
            .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            // SIGHUP is signal 1, the lowest bit.
            .is_some_and(|mask| mask & 1 != 0)
    })
}
