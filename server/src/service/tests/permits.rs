//! Crowds that read snapshots at the same time.

use super::*;

/// A crowd starts with nothing while keys change, and some clients never read. All others reach the right
/// state, and what they read was encoded once.
#[tokio::test(start_paused = true)]
async fn a_crowd_shares_a_snapshot_despite_stalled_readers() {
    const STALLED: usize = 40;
    const CROWD: usize = 200;
    let etcd = ScriptedEtcd::default();
    for key in 0..60 {
        etcd.put(format!("/c/{key:02}"), vec![key; 9_000]);
    }
    let engine = engine(&etcd);
    engine.ready().await;
    let metrics = engine.metrics().clone();
    let range = prefix("/c/");

    let one = Client::new(&engine).await;
    let mut watch = one.watch(&range, None).await;
    let mut replica = Replica::new(range.clone());
    let revision = etcd.revision();
    watch.read_to(&mut replica, revision).await.unwrap();
    let chunks = metrics.chunks_encoded.get();
    assert!(chunks > 8, "{chunks}");
    drop((one, watch));

    // None of them ever reads.
    let mut stalled = Vec::new();
    for _ in 0..STALLED {
        let client = Client::new(&engine).await;
        let watch = client.watch(&range, None).await;
        stalled.push((client, watch));
    }
    let mut crowd = JoinSet::new();
    for _ in 0..CROWD {
        let client = Client::new(&engine).await;
        let (theirs, range) = (etcd.clone(), range.clone());
        crowd.spawn(async move {
            let mut watch = client.watch(&range, None).await;
            let mut replica = Replica::new(range.clone());
            let last = loop {
                let now = theirs.revision();
                watch.read_to(&mut replica, now).await.unwrap();
                if now == theirs.revision() {
                    break now;
                }
            };
            assert_eq!(replica.revision(), last);
            replica.entries()
        });
        if crowd.len() % 20 == 0 {
            etcd.put("/c/07", vec![crowd.len() as u8; 9_000]);
        }
    }
    while let Some(entries) = crowd.join_next().await {
        assert_eq!(entries.unwrap().len(), 60);
    }
    assert_eq!(metrics.syncs_deferred.get(), 0);
    // One more for those that come when nobody came for a while, two minutes later, or after more
    // changes than are replayed.
    let at_most = chunks * 2;
    assert!(
        metrics.chunks_encoded.get() <= at_most,
        "{} chunks encoded for {CROWD} clients, {chunks} for one",
        metrics.chunks_encoded.get()
    );
    drop(stalled);
    until(|| metrics.syncs_in_progress.get() == 0 && metrics.scopes.get() == 0).await;
}

/// A state of a MiB and a half.
pub(super) fn large() -> ScriptedEtcd {
    let etcd = ScriptedEtcd::default();
    for key in 0..24 {
        etcd.put(format!("/c/{key:02}"), vec![key; 64 * 1024]);
    }
    etcd
}

/// A client whose connection reads something already, so that it is no newcomer: as much as is sent
/// without being read.
pub(super) async fn client_that_reads(engine: &Engine, range: &KeyRange) -> (Client, Call) {
    let client = Client::connect(engine, (65_535, 1024 * 1024)).await;
    let reading = client.watch(range, None).await;
    let in_progress = &engine.metrics().syncs_in_progress;
    until(|| in_progress.get() == 1).await;
    (client, reading)
}

#[tokio::test(start_paused = true)]
async fn a_long_wait_for_a_permit_gets_a_retry_delay() {
    let etcd = large();
    let engine = engine(&etcd);
    engine.ready().await;
    let metrics = engine.metrics().clone();
    let range = prefix("/c/");
    let (mut client, reading) = client_that_reads(&engine, &range).await;
    let mut busy = engine.service().sessions().admission().keep_busy();

    let start = Instant::now();
    let mut watch = client.watch(&range, None).await;
    assert!(matches!(watch.frame().await, Some(Frame::Hello(_))));
    let Some(Frame::Goodbye(goodbye)) = watch.frame().await else {
        panic!("there is no permit for it");
    };
    assert_eq!(start.elapsed().as_secs(), 20);
    assert_eq!(goodbye.reason(), v1::goodbye::Reason::Rebalance);
    assert!(goodbye.retry_after_ms >= 1000 && !goodbye.purge);
    assert_eq!(watch.status().await.0, Code::Ok);
    assert_eq!(metrics.syncs_deferred.get(), 1);

    // A `get` of our own client gives up after 10 s, and others after what they say.
    for (timeout, within) in [(None, 6..8), (Some("1500m"), 1..2), (Some("1H"), 20..21)] {
        let start = Instant::now();
        let mut call = client.get_within(&range, timeout).await;
        let (code, message, pushback) = call.status().await;
        assert_eq!(code, Code::ResourceExhausted, "{message}");
        assert!(message.contains("retry"), "{message}");
        assert!(
            pushback.is_some_and(|millis| millis >= 1000),
            "{pushback:?}"
        );
        let waited = start.elapsed().as_secs();
        assert!(within.contains(&waited), "{waited} s for {timeout:?}");
    }
    assert_eq!(metrics.syncs_deferred.get(), 4);

    // A waiting stream still gets its permit, and so does a client that comes back.
    let mut watch = client.watch(&range, None).await;
    let mut replica = Replica::new(range.clone());
    replica.take(watch.frame().await.unwrap()).unwrap();
    busy.shutdown().await;
    watch.read_to(&mut replica, etcd.revision()).await.unwrap();
    assert_eq!(replica.applied.last(), Some(&"snapshot"));
    assert_eq!(replica.entries(), etcd.state(&range));
    assert_eq!(client.get(&range).await, etcd.state(&range));
    assert_eq!(metrics.syncs_deferred.get(), 4);
    assert!(client.is_alive());
    drop(reading);
    until(|| metrics.syncs_in_progress.get() == 0).await;
}

/// Regression: a `Get` held the state of the moment at which it came.
#[tokio::test(start_paused = true)]
async fn a_waiting_get_pins_nothing_and_reads_the_state_of_then() {
    let etcd = large();
    let engine = engine(&etcd);
    engine.ready().await;
    let metrics = engine.metrics().clone();
    let range = KeyRange::key("/c/00").unwrap();
    let client = Client::new(&engine).await;
    let mut busy = engine.service().sessions().admission().keep_busy();
    let mut get = client.get_within(&range, None).await;
    until(|| metrics.scopes.get() == 1).await;
    for value in 0..100 {
        etcd.put("/c/00", vec![value; 64 * 1024]);
    }
    let served = engine.service().served()[0].fanout.clone();
    served.reached(etcd.revision()).await;
    assert_eq!(metrics.pinned_bytes.get(), 0);
    busy.shutdown().await;
    let response: v1::GetResponse = get.message().await.unwrap();
    let snapshot = response.snapshot.unwrap();
    assert_eq!(snapshot.revision, etcd.revision().get());
    assert_eq!(snapshot.entries[0].value, vec![99; 64 * 1024]);
    drop(get);
    until(|| metrics.scopes.get() == 0).await;
}

impl Client {
    /// A `Get` with this deadline.
    async fn get_within(&self, range: &KeyRange, timeout: Option<&str>) -> Call {
        let message = v1::GetRequest {
            range: Some(range.into()),
            client: None,
        };
        let mut request = http::Request::post(format!("http://server{GET}"))
            .header("te", "trailers")
            .header("content-type", "application/grpc");
        if let Some(timeout) = timeout {
            request = request.header("grpc-timeout", timeout);
        }
        self.send_request(request.body(()).unwrap(), framed(&message), true)
            .await
    }
}

/// Takes 64 KiB of a snapshot, and no more for a while, until it ends.
async fn read_slowly(client: Client, mut call: Call) -> Client {
    let mut unread = 0;
    while let Some(data) = call.body.data().await {
        unread += data.unwrap().len();
        if unread >= 65_535 {
            sleep(SLOWLY).await;
            let flow = call.body.flow_control();
            flow.release_capacity(unread).unwrap();
            unread = 0;
        }
    }
    client
}

/// How long a slow reader takes for a piece: less than the second after which it would be idle.
const SLOWLY: Duration = Duration::from_millis(800);

/// Regression: whoever took a piece within a second kept its permit, and the others waited for minutes.
#[tokio::test(start_paused = true)]
async fn slow_readers_hold_up_no_cold_start() {
    const SLOW: usize = 18;
    let etcd = ScriptedEtcd::default();
    for key in 0..480 {
        etcd.put(format!("/c/{key:03}"), vec![0; 64 * 1024]);
    }
    let engine = engine(&etcd);
    engine.ready().await;
    let metrics = engine.metrics().clone();
    let range = prefix("/c/");
    let mut slow = JoinSet::new();
    for n in 0..SLOW {
        let client = Client::new(&engine).await;
        let call = match n % 2 {
            0 => client.watch(&range, None).await,
            _ => client.get_within(&range, None).await,
        };
        slow.spawn(read_slowly(client, call));
    }
    sleep(SLOWLY * 10).await;
    assert_eq!(metrics.syncs_in_progress.get(), SLOW as i64);
    for _ in 0..5 {
        let start = Instant::now();
        let client = Client::new(&engine).await;
        assert_eq!(client.get(&range).await, etcd.state(&range));
        let mut watch = client.watch(&range, None).await;
        let mut replica = Replica::new(range.clone());
        watch.read_to(&mut replica, etcd.revision()).await.unwrap();
        assert_eq!(replica.entries(), etcd.state(&range));
        // Less than one of their pieces takes.
        assert!(start.elapsed() < SLOWLY, "{:?}", start.elapsed());
        sleep(SLOWLY).await;
    }
    // They gave their permits back, and read on.
    assert_eq!(metrics.syncs_in_background.get(), SLOW as i64);
    assert_eq!(
        (metrics.syncs_deferred.get(), metrics.syncs_cut_off.get()),
        (0, 0)
    );
    assert!(slow.try_join_next().is_none());
}

/// The only reader, over a slow link, keeps its permit.
#[tokio::test(start_paused = true)]
async fn a_lone_slow_reader_keeps_its_permit() {
    let etcd = large();
    let engine = engine(&etcd);
    engine.ready().await;
    let client = Client::new(&engine).await;
    let call = client.get_within(&prefix("/c/"), None).await;
    let mut reading = JoinSet::new();
    reading.spawn(read_slowly(client, call));
    let metrics = engine.metrics();
    let mut looked = 0;
    while reading.try_join_next().is_none() {
        assert_eq!(metrics.syncs_in_background.get(), 0);
        looked += 1;
        sleep(SLOWLY).await;
    }
    assert!(looked > 20, "{looked}");
    assert_eq!(metrics.syncs_cut_off.get(), 0);
}
