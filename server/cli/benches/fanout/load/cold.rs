//! Clients without a state fetch a whole range, all at once.
//!
//! They receive the same bytes, except for the `Hello`. So the first complete state is checked by its digest,
//! and all others are compared with it byte for byte: thousands of copies in memory would measure the
//! generator.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use driftless_proto::apply::{Action, Applier};
use driftless_proto::v1::watch_response::Frame;
use driftless_proto::{Epoch, KeyRange, v1};
use h2::client::SendRequest;
use prost::Message;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::board::Board;
use super::connection::{self, CONNECTING, Counted, Place, Stream};
use super::dialogue::Dialogue;
use super::driftless::WATCH;
use super::follow::{own_cpu, reach};
use super::grpc::{Call, Ended, Requests};
use crate::Failure;
use crate::plan::{PREFIX, Plan, Said};

/// What the range may hold, in bytes.
const LIMIT: usize = 64 * 1024 * 1024;

/// The messages of the snapshot, as the first client that came so far saw them.
type Template = Mutex<Vec<Bytes>>;

pub(super) async fn run(plan: Plan, dialogue: &mut Dialogue) -> Result<(), Failure> {
    let board = Arc::new(Board::new(plan.payload, plan.changes));
    let template: Arc<Template> = Arc::default();
    dialogue.say(&Said::Ready)?;

    dialogue.go().await?;
    let (start, cpu) = (Instant::now(), own_cpu()?);
    let connecting = Arc::new(Semaphore::new(CONNECTING));
    let mut tasks = JoinSet::new();
    for _ in 0..plan.connections {
        let (board, template) = (Arc::clone(&board), Arc::clone(&template));
        let (connecting, to) = (Arc::clone(&connecting), plan.subscribe);
        tasks.spawn(async move {
            let place: Place = Arc::new(connecting.acquire_owned().await?);
            let io = Counted::connect(to, &board).await?;
            connection::serve(io, |send| -> Vec<Stream> {
                vec![Box::pin(fetch(send, to, board, template, place, start))]
            })
            .await
        });
    }
    reach(&board.finished, plan.connections, &mut tasks).await?;
    let outcome = board.outcome(start.elapsed(), own_cpu()? - cpu);
    prove(&template)?;
    dialogue.say(&Said::Done(outcome))?;
    dialogue.go().await?;
    let verified = *board.finished.borrow();
    dialogue.say(&Said::Verified(verified))
}

/// What became of one call.
enum Fetched {
    /// It has everything, and the call goes on.
    All(Call),
    /// The server is busy, and said when to retry.
    Later(Duration),
}

async fn fetch(
    send: SendRequest<Bytes>,
    to: SocketAddr,
    board: Arc<Board>,
    template: Arc<Template>,
    place: Place,
    start: Instant,
) -> Result<(), Failure> {
    let mut place = Some(place);
    let mut call = loop {
        match attempt(send.clone(), to, &template, &mut place).await {
            Ok(Fetched::All(call)) => break call,
            Ok(Fetched::Later(after)) => wait(after).await,
            Err(error) => match error.downcast_ref::<Ended>() {
                Some(Ended {
                    retry_after: Some(after),
                    ..
                }) => wait(*after).await,
                _ => return Err(error),
            },
        }
        place = None;
    };
    board.took(start.elapsed());
    board.finish();
    // Only progress follows.
    loop {
        call.next().await?;
    }
}

/// At least as long as the server said, and not all at the same moment.
async fn wait(after: Duration) {
    tokio::time::sleep(after.mul_f64(1.0 + rand::random::<f64>())).await;
}

async fn attempt(
    send: SendRequest<Bytes>,
    to: SocketAddr,
    template: &Template,
    place: &mut Option<Place>,
) -> Result<Fetched, Failure> {
    let request = v1::WatchRequest {
        range: Some(v1::Range::from(&KeyRange::prefix(PREFIX)?)),
        ..Default::default()
    };
    let mut call = Call::start(send, to, WATCH, &request, Requests::One).await?;
    // The `Hello`, which differs between clients.
    call.next().await?;
    *place = None;
    let mut index = 0;
    loop {
        let (message, _) = call.next().await?;
        match v1::WatchResponse::decode(message.clone())?.frame {
            Some(Frame::Snapshot(chunk)) => {
                if known(template, index, &message).is_some_and(|known| known != message) {
                    return Err("a snapshot differs from the others".into());
                }
                index += 1;
                if !chunk.more {
                    return Ok(Fetched::All(call));
                }
            }
            Some(Frame::Goodbye(goodbye)) => {
                let after = Duration::from_millis(goodbye.retry_after_ms.into());
                return Ok(Fetched::Later(after));
            }
            // Progress, while it waits for a permit.
            Some(Frame::Progress(_)) => {}
            _ => return Err("neither a snapshot nor a word about it".into()),
        }
    }
}

/// Message `index` as others received it. `None` if this client is the first, whose message is noted.
fn known(template: &Template, index: usize, message: &Bytes) -> Option<Bytes> {
    let mut template = template.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = template.get(index) {
        return Some(known.clone());
    }
    template.push(message.clone());
    None
}

/// Checks that the messages are a snapshot with the right digest.
fn prove(template: &Template) -> Result<(), Failure> {
    let messages = template.lock().unwrap_or_else(PoisonError::into_inner);
    let mut applier = Applier::new(KeyRange::prefix(PREFIX)?, LIMIT);
    applier.begin(Epoch::new(Bytes::new()));
    for message in messages.iter() {
        let Some(Frame::Snapshot(chunk)) = v1::WatchResponse::decode(message.clone())?.frame else {
            return Err("something that is no snapshot".into());
        };
        if let Action::Replace { entries, .. } = applier.snapshot(chunk)? {
            return if entries.is_empty() {
                Err("an empty snapshot".into())
            } else {
                Ok(())
            };
        }
    }
    Err("a snapshot without an end".into())
}
