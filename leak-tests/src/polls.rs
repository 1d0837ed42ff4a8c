//! A future that is dropped at each of its awaits.

use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::timeout;

/// The most polls that a future may take: one that takes more does not complete.
const MOST_POLLS: usize = 10_000;

/// How long one round of [`at_every_poll`] may take, so that a round that hangs fails with its number.
/// Generous on purpose.
const ROUND_WITHIN: Duration = Duration::from_secs(60);

/// Polls a future `times` times, each time after it was woken, as a runtime does; then drops it.
/// Returns its output if it completed.
///
/// After the last poll it is dropped at once, without waiting for it to be woken again. In a `join!` or
/// `select!` a poll may come without a wake-up; futures must tolerate that.
///
/// # Cancel safety
/// Dropping it drops the future.
pub async fn poll_times<F: Future>(times: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = times;
    std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Calls `round` with 0, 1, 2, … polls until it says that the future completed by itself, and returns
/// how many polls that took.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use leak_tests::{at_every_poll, poll_times};
///
/// let polls = at_every_poll(async |polls| {
///     let done = poll_times(polls, tokio::task::yield_now()).await;
///     // Here: nothing is left of it, and the next call sees what this one would have.
///     done.is_some()
/// })
/// .await;
/// assert_eq!(polls, 2);
/// # }
/// ```
///
/// # Panics
/// When a round does not end within a minute, or the future is not complete after ten thousand
/// polls.
///
/// # Cancel safety
/// Dropping it ends the round at hand.
pub async fn at_every_poll(mut round: impl AsyncFnMut(usize) -> bool) -> usize {
    for polls in 0..MOST_POLLS {
        match timeout(ROUND_WITHIN, round(polls)).await {
            Ok(true) => return polls,
            Ok(false) => {}
            Err(_) => {
                panic!("dropped after {polls} polls: the round is not over within {ROUND_WITHIN:?}")
            }
        }
    }
    panic!("the future is not complete after {MOST_POLLS} polls");
}
