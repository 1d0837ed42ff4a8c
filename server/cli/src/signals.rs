//! The signals that stop a run.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::{Failure, Kind};

/// Waits for signals to stop. While one exists they do nothing by themselves.
#[derive(Debug)]
pub(crate) struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<Signal>,
}

/// One that came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stop {
    pub(crate) name: &'static str,
    kind: SignalKind,
}

impl Stop {
    /// To end at once, because it came a second time.
    pub(crate) fn at_once(self) -> Failure {
        let number = u8::try_from(self.kind.as_raw_value()).unwrap_or(0);
        Failure::new(
            Kind::Signal(number),
            format_args!("{} again, ending at once", self.name),
        )
    }
}

impl StopSignals {
    /// From here on SIGINT (Ctrl-C) and SIGTERM are ours. Needs a runtime.
    ///
    /// # Errors
    /// When the system does not let us.
    pub(crate) fn install() -> Result<Self, Failure> {
        Ok(Self {
            interrupt: install(SignalKind::interrupt())?,
            terminate: install(SignalKind::terminate())?,
            hangup: None,
        })
    }

    /// And SIGHUP, which says that the terminal was closed, unless `nohup` had it ignored.
    ///
    /// # Errors
    /// When the system does not let us.
    pub(crate) fn install_with_hangup() -> Result<Self, Failure> {
        let mut signals = Self::install()?;
        if !hangup_is_ignored() {
            signals.hangup = Some(install(SignalKind::hangup())?);
        }
        Ok(signals)
    }

    /// The next one.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub(crate) async fn next(&mut self) -> Stop {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => None,
            }
        };
        // `None` would mean that no more can come.
        let (name, kind) = tokio::select! {
            Some(()) = self.interrupt.recv() => ("SIGINT", SignalKind::interrupt()),
            Some(()) = self.terminate.recv() => ("SIGTERM", SignalKind::terminate()),
            Some(()) = hangup => ("SIGHUP", SignalKind::hangup()),
            else => std::future::pending().await,
        };
        Stop { name, kind }
    }
}

fn install(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error| Failure::system("handle signals", &error))
}

/// Whether this process was started with SIGHUP ignored, as the kernel tells it.
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
