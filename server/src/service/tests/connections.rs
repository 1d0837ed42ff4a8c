//! Connections: how many, how long they may be idle, and TLS.

use super::*;

/// Reads until the other end closes; how long that took, and how many bytes came.
async fn closed(io: &mut DuplexStream) -> Duration {
    let start = Instant::now();
    let mut bytes = Vec::new();
    // Being reset is being closed.
    let _ = io.read_to_end(&mut bytes).await;
    start.elapsed()
}

#[tokio::test(start_paused = true)]
async fn peers_without_http2_are_closed() {
    let engine = engine(&ScriptedEtcd::default());
    engine.ready().await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let garbage = [&preface[..], &[0xff; 64]].concat();
    let cases: [&[u8]; 6] = [
        b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n",
        &preface[..10],
        preface,
        &garbage,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"",
    ];
    for bytes in cases {
        let (mut client, server) = duplex(1024);
        engine.serve(server);
        client.write_all(bytes).await.unwrap();
        let took = closed(&mut client).await;
        // Told to go after 30 s, and closed 5 s later.
        assert!(took <= Duration::from_secs(35), "{bytes:?}: {took:?}");
        until(|| engine.metrics().connections.get() == 0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn connections_without_a_call_are_closed() {
    let etcd = ScriptedEtcd::default();
    let engine = engine(&etcd);
    engine.ready().await;
    let mut idle = Client::new(&engine).await;
    let mut used = Client::new(&engine).await;
    let mut watching = Client::new(&engine).await;
    used.get(&prefix("/c/")).await;
    let mut watch = watching.watch(&prefix("/c/"), None).await;
    let connected = Instant::now();
    idle.connection.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(connected.elapsed(), Duration::from_secs(30));
    let mut replica = Replica::new(prefix("/c/"));
    for _ in 0..60 {
        sleep(Duration::from_secs(1)).await;
        let last = etcd.put("/c/a", "v");
        watch.read_to(&mut replica, last).await.unwrap();
    }
    assert!(used.is_alive() && watching.is_alive());
    assert_eq!(engine.metrics().connections.get(), 2);
}

#[tokio::test]
async fn connections_above_the_limit_wait() {
    let etcd = ScriptedEtcd::default();
    etcd.put("/c/a", "1");
    let engine = engine(&etcd);
    engine.ready().await;
    let connections = Connections::new(engine.service().clone(), limits(2));
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let accepting = connections.clone();
    let mut accept = JoinSet::new();
    accept.spawn(async move { accepting.accept(listener).await });
    let connect = || Client::over_tcp(address);
    let (first, second, third) = (connect().await, connect().await, connect().await);
    let range = prefix("/c/");
    assert_eq!(first.get(&range).await.len(), 1);
    assert_eq!(second.get(&range).await.len(), 1);
    let mut waiting = Box::pin(third.get(&range));
    for _ in 0..20 {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(waiting.as_mut().poll(&mut cx).is_pending());
        first.get(&range).await;
        assert_eq!(engine.metrics().connections.get(), 2);
    }
    drop(second);
    let served = timeout(Duration::from_secs(20), waiting).await;
    assert_eq!(served.expect("there is room again").len(), 1);
    drop((first, third));
    assert_eq!(
        connections.shut_down(sleep(Duration::from_secs(20))).await,
        0
    );
    accept.join_next().await.unwrap().unwrap();
}

/// A certificate of its own making, as a server would have it.
async fn tls() -> (tempfile::TempDir, crate::net::Tls) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("c.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(path("k.pem"), key.serialize_pem()).unwrap();
    let settings = Settings::builder()
        .etcd("http://127.0.0.1:2379")
        .prefix("/c/")
        .tls_cert(path("c.pem"))
        .tls_key(path("k.pem"))
        .build()
        .unwrap();
    let files = crate::server::tls_files(settings.tls().unwrap());
    let (tls, _) = crate::net::load_tls(files).await.unwrap();
    (dir, tls)
}

#[tokio::test(start_paused = true)]
async fn a_stuck_tls_handshake_times_out_without_a_leak() {
    let (_dir, tls) = tls().await;
    let (engine, _script) = scripted_engine();
    let metrics = engine.metrics().clone();
    let mut connections = Connections::new(engine.service().clone(), limits(10));
    connections.set_tls(tls);
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let before = tasks();
    let start = Instant::now();
    let (mut client, server) = duplex(1024);
    connections.serve(server);
    // The first bytes of a handshake, and then nothing.
    client.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
    assert_eq!(metrics.connections.get(), 1);
    assert_eq!(client.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    let waited = start.elapsed();
    assert!(waited >= Duration::from_secs(10) && waited < Duration::from_secs(11));
    while metrics.connections.get() > 0 || tasks() > before {
        tokio::task::yield_now().await;
    }
    assert_eq!(metrics.tls_handshakes_failed.get(), 1);

    // A shutdown does not wait for one.
    let (_client, server) = duplex(1024);
    connections.serve(server);
    let start = Instant::now();
    let cut_off = connections.shut_down(sleep(Duration::from_secs(8))).await;
    assert_eq!((cut_off, start.elapsed()), (0, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn dropping_the_engine_ends_tls_handshakes() {
    let (_dir, tls) = tls().await;
    let (mut engine, _script) = scripted_engine();
    engine.set_tls(tls);
    let (mut client, server) = duplex(1024);
    engine.serve(server);
    client.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
    tokio::task::yield_now().await;
    let start = Instant::now();
    drop(engine);
    assert_eq!(client.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    assert_eq!(start.elapsed(), Duration::ZERO);
}
