//! Connections without open calls.

use super::*;

#[tokio::test(start_paused = true)]
async fn connections_idle_for_long_are_told_to_go() {
    let etcd = ScriptedEtcd::default();
    let engine = engine(&etcd);
    engine.ready().await;
    let mut idle = Client::new(&engine).await;
    idle.get(&prefix("/c/")).await;
    // Whatever is open counts: calls of all services, and those of which nothing is read.
    let mut busy: Vec<(Client, Call)> = Vec::new();
    for path in [WATCH, HEALTH_WATCH, REFLECTION] {
        let client = Client::new(&engine).await;
        let range = prefix("/c/");
        let call = match path {
            WATCH => client.watch(&range, None).await,
            HEALTH_WATCH => {
                let service = String::new();
                client.call(path, &HealthCheckRequest { service }).await
            }
            _ => client.request(path, Some("application/grpc"), None).await,
        };
        busy.push((client, call));
    }
    // One that calls now and then.
    let polling = Client::new(&engine).await;
    polling.get(&prefix("/c/")).await;
    let start = Instant::now();
    let polls = async {
        loop {
            sleep(Duration::from_secs(60)).await;
            polling.get(&prefix("/c/")).await;
        }
    };
    // The client closes when it is told to go, without an error.
    let ended = tokio::select! {
        ended = idle.connection.join_next() => ended,
        () = polls => unreachable!(),
    };
    ended.unwrap().unwrap().unwrap();
    assert_eq!(start.elapsed(), Duration::from_secs(300));
    until(|| engine.metrics().connections.get() == 4).await;
    assert_eq!(busy.len(), 3);
    assert!(busy.iter_mut().all(|(client, _)| client.is_alive()));
}

#[tokio::test]
async fn newcomer_replaces_the_longest_idle_connection() {
    let etcd = ScriptedEtcd::default();
    etcd.put("/c/a", "1");
    let engine = engine(&etcd);
    engine.ready().await;
    let metrics = engine.metrics().clone();
    // Idle connections give way at once, and stay otherwise.
    let timeouts = Timeouts::default().kept_for(Duration::ZERO);
    let connections = Connections::new(engine.service().clone(), limits(2)).with_timeouts(timeouts);
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let accepting = connections.clone();
    let mut accept = JoinSet::new();
    accept.spawn(async move { accepting.accept(listener).await });
    let range = prefix("/c/");
    let watching = Client::over_tcp(address).await;
    let mut watch = watching.watch(&range, None).await;
    let mut idle = Client::over_tcp(address).await;
    for _ in 0..20 {
        assert_eq!(idle.get(&range).await.len(), 1);
        let next = Client::over_tcp(address).await;
        assert_eq!(next.get(&range).await.len(), 1);
        // It need not have heard that it was told to go.
        let _ = idle.connection.join_next().await.unwrap();
        idle = next;
    }
    assert_eq!(metrics.connections_evicted.get(), 20);
    let mut replica = Replica::new(range.clone());
    let last = etcd.put("/c/a", "2");
    watch.read_to(&mut replica, last).await.unwrap();

    // With an open call in each place, newcomers wait.
    let second = idle.watch(&range, None).await;
    let newcomer = Client::over_tcp(address).await;
    let mut waiting = Box::pin(newcomer.get(&range));
    let mut cx = Context::from_waker(std::task::Waker::noop());
    for n in 0..20 {
        assert!(waiting.as_mut().poll(&mut cx).is_pending());
        let last = etcd.put("/c/a", n.to_string());
        watch.read_to(&mut replica, last).await.unwrap();
    }
    assert_eq!(metrics.connections_evicted.get(), 20);
    // Until one has none.
    drop(second);
    let served = timeout(Duration::from_secs(20), waiting).await;
    assert_eq!(served.expect("there is room again").len(), 1);
    assert_eq!(metrics.connections_evicted.get(), 21);
    drop((watching, newcomer));
    accept.shutdown().await;
}
