//! Subscribers that are the client library itself, each with a client and so a connection of its own.

use std::sync::Arc;
use std::time::Instant;

use driftless_client::Client;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::board::Board;
use super::connection::CONNECTING;
use super::dialogue::Dialogue;
use super::follow::{own_cpu, reach};
use super::putter::Putter;
use crate::Failure;
use crate::plan::{HOT, Plan, Said};

pub(super) async fn run(plan: Plan, dialogue: &mut Dialogue) -> Result<(), Failure> {
    let board = Arc::new(Board::new(plan.payload, plan.changes));
    let putter = Putter::start(&plan, &board);
    let connecting = Arc::new(Semaphore::new(CONNECTING));
    let mut tasks = JoinSet::new();
    for _ in 0..plan.connections {
        tasks.spawn(follow(
            format!("http://{}", plan.subscribe),
            Arc::clone(&board),
            Arc::clone(&connecting),
        ));
    }
    reach(&board.live, plan.connections, &mut tasks).await?;
    dialogue.say(&Said::Ready)?;

    dialogue.go().await?;
    let (start, cpu) = (Instant::now(), own_cpu()?);
    putter.run().await?;
    reach(&board.finished, plan.connections, &mut tasks).await?;
    let outcome = board.outcome(start.elapsed(), own_cpu()? - cpu);
    dialogue.say(&Said::Done(outcome))?;
    dialogue.go().await?;
    let verified = *board.finished.borrow();
    dialogue.say(&Said::Verified(verified))
}

async fn follow(url: String, board: Arc<Board>, connecting: Arc<Semaphore>) -> Result<(), Failure> {
    let place = connecting.acquire_owned().await?;
    let client = Client::connect(url)?;
    let mut watcher = client.watch::<String>(HOT).await?;
    drop(place);
    board.is_live();
    loop {
        watcher.changed().await?;
        board.arrived(watcher.load().as_bytes(), Instant::now())?;
    }
}
