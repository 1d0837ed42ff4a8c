//! Known limits. If one of these tests fails, the limit is gone: move the case into the schedule.

use std::time::Duration;

use driftless_proto::Revision;

use crate::checks::Promise;
use crate::plant::Plant;
use crate::world::World;

/// Long enough for all reactions to an event.
const A_WHILE: Duration = Duration::from_secs(15);

/// A server that cannot reach etcd serves its last state. It cannot learn of a restore, and a client cannot
/// prove one to it, because epochs have no order. So a client that has moved to the restored history, and
/// then has only this server, goes back to the old history until the server reaches etcd.
#[test]
fn limit_cut_off_server_serves_the_old_history() {
    let mut world = World::new(1, Plant::None);
    world.add_server();
    world.add_server();
    world.add_client(&[0, 1], 1);
    let wait = |world: &mut World| world.wait(A_WHILE, |_| false);
    let put = |world: &mut World, times: u64| {
        for number in 0..times {
            world.shared.etcd.put("/c/a", number.to_string());
            world.shared.note();
        }
    };
    put(&mut world, 20);
    wait(&mut world);
    // The client is at the first server, and the second has the same.
    world.crash(1, false);
    wait(&mut world);
    world.start(1);
    wait(&mut world);

    world.servers[1].etcd.cut();
    world.step();
    world.shared.etcd.restore(Revision::new(10));
    world.shared.note();
    put(&mut world, 3);
    wait(&mut world);
    assert!(!world.shared.journal.is_broken());

    world.crash(0, false);
    wait(&mut world);
    let failure = world.shared.journal.broken().unwrap();
    assert_eq!(failure.violation.promise, Promise::Ordered, "{failure}");
}
