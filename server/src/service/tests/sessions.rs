//! What the registry knows of connections and streams, and that streams end one by one.

use std::sync::Arc;

use super::*;
use crate::auth::BearerToken;
use crate::session::{CallKind, Stream};

/// What a client says of itself.
fn shop() -> v1::ClientInfo {
    v1::ClientInfo {
        instance: "shop-1".to_owned(),
        labels: [("team".to_owned(), "checkout".to_owned())].into(),
        library: "test/1".to_owned(),
    }
}

fn goodbye(reason: v1::goodbye::Reason) -> v1::Goodbye {
    v1::Goodbye {
        reason: reason.into(),
        retry_after_ms: 7,
        purge: true,
    }
}

async fn engine_with_a_key() -> (Engine, ScriptedEtcd) {
    let etcd = ScriptedEtcd::default();
    etcd.put("/c/a", "1");
    let engine = engine(&etcd);
    engine.ready().await;
    (engine, etcd)
}

/// The only stream of this range.
fn stream(engine: &Engine, range: &KeyRange) -> Stream {
    let mut streams = engine.sessions().streams().filter(|it| it.range() == range);
    let stream = streams.next().expect("the stream is open");
    assert!(streams.next().is_none());
    stream
}

async fn expect_goodbye(watch: &mut Call, expected: v1::goodbye::Reason) {
    let goodbye = loop {
        match watch.frame().await.expect("goodbye comes") {
            Frame::Goodbye(goodbye) => break goodbye,
            _ => continue,
        }
    };
    assert_eq!(goodbye.reason(), expected);
    assert_eq!((goodbye.retry_after_ms, goodbye.purge), (7, true));
    assert!(watch.frame().await.is_none(), "the last");
    assert_eq!(watch.status().await.0, Code::Ok);
}

#[tokio::test(start_paused = true)]
async fn client_info_and_outcome_are_in_the_registry() {
    let (engine, etcd) = engine_with_a_key().await;
    let client = Client::new(&engine).await;
    let range = prefix("/c/");
    let outcome = |applied_revision| v1::Outcome {
        applied_revision,
        ..Default::default()
    };
    let request = v1::WatchRequest {
        range: Some((&range).into()),
        client: Some(shop()),
        outcome: Some(outcome(1)),
        ..Default::default()
    };
    let body = framed(&request);
    let request = Request::post(format!("http://server{WATCH}"))
        .header("content-type", "application/grpc")
        .header("authorization", "Bearer CANARY");
    let request = request.body(()).unwrap();
    let mut watch = client.send_request(request, body, true).await;
    let mut replica = Replica::new(range.clone());
    let Some(Frame::Hello(hello)) = watch.frame().await else {
        panic!("hello comes first");
    };
    let watch_id = hello.watch_id.clone();
    replica.take(Frame::Hello(hello)).unwrap();
    let found = stream(&engine, &range);
    assert_eq!(found.client(), Some(&shop()));
    let token = found.identity().token.map(BearerToken::expose);
    assert_eq!(token, Some(&b"CANARY"[..]));
    assert!(!format!("{:?}", engine.sessions()).contains("CANARY"));
    assert_eq!(found.kind(), CallKind::Watch);
    assert_eq!((found.view(), found.resumed_from()), ("", Revision::NONE));
    assert_eq!(found.watch_id().unwrap().to_bytes(), watch_id);
    let report = found.report().unwrap();
    assert_eq!((report.sequence, report.outcome), (0, Some(outcome(1))));
    watch.read_to(&mut replica, etcd.revision()).await.unwrap();
    assert_eq!(found.cursor(), etcd.revision());

    let reported = |sequence, applied| v1::ReportRequest {
        client: None,
        watches: vec![v1::WatchReport {
            watch_id: watch_id.clone(),
            sequence,
            outcome: Some(outcome(applied)),
        }],
    };
    // Out of order: the older one is known, and ignored.
    for (sequence, applied) in [(2, 20), (1, 10)] {
        let mut call = client.call(REPORT, &reported(sequence, applied)).await;
        let response: v1::ReportResponse = call.message().await.unwrap();
        assert_eq!(response.unknown_watch_ids.len(), 0);
        let report = found.report().unwrap();
        assert_eq!((report.sequence, report.outcome), (2, Some(outcome(20))));
    }
    // One without an outcome counts as well: what is older than it stays ignored.
    for outcome in [None, Some(outcome(10))] {
        let sequence = if outcome.is_none() { 4 } else { 3 };
        let mut request = reported(sequence, 0);
        request.watches[0].outcome = outcome;
        let mut call = client.call(REPORT, &request).await;
        call.message::<v1::ReportResponse>().await.unwrap();
        let report = found.report().unwrap();
        assert_eq!((report.sequence, report.outcome), (4, None));
    }

    let connection = found.connection();
    assert_eq!((connection.streams(), connection.certificates()), (1, None));
    assert_eq!(engine.sessions().connections().count(), 1);
    drop(watch);
    until(|| connection.streams() == 0).await;
    assert_eq!(engine.sessions().streams().count(), 0);
    drop(client);
    until(|| engine.sessions().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn ending_one_stream_leaves_its_connections_others_alone() {
    let (engine, etcd) = engine_with_a_key().await;
    let client = Client::new(&engine).await;
    let (range, other) = (prefix("/c/"), KeyRange::key("/c/a").unwrap());
    let mut ended = client.watch(&range, None).await;
    let mut replica = Replica::new(range.clone());
    ended.read_to(&mut replica, etcd.revision()).await.unwrap();
    let mut open = client.watch(&other, None).await;
    let mut replica = Replica::new(other.clone());
    open.read_to(&mut replica, etcd.revision()).await.unwrap();

    let id = stream(&engine, &range).id();
    let revoked = v1::goodbye::Reason::Revoked;
    assert!(engine.sessions().end_stream(id, goodbye(revoked)));
    let told = timeout(Duration::from_secs(1), expect_goodbye(&mut ended, revoked));
    told.await.expect("at once");
    until(|| engine.sessions().streams().count() == 1).await;
    assert!(!engine.sessions().end_stream(id, goodbye(revoked)));
    // Long after the connection would have been closed.
    sleep(Duration::from_secs(60)).await;
    let last = etcd.put("/c/a", "2");
    open.read_to(&mut replica, last).await.unwrap();
    assert_eq!(replica.entries(), etcd.state(&other));
    assert_eq!(engine.metrics().slow_consumers_closed.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_ended_stream_that_is_not_read_ends_with_its_connection() {
    let (engine, etcd) = engine_with_a_key().await;
    let mut client = Client::new(&engine).await;
    let range = prefix("/c/");
    let watch = client.watch(&range, None).await;
    etcd.put("/c/a", vec![b'v'; 1024 * 1024]);
    sleep(Duration::from_secs(1)).await;
    let start = Instant::now();
    let found = stream(&engine, &range);
    assert!(found.unread_since().is_some());
    let revoked = goodbye(v1::goodbye::Reason::Revoked);
    assert!(engine.sessions().end_stream(found.id(), revoked));
    client.connection.join_next().await.unwrap().unwrap().ok();
    assert!(
        start.elapsed() <= Duration::from_secs(6),
        "{:?}",
        start.elapsed()
    );
    until(|| engine.sessions().is_empty()).await;
    drop(watch);
}

#[tokio::test(start_paused = true)]
async fn streams_end_while_they_wait_for_a_permit() {
    let (engine, _etcd) = engine_with_a_key().await;
    let _busy = engine.sessions().admission().keep_busy();
    let client = Client::new(&engine).await;
    let range = prefix("/c/");
    let mut watch = client.watch(&range, None).await;
    assert!(matches!(watch.frame().await, Some(Frame::Hello(_))));
    let rebalance = v1::goodbye::Reason::Rebalance;
    let id = stream(&engine, &range).id();
    assert!(engine.sessions().end_stream(id, goodbye(rebalance)));
    let told = timeout(
        Duration::from_secs(1),
        expect_goodbye(&mut watch, rebalance),
    );
    told.await.expect("at once");
    until(|| engine.sessions().streams().count() == 0).await;

    let request = v1::GetRequest {
        range: Some((&range).into()),
        client: Some(shop()),
    };
    let mut get = client.call(GET, &request).await;
    let found = stream(&engine, &range);
    assert_eq!((found.kind(), found.watch_id()), (CallKind::Get, None));
    assert_eq!(found.client(), Some(&shop()));
    assert!(engine.sessions().end_stream(found.id(), goodbye(rebalance)));
    let status = timeout(Duration::from_secs(1), get.status()).await;
    assert_eq!(status.expect("at once").0, Code::Aborted);
}

#[tokio::test(start_paused = true)]
async fn streams_end_in_the_middle_of_a_snapshot() {
    let etcd = ScriptedEtcd::default();
    for key in 0..64 {
        etcd.put(format!("/c/{key:02}"), vec![key; 64 * 1024]);
    }
    let engine = engine(&etcd);
    engine.ready().await;
    let client = Client::new(&engine).await;
    let range = prefix("/c/");
    let mut watch = client.watch(&range, None).await;
    sleep(Duration::from_secs(1)).await;
    let id = stream(&engine, &range).id();
    let rebalance = v1::goodbye::Reason::Rebalance;
    assert!(engine.sessions().end_stream(id, goodbye(rebalance)));
    expect_goodbye(&mut watch, rebalance).await;
    assert!(engine.metrics().chunks_encoded.get() < 32, "it was cut off");
    until(|| engine.metrics().syncs_in_progress.get() == 0).await;
}

/// A client that does not read its goodbye would keep others waiting meanwhile.
#[tokio::test(start_paused = true)]
async fn an_ended_watch_gives_its_permit_back_at_once() {
    for has_permit in [false, true] {
        let (engine, _etcd) = engine_with_a_key().await;
        let mut busy = engine.sessions().admission().keep_busy();
        // Too small a window for its first message, so that it stays open.
        let client = Client::connect(&engine, (16, 65_535)).await;
        let range = prefix("/c/");
        let _watch = client.watch(&range, None).await;
        sleep(Duration::from_millis(1)).await;
        if has_permit {
            busy.abort_all();
        }
        let rebalance = goodbye(v1::goodbye::Reason::Rebalance);
        let id = stream(&engine, &range).id();
        assert!(engine.sessions().end_stream(id, rebalance));
        sleep(Duration::from_millis(1)).await;
        busy.shutdown().await;
        sleep(Duration::from_millis(1)).await;
        assert_eq!(engine.metrics().syncs_in_progress.get(), 0);
        assert_eq!(engine.sessions().streams().count(), 1, "it is not read");
    }
}

#[tokio::test(start_paused = true)]
async fn a_clients_certificates_are_in_the_registry() {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use tokio_rustls::TlsConnector;
    use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
    use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};

    use crate::net::{NamedFile, TlsFiles, load_tls};

    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(params, ca_key);
    let issue = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &issuer).unwrap(), key)
    };
    let (server_cert, server_key) = issue("localhost");
    let (client_cert, client_key) = issue("shop");
    let dir = tempfile::tempdir().unwrap();
    let file = |setting, text: String| {
        let path = dir.path().join(setting);
        std::fs::write(&path, text).unwrap();
        NamedFile { setting, path }
    };
    let files = TlsFiles {
        cert: file("tls_cert", server_cert.pem()),
        key: file("tls_key", server_key.serialize_pem()),
        client_ca: Some(file("tls_client_ca", ca.pem())),
    };
    let (mut engine, _etcd) = engine_with_a_key().await;
    engine.set_tls(load_tls(files).await.unwrap().0);

    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![client_cert.der().clone()],
            PrivateKeyDer::try_from(client_key.serialize_der()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (io, server) = duplex(64 * 1024);
    engine.serve(server);
    let connect = TlsConnector::from(Arc::new(config));
    let io = connect.connect(ServerName::try_from("localhost").unwrap(), io);
    let (sender, connection) = h2::client::handshake(io.await.unwrap()).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    let client = Client {
        sender,
        connection: tasks,
    };
    let range = prefix("/c/");
    let _watch = client.watch(&range, None).await;
    let found = stream(&engine, &range);
    let identity = found.identity();
    let chain: Vec<_> = identity.certificates.unwrap().expose().collect();
    assert_eq!(chain, [client_cert.der().as_ref()]);
    assert_eq!(identity.token, None);
}
