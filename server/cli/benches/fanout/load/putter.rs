//! Makes the changes, on a thread of its own, so that arrivals do not delay puts.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval};

use super::board::Board;
use crate::Failure;
use crate::floor::LENGTH;
use crate::plan::{HOT, Plan, Put};

/// A putter that is connected and waits.
pub(super) struct Putter {
    go: oneshot::Sender<()>,
    done: oneshot::Receiver<Result<(), Failure>>,
}

impl Putter {
    /// Connects, in a thread that ends with the last change.
    pub(super) fn start(plan: &Plan, board: &Arc<Board>) -> Self {
        let (go, told) = oneshot::channel();
        let (finished, done) = oneshot::channel();
        let (plan, board) = (plan.clone(), Arc::clone(board));
        std::thread::spawn(move || {
            let result = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(Failure::from)
                .and_then(|runtime| runtime.block_on(put(&plan, &board, told)));
            // Nobody need wait for it any more.
            let _ = finished.send(result);
        });
        Self { go, done }
    }

    /// Makes all changes.
    pub(super) async fn run(self) -> Result<(), Failure> {
        self.go.send(()).map_err(|()| "the putter ended early")?;
        self.done.await?
    }
}

/// Where changes go.
enum Target {
    Etcd(Box<etcd_client::Client>),
    Floor(TcpStream),
}

async fn put(plan: &Plan, board: &Board, told: oneshot::Receiver<()>) -> Result<(), Failure> {
    let mut target = match &plan.put {
        Put::Etcd(url) => {
            let mut etcd = etcd_client::Client::connect([url], None).await?;
            // It connects with the first call.
            etcd.get(HOT, None).await?;
            Target::Etcd(Box::new(etcd))
        }
        Put::Floor(source) => {
            let socket = TcpStream::connect(source).await?;
            socket.set_nodelay(true)?;
            Target::Floor(socket)
        }
    };
    told.await?;
    let mut ticks = interval(Duration::from_micros(plan.period_us));
    // A put that took long must not make fewer of them.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for n in 1..=plan.changes {
        let value = board.values.value(n);
        ticks.tick().await;
        board.put(n);
        match &mut target {
            Target::Etcd(etcd) => {
                etcd.put(HOT, value, None).await?;
            }
            Target::Floor(socket) => {
                let mut frame = Vec::with_capacity(LENGTH + value.len());
                frame.extend_from_slice(&u32::try_from(value.len())?.to_be_bytes());
                frame.extend_from_slice(&value);
                socket.write_all(&frame).await?;
            }
        }
    }
    Ok(())
}
