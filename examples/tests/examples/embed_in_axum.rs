use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::world::World;
use driftless_test_support::wrong_inputs::{CANARY, Row, check_output, check_table};
use driftless_test_support::{PATIENCE, Process, eventually, guarded};

/// How many clients ask at the same time, each over a connection of its own.
const CLIENTS: usize = 8;

/// How many edits are made meanwhile.
const EDITS: usize = 100;

/// No more requests of a client than this, however long the edits take.
const MOST_REQUESTS: usize = 200_000;

/// The service under test, and the world that it is in.
struct Web {
    world: World,
    program: Process,
    address: String,
}

impl Web {
    async fn start() -> Self {
        let world = World::holding(&[]).await;
        let bin = env!("CARGO_BIN_EXE_embed_in_axum");
        let mut command = guarded(bin);
        let mut program = Process::spawn(command.args([&world.url(), "127.0.0.1:0"]));
        let line = program.out.line();
        let address = line.strip_prefix("listening on http://").unwrap();
        Self {
            world,
            program,
            address: address.to_owned(),
        }
    }

    async fn client(&self) -> Http {
        Http::connect(&self.address).await
    }
}

/// One connection, kept alive.
struct Http {
    sender: SendRequest<Empty<Bytes>>,
    _connection: AbortOnDropHandle<hyper::Result<()>>,
}

impl Http {
    async fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        Self {
            sender,
            _connection: AbortOnDropHandle::new(tokio::spawn(connection)),
        }
    }

    async fn get(&mut self, path: &str) -> Response<String> {
        let request = Request::get(path).header("host", "test");
        let request = request.body(Empty::new()).unwrap();
        let answer = async {
            self.sender.ready().await.unwrap();
            let (head, body) = self
                .sender
                .send_request(request)
                .await
                .unwrap()
                .into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            Response::from_parts(head, String::from_utf8(body.into()).unwrap())
        };
        timeout(PATIENCE, answer).await.expect("it answers in time")
    }

    async fn health(&mut self) -> serde_json::Value {
        let response = self.get("/healthz").await;
        assert_eq!(response.status(), 200, "{}", response.body());
        serde_json::from_str(response.body()).unwrap()
    }

    /// Waits until the health is so.
    async fn until_health(&mut self, what: &str, is_so: impl Fn(&serde_json::Value) -> bool) {
        let this = tokio::sync::Mutex::new(self);
        eventually(what, || async { is_so(&this.lock().await.health().await) }).await;
    }
}

fn header<'a>(response: &'a Response<String>, name: &str) -> &'a str {
    response.headers()[name].to_str().unwrap()
}

/// What is edited together, the n-th time.
fn greeting(n: usize) -> [(&'static str, String); 4] {
    let shout = n.is_multiple_of(2);
    [
        ("/config/web/greeting/text", format!("greeting {n}")),
        ("/config/web/greeting/language", format!("x-{n}")),
        ("/config/web/features/shout", shout.to_string()),
        ("/config/web/limit/rps", (1_000_000 + n).to_string()),
    ]
}

/// Which of them a response was made from.
///
/// # Panics
/// When it was made from more than one.
fn answered_from(response: &Response<String>) -> usize {
    let language = header(response, "content-language");
    let n = language.strip_prefix("x-").unwrap().parse().unwrap();
    let text = match n % 2 {
        0 => format!("GREETING {n}"),
        _ => format!("greeting {n}"),
    };
    assert_eq!(*response.body(), text, "torn: {language}");
    n
}

async fn edit(world: &World, n: usize) {
    let greeting = greeting(n);
    let greeting = greeting.each_ref().map(|(key, value)| (*key, &**value));
    world.put_all(&greeting);
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_under_load_are_whole_and_in_order() {
    let web = Web::start().await;
    let mut client = web.client().await;
    assert_eq!(client.get("/").await.body(), "Hello", "the defaults");
    web.world.put("/config/web/limit/burst", "1000000");
    edit(&web.world, 0).await;
    client
        .until_health("the first edit", |health| health["revision"] == 3)
        .await;

    let edited = Arc::new(AtomicBool::new(false));
    let requests = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let mut client = web.client().await;
        let (edited, requests) = (Arc::clone(&edited), Arc::clone(&requests));
        clients.spawn(async move {
            let mut seen = BTreeSet::new();
            let mut last = 0;
            let mut end = None;
            for _ in 0..MOST_REQUESTS {
                let response = client.get("/").await;
                assert_eq!(response.status(), 200);
                let n = answered_from(&response);
                assert!(n >= last, "{n} after {last}");
                last = n;
                seen.insert(n);
                requests.fetch_add(1, Ordering::Relaxed);
                if last == EDITS {
                    break;
                }
                if edited.load(Ordering::Relaxed) {
                    let end: &Instant = end.get_or_insert_with(Instant::now);
                    assert!(end.elapsed() < PATIENCE, "the last edit does not come");
                }
            }
            (last, seen)
        });
    }
    for n in 1..=EDITS {
        edit(&web.world, n).await;
    }
    edited.store(true, Ordering::Relaxed);
    let mut seen = BTreeSet::new();
    while let Some(client) = clients.join_next().await {
        let (last, its) = client.unwrap();
        assert_eq!(last, EDITS, "the last value is served");
        seen.extend(its);
    }
    let requests = requests.load(Ordering::Relaxed);
    println!("{requests} requests saw {} edits", seen.len());
    assert!(requests >= 2_000, "too few to be a load: {requests}");
    assert!(seen.len() > 10, "edits and requests hardly met: {seen:?}");
    let health = client.health().await;
    assert_eq!(health["subscription"], "Live");
    assert_eq!(health["revision"], 3 + EDITS);
}

#[tokio::test(flavor = "multi_thread")]
async fn rate_limit_changes_live() {
    /// How many requests come at once.
    const RUSH: u32 = 30;

    async fn rush(client: &mut Http) -> u32 {
        let mut served = 0;
        for _ in 0..RUSH {
            let response = client.get("/").await;
            match response.status().as_u16() {
                200 => served += 1,
                429 => assert_eq!(header(&response, "retry-after"), "1"),
                other => panic!("{other}"),
            }
        }
        served
    }

    let web = Web::start().await;
    let mut client = web.client().await;
    assert_eq!(rush(&mut client).await, RUSH);

    let tight = [
        ("/config/web/limit/rps", "1"),
        ("/config/web/limit/burst", "5"),
    ];
    web.world.put_all(&tight);
    client
        .until_health("the limit", |health| health["revision"] == 2)
        .await;
    let start = Instant::now();
    let served = rush(&mut client).await;
    let filled = u32::try_from(start.elapsed().as_secs()).unwrap() + 1;
    assert!((5..=5 + filled).contains(&served), "{served} were served");

    // What makes no sense changes nothing, and is told.
    web.world.put("/config/web/limit/rps", "0");
    client
        .until_health("the refusal", |health| health["rejected"].is_string())
        .await;
    assert_eq!(client.health().await["revision"], 2);
    let burst = "/config/web/limit/burst";
    web.world.put(burst, "canary-5113");
    eventually("the log names the key", || async {
        web.program.printed().contains(burst)
    })
    .await;

    web.world.put("/config/web/limit/rps", "1000000");
    web.world.put("/config/web/limit/burst", "1000");
    client
        .until_health("no limit to speak of", |health| health["revision"] == 6)
        .await;
    assert_eq!(client.health().await["rejected"], serde_json::Value::Null);
    assert_eq!(rush(&mut client).await, RUSH);
    let said = web.program.printed();
    assert!(!said.contains("canary"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn service_runs_without_a_server_and_stops() {
    let mut web = Web::start().await;
    let mut client = web.client().await;
    web.world.put("/config/web/greeting/text", "Hola");
    client
        .until_health("the edit", |health| health["revision"] == 2)
        .await;

    web.world.stop_server().await;
    client
        .until_health("the loss", |health| health["subscription"] != "Live")
        .await;
    assert_eq!(client.get("/").await.body(), "Hola");
    web.world.put("/config/web/greeting/text", "Salut");
    web.world.start_server().await;
    client
        .until_health("the edit", |health| health["revision"] == 3)
        .await;
    let response = client.get("/").await;
    assert_eq!(response.body(), "Salut");
    assert_eq!(header(&response, "x-config-revision"), "3");

    // With this connection open and idle.
    let start = Instant::now();
    web.program.signal(Signal::TERM);
    assert!(web.program.end().success(), "{}", web.program.printed());
    let took = start.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?} for nothing");
}

/// Values that the type does not take, or that make no sense, and what is said of them on the page of
/// wrong inputs: once for each, whatever else changes, and never the value.
#[tokio::test(flavor = "multi_thread")]
async fn rejected_values_match_the_page() {
    let Web {
        world,
        mut program,
        address,
    } = Web::start().await;
    let mut http = Http::connect(&address).await;
    let mut rows = Vec::new();
    let mut revision = 1;
    for (wrong, key, value, log) in [
        ("a word for a number", "limit/rps", CANARY, true),
        ("another wrong one", "limit/rps", "-1", true),
        (
            "another key is edited meanwhile",
            "greeting/text",
            CANARY,
            false,
        ),
        ("a number that validation refuses", "limit/rps", "0", true),
        (
            "a struct's own key with something else in it",
            "limit",
            CANARY,
            true,
        ),
    ] {
        let key = format!("/config/web/{key}");
        world.put(&key, value);
        revision += 1;
        let mut says = Vec::new();
        // The next line of the log is that of the next refusal: what is not new has none.
        if log {
            let line = loop {
                let line = program.err.line();
                if line.contains("refused; ") {
                    break line;
                }
            };
            let (_, line) = line.split_once(' ').unwrap();
            says.push(
                line.trim_start()
                    .replace(&world.url(), "http://127.0.0.1:7400"),
            );
            assert!(says[0].contains(&format!("revision={revision} ")), "{line}");
        }
        http.until_health("the refusal is in the status", |health| {
            health["rejected"].is_string()
        })
        .await;
        let health = http.health().await;
        assert_eq!(health["revision"], 1, "the last good value stays");
        let rejected = health["rejected"].as_str().unwrap();
        says.push(format!("/healthz: {rejected}"));
        let command = format!("etcdctl put {key} {value}");
        rows.push(Row::new(wrong, &command, "the last good value stays", says));
    }
    world.delete("/config/web/limit");
    world.put("/config/web/limit/rps", "5");
    http.until_health("it is mended", |health| health["rejected"].is_null())
        .await;
    check_output(&program.printed());
    check_table("In a service", &rows);
}
