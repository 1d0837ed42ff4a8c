//! Shutdowns: what is said, and what they do not wait for.

use super::*;

#[tokio::test(start_paused = true)]
async fn calls_during_shutdown_get_a_retry_delay() {
    let engine = engine(&ScriptedEtcd::default());
    engine.ready().await;
    let client = Client::new(&engine).await;
    // The connections are not draining yet.
    engine.service().drain();
    let range = Some(v1::Range::from(&prefix("/c/")));
    let watch = v1::WatchRequest {
        range: range.clone(),
        ..Default::default()
    };
    let get = v1::GetRequest {
        range,
        client: None,
    };
    let health = HealthCheckRequest::default();
    for mut call in [
        client.call(WATCH, &watch).await,
        client.call(GET, &get).await,
        client.call(HEALTH_WATCH, &health).await,
    ] {
        let told = timeout(Duration::from_secs(1), call.status()).await;
        let (code, message, pushback) = told.expect("at once");
        assert_eq!(
            (code, pushback),
            (Code::Unavailable, Some(100)),
            "{message}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn shutdown_says_goodbye_on_every_stream() {
    let etcd = ScriptedEtcd::default();
    etcd.put("/c/a", "1");
    let engine = engine(&etcd);
    engine.ready().await;
    let mut client = Client::new(&engine).await;
    let mut streams = Vec::new();
    for range in [
        prefix("/c/"),
        prefix("/c/a"),
        KeyRange::key("/c/a").unwrap(),
    ] {
        let mut watch = client.watch(&range, None).await;
        let mut replica = Replica::new(range);
        watch.read_to(&mut replica, etcd.revision()).await.unwrap();
        streams.push(watch);
    }
    let mut idle = Client::new(&engine).await;
    let metrics = engine.metrics().clone();
    let start = Instant::now();
    let read = async {
        for mut watch in streams {
            let Some(Frame::Goodbye(goodbye)) = watch.frame().await else {
                panic!("goodbye");
            };
            assert_eq!(goodbye.reason(), v1::goodbye::Reason::Drain);
            assert!(watch.frame().await.is_none(), "the last");
            assert_eq!(watch.status().await.0, Code::Ok);
        }
        client
            .connection
            .join_next()
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        idle.connection.join_next().await.unwrap().unwrap().unwrap();
    };
    let (cut_off, ()) = tokio::join!(engine.shut_down(Duration::from_secs(8)), read);
    assert_eq!(cut_off, 0);
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!((metrics.connections.get(), metrics.streams.get()), (0, 0));
    assert_eq!(metrics.scopes.get(), 0);
}

/// A client that watched the server's health, as gRPC's own clients do, held up every shutdown until
/// its connection was closed.
#[tokio::test(start_paused = true)]
async fn shutdown_ends_health_watches() {
    use health_check_response::ServingStatus;
    let engine = engine(&ScriptedEtcd::default());
    engine.ready().await;
    let client = Client::new(&engine).await;
    let mut calls = Vec::new();
    for service in ["", "driftless.v1.Config"] {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let mut call = client.call(HEALTH_WATCH, &request).await;
        while call
            .message::<HealthCheckResponse>()
            .await
            .unwrap()
            .status()
            != ServingStatus::Serving
        {}
        calls.push(call);
    }
    let start = Instant::now();
    let read = async {
        for mut call in calls {
            let last: HealthCheckResponse = call.message().await.unwrap();
            assert_eq!(last.status(), ServingStatus::NotServing);
            assert!(call.message::<HealthCheckResponse>().await.is_none());
        }
    };
    let (cut_off, ()) = tokio::join!(engine.shut_down(Duration::from_secs(8)), read);
    assert_eq!(cut_off, 0);
    assert!(start.elapsed() < Duration::from_secs(1));
}

/// Reflection clients keep their call open, which held up every shutdown.
#[tokio::test(start_paused = true)]
async fn shutdown_ends_reflection_calls() {
    use reflection::server_reflection_request::MessageRequest;
    let engine = engine(&ScriptedEtcd::default());
    engine.ready().await;
    let client = Client::new(&engine).await;
    let request = framed(&reflection::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    });
    let open = client.send(REFLECTION, Some("application/grpc"), request, false);
    let mut call = open.await;
    let answer: reflection::ServerReflectionResponse = call.message().await.unwrap();
    assert!(answer.message_response.is_some());
    let start = Instant::now();
    let (cut_off, status) = tokio::join!(
        engine.shut_down(Duration::from_secs(8)),
        timeout(Duration::from_secs(60), call.status())
    );
    assert_eq!(cut_off, 0);
    assert_eq!(status.unwrap().0, Code::Ok);
    assert!(start.elapsed() < Duration::from_secs(1));
}

/// A connection that was accepted at the moment of a shutdown outlived it.
#[tokio::test]
async fn shutdown_waits_for_the_accept_loop() {
    let engine = engine(&ScriptedEtcd::default());
    engine.ready().await;
    let connections = Connections::new(engine.service().clone(), limits(1));
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let accepting = connections.clone();
    let mut accept = Box::pin(async move {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        accepting.accept(listener).await;
    });
    assert!(accept.as_mut().poll(&mut cx).is_pending());
    let mut shut_down = Box::pin(connections.shut_down(std::future::pending()));
    assert!(
        shut_down.as_mut().poll(&mut cx).is_pending(),
        "it may accept one more"
    );
    accept.await;
    assert_eq!(shut_down.await, 0);
}

/// Streams with a permit read on until the deadline. Those that wait for one do not wait with them.
#[tokio::test(start_paused = true)]
async fn shutdown_does_not_wait_for_permits() {
    let etcd = ScriptedEtcd::default();
    etcd.put("/c/a", "1");
    let engine = engine(&etcd);
    engine.ready().await;
    let _busy = engine.service().sessions().admission().keep_busy();
    let client = Client::new(&engine).await;
    let request = v1::GetRequest {
        range: Some((&prefix("/c/")).into()),
        client: None,
    };
    let mut call = client.call(GET, &request).await;
    assert!(timeout(Duration::from_secs(1), call.frame()).await.is_err());
    let start = Instant::now();
    let (cut_off, status) = tokio::join!(engine.shut_down(Duration::from_secs(8)), call.status());
    assert_eq!((cut_off, status.0), (0, Code::Unavailable));
    assert!(start.elapsed() < Duration::from_secs(1));
}

/// A connection that is accepted at that moment drains as all others do.
#[tokio::test(start_paused = true)]
async fn shutdown_drains_a_connection_accepted_last() {
    let engine = engine(&ScriptedEtcd::default());
    engine.ready().await;
    let connections = Connections::new(engine.service().clone(), limits(1));
    let (accepting, late) = (connections.clone(), connections.clone());
    let mut accept = Box::pin(async move {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        accepting.accept(listener).await;
    });
    let mut cx = Context::from_waker(std::task::Waker::noop());
    assert!(accept.as_mut().poll(&mut cx).is_pending());
    let start = Instant::now();
    let mut shut_down = Box::pin(connections.shut_down(std::future::pending()));
    assert!(shut_down.as_mut().poll(&mut cx).is_pending());
    // As the accept loop does before it sees that it is over.
    let (client, server) = duplex(64 * 1024);
    late.serve(server);
    accept.await;
    let (_sender, connection) = h2::client::handshake(client).await.unwrap();
    let (cut_off, ended) = tokio::join!(shut_down, connection);
    assert_eq!(cut_off, 0);
    ended.unwrap();
    assert!(start.elapsed() < Duration::from_secs(1));
}

/// The same when the deadline is already over.
#[tokio::test(start_paused = true)]
async fn shutdown_at_its_deadline_closes_a_late_connection() {
    let engine = engine(&ScriptedEtcd::default());
    engine.ready().await;
    let connections = Connections::new(engine.service().clone(), limits(1));
    let (accepting, late) = (connections.clone(), connections.clone());
    let mut accept = Box::pin(async move {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        accepting.accept(listener).await;
    });
    let mut cx = Context::from_waker(std::task::Waker::noop());
    assert!(accept.as_mut().poll(&mut cx).is_pending());
    let start = Instant::now();
    let mut shut_down = Box::pin(connections.shut_down(std::future::ready(())));
    assert!(shut_down.as_mut().poll(&mut cx).is_pending());
    let (_silent, server) = duplex(64 * 1024);
    late.serve(server);
    accept.await;
    shut_down.await;
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn shutdown_at_its_deadline_closes_stalled_connections() {
    let etcd = ScriptedEtcd::default();
    etcd.put("/c/a", vec![b'v'; 1024 * 1024]);
    let engine = engine(&etcd);
    engine.ready().await;
    let mut client = Client::new(&engine).await;
    let watch = client.watch(&prefix("/c/"), None).await;
    let metrics = engine.metrics().clone();
    let start = Instant::now();
    assert_eq!(engine.shut_down(Duration::from_secs(8)).await, 1);
    assert_eq!(start.elapsed(), Duration::from_secs(8));
    assert_eq!((metrics.connections.get(), metrics.streams.get()), (0, 0));
    assert_eq!(metrics.scopes.get(), 0);
    client.connection.join_next().await.unwrap().unwrap().ok();
    drop(watch);
}

/// The server is not serving yet, and may never be: the health watches end all the same.
#[tokio::test(start_paused = true)]
async fn shutdown_before_the_first_state_ends_health_watches() {
    use health_check_response::ServingStatus;
    let (engine, _script) = scripted_engine();
    let client = Client::new(&engine).await;
    let mut call = client
        .call(HEALTH_WATCH, &HealthCheckRequest::default())
        .await;
    let now: HealthCheckResponse = call.message().await.unwrap();
    assert_eq!(now.status(), ServingStatus::NotServing);
    let start = Instant::now();
    let read = async { while call.message::<HealthCheckResponse>().await.is_some() {} };
    let (cut_off, ()) = tokio::join!(engine.shut_down(Duration::from_secs(8)), read);
    assert_eq!(cut_off, 0);
    assert!(start.elapsed() < Duration::from_secs(1));
}
