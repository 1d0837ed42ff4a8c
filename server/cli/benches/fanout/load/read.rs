//! Measures what reading a typed value costs, beside a faster and a slower way to share a value.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use driftless_client::Client;

use super::dialogue::Dialogue;
use crate::Failure;
use crate::plan::{HOT, Outcome, Plan, Said};

/// How many threads read at a time.
pub(crate) const THREADS: usize = 2;

/// How long each way of reading is measured.
const FOR: Duration = Duration::from_secs(1);

/// Reads between two readings of the clock: many, so that the clock costs nothing.
const BATCH: u32 = 10_000;

pub(super) async fn run(plan: Plan, dialogue: &mut Dialogue) -> Result<(), Failure> {
    let client = Client::connect(format!("http://{}", plan.subscribe))?;
    let watcher = client.watch::<String>(HOT).await?;
    let value = Arc::new(watcher.load().clone());
    let lock = RwLock::new(Arc::clone(&value));
    let atomic = AtomicUsize::new(value.len());
    let part = watcher.map(String::as_str);
    let (watcher, part, lock, atomic) = (&watcher, &part, &lock, &atomic);
    dialogue.say(&Said::Ready)?;
    dialogue.go().await?;
    let more = vec![
        (
            "driftless".to_owned(),
            nanos(|| {
                move || {
                    black_box(watcher.load().len());
                }
            })?,
        ),
        (
            "driftless-reader".to_owned(),
            nanos(|| {
                let mut reader = watcher.reader();
                move || {
                    black_box(reader.load().len());
                }
            })?,
        ),
        (
            "driftless-map".to_owned(),
            nanos(|| {
                move || {
                    black_box(part.load().len());
                }
            })?,
        ),
        (
            "rwlock-arc-clone".to_owned(),
            nanos(|| {
                move || {
                    let value = Arc::clone(&lock.read().unwrap_or_else(PoisonError::into_inner));
                    black_box(value.len());
                }
            })?,
        ),
        (
            "atomic-load".to_owned(),
            nanos(|| {
                move || {
                    black_box(atomic.load(Ordering::Acquire));
                }
            })?,
        ),
    ];
    dialogue.say(&Said::Done(Outcome {
        more,
        ..Outcome::default()
    }))?;
    dialogue.go().await?;
    dialogue.say(&Said::Verified(1))
}

/// Nanoseconds that one read takes, when [`THREADS`] threads do nothing else. `way` makes each
/// thread its own way of reading.
fn nanos<R: FnMut()>(way: impl Fn() -> R + Sync) -> Result<f64, Failure> {
    let each = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    let mut read = way();
                    let start = Instant::now();
                    let mut reads = 0.0;
                    while start.elapsed() < FOR {
                        (0..BATCH).for_each(|_| read());
                        reads += f64::from(BATCH);
                    }
                    start.elapsed().as_secs_f64() * 1e9 / reads
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| "a reading thread panicked"))
            .collect::<Result<Vec<f64>, _>>()
    })?;
    Ok(each.iter().sum::<f64>() / each.len() as f64)
}
