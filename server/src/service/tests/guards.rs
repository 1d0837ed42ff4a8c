//! What every call has: a deadline, a limit, a count of what it holds, and a clock for its answer.
//!
//! The paths are those of the descriptors that reflection serves, so that a new call is among them by
//! itself.

use driftless_test_support::frames::{self, Frame as Wire, FrameReader, FrameWriter, types};
use tokio::io::{ReadHalf, WriteHalf};

use super::*;
use crate::service::dispatch::Method;
use crate::service::repeated::fields;

const GRPC: Option<&str> = Some("application/grpc");

const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Long enough for what happens by itself, and no deadline of anything.
const A_MOMENT: Duration = Duration::from_secs(1);

/// A call that the server offers.
struct Described {
    path: String,
    /// Whether its client sends several messages.
    many: bool,
}

impl Described {
    /// Its largest message, with gRPC's prefix.
    fn max_message(&self) -> usize {
        let method = Method::of(&self.path);
        let method = method.unwrap_or_else(|| panic!("{} is described and not served", self.path));
        method.max_message()
    }

    /// A message that gets an answer with a message.
    fn message(&self) -> Bytes {
        let range = Some((&prefix("/c/")).into());
        match &self.path[..] {
            WATCH => framed(&v1::WatchRequest {
                range,
                ..Default::default()
            }),
            GET => framed(&v1::GetRequest {
                range,
                client: None,
            }),
            REFLECTION => framed(&list_services()),
            _ => framed(&()),
        }
    }
}

fn list_services() -> reflection::ServerReflectionRequest {
    use reflection::server_reflection_request::MessageRequest;
    reflection::ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..Default::default()
    }
}

/// A question for a symbol that there is not.
fn symbol(name: String) -> reflection::ServerReflectionRequest {
    use reflection::server_reflection_request::MessageRequest;
    reflection::ServerReflectionRequest {
        message_request: Some(MessageRequest::FileContainingSymbol(name)),
        ..Default::default()
    }
}

/// All calls of all services.
fn described() -> Vec<Described> {
    let each = |message: &'static [u8], number: u32| {
        let found = fields(message).filter(move |field| field.number == number);
        found.filter_map(|field| field.content)
    };
    let text = |message, number| {
        let content: &[u8] = each(message, number).next().unwrap();
        String::from_utf8(content.to_vec()).unwrap()
    };
    let mut found = Vec::new();
    for set in [
        driftless_proto::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        reflection::FILE_DESCRIPTOR_SET,
    ] {
        for file in each(set, 1) {
            for service in each(file, 6) {
                for method in each(service, 2) {
                    let (package, service) = (text(file, 2), text(service, 1));
                    found.push(Described {
                        path: format!("/{package}.{service}/{}", text(method, 1)),
                        many: fields(method).any(|field| field.number == 5),
                    });
                }
            }
        }
    }
    assert!(found.len() >= 6, "{}", found.len());
    found
}

/// An engine with one key, a client of it, and what it should read.
async fn served() -> (Engine, ScriptedEtcd, Client) {
    let etcd = ScriptedEtcd::default();
    etcd.put("/c/a", "1");
    let settings = Settings::builder()
        .etcd("http://127.0.0.1:2379")
        .prefix("/c/")
        .log_bytes(1024 * 1024)
        .ping_interval(Duration::from_secs(3600))
        .stall_timeout(STALL_TIMEOUT);
    let engine = engine_of(&etcd, &settings.build().unwrap());
    engine.ready().await;
    let client = Client::new(&engine).await;
    (engine, etcd, client)
}

/// What the calls of all connections hold, in bytes.
fn held(engine: &Engine) -> usize {
    let connections = engine.sessions().connections();
    connections.map(|connection| connection.held_bytes()).sum()
}

/// A client that does what a test says, and nothing else.
struct Bare {
    writer: FrameWriter<WriteHalf<DuplexStream>>,
    reader: FrameReader<ReadHalf<DuplexStream>>,
}

impl Bare {
    async fn connect(engine: &Engine, buffer: usize, settings: &[(u16, u32)]) -> Self {
        let (client, server) = duplex(buffer);
        engine.serve(server);
        let (writer, reader) = frames::connect(client, settings).await.unwrap();
        Self { writer, reader }
    }

    /// Reads frames to the end of the connection.
    async fn rest(&mut self) -> Vec<Wire> {
        let mut frames = Vec::new();
        // Being reset is being closed.
        while let Ok(Some(frame)) = self.reader.next().await {
            frames.push(frame);
        }
        frames
    }
}

#[tokio::test(start_paused = true)]
async fn half_a_request_ends_at_its_deadline() {
    let (engine, etcd, client) = served().await;
    let range = prefix("/c/");
    for described in described() {
        let path = &described.path;
        let whole = described.message();
        let halves = [
            Bytes::new(),
            whole.slice(..3),
            frames::message(600, &[1; 500]).into(),
            // One that never ends its request.
            if described.many { Bytes::new() } else { whole },
        ];
        for half in halves {
            let start = Instant::now();
            let ended = async {
                let mut call = client.send(path, GRPC, half.clone(), false).await;
                call.status().await
            };
            let beside = async {
                sleep(Duration::from_secs(9)).await;
                assert!(held(&engine) >= half.len(), "{path}");
                assert_eq!(client.get(&range).await, etcd.state(&range));
            };
            let ((code, message, _), ()) = tokio::join!(ended, beside);
            assert_eq!(code, Code::DeadlineExceeded, "{path}: {message}");
            assert_eq!(start.elapsed().as_secs(), 10, "{path}");
            until(|| held(&engine) == 0).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn announced_lengths_above_the_limit_are_refused_at_once() {
    let (engine, etcd, client) = served().await;
    let range = prefix("/c/");
    for described in described() {
        let (path, most) = (&described.path, described.max_message());
        for announced in [most - 4, 4 * 1024 * 1024, u32::MAX as usize] {
            for content in [&b""[..], b"some of it"] {
                let start = Instant::now();
                let announcing = frames::message(announced, content).into();
                let mut call = client.send(path, GRPC, announcing, false).await;
                let (code, message, _) = call.status().await;
                assert_eq!(code, Code::InvalidArgument, "{path}: {message}");
                assert!(message.contains(&format!("longer than {most} bytes")));
                assert_eq!(start.elapsed(), Duration::ZERO, "{path}");
            }
        }
        // The largest is read to its end, whatever it is then.
        let largest = frames::message(most - 5, &vec![0xff; most - 5]).into();
        let mut call = client.request(path, GRPC, Some(largest)).await;
        let (_, message, _) = call.status().await;
        assert!(!message.contains("longer"), "{path}: {message}");
        assert_eq!(client.get(&range).await, etcd.state(&range));
        until(|| held(&engine) == 0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_has_one_uncompressed_message() {
    let (engine, etcd, client) = served().await;
    let range = prefix("/c/");
    for described in described() {
        let path = &described.path;
        let whole = described.message();
        let mut compressed = BytesMut::from(&whole[..]);
        compressed[0] = 1;
        let mut call = client.send(path, GRPC, compressed.freeze(), false).await;
        assert_eq!(call.status().await.0, Code::Unimplemented, "{path}");

        let twice = Bytes::from([&whole[..], &whole[..]].concat());
        let more = whole.slice(..whole.len() - 1);
        for (body, end) in [(twice, false), (more, true)] {
            if described.many && !end {
                continue;
            }
            let start = Instant::now();
            let mut call = client.send(path, GRPC, body, end).await;
            let (code, message, _) = call.status().await;
            assert_eq!(code, Code::InvalidArgument, "{path}: {message}");
            assert_eq!(start.elapsed(), Duration::ZERO, "{path}");
        }
        assert_eq!(client.get(&range).await, etcd.state(&range));
        until(|| held(&engine) == 0).await;
    }
}

/// Nothing of the request is looked at, and nothing waited for.
#[tokio::test(start_paused = true)]
async fn calls_that_are_not_served_end_at_once() {
    let (engine, etcd, client) = served().await;
    let range = prefix("/c/");
    let start = Instant::now();
    for body in [Bytes::new(), vec![0; 60_000].into()] {
        for path in [
            "/",
            "/driftless.v1.Config/Nothing",
            "/grpc.health.v1.Health/Nothing",
        ] {
            let mut call = client.send(path, GRPC, body.clone(), false).await;
            assert_eq!(call.status().await.0, Code::Unimplemented, "{path}");
        }
        for described in described() {
            let kind = Some("application/json");
            let call = client
                .send(&described.path, kind, body.clone(), false)
                .await;
            assert_eq!(call.http_status, 415);
            let request = http::Request::get(format!("http://server{}", described.path))
                .header("content-type", "application/grpc");
            let request = request.body(()).unwrap();
            let call = client.send_request(request, body.clone(), false).await;
            assert_eq!(call.http_status, 415);
        }
        assert_eq!(client.get(&range).await, etcd.state(&range));
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(held(&engine), 0);
}

#[tokio::test(start_paused = true)]
async fn an_unread_answer_ends_its_connection() {
    let (engine, etcd, client) = served().await;
    let range = prefix("/c/");
    let described = described();
    for described in &described {
        let path = &described.path;
        let no_window = [(frames::settings::INITIAL_WINDOW_SIZE, 0)];
        let mut bare = Bare::connect(&engine, 64 * 1024, &no_window).await;
        let start = Instant::now();
        let message = Wire::data(1, described.message()).end();
        let call = [Wire::call(1, path), message];
        bare.writer.write(&call).await.unwrap();
        let mut rest = std::pin::pin!(bare.rest());
        assert!(timeout(A_MOMENT, rest.as_mut()).await.is_err(), "{path}");
        if !matches!(Method::of(path), Some(Method::Watch | Method::Get)) {
            assert!(held(&engine) > 0, "{path}");
        }
        assert_eq!(client.get(&range).await, etcd.state(&range));
        let frames = rest.await;
        assert!(frames.iter().any(|frame| frame.kind == types::HEADERS));
        assert!(
            frames.iter().all(|frame| frame.kind != types::DATA),
            "{path}"
        );
        let took = start.elapsed();
        assert!(
            took >= STALL_TIMEOUT && took <= STALL_TIMEOUT * 5 / 4,
            "{path}: {took:?}"
        );
        until(|| engine.metrics().connections.get() == 1 && held(&engine) == 0).await;
    }
    let closed = engine.metrics().slow_consumers_closed.get();
    assert_eq!(closed, described.len() as u64);
}

/// The last bytes of an answer lie in HTTP/2's buffers when its body is gone.
#[tokio::test(start_paused = true)]
async fn an_answer_taken_in_part_ends_its_connection() {
    let (engine, _etcd, _client) = served().await;
    let window = [(frames::settings::INITIAL_WINDOW_SIZE, 3)];
    let mut bare = Bare::connect(&engine, 64 * 1024, &window).await;
    let message = Wire::data(1, framed(&())).end();
    let call = [Wire::call(1, HEALTH_CHECK), message];
    bare.writer.write(&call).await.unwrap();
    let start = Instant::now();
    let frames = bare.rest().await;
    assert!(frames.iter().any(|frame| frame.kind == types::DATA));
    assert!(start.elapsed() <= STALL_TIMEOUT * 5 / 4);
    assert_eq!(engine.metrics().slow_consumers_closed.get(), 1);
}

/// Answers that are only headers have no window: they wait for the network.
#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_at_all_is_closed() {
    let (engine, etcd, client) = served().await;
    let mut bare = Bare::connect(&engine, 1024, &[]).await;
    let start = Instant::now();
    let mut writing = JoinSet::new();
    writing.spawn(async move {
        for n in 0..200_u32 {
            let call = [Wire::call(2 * n + 1, "/nothing").end()];
            if bare.writer.write(&call).await.is_err() {
                break;
            }
        }
        // Its other half is not read, and stays open.
        bare.reader
    });
    let range = prefix("/c/");
    assert_eq!(client.get(&range).await, etcd.state(&range));
    until_closed(&engine).await;
    let took = start.elapsed();
    assert!(
        took >= STALL_TIMEOUT && took <= STALL_TIMEOUT * 5 / 4,
        "{took:?}"
    );
}

async fn until_closed(engine: &Engine) {
    let closed = || engine.metrics().slow_consumers_closed.get() == 1;
    let waiting = async {
        while !closed() {
            sleep(Duration::from_millis(100)).await;
        }
    };
    let most = Duration::from_secs(600);
    timeout(most, waiting).await.expect("it is closed");
}

#[tokio::test(start_paused = true)]
async fn unread_answers_are_bounded_per_connection() {
    const MOST: usize = 1536 * 1024;
    let (engine, etcd, other) = served().await;
    let client = Client::connect(&engine, (0, 65_535)).await;
    let report = v1::ReportRequest {
        client: None,
        watches: (0..1024_u128)
            .map(|n| v1::WatchReport {
                watch_id: n.to_be_bytes().to_vec().into(),
                ..Default::default()
            })
            .collect(),
    };
    let answer = 1024 * (16 + 2);
    let (mut unread, mut refused) = (Vec::new(), 0);
    for _ in 0..2 * MOST / answer {
        let mut call = client.call(REPORT, &report).await;
        // One that ends is refused; the others wait for a window.
        match timeout(Duration::from_millis(1), call.status()).await {
            Err(_) => unread.push(call),
            Ok((code, message, pushback)) => {
                assert_eq!((code, pushback), (Code::ResourceExhausted, Some(1000)));
                assert!(message.contains("unread answers"), "{message}");
                refused += 1;
            }
        }
        assert!(held(&engine) <= MOST);
    }
    assert!(unread.len() > MOST / answer * 9 / 10, "{}", unread.len());
    assert!(refused > MOST / answer * 9 / 10, "{refused}");
    let range = prefix("/c/");
    assert_eq!(other.get(&range).await, etcd.state(&range));
    drop(unread);
    until(|| held(&engine) == 0).await;
}

#[tokio::test(start_paused = true)]
async fn only_watch_ids_are_looked_up_and_sent_back() {
    let (_engine, _etcd, client) = served().await;
    let ids = [&[][..], &[1; 15], &[2; 16], &[3; 17], &[4; 100_000]];
    let report = v1::ReportRequest {
        client: None,
        watches: ids
            .map(|id| v1::WatchReport {
                watch_id: Bytes::from_static(id),
                ..Default::default()
            })
            .to_vec(),
    };
    let mut call = client.call(REPORT, &report).await;
    let response: v1::ReportResponse = call.message().await.unwrap();
    assert_eq!(response.unknown_watch_ids, [Bytes::from_static(&[2; 16])]);
    assert_eq!(call.status().await.0, Code::Ok);
}

#[tokio::test(start_paused = true)]
async fn a_megabyte_of_empty_entries_is_refused() {
    let (_engine, _etcd, client) = served().await;
    let entries = |tag: u8| [tag, 0].repeat((1024 * 1024 - 5) / 2);
    let body = |content: &[u8]| Bytes::from(frames::message(content.len(), content));
    let labels = entries(0x12);
    let mut labelled = vec![0x0a];
    prost::encoding::encode_varint(labels.len() as u64 - 8, &mut labelled);
    labelled.extend_from_slice(&labels[8..]);
    for (content, what) in [(labels, "watches"), (labelled, "labels")] {
        let mut call = client.request(REPORT, GRPC, Some(body(&content))).await;
        let (code, message, _) = call.status().await;
        assert_eq!(code, Code::InvalidArgument, "{message}");
        assert!(message.contains(what), "{message}");
    }
}

#[tokio::test(start_paused = true)]
async fn refused_ranges_are_shown_in_part() {
    let (_engine, _etcd, client) = served().await;
    for key in ["k".repeat(4096), "\n".repeat(4096), "ü".repeat(2048)] {
        // Two with the suggestion of a slash, which repeats it.
        for key in [
            format!("/d/{}", &key[..4000]),
            format!("c/{}", &key[..4000]),
        ] {
            let request = v1::GetRequest {
                range: Some((&KeyRange::key(&key).unwrap()).into()),
                client: None,
            };
            let mut call = client.call(GET, &request).await;
            let headers: usize = call.headers.values().map(http::HeaderValue::len).sum();
            assert!(headers < 1500, "{headers}");
            let (code, message, _) = call.status().await;
            assert_eq!(code, Code::NotFound);
            assert!(message.contains("... is not served here"), "{message}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn reflection_does_not_repeat_a_long_name() {
    let (_engine, _etcd, client) = served().await;
    for name in ["s".repeat(60_000), "ü".repeat(30_000), "\n".repeat(60_000)] {
        let mut call = client.call(REFLECTION, &symbol(name)).await;
        assert!(call.body.data().await.is_none());
        let trailers = call.body.trailers().await.unwrap().unwrap();
        let status = tonic::Status::from_header_map(&trailers).unwrap();
        assert_eq!(status.code(), Code::NotFound);
        assert!(status.message().starts_with("symbol '"), "{status:?}");
        assert!(trailers["grpc-message"].len() <= 1024);
    }
}

#[tokio::test(start_paused = true)]
async fn each_message_to_reflection_has_its_deadline() {
    let (engine, _etcd, client) = served().await;
    let message = framed(&list_services());
    let mut call = client.send(REFLECTION, GRPC, message.clone(), false).await;
    let answered = call.message::<reflection::ServerReflectionResponse>().await;
    let answered = answered.unwrap().message_response.unwrap();
    // Two in one piece, and one in many, long after the first.
    sleep(Duration::from_secs(59)).await;
    let two = Bytes::from([&message[..], &message[..]].concat());
    call._request.send_data(two, false).unwrap();
    for byte in &message {
        sleep(A_MOMENT).await;
        call._request.send_data(vec![*byte].into(), false).unwrap();
    }
    for _ in 0..3 {
        let again = call.message::<reflection::ServerReflectionResponse>().await;
        assert_eq!(again.unwrap().message_response.unwrap(), answered);
    }
    let start = Instant::now();
    sleep(Duration::from_secs(30)).await;
    call._request.send_data(message.slice(..6), false).unwrap();
    let (code, message, _) = call.status().await;
    assert_eq!(code, Code::DeadlineExceeded, "{message}");
    assert_eq!(start.elapsed().as_secs(), 40);
    until(|| held(&engine) == 0).await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_reflection_call_ends_without_an_error() {
    let (engine, _etcd, client) = served().await;
    let message = framed(&list_services());
    let mut call = client.send(REFLECTION, GRPC, message, false).await;
    let start = Instant::now();
    assert!(
        call.message::<reflection::ServerReflectionResponse>()
            .await
            .is_some()
    );
    assert_eq!(call.status().await.0, Code::Ok);
    assert_eq!(start.elapsed().as_secs(), 60);
    until(|| held(&engine) == 0).await;
}

#[tokio::test(start_paused = true)]
async fn open_reflection_calls_are_bounded_per_connection() {
    let (engine, etcd, other) = served().await;
    let client = Client::connect(&engine, (0, 65_535)).await;
    let message = framed(&symbol("s".to_owned()));
    let (mut open, mut refused) = (Vec::new(), 0);
    for _ in 0..100 {
        let mut call = client
            .send(REFLECTION, GRPC, message.slice(..5), false)
            .await;
        match call.headers.get("grpc-status").is_some() {
            false => open.push(call),
            true => {
                assert_eq!(call.status().await.0, Code::ResourceExhausted);
                refused += 1;
            }
        }
    }
    assert!(
        open.len() == 5 && refused == 95,
        "{} and {refused}",
        open.len()
    );
    let range = prefix("/c/");
    assert_eq!(other.get(&range).await, etcd.state(&range));
    drop(open);
    until(|| held(&engine) == 0).await;
}

/// Ranges and reports were bounded for each stream, of which there may be thousands.
#[tokio::test(start_paused = true)]
async fn what_open_streams_keep_is_bounded_per_connection() {
    const MOST: usize = 1536 * 1024;
    const RANGE: usize = 4000;
    let (engine, etcd, other) = served().await;
    // With room for the first message of each.
    let client = Client::connect(&engine, WINDOWS[1]).await;
    let (mut open, mut refused) = (Vec::new(), 0);
    for n in 0..1000 {
        let range = KeyRange::key(format!("/c/{n:0$}", RANGE - 3)).unwrap();
        let call = client.watch(&range, None).await;
        match call.headers.contains_key("grpc-status") {
            false => open.push(call),
            true => refused += 1,
        }
    }
    assert_eq!(held(&engine), open.len() * RANGE);
    // A request is longer than what is kept of it.
    assert!(open.len() >= MOST / RANGE - 1, "{} open", open.len());
    assert_eq!(open.len() + refused, 1000);

    // There is no room for what a client rejected; that it reported is known.
    let id = |stream: &crate::session::Stream| stream.watch_id().unwrap().to_bytes();
    let streams: Vec<_> = engine.sessions().streams().collect();
    drop(open.split_off(3));
    until(|| held(&engine) == 3 * RANGE).await;
    let rejection = |len: usize| v1::Rejection {
        path: "p".repeat(len),
        ..Default::default()
    };
    for (len, sequence) in [(4096, 1), (10, 2)] {
        let report = v1::ReportRequest {
            client: None,
            watches: vec![v1::WatchReport {
                watch_id: id(&streams[0]),
                sequence,
                outcome: Some(v1::Outcome {
                    rejection: Some(rejection(len)),
                    ..Default::default()
                }),
            }],
        };
        let mut call = client.call(REPORT, &report).await;
        assert_eq!(call.status().await.0, Code::Ok);
        assert_eq!(held(&engine), 3 * RANGE + len);
        assert!(streams[0].report().unwrap().outcome.is_some());
    }
    drop((open, streams));
    until(|| held(&engine) == 0).await;
    let range = prefix("/c/");
    assert_eq!(other.get(&range).await, etcd.state(&range));
}
