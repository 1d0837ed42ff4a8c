//! What calls are answered with.

use super::*;

#[tokio::test(start_paused = true)]
async fn watch_get_and_report() {
    let etcd = ScriptedEtcd::default();
    etcd.put("/c/a", "1");
    let engine = engine(&etcd);
    engine.ready().await;
    let client = Client::new(&engine).await;
    let range = prefix("/c/");
    assert_eq!(client.get(&range).await, etcd.state(&range));
    let none = KeyRange::key("/c/none").unwrap();
    assert_eq!(client.get(&none).await, []);

    let mut watch = client.watch(&range, None).await;
    let mut replica = Replica::new(range.clone());
    let Some(Frame::Hello(hello)) = watch.frame().await else {
        panic!("hello comes first");
    };
    assert_eq!(hello.watch_id.len(), 16);
    let shop = v1::ClientInfo {
        instance: "shop-1".to_owned(),
        ..Default::default()
    };
    let report = |watch_id: &Bytes| v1::ReportRequest {
        client: Some(shop.clone()),
        watches: vec![v1::WatchReport {
            watch_id: watch_id.clone(),
            sequence: 1,
            outcome: Some(v1::Outcome::default()),
        }],
    };
    let known = report(&hello.watch_id);
    let unknown = report(&Bytes::from_static(b"sixteen bytes .."));
    for (request, expected) in [(&known, 0), (&unknown, 1)] {
        let mut call = client.call(REPORT, request).await;
        let response: v1::ReportResponse = call.message().await.unwrap();
        assert_eq!(response.unknown_watch_ids.len(), expected);
        assert_eq!(call.status().await.0, Code::Ok);
    }
    // The request did not say who it is; the report did.
    let stream = engine.sessions().streams().next().unwrap();
    assert_eq!(stream.client(), Some(&shop));
    replica.take(Frame::Hello(hello)).unwrap();
    for n in 0..3 {
        let last = etcd.txn([Op::put("/c/a", [n]), Op::put("/c/b", [n])]);
        watch.read_to(&mut replica, last).await.unwrap();
        assert_eq!(replica.entries(), etcd.state(&range));
    }
    assert_eq!(engine.metrics().streams.get(), 1);

    // Dropping the call unsubscribes, and its id with it.
    drop(watch);
    let metrics = engine.metrics().clone();
    until(|| metrics.streams.get() == 0 && metrics.scopes.get() == 0).await;
    let mut call = client.call(REPORT, &known).await;
    let response: v1::ReportResponse = call.message().await.unwrap();
    assert_eq!(response.unknown_watch_ids.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn calls_before_the_first_state_get_a_retry_delay() {
    let (engine, script) = scripted_engine();
    let client = Client::new(&engine).await;
    let watch = v1::WatchRequest {
        range: Some((&prefix("/c/")).into()),
        ..Default::default()
    };
    let get = v1::GetRequest {
        range: Some((&prefix("/c/")).into()),
        client: None,
    };
    let (watched, got) = (
        client.call(WATCH, &watch).await.status().await,
        client.call(GET, &get).await.status().await,
    );
    for (code, message, pushback) in [watched, got] {
        assert_eq!(
            (code, pushback),
            (Code::Unavailable, Some(1000)),
            "{message}"
        );
    }
    assert!(
        script
            .send(state(5, vec![entry("/c/a", "1", 5)], History::Continues))
            .await
    );
    engine.ready().await;
    assert_eq!(client.get(&prefix("/c/")).await.len(), 1);
}

async fn health(client: &Client, service: &str) -> health_check_response::ServingStatus {
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    let mut call = client.call(HEALTH_CHECK, &request).await;
    let response: HealthCheckResponse = call.message().await.unwrap();
    response.status()
}

#[tokio::test(start_paused = true)]
async fn health_follows_the_first_state() {
    use health_check_response::ServingStatus;
    let (engine, script) = scripted_engine();
    let client = Client::new(&engine).await;
    for service in ["", "driftless.v1.Config"] {
        assert_eq!(health(&client, service).await, ServingStatus::NotServing);
    }
    let mut watch = client
        .call(HEALTH_WATCH, &HealthCheckRequest::default())
        .await;
    let now: HealthCheckResponse = watch.message().await.unwrap();
    assert_eq!(now.status(), ServingStatus::NotServing);
    assert!(script.send(state(5, Vec::new(), History::Continues)).await);
    let now: HealthCheckResponse = watch.message().await.unwrap();
    assert_eq!(now.status(), ServingStatus::Serving);
    for service in ["", "driftless.v1.Config"] {
        assert_eq!(health(&client, service).await, ServingStatus::Serving);
    }
}

#[tokio::test(start_paused = true)]
async fn reflection_lists_the_services() {
    use reflection::server_reflection_request::MessageRequest;
    use reflection::server_reflection_response::MessageResponse;
    let engine = engine(&ScriptedEtcd::default());
    let client = Client::new(&engine).await;
    let request = reflection::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut call = client.call(REFLECTION, &request).await;
    let response: reflection::ServerReflectionResponse = call.message().await.unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = response.message_response else {
        panic!("{response:?}");
    };
    let names: Vec<String> = list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    for name in ["driftless.v1.Config", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|found| found == name), "{names:?}");
    }
}

/// Clients that know patches receive the edit of a large value; the others receive the whole value.
#[tokio::test(start_paused = true)]
async fn a_small_edit_of_a_large_value_travels_as_a_patch() {
    const FRAME_HEAD: usize = 9;
    let value = |limit: usize| {
        let line = |n: usize| format!("  \"limit_{n}\": {{ \"rate\": {n}, \"burst\": 10 }},\n");
        let before: String = (0..900).map(line).collect();
        let after: String = (900..1800).map(line).collect();
        format!("{{\n{before}  \"limit\": {limit},\n{after}  \"end\": true\n}}\n")
    };
    let etcd = ScriptedEtcd::default();
    assert!(value(0).len() > 64 * 1024);
    etcd.put("/c/a", value(0));
    let engine = engine(&etcd);
    engine.ready().await;
    let range = prefix("/c/");
    // Windows that one stream that is not being read does not use up.
    let client = Client::connect(&engine, WINDOWS[1]).await;
    let mut streams = Vec::new();
    for features in [
        vec![],
        vec![v1::Feature::ValueDeltas.into()],
        vec![77, v1::Feature::ValueDeltas.into()],
        vec![v1::Feature::Unspecified.into()],
    ] {
        let patched = features.contains(&v1::Feature::ValueDeltas.into());
        let request = v1::WatchRequest {
            range: Some((&range).into()),
            features,
            ..Default::default()
        };
        let mut call = client.call(WATCH, &request).await;
        let mut replica = Replica::new(range.clone());
        call.read_to(&mut replica, etcd.revision()).await.unwrap();
        streams.push((patched, call, replica));
    }
    let metrics = engine.metrics().clone();
    let frames = metrics.frames_encoded.get();
    for edit in 1..4 {
        etcd.put("/c/a", value(edit));
        for (patched, call, replica) in &mut streams {
            assert!(call.buffer.is_empty());
            // As it comes from the connection, to count it.
            let (mut len, mut bytes) = (0, BytesMut::new());
            let response: v1::WatchResponse = loop {
                let data = call.body.data().await.unwrap().unwrap();
                let mut flow = call.body.flow_control().clone();
                flow.release_capacity(data.len()).unwrap();
                len += FRAME_HEAD + data.len();
                bytes.put(data);
                let mut whole = bytes.clone().freeze();
                if let Some(message) = take_messages(&mut whole).pop() {
                    break message;
                }
            };
            replica.take(response.frame.unwrap()).unwrap();
            assert_eq!(replica.entries(), etcd.state(&range));
            match patched {
                true => assert!(len <= 300, "{len} bytes"),
                false => assert!(len > value(edit).len()),
            }
        }
        let encoded = (metrics.changes_encoded.get(), metrics.frames_encoded.get());
        let edits = edit as u64;
        assert_eq!(encoded, (2 * edits, frames + 2 * edits), "once a variant");
        assert_eq!(metrics.deltas_computed.get(), edits);
    }
    assert_eq!(metrics.deltas_dropped.get() + metrics.deltas_late.get(), 0);
    drop(streams);
    engine.shut_down(Duration::from_secs(5)).await;
    assert_eq!(metrics.delta_jobs.get(), 0);
}
