//! A read that runs beside the watch and reports several updates.

use std::future::Future;
use std::pin::Pin;

use tokio::sync::mpsc;

use crate::source::Update;

/// A running read, and the one update that it may be ahead by. It spawns nothing: it advances only
/// while [`Subtask::next`] is polled, and ends when it is dropped.
pub(super) struct Subtask {
    future: Pin<Box<dyn Future<Output = ()> + Send>>,
    finished: bool,
    updates: mpsc::Receiver<Update>,
}

impl Subtask {
    pub(super) fn new<F>(start: impl FnOnce(mpsc::Sender<Update>) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (sender, updates) = mpsc::channel(1);
        Self {
            future: Box::pin(start(sender)),
            finished: false,
            updates,
        }
    }

    /// Its next update; `None` after the last one.
    ///
    /// # Cancel safety
    /// Cancel-safe: the read continues with the next call.
    pub(super) async fn next(&mut self) -> Option<Update> {
        tokio::select! {
            biased;
            update = self.updates.recv() => update,
            () = &mut self.future, if !self.finished => {
                self.finished = true;
                self.updates.recv().await
            }
        }
    }
}

/// The next update of the subtask in `slot`. Empties the slot after its last update. Stays pending
/// when there is none; returning would make the caller spin.
///
/// # Cancel safety
/// Cancel-safe, as [`Subtask::next`].
pub(super) async fn next(slot: &mut Option<Subtask>) -> Update {
    if let Some(subtask) = slot {
        if let Some(update) = subtask.next().await {
            return update;
        }
        *slot = None;
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn finished_subtask_is_dropped_after_its_last_update() {
        let mut slot = Some(Subtask::new(|sender| async move {
            for revision in 1..=3 {
                let revision = driftless_proto::Revision::new(revision);
                sender.send(Update::Progress { revision }).await.unwrap();
            }
        }));
        for expected in 1..=3 {
            assert!(matches!(
                next(&mut slot).await,
                Update::Progress { revision } if revision.get() == expected
            ));
        }
        let hour = std::time::Duration::from_secs(3600);
        assert!(timeout(hour, next(&mut slot)).await.is_err());
        assert!(slot.is_none());
    }
}
