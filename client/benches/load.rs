//! The cost of reading a value while another thread reads it too.
//!
//! `cargo bench -p driftless-client --bench load`.

#![allow(dead_code)] // Uses a part of what the tests share.
#![allow(clippy::unwrap_used, reason = "the tests' code unwraps")]

#[path = "../tests/scripted/etcd_model.rs"]
mod etcd_model;
#[path = "../tests/scripted/server.rs"]
mod server;

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Instant;

use criterion::{Criterion, criterion_group, criterion_main};
use driftless_client::{Client, Watcher};
use serde::Deserialize;

use etcd_model::EtcdModel;
use server::Server;

#[derive(Clone, Debug, Deserialize)]
struct Limits {
    rps: u64,
}

/// A watcher with a value.
async fn watching() -> (Watcher<Limits>, (Client, Server, server::Call)) {
    let mut server = Server::start();
    let client = server.client();
    let etcd = EtcdModel::with(&[("/limits", r#"{"rps": 250}"#)]);
    let (watcher, call) = tokio::join!(client.watch::<Limits>("/limits").into_future(), async {
        let call = server.next_call().await;
        call.send_state(&etcd).await;
        call
    });
    (watcher.expect("there is a value"), (client, server, call))
}

/// Measures `read` on one thread while another does the same.
fn two_threads(c: &mut Criterion, name: &str, read: impl Fn() -> u64 + Sync) {
    two_threads_of(c, name, [(), ()], |()| read());
}

/// The same, with a state of its own for each thread.
fn two_threads_of<S: Send>(
    c: &mut Criterion,
    name: &str,
    [mut one, mut other]: [S; 2],
    read: impl Fn(&mut S) -> u64 + Sync,
) {
    let over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                for _ in 0..100 {
                    black_box(read(&mut other));
                }
            }
        });
        c.bench_function(&format!("two threads/{name}"), |b| {
            b.iter_custom(|count| {
                let start = Instant::now();
                for _ in 0..count {
                    black_box(read(&mut one));
                }
                start.elapsed()
            });
        });
        over.store(true, Ordering::Relaxed);
    });
}

fn load(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let (watcher, held) = runtime.block_on(watching());
    two_threads(c, "load", || watcher.load().rps);
    let readers = [watcher.reader(), watcher.reader()];
    two_threads_of(c, "reader", readers, |reader| reader.load().rps);
    let part = watcher.map(|limits| &limits.rps);
    two_threads(c, "map", || *part.load());
    let locked = RwLock::new(Arc::new(Limits { rps: 250 }));
    two_threads(c, "RwLock<Arc<T>>, read and clone", || {
        let value = Arc::clone(&locked.read().expect("is not poisoned"));
        value.rps
    });
    let number = AtomicU64::new(250);
    two_threads(c, "atomic", || number.load(Ordering::Acquire));
    drop((watcher, held));
}

criterion_group!(benches, load);
criterion_main!(benches);
