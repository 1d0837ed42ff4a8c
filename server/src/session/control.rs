//! What a connection is told from outside its task: to take no new calls, or to close.

use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Waker;

use futures_util::task::AtomicWaker;

/// Commands to one connection. Its task registers a waker, and looks here each time it is polled.
#[derive(Debug, Default)]
pub(crate) struct ConnectionControl {
    given: AtomicU8,
    /// Of the connection's task.
    waker: AtomicWaker,
}

impl ConnectionControl {
    const DRAIN: u8 = 1;
    const CLOSE: u8 = 2;

    /// Takes no new calls from now on; the open ones continue.
    pub(crate) fn drain(&self) {
        self.give(Self::DRAIN);
    }

    /// Closes the connection at once, with everything on it. Returns whether it is the first time.
    pub(crate) fn close(&self) -> bool {
        self.give(Self::CLOSE)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.has(Self::DRAIN)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.has(Self::CLOSE)
    }

    /// The connection's task, which is woken by each command.
    pub(crate) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// Wakes the connection's task.
    pub(crate) fn wake(&self) {
        self.waker.wake();
    }

    fn give(&self, command: u8) -> bool {
        let before = self.given.fetch_or(command, Ordering::AcqRel);
        self.waker.wake();
        before & command == 0
    }

    fn has(&self, command: u8) -> bool {
        self.given.load(Ordering::Acquire) & command != 0
    }
}
