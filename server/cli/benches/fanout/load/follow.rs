//! Subscribers that see every change arrive.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use driftless_test_support::proc;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::board::Board;
use super::connection::{self, CONNECTING, Counted, Place, Stream};
use super::dialogue::Dialogue;
use super::putter::Putter;
use super::{driftless, etcd, floor};
use crate::Failure;
use crate::plan::{HOT, Job, PREFIX, Plan, Said, Speaks};

/// How long it may take until all are subscribed, or have the final state after the last put: many times
/// the usual, and short enough for a run to end.
pub(super) const WITHIN: Duration = Duration::from_secs(180);

/// Streams on one connection that only hold unrelated ranges: fewer than any server's limit.
const UNRELATED_STREAMS: usize = 1000;

pub(super) async fn run(plan: Plan, dialogue: &mut Dialogue) -> Result<(), Failure> {
    let Job::Follow { stalled, unrelated } = plan.job else {
        return Err("not a plan to follow".into());
    };
    let board = Arc::new(Board::new(plan.payload, plan.changes));
    let putter = Putter::start(&plan, &board);
    let connecting = Arc::new(Semaphore::new(CONNECTING));
    let mut tasks = JoinSet::new();
    let mut connect = |keys: Vec<String>, stalls: bool| {
        let client = client(&plan, keys, &board, &connecting);
        let board = Arc::clone(&board);
        if stalls {
            tasks.spawn(async move { connection::stalling(client, board).await });
        } else {
            tasks.spawn(client);
        }
    };
    for n in 0..plan.connections {
        connect(vec![HOT.to_owned(); plan.streams], n < stalled);
    }
    for start in (0..unrelated).step_by(UNRELATED_STREAMS) {
        let end = unrelated.min(start + UNRELATED_STREAMS);
        let keys = (start..end).map(|n| format!("{PREFIX}unrelated/{n}"));
        connect(keys.collect(), false);
    }
    let all = plan.subscribers();
    reach(&board.live, all + unrelated, &mut tasks).await?;
    dialogue.say(&Said::Ready)?;

    dialogue.go().await?;
    board.stall.send_replace(stalled > 0);
    board.received.store(0, Ordering::Relaxed);
    let (start, cpu) = (Instant::now(), own_cpu()?);
    putter.run().await?;
    let reads = all - stalled * plan.streams;
    reach(&board.finished, reads, &mut tasks).await?;
    let outcome = board.outcome(start.elapsed(), own_cpu()? - cpu);
    dialogue.say(&Said::Done(outcome))?;

    dialogue.go().await?;
    board.stall.send_replace(false);
    reach(&board.finished, all, &mut tasks).await?;
    let verified = *board.finished.borrow();
    dialogue.say(&Said::Verified(verified))
}

/// One connection with a stream for each key.
fn client(
    plan: &Plan,
    keys: Vec<String>,
    board: &Arc<Board>,
    connecting: &Arc<Semaphore>,
) -> impl Future<Output = Result<(), Failure>> + Send + use<> {
    let (speaks, to) = (plan.speaks, plan.subscribe);
    let (board, connecting) = (Arc::clone(board), Arc::clone(connecting));
    async move {
        let place: Place = Arc::new(connecting.acquire_owned().await?);
        let io = Counted::connect(to, &board).await?;
        if speaks == Speaks::Floor {
            return floor::follow(io, board, place).await;
        }
        connection::serve(io, |send| {
            let streams = keys.into_iter().map(|key| -> Stream {
                let (send, board, place) = (send.clone(), Arc::clone(&board), Arc::clone(&place));
                if speaks == Speaks::Etcd {
                    Box::pin(etcd::follow(send, to, key, board, place))
                } else {
                    Box::pin(driftless::follow(send, to, key, board, place))
                }
            });
            let streams = streams.collect();
            drop(place);
            streams
        })
        .await
    }
}

/// Waits until a count is `wanted`, and no longer than [`WITHIN`]; fails as soon as a client does.
pub(super) async fn reach(
    count: &watch::Sender<usize>,
    wanted: usize,
    tasks: &mut JoinSet<Result<(), Failure>>,
) -> Result<(), Failure> {
    let mut counted = count.subscribe();
    let reached = async {
        tokio::select! {
            reached = counted.wait_for(|count| *count >= wanted) => reached.map(drop).map_err(Failure::from),
            Some(ended) = tasks.join_next() => match ended? {
                Ok(()) => Err("a client ended by itself".into()),
                Err(error) => Err(error),
            },
        }
    };
    timeout(WITHIN, reached).await.unwrap_or_else(|_| {
        let count = *count.borrow();
        Err(format!("{count} of {wanted} clients came that far within {WITHIN:?}").into())
    })
}

/// User and system time of this process.
pub(super) fn own_cpu() -> Result<f64, Failure> {
    proc::cpu_ms(rustix::process::getpid().as_raw_nonzero().get())
}
