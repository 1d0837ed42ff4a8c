//! A server near its limit on memory: it refuses new snapshots, then new connections, says so, and keeps
//! its live streams.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
// The output says what was measured.
#![allow(clippy::print_stderr)]

use bytes::Bytes;
use driftless_client::{Client, EntriesWatcher, GetError, KeyRange};
use driftless_proto::v1;
use driftless_test_support::{
    Driftless, Etcd, Proxy, ServerProcess, eventually, http, in_time, proc,
};
use etcd_client::{DeleteOptions, Txn, TxnOp};
use h2::RecvStream;
use h2::client::SendRequest;
use prost::Message;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// The program under test.
const DRIFTLESS: Driftless = Driftless::at(env!("CARGO_BIN_EXE_driftless"));

const MIB: usize = 1024 * 1024;

/// The server's limit on memory: between two levels there is more than what is freed soon after reading a
/// burst of changes, so that a level does not end by itself.
const LIMIT: usize = 384 * MIB;

/// The size of a large value, and how many of them etcd takes in one transaction.
const VALUE: usize = 64 * 1024;
const VALUES_AT_A_TIME: usize = 16;

/// Watchers that keep up all the time.
const WATCHERS: usize = 8;

fn serve(etcd: &Etcd, limit: usize) -> ServerProcess {
    let limit = format!("{}MiB", limit / MIB);
    // Whoever reads slowly is not cut off for that alone.
    let flags = [
        "--memory-limit",
        &limit,
        "--log-bytes",
        "1MiB",
        "--stall-timeout",
        "1h",
    ];
    let server = DRIFTLESS.serve_at(&etcd.url(), &["/config/"], 0, &flags);
    server.wait_ready();
    server
}

async fn metric(server: &ServerProcess, name: &str) -> f64 {
    let page = http::get_async(server.admin(), "/metrics").await;
    let (_, page) = page.expect("it answers");
    http::metric(&page, &format!("driftless_{name}")).unwrap_or_else(|| panic!("no {name}: {page}"))
}

async fn level(server: &ServerProcess) -> u8 {
    metric(server, "memory_level").await as u8
}

async fn readiness(server: &ServerProcess) -> (u16, String) {
    let page = http::get_async(server.admin(), "/readyz").await;
    page.expect("it answers")
}

fn large() -> KeyRange {
    KeyRange::prefix("/config/large/").unwrap()
}

/// Writes large values, in one transaction.
async fn write(etcd: &mut etcd_client::Client, names: std::ops::Range<usize>) {
    let puts: Vec<_> = names
        .map(|name| TxnOp::put(format!("/config/large/{name:05}"), vec![b'v'; VALUE], None))
        .collect();
    etcd.txn(Txn::new().and_then(puts)).await.unwrap();
}

/// Writes so many large values that the server's resident memory is at this percentage of its limit. The
/// live ones get changes meanwhile.
async fn grow_to(
    percent: usize,
    server: &ServerProcess,
    etcd: &mut etcd_client::Client,
    written: &mut usize,
    live: &mut Live,
) {
    let mark = LIMIT / 100 * percent;
    loop {
        let resident = metric(server, "memory_resident_bytes").await as usize;
        if resident >= mark {
            return;
        }
        // Slowly near the mark: reading what was written needs more memory for a moment.
        let count = match resident < mark / 4 * 3 {
            true => VALUES_AT_A_TIME,
            false => VALUES_AT_A_TIME / 8,
        };
        write(etcd, *written..*written + count).await;
        *written += count;
        live.get_a_change(etcd).await;
        assert!(*written * VALUE < 2 * LIMIT, "{resident} of {mark} bytes");
    }
}

/// Clients that are live all the time, each with a connection of its own.
struct Live {
    watchers: Vec<EntriesWatcher>,
    changes: usize,
}

impl Live {
    async fn start(url: &str) -> Self {
        let mut watchers = Vec::new();
        for _ in 0..WATCHERS {
            let range = KeyRange::prefix("/config/live/").unwrap();
            let watching = Client::connect(url).unwrap().entries(range).into_future();
            watchers.push(in_time("the first state", watching).await.unwrap());
        }
        let changes = 0;
        Self { watchers, changes }
    }

    /// A change reaches each of them, as the next one.
    async fn get_a_change(&mut self, etcd: &mut etcd_client::Client) {
        self.changes += 1;
        let value = self.changes.to_string();
        etcd.put("/config/live/a", value.clone(), None)
            .await
            .unwrap();
        for watcher in &mut self.watchers {
            in_time("a change", watcher.changed()).await.unwrap();
            let now = watcher.load();
            assert_eq!(now.get(b"/config/live/a").unwrap().value, value);
        }
    }
}

/// A new client reads a range once.
async fn read(server: &ServerProcess, range: KeyRange) -> Result<usize, GetError> {
    let reading = Client::connect(server.url())
        .unwrap()
        .get(range)
        .into_future();
    in_time("an answer", reading)
        .await
        .map(|entries| entries.len())
}

fn assert_refused(read: Result<usize, GetError>) {
    let error = read.expect_err("there is no memory for it").to_string();
    assert!(error.contains("short of memory; retry"), "{error}");
}

/// More configuration is written than the limit has room for, and then deleted. Each level does what it
/// says, and ends by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_near_its_limit_sheds_load_and_keeps_live_streams() {
    let etcd = Etcd::started_blocking();
    let mut writer = etcd.client().await;
    write(&mut writer, 0..1).await;
    let server = serve(&etcd, LIMIT);
    let mut live = Live::start(&server.url()).await;
    live.get_a_change(&mut writer).await;
    // One that loses its connection later.
    let proxy = Proxy::to(server.addr().port()).await;
    let mut returning = Live::start(&proxy.url()).await;
    returning.watchers.truncate(1);
    assert_eq!(metric(&server, "memory_limit_bytes").await as usize, LIMIT);
    assert_eq!(level(&server).await, 0);

    // Tight.
    let mut written = 1;
    grow_to(90, &server, &mut writer, &mut written, &mut live).await;
    assert_eq!(level(&server).await, 1);
    assert_refused(read(&server, large()).await);
    assert_refused(read(&server, KeyRange::key("/config/none").unwrap()).await);
    let (status, text) = readiness(&server).await;
    assert_eq!(status, 200, "{text}");
    assert!(text.contains("memory is tight"), "{text}");
    live.get_a_change(&mut writer).await;
    // What is missing is in the log, so it costs nothing to come back.
    proxy.cut();
    live.get_a_change(&mut writer).await;
    proxy.heal();
    let newest = live.changes.to_string();
    eventually("what is missing arrives", async || {
        let now = returning.watchers[0].load();
        now.get(b"/config/live/a").unwrap().value == newest
    })
    .await;
    assert_eq!(level(&server).await, 1);

    // Critical. One that was refused keeps its connection.
    let idle = Stalled::get(&server).await;
    assert!(!idle.served);
    grow_to(100, &server, &mut writer, &mut written, &mut live).await;
    let (status, text) = readiness(&server).await;
    assert_eq!(status, 503, "{text}");
    assert!(text.contains("memory is nearly used up"), "{text}");
    live.get_a_change(&mut writer).await;
    // Those without streams are closed; then nobody is left who does not keep up.
    eventually("idle connections are closed", async || {
        metric(&server, "connections").await as usize == WATCHERS + 1
    })
    .await;
    assert!(metric(&server, "memory_ended_total").await >= 1.0);
    drop(idle);
    // The first one may have been awaited when the level changed. The others are not served.
    let mut waiting = Vec::new();
    for _ in 0..5 {
        waiting.push(TcpStream::connect(server.addr()).await.unwrap());
        live.get_a_change(&mut writer).await;
        assert!(metric(&server, "connections").await as usize <= WATCHERS + 2);
    }
    drop(waiting);
    assert_eq!(metric(&server, "streams").await as usize, WATCHERS + 1);

    // There is room again.
    let all = DeleteOptions::new().with_prefix();
    writer.delete("/config/large/", Some(all)).await.unwrap();
    eventually("the level falls", async || level(&server).await == 0).await;
    assert_eq!(read(&server, large()).await.unwrap(), 0);
    let (status, text) = readiness(&server).await;
    assert_eq!((status, text.contains("memory")), (200, false), "{text}");
    live.get_a_change(&mut writer).await;
    for message in [
        "memory is tight; new snapshots and diffs are refused",
        "memory is nearly used up;",
        "there is enough memory again",
    ] {
        assert!(server.process.stderr().contains(message), "{message}");
    }
}

/// One that asks for the large values and never reads the answer, so that it pins the state of its moment.
struct Stalled {
    /// Whether the answer begins. Otherwise it is refused.
    served: bool,
    _body: RecvStream,
    /// The connection would end with it.
    _sender: SendRequest<Bytes>,
    _connection: JoinSet<Result<(), h2::Error>>,
}

impl Stalled {
    async fn get(server: &ServerProcess) -> Self {
        let address = server.addr();
        let socket = TcpStream::connect(address).await.unwrap();
        let (sender, connection) = h2::client::handshake(socket).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        let request = ::http::Request::post(format!("http://{address}/driftless.v1.Config/Get"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let mut sender = sender.ready().await.unwrap();
        let request = request.body(()).unwrap();
        let (response, mut body) = sender.send_request(request, false).unwrap();
        let message = v1::GetRequest {
            range: Some((&large()).into()),
            client: None,
        };
        let message = message.encode_to_vec();
        let mut framed = vec![0];
        framed.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
        framed.extend_from_slice(&message);
        body.send_data(framed.into(), true).unwrap();
        let (head, mut body) = response.await.unwrap().into_parts();
        let served = match head.headers.get("grpc-status") {
            Some(status) => {
                assert_eq!(status, "8", "{head:?}");
                assert!(
                    head.headers.contains_key("grpc-retry-pushback-ms"),
                    "{head:?}"
                );
                false
            }
            None => in_time("the first piece", body.data()).await.is_some(),
        };
        Self {
            served,
            _body: body,
            _sender: sender,
            _connection: tasks,
        }
    }
}

/// Each of them would cost a copy of the state, and together far more than the limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_pin_states_do_not_exceed_the_limit() {
    const LIMIT: usize = 256 * MIB;
    /// 8 MiB, rewritten for each of 64 readers: 512 MiB.
    const VALUES: usize = 128;
    const READERS: usize = 64;
    let etcd = Etcd::started_blocking();
    let mut writer = etcd.client().await;
    let rewrite = async |writer: &mut etcd_client::Client| {
        for start in (0..VALUES).step_by(VALUES_AT_A_TIME) {
            write(writer, start..start + VALUES_AT_A_TIME).await;
        }
    };
    rewrite(&mut writer).await;
    let server = serve(&etcd, LIMIT);
    let mut live = Live::start(&server.url()).await;
    let mut readers = Vec::new();
    for _ in 0..READERS {
        readers.push(in_time("an answer", Stalled::get(&server)).await);
        rewrite(&mut writer).await;
        live.get_a_change(&mut writer).await;
    }
    let peak = proc::usage(server.process.pid()).unwrap().peak_kib as usize * 1024;
    let served = readers.iter().filter(|reader| reader.served).count();
    eprintln!(
        "{served} of {READERS} were served; at most {} MiB resident",
        peak / MIB
    );
    assert!(served > 0 && served < READERS, "{served}");
    assert!(peak < LIMIT, "{peak}");
    drop(readers);
    eventually("the level falls", async || level(&server).await == 0).await;
    assert_eq!(read(&server, large()).await.unwrap(), VALUES);
    live.get_a_change(&mut writer).await;
}
