//! Something that a source does beside its watch and that has more than one thing to say.

use std::future::Future;
use std::pin::Pin;

use tokio::sync::mpsc;

use crate::source::Update;

/// Work under way and the one update that it may be ahead by. Nothing is spawned: it gets on only
/// while somebody waits for what it says, and ends when it is dropped.
pub(super) struct Errand {
    work: Pin<Box<dyn Future<Output = ()> + Send>>,
    done: bool,
    said: mpsc::Receiver<Update>,
}

impl Errand {
    pub(super) fn new<F>(work: impl FnOnce(mpsc::Sender<Update>) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (say, said) = mpsc::channel(1);
        Self {
            work: Box::pin(work(say)),
            done: false,
            said,
        }
    }

    /// What it says next; `None` once all was said.
    ///
    /// # Cancel safety
    /// Cancel-safe: the work goes on when this is called again.
    pub(super) async fn next(&mut self) -> Option<Update> {
        tokio::select! {
            biased;
            said = self.said.recv() => said,
            () = &mut self.work, if !self.done => {
                self.done = true;
                self.said.recv().await
            }
        }
    }
}

/// What the errand in this place says next. One that has said everything is let go of; where there is
/// none, this waits for ever.
///
/// # Cancel safety
/// Cancel-safe, as [`Errand::next`].
pub(super) async fn next(errand: &mut Option<Errand>) -> Update {
    if let Some(under_way) = errand {
        if let Some(update) = under_way.next().await {
            return update;
        }
        *errand = None;
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_is_said_in_order_and_then_the_errand_is_let_go_of() {
        let mut errand = Some(Errand::new(|say| async move {
            for revision in 1..=3 {
                let revision = driftless_proto::Revision::new(revision);
                say.send(Update::Progress { revision }).await.unwrap();
            }
        }));
        for expected in 1..=3 {
            assert!(matches!(
                next(&mut errand).await,
                Update::Progress { revision } if revision.get() == expected
            ));
        }
        // That there is nothing more is no news: whoever waits would turn round and round.
        let hour = std::time::Duration::from_secs(3600);
        assert!(timeout(hour, next(&mut errand)).await.is_err());
        assert!(errand.is_none());
    }
}
