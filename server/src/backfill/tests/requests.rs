//! Requests of streams.

use tokio::task::JoinSet;
use tokio::time::timeout;

use super::*;

/// Revisions back to 16 before the origin can be reached, below `floor`.
fn near(origin: i64, floor: i64) -> Reachable {
    Reachable {
        origin: at(origin),
        floor: at(floor),
        open: reaches(origin, &[origin - 1]),
    }
}

/// Revisions back to the farthest can be reached, below `floor`.
fn all(origin: i64, floor: i64) -> Reachable {
    Reachable {
        open: Reaches::ALL,
        ..near(origin, floor)
    }
}

/// What is requested for these revisions, of a log that began at `origin`.
fn reaches(origin: i64, revisions: &[i64]) -> Reaches {
    let revisions = revisions.iter();
    revisions
        .map(|revision| Reach::back_to(at(*revision), at(origin)).unwrap())
        .collect()
}

#[tokio::test(start_paused = true)]
async fn unreachable_revision_is_not_requested() {
    let requests = Requests::new();
    requests.request(at(5)).await;
    requests.set_reachable(near(1000, 1000));
    requests.request(at(983)).await;
    requests.request(at(1000)).await;
    requests.set_reachable(all(100_000, 100_000));
    requests.request(at(100_000 - 16_385)).await;
    let none = timeout(Duration::from_secs(60), requests.taken()).await;
    assert!(none.is_err());
}

#[tokio::test(start_paused = true)]
async fn all_requests_are_taken_and_wait() {
    let requests = Requests::new();
    requests.set_reachable(all(1000, 1000));
    let mut waiting = JoinSet::new();
    for revision in [990, 100, 500] {
        let requests = requests.clone();
        waiting.spawn(async move { requests.request(at(revision)).await });
    }
    tokio::task::yield_now().await;
    assert_eq!(requests.taken().await, reaches(1000, &[990, 100, 500]));
    // The log reaches back to 500: only the stream at 100 waits on, and requests again.
    requests.set_reachable(all(1000, 500));
    waiting.join_next().await.unwrap().unwrap();
    waiting.join_next().await.unwrap().unwrap();
    assert_eq!(requests.taken().await, reaches(1000, &[100]));
    assert!(waiting.try_join_next().is_none());
    requests.set_reachable(near(1000, 500));
    waiting.join_next().await.unwrap().unwrap();
}

/// A stream requests what is reachable just now. Before the request is taken, it is not any more, and
/// another stream requests what still is.
#[tokio::test(start_paused = true)]
async fn unreachable_request_does_not_mask_a_reachable_one() {
    let requests = Requests::new();
    requests.set_reachable(all(FLOOR, FLOOR));
    let mut waiting = JoinSet::new();
    let far = requests.clone();
    waiting.spawn(async move { far.request(at(FLOOR - 10_000)).await });
    tokio::task::yield_now().await;
    requests.set_reachable(near(FLOOR, FLOOR));
    waiting.join_next().await.unwrap().unwrap();
    let recent = requests.clone();
    waiting.spawn(async move { recent.request(at(FLOOR - 1)).await });
    tokio::task::yield_now().await;

    let taken = requests.taken().await;
    let near = Reach::back_to(at(FLOOR - 1), at(FLOOR)).unwrap();
    assert!(taken.contains(near), "{taken:?}");
    assert!(waiting.try_join_next().is_none(), "it waits for that");
}
