//! Controls: faults that leak on purpose. The witness for each must notice it, or the suite has failed.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;

use driftless_client::Watcher;
use driftless_test_support::Etcd;
use etcd_client::WatchOptions;
use leak_tests::{Outcome, Rounds, Scraped, Threads, Witnesses};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::common::Server;
use crate::on_etcd::etcd_watch_counts;
use crate::scenario::{Pace, Scenario};

/// How long a control may take: it says what it has to say early, and what grows is done again four
/// times over.
const BRIEFLY: Duration = Duration::from_secs(2);

/// How long to wait for a count that will not return.
const SHORT_RETURN: Duration = Duration::from_millis(500);

/// A leak that shows in a few dozen rounds, in bytes a round.
const A_FEW: usize = 256;

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "control: a forgotten watcher",
        about: "Every tenth watcher is pushed into a list that nobody looks at.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &["tasks", "descriptors", "streams", "connections"],
        run: |rounds| Box::pin(watcher(rounds)),
    },
    Scenario {
        name: "control: a detached task",
        about: "Every tenth task waits for ever.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &["tasks"],
        run: |rounds| Box::pin(task(rounds)),
    },
    Scenario {
        name: "control: a thread",
        about: "Every round starts a thread that waits for ever, half of them under a runtime's name.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &["own threads", "threads"],
        run: |rounds| Box::pin(thread(rounds)),
    },
    Scenario {
        name: "control: a socket",
        about: "Every tenth connection is kept.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &["descriptors"],
        run: |rounds| Box::pin(socket(rounds)),
    },
    Scenario {
        name: "control: a watch at etcd that is only half-closed",
        about: "The responses of a watch are dropped, and its sender is kept.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &["etcd_debugging_mvcc_watcher_total"],
        run: |rounds| Box::pin(half_closed(rounds)),
    },
    Scenario {
        name: "control: a map entry left behind",
        about: "Every round leaves an entry in a map.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &["allocated bytes"],
        run: |rounds| Box::pin(map(rounds)),
    },
    Scenario {
        name: "control: an ever-growing buffer",
        about: "Every round appends to a buffer that nobody empties.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &["allocated bytes"],
        run: |rounds| Box::pin(buffer(rounds)),
    },
    Scenario {
        name: "control: a metric label per client",
        about: "Every round counts under a new label.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &["allocated bytes"],
        run: |rounds| Box::pin(label(rounds)),
    },
    Scenario {
        name: "control: a metric series per client",
        about: "Every round counts under a new label, and a metrics page serves it.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &["metric series"],
        run: |rounds| Box::pin(series(rounds)),
    },
    Scenario {
        name: "control: a small object beside a dropped watcher",
        about: "Every round leaves a small object in a list, beside a watcher that is dropped.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &["allocated bytes"],
        run: |rounds| Box::pin(beside(rounds)),
    },
];

async fn watcher(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let kept = RefCell::new(Vec::<Watcher<u32>>::with_capacity(16));
    rounds
        .within(BRIEFLY)
        .return_within(SHORT_RETURN)
        .and(&server.gauges())
        .run(async |round| {
            let watcher = server.client().watch::<u32>("/c/a").await.unwrap();
            if round % 10 == 9 {
                kept.borrow_mut().push(watcher);
            }
        })
        .await
}

async fn task(rounds: Rounds) -> Outcome {
    let kept = RefCell::new(JoinSet::new());
    rounds
        .within(BRIEFLY)
        .return_within(SHORT_RETURN)
        .run(async |round| {
            if round % 10 == 9 {
                kept.borrow_mut().spawn(std::future::pending::<()>());
            }
        })
        .await
}

async fn thread(rounds: Rounds) -> Outcome {
    let (ends, end) = std::sync::mpsc::channel::<()>();
    let end = std::sync::Arc::new(std::sync::Mutex::new(end));
    let threads = RefCell::new(Vec::new());
    let both = Witnesses::new()
        .and(Threads::but_the_runtimes())
        .and(Threads::all().with_slack(8));
    // Few: the machine has to bear them.
    let outcome = rounds
        .within(4 * BRIEFLY)
        .at_most(120)
        .warm_up(5)
        .only(both)
        .run(async |round| {
            let end = std::sync::Arc::clone(&end);
            let wait = move || drop(end.lock().map(|end| end.recv()));
            let thread = match round % 2 {
                // It has the name of the thread that makes it.
                0 => std::thread::spawn(wait),
                _ => {
                    let mut task = JoinSet::new();
                    task.spawn(async { std::thread::spawn(wait) });
                    task.join_next().await.unwrap().unwrap()
                }
            };
            threads.borrow_mut().push(thread);
        })
        .await;
    drop(ends);
    for thread in threads.into_inner() {
        thread.join().unwrap();
    }
    outcome
}

async fn socket(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let kept = RefCell::new(Vec::with_capacity(16));
    rounds
        .within(BRIEFLY)
        .return_within(SHORT_RETURN)
        .run(async |round| {
            let stream = TcpStream::connect(server.address).await.unwrap();
            if round % 10 == 9 {
                kept.borrow_mut().push(stream);
            }
        })
        .await
}

async fn half_closed(rounds: Rounds) -> Outcome {
    let etcd = Etcd::started().await;
    let client = etcd.client().await;
    let kept = RefCell::new(Vec::new());
    rounds
        .at_most(50)
        .only(Witnesses::new())
        .at_the_end(etcd_watch_counts(&etcd))
        .run(async |_| {
            let mut client = client.clone();
            let options = WatchOptions::new().with_prefix();
            let watch = client.watch("/c/", Some(options)).await.unwrap();
            let (asks, responses) = watch.split();
            drop(responses);
            kept.borrow_mut().push(asks);
        })
        .await
}

async fn map(rounds: Rounds) -> Outcome {
    let map = RefCell::new(HashMap::new());
    rounds
        .within(BRIEFLY)
        .return_within(SHORT_RETURN)
        .run(async |round| {
            map.borrow_mut().insert(round, Box::new([1_u8; A_FEW]));
        })
        .await
}

async fn buffer(rounds: Rounds) -> Outcome {
    let buffer = RefCell::new(Vec::new());
    rounds
        .within(BRIEFLY)
        .return_within(SHORT_RETURN)
        .run(async |_| buffer.borrow_mut().extend([1_u8; A_FEW]))
        .await
}

async fn label(rounds: Rounds) -> Outcome {
    let family = Family::<[(String, String); 1], Counter>::default();
    rounds
        .within(BRIEFLY)
        .return_within(SHORT_RETURN)
        .run(async |round| {
            let label = [("client".to_owned(), format!("{round:0128}"))];
            family.get_or_create(&label).inc();
        })
        .await
}

async fn series(rounds: Rounds) -> Outcome {
    let family = Family::<[(String, String); 1], Counter>::default();
    let mut registry = Registry::default();
    registry.register("calls", "Calls", family.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // The question is one line and a header: it comes in one piece.
            let mut asked = [0; 256];
            let _ = stream.read(&mut asked).await;
            let mut page = "HTTP/1.0 200 OK\r\n\r\n".to_owned();
            encode(&mut page, &registry).unwrap();
            let _ = stream.write_all(page.as_bytes()).await;
        }
    });
    rounds
        .at_most(50)
        .return_within(SHORT_RETURN)
        .only(Witnesses::new())
        .at_the_end(Witnesses::new().and(Scraped::series(address)))
        .run(async |round| {
            let label = [("client".to_owned(), round.to_string())];
            family.get_or_create(&label).inc();
        })
        .await
}

async fn beside(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let client = server.client();
    let kept = RefCell::new(Vec::new());
    rounds
        .within(4 * BRIEFLY)
        .return_within(SHORT_RETURN)
        .and(&server.gauges())
        .run(async |_| {
            drop(client.watch::<u32>("/c/a").await.unwrap());
            kept.borrow_mut().push(Box::new([1_u8; A_FEW]));
        })
        .await
}
