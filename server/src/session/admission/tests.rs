//! Permits as streams get them. How streams fare with each other is in the module below.

mod simulation;

use std::task::Wake;

use tokio::task::JoinSet;

use super::readers::{RESERVED, RESERVED_FOR};
use super::*;
use crate::session::connection::ConnectionId;

/// How many are let in within the limit before anything was measured.
pub(super) const FIRST: usize = (limit::START * limit::PROBE) as usize;

const MINUTE: Duration = Duration::from_secs(60);

struct Never;
impl Wake for Never {
    fn wake(self: Arc<Self>) {}
}

impl Admission {
    fn metrics(&self) -> Metrics {
        self.lock().readers.metrics().clone()
    }

    /// Takes all the permits there are, in a task that keeps them until it is dropped, and takes those that
    /// are given back: they read all the time, and are never done.
    pub(crate) fn keep_busy(&self) -> JoinSet<()> {
        let admission = self.clone();
        let take_all = move |permits: &mut Vec<Permit>| loop {
            let next = admission.request(stranger(), MINUTE).unwrap();
            let is_last = !is_admitted(&next);
            permits.push(next);
            if is_last {
                break;
            }
        };
        let mut permits = Vec::new();
        take_all(&mut permits);
        let mut busy = JoinSet::new();
        busy.spawn(async move {
            loop {
                let (last, admitted) = permits.split_last().unwrap();
                // Measured as nothing, so that the limit stays.
                admitted.iter().for_each(Permit::piece_handed);
                if is_admitted(last) {
                    take_all(&mut permits);
                }
                sleep(TICK / 4).await;
            }
        });
        busy
    }
}

/// A connection that nobody else has.
fn stranger() -> Requester {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1 << 32);
    Requester::new(ConnectionId(NEXT.fetch_add(1, Ordering::Relaxed)), None)
}

/// The connection of all streams that are no stranger's.
fn one() -> Requester {
    Requester::new(ConnectionId(1), None)
}

fn admission() -> Admission {
    Admission::new(Metrics::new(), Pressure::default())
}

/// The same, with the task that looks after it.
fn running() -> (Admission, JoinSet<()>) {
    let (admission, mut tasks) = (admission(), JoinSet::new());
    let run = admission.clone();
    tasks.spawn(async move { run.run().await });
    (admission, tasks)
}

fn is_admitted(permit: &Permit) -> bool {
    let waker = Waker::from(Arc::new(Never));
    permit.poll(&Context::from_waker(&waker)) == Poll::Ready(Ok(()))
}

fn request(admission: &Admission, who: Requester, count: usize) -> Vec<Permit> {
    let permits = (0..count).map(|_| admission.request(who, MINUTE).unwrap());
    permits.collect()
}

async fn turn(permit: &Permit) -> Result<(), Refused> {
    std::future::poll_fn(|cx| permit.poll(cx)).await
}

#[tokio::test(start_paused = true)]
async fn permits_are_given_in_order_and_returned() {
    let admission = admission();
    let mut permits = request(&admission, one(), 100);
    let first = |permits: &[Permit]| permits.iter().take_while(|it| is_admitted(it)).count();
    assert_eq!(first(&permits), FIRST);
    assert!(!permits[FIRST..].iter().any(is_admitted));
    // One that waits leaves, one that reads leaves.
    permits.remove(FIRST);
    assert_eq!(first(&permits), FIRST);
    permits.remove(0);
    assert_eq!(first(&permits), FIRST);
    let metrics = admission.metrics();
    assert_eq!(metrics.syncs_in_progress.get(), FIRST as i64);
    permits.clear();
    assert!(admission.lock().readers.is_empty());
    assert_eq!(metrics.syncs_in_progress.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn newcomers_have_permits_beyond_the_limit() {
    let admission = admission();
    let busy = request(&admission, one(), FIRST + 1);
    assert!(!is_admitted(&busy[FIRST]), "it is no newcomer");
    let newcomers: Vec<_> = (0..=RESERVED)
        .map(|_| admission.request(stranger(), MINUTE).unwrap())
        .collect();
    let admitted = newcomers.iter().filter(|it| is_admitted(it));
    assert_eq!(admitted.count(), RESERVED);
}

#[tokio::test(start_paused = true)]
async fn newcomer_reads_on_without_a_permit_after_a_while() {
    let (admission, _tasks) = running();
    let _busy = admission.keep_busy();
    let start = Instant::now();
    let next = admission.request(stranger(), MINUTE).unwrap();
    assert_eq!(turn(&next).await, Ok(()));
    assert!(start.elapsed() <= RESERVED_FOR + TICK * 2);
    assert!(admission.metrics().syncs_in_background.get() > 0);
}

#[tokio::test(start_paused = true)]
async fn stalled_readers_do_not_hold_up_the_queue() {
    let (admission, _tasks) = running();
    let stalled = request(&admission, one(), FIRST + 1);
    stalled.iter().for_each(Permit::piece_handed);
    // By a reader of the same connection, which is no newcomer.
    assert_eq!(turn(&stalled[FIRST]).await, Ok(()), "after a second");
    let background = admission.metrics().syncs_in_background.clone();
    assert_eq!(background.get(), FIRST as i64);
    // They read again, and have no permit for it.
    assert!(stalled.iter().all(Permit::piece_taken));
    let more = request(&admission, one(), FIRST);
    assert_eq!(more.iter().filter(|it| is_admitted(it)).count(), FIRST - 1);
    drop((stalled, more));
    assert_eq!(background.get(), 0);
    assert!(admission.lock().readers.is_empty());
}

/// They kept their permits until their connections were closed.
#[tokio::test(start_paused = true)]
async fn readers_that_never_begin_do_not_hold_up_the_queue() {
    let (admission, _tasks) = running();
    let stalled = request(&admission, one(), FIRST + 1);
    assert_eq!(turn(&stalled[FIRST]).await, Ok(()));
    assert_eq!(admission.metrics().syncs_in_background.get(), FIRST as i64);
}

#[tokio::test(start_paused = true)]
async fn long_wait_ends_with_a_retry_delay() {
    let (admission, _tasks) = running();
    let mut busy = admission.keep_busy();
    // Its connection reads already, so that it waits for those that are never done.
    let first = admission.request(one(), MINUTE).unwrap();
    assert_eq!(turn(&first).await, Ok(()));
    for (patience, waits) in [(10_000, 6_667), (1_500, 1_000), (3_600_000, 20_000)] {
        let patience = Duration::from_millis(patience);
        let start = Instant::now();
        let waiting = admission.request(one(), patience).unwrap();
        assert_eq!(turn(&waiting).await, Err(Refused::Later(RETRY.0)));
        let waited = start.elapsed().as_millis();
        assert!((waits..=waits + 500).contains(&waited), "{waited}");
    }
    busy.shutdown().await;
}

/// Permits are held for a minute, so those that come have no chance.
#[tokio::test(start_paused = true)]
async fn estimated_long_wait_is_refused_at_once() {
    let admission = admission();
    let held = request(&admission, one(), FIRST);
    sleep(MINUTE).await;
    drop(held);
    let _held = request(&admission, one(), FIRST);
    let patience = Duration::from_secs(10);
    let queue: Vec<_> = (0..1000)
        .map_while(|_| admission.request(one(), patience).ok())
        .collect();
    assert_eq!(queue.len(), 2, "the next is one in {FIRST} minutes");
    let refused = admission.request(one(), patience).unwrap_err();
    assert_eq!(refused, Refused::Later(MINUTE * 2 / FIRST as u32));
    // It is another one's queue: there is one turn before a stranger's.
    assert!(admission.request(stranger(), patience).is_ok());
}

#[tokio::test(start_paused = true)]
async fn one_connection_or_peer_cannot_fill_the_queue() {
    let admission = admission();
    let of = |connection: u64, address: [u8; 4]| {
        Requester::new(ConnectionId(connection), Some(address.into()))
    };
    let mut queue = Vec::new();
    let mut waiting = Vec::new();
    for connection in 0..20 {
        let who = of(connection, [10, 0, 0, 1]);
        let more = (0..10_000).map_while(|_| admission.request(who, MINUTE).ok());
        queue.extend(more);
        waiting.push(admission.lock().readers.waiting());
    }
    assert_eq!(waiting[0], 2 * 1024, "a connection has an eighth");
    assert_eq!(waiting.last(), Some(&(8 * 1024)), "an address has half");
    assert!(admission.request(of(100, [10, 0, 0, 2]), MINUTE).is_ok());
}

/// By itself, with nobody who looks whether anybody waits.
#[tokio::test(start_paused = true)]
async fn returned_permit_wakes_the_next_in_the_queue() {
    let admission = admission();
    let mut permits = request(&admission, one(), FIRST + 1);
    let next = permits.pop().unwrap();
    let waits = tokio::time::timeout(Duration::from_secs(1), turn(&next));
    let start = Instant::now();
    let (result, ()) = tokio::join!(waits, async { drop(permits) });
    // A limit that is over looks once more.
    assert_eq!((result, start.elapsed()), (Ok(Ok(())), Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn close_ends_the_wait() {
    let admission = admission();
    let permits = request(&admission, one(), FIRST + 1);
    let ((), result) = tokio::join!(async { admission.close() }, turn(&permits[FIRST]));
    assert_eq!(result, Err(Refused::Closed));
    let refused = admission.request(one(), MINUTE).unwrap_err();
    assert_eq!(refused, Refused::Closed);
    assert!(is_admitted(&permits[0]), "those that read go on");
}
