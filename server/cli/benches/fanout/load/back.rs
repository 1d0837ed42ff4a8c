//! Clients with the complete state reconnect after a restart of the server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use driftless_proto::KeyRange;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

use super::board::Board;
use super::connection::{self, CONNECTING, Counted, Place, Stream};
use super::dialogue::Dialogue;
use super::driftless::{Held, Moved, Watch};
use super::follow::{own_cpu, reach};
use crate::Failure;
use crate::plan::{PREFIX, Plan, Said};

pub(super) async fn run(plan: Plan, dialogue: &mut Dialogue) -> Result<(), Failure> {
    let board = Arc::new(Board::new(plan.payload, plan.changes));
    // One client fetches the state; it is what all of them hold.
    let held = scout(plan.subscribe, &board).await?;
    let mut tasks = all(&plan, &board, &held, Instant::now());
    reach(&board.live, plan.connections, &mut tasks).await?;
    // The server is about to stop, which is not a failure.
    tasks.shutdown().await;
    dialogue.say(&Said::Ready)?;

    // By now it was restarted.
    dialogue.go().await?;
    let board = Arc::new(Board::new(plan.payload, plan.changes));
    let (start, cpu) = (Instant::now(), own_cpu()?);
    let mut tasks = all(&plan, &board, &held, start);
    reach(&board.live, plan.connections, &mut tasks).await?;
    let mut outcome = board.outcome(start.elapsed(), own_cpu()? - cpu);
    outcome.bytes = board.received.load(Ordering::Relaxed);
    dialogue.say(&Said::Done(outcome))?;
    dialogue.go().await?;
    let verified = *board.live.borrow();
    dialogue.say(&Said::Verified(verified))
}

async fn scout(to: SocketAddr, board: &Arc<Board>) -> Result<Held, Failure> {
    let io = Counted::connect(to, board).await?;
    let (found, held) = oneshot::channel();
    let range = KeyRange::prefix(PREFIX)?;
    let scouting = connection::serve(io, |send| -> Vec<Stream> {
        vec![Box::pin(async move {
            let mut watch = Watch::start(send, to, range, None).await?;
            while !matches!(watch.next().await?.0, Moved::Replaced) {}
            // Whoever asked may have given up.
            let _ = found.send(watch.held()?);
            loop {
                watch.next().await?;
            }
        })]
    });
    tokio::select! {
        held = held => Ok(held?),
        ended = scouting => Err(ended.err().unwrap_or_else(|| "the scout ended".into())),
    }
}

/// Everybody, each on a connection of its own, with everything in hand.
fn all(
    plan: &Plan,
    board: &Arc<Board>,
    held: &Held,
    start: Instant,
) -> JoinSet<Result<(), Failure>> {
    let connecting = Arc::new(Semaphore::new(CONNECTING));
    let mut tasks = JoinSet::new();
    for _ in 0..plan.connections {
        let (board, held) = (Arc::clone(board), held.clone());
        let (connecting, to) = (Arc::clone(&connecting), plan.subscribe);
        tasks.spawn(async move {
            let place: Place = Arc::new(connecting.acquire_owned().await?);
            let range = KeyRange::prefix(PREFIX)?;
            let io = Counted::connect(to, &board).await?;
            connection::serve(io, |send| -> Vec<Stream> {
                vec![Box::pin(async move {
                    let mut watch = Watch::start(send, to, range, Some(held)).await?;
                    let mut place = Some(place);
                    loop {
                        // Proven either way: by the digest of what is held, or of what came.
                        if let Moved::Confirmed | Moved::Replaced = watch.next().await?.0
                            && place.take().is_some()
                        {
                            board.took(start.elapsed());
                            board.is_live();
                        }
                    }
                })]
            })
            .await
        });
    }
    tasks
}
