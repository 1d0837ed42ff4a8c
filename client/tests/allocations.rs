//! Reading a value allocates nothing, in each way of reading.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(dead_code, reason = "uses a part of what the tests share")]
#![allow(
    clippy::print_stdout,
    reason = "a test's own main: its output is the result"
)]

#[path = "scripted/etcd_model.rs"]
mod etcd_model;
#[path = "scripted/server.rs"]
mod server;

use std::hint::black_box;

use driftless_client::Watcher;
use peak_alloc::PeakAlloc;

use etcd_model::EtcdModel;
use server::Server;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const NAME: &str = "reading_allocates_nothing";

/// How often each read is repeated: one allocation could hide in memory that is there already.
const TIMES: usize = 1000;

/// The peak of bytes allocated by this many reads, above what was allocated before.
fn allocated(mut read: impl FnMut()) -> usize {
    // Allocates what is made once for each thread.
    read();
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    for _ in 0..TIMES {
        read();
    }
    let peak = ALLOCATOR.peak_usage();
    assert_eq!(ALLOCATOR.current_usage(), before, "nothing is kept");
    peak - before
}

/// Without libtest, whose main thread allocates in parallel.
fn main() {
    if std::env::args().any(|argument| argument == "--list") {
        println!("{NAME}: test");
        return;
    }
    reading_allocates_nothing();
    println!("test {NAME} ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored");
}

fn reading_allocates_nothing() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (watcher, held) = runtime.block_on(async {
        let mut server = Server::start();
        let client = server.client();
        let etcd = EtcdModel::with(&[("/a", r#"["some text", 250]"#)]);
        let (watcher, call) =
            tokio::join!(client.watch::<(String, u32)>("/a").into_future(), async {
                let call = server.next_call().await;
                call.send_state(&etcd).await;
                call
            });
        let watcher: Watcher<(String, u32)> = watcher.unwrap();
        (watcher, (client, server, call))
    });
    // The runtime is idle from here on: nothing else allocates.
    let mut reader = watcher.reader();
    let part = watcher.map(|value| &value.1);
    let part_of_text = watcher.map(|value| value.0.as_str());
    let ways: [(&str, &mut dyn FnMut()); 6] = [
        ("load", &mut || {
            black_box(watcher.load().1);
        }),
        ("load_fresh", &mut || {
            black_box(watcher.load_fresh().unwrap().1);
        }),
        ("age, source and revision", &mut || {
            let loaded = watcher.load();
            black_box((
                loaded.age(),
                loaded.source(),
                loaded.revision(),
                loaded.is_stale(),
            ));
        }),
        ("reader", &mut || {
            black_box(reader.load().1);
        }),
        ("part", &mut || {
            black_box(*part.load());
        }),
        ("part of a text", &mut || {
            black_box(part_of_text.load().len());
        }),
    ];
    for (name, read) in ways {
        assert_eq!(allocated(read), 0, "{name}");
    }
    assert!(
        allocated(|| drop(black_box(watcher.load().0.clone()))) > 0,
        "what allocates is noticed"
    );
    drop(held);
}
