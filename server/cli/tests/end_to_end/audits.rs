//! The server compares itself with etcd.

use std::time::Instant;

use driftless_test_support::PATIENCE;

use super::counters::Counters;
use super::direct::Op;
use super::world::World;

/// A server that audits all the time during writes finds no difference.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audits_pass_during_writes() {
    let mut world = World::with(&["--audit-interval", "100ms"]).await;
    let put = |n: usize| Op::put(format!("/c/{n:04}"), vec![b'v'; 100]);
    for start in (0..1000).step_by(100) {
        world.write((start..start + 100).map(put)).await;
    }
    let before = Counters::of(&world.server);
    let deadline = Instant::now() + PATIENCE;
    let mut n = 0;
    while Counters::of(&world.server).since(&before, "audits") < 10 {
        assert!(Instant::now() < deadline, "ten audits pass");
        n += 1;
        let key = |at: usize| format!("/c/{:04}", (n * 7 + at) % 1100);
        let ops = [
            Op::put(key(0), n.to_string()),
            Op::delete(key(1)),
            Op::put(key(2), vec![b'w'; n % 5000]),
        ];
        world.direct.txn(ops).await;
    }
    let counters = Counters::of(&world.server);
    assert_eq!(counters.get("audit_differences"), 0);
    assert_eq!(counters.get("etcd_lists"), 1);
    assert_eq!(counters.get("etcd_watches"), 1);
}
