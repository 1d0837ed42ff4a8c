//! Random events, and many threads, against a model of etcd.

use super::*;

/// One thread publishes while streams on others start, read, lag and end: none diverges, misses a
/// wake-up or leaves anything behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn streams_on_many_threads_stay_correct() {
    const ROUNDS: usize = 1500;
    const READERS: usize = 8;
    let mut prefix_c = Prefix::new();
    let fanout = prefix_c.fanout.clone();
    let (done, ended) = watch::channel(false);
    let mut readers = tokio::task::JoinSet::new();
    for reader in 0..READERS {
        let (fanout, ended) = (fanout.clone(), ended.clone());
        readers.spawn(async move {
            let range = ranges().swap_remove(reader % ranges().len());
            let mut replica = Replica::new(range.clone());
            for life in 1.. {
                let mut stream = Stream::of(&fanout, replica, range.clone(), reader % 2 == 0).await;
                for _ in 0..life * 7 % 40 {
                    if *ended.borrow() {
                        break;
                    }
                    let next = std::future::poll_fn(|cx| {
                        let next = stream.subscriber.next(stream.cursor, stream.progress, cx);
                        match next {
                            Next::Nothing if *ended.borrow() => Poll::Ready(next),
                            Next::Nothing => Poll::Pending,
                            next => Poll::Ready(next),
                        }
                    });
                    if !stream.take(next.await) {
                        break;
                    }
                }
                if *ended.borrow() {
                    stream.drain();
                    if stream.ended.is_none() {
                        return (range, stream.replica.entries());
                    }
                }
                replica = stream.replica;
            }
            unreachable!("it lives until the end")
        });
    }
    let publish = async move {
        for round in 0..ROUNDS {
            let key = KEYS[round % KEYS.len()];
            let held = match round % 3 {
                0 => prefix_c.put(key, &large(&round.to_string())),
                _ => prefix_c.put(key, &round.to_string()),
            };
            prefix_c.resolve(round % 2, round % 7 != 0);
            if held && round % 5 == 0 {
                prefix_c.publisher.flush();
            }
            if round % 50 == 0 {
                prefix_c.progress();
            }
            if round % 400 == 399 {
                let back = prefix_c.etcd.revision().get() - 3;
                prefix_c.etcd.restore(Revision::new(back));
                prefix_c.relist(History::Replaced);
            }
            tokio::task::yield_now().await;
        }
        prefix_c.publisher.flush();
        prefix_c.resolve_all();
        done.send_replace(true);
        // Wakes those that wait, which then see that it is over.
        prefix_c.progress();
        prefix_c
    };
    let all = async { tokio::join!(publish, readers.join_all()) };
    let (mut prefix_c, replicas) = tokio::time::timeout(Duration::from_secs(60), all)
        .await
        .expect("no wake-up is missed");
    for (range, entries) in replicas {
        assert_eq!(entries, prefix_c.etcd.state(&range), "{range}");
    }
    prefix_c.publisher.flush();
    assert_eq!(prefix_c.fanout.metrics().scopes.get(), 0);
    assert_eq!(prefix_c.frames_kept(), 0);
}

#[derive(Clone, Debug)]
enum Event {
    Txn(Vec<(usize, Option<u8>)>),
    Burst(u16),
    /// Transactions that are not published one by one: the state after them is.
    Missed(Vec<(usize, Option<u8>)>),
    Restored(i64),
    Progress,
    Flush,
    Wait(u64),
    /// A new stream of a range, for a client that was connected so many revisions ago.
    Join(usize, Option<u8>, bool),
    /// One of the pending deltas is computed or given up.
    Resolve(usize, bool),
    /// A stream's connection has room for one item.
    Step(usize),
    /// A stream's connection has room for everything.
    Drain(usize),
    Leave(usize),
}

fn op((key, value): (usize, Option<u8>)) -> Op {
    match value {
        Some(value) if value % 8 == 0 => Op::put(KEYS[key], vec![value; 5000]),
        Some(value) if value % 2 == 0 => Op::put(KEYS[key], large(&value.to_string())),
        Some(value) => Op::put(KEYS[key], [value]),
        None => Op::delete(KEYS[key]),
    }
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let edit = (0..KEYS.len(), proptest::option::weighted(0.7, any::<u8>()));
    let edits = proptest::collection::vec(edit, 1..4);
    let stream = 0usize..6;
    let event = prop_oneof![
        12 => edits.clone().prop_map(Event::Txn),
        1 => (1u16..400).prop_map(Event::Burst),
        1 => edits.prop_map(Event::Missed),
        1 => (1i64..20).prop_map(Event::Restored),
        2 => Just(Event::Progress),
        2 => Just(Event::Flush),
        1 => (1u64..100).prop_map(Event::Wait),
        5 => (0..ranges().len(), proptest::option::of(0u8..30), any::<bool>())
            .prop_map(|(range, back, patches)| Event::Join(range, back, patches)),
        8 => (0usize..3, proptest::bool::weighted(0.8))
            .prop_map(|(which, work)| Event::Resolve(which, work)),
        6 => stream.clone().prop_map(Event::Step),
        2 => stream.clone().prop_map(Event::Drain),
        2 => stream.prop_map(Event::Leave),
    ];
    proptest::collection::vec(event, 1..80)
}

async fn scenario(events: Vec<Event>) {
    let mut prefix_c = Prefix::with(ScriptedEtcd::default(), 64 * 1024);
    let mut streams: Vec<Stream> = Vec::new();
    for event in events {
        match event {
            Event::Txn(edits) => drop(prefix_c.txn(edits.into_iter().map(op).collect())),
            Event::Burst(puts) => {
                for n in 0..usize::from(puts) {
                    prefix_c.put(KEYS[n % KEYS.len()], &n.to_string());
                }
            }
            Event::Missed(edits) => {
                edits.into_iter().for_each(|edit| {
                    prefix_c.etcd.txn([op(edit)]);
                });
                prefix_c.relist(History::Continues);
            }
            Event::Restored(by) => {
                let to = (prefix_c.etcd.revision().get() - by).max(1);
                prefix_c.etcd.restore(Revision::new(to));
                prefix_c.relist(History::Replaced);
                for mut stream in streams.drain(..) {
                    stream.drain();
                    assert_eq!(stream.ended, Some(Ending::History));
                }
            }
            Event::Progress => prefix_c.progress(),
            Event::Flush => prefix_c.publisher.flush(),
            Event::Wait(millis) => tokio::time::advance(Duration::from_millis(millis)).await,
            Event::Resolve(which, work) => prefix_c.resolve(which, work),
            Event::Join(range, back, patches) => {
                let range = ranges().swap_remove(range);
                let etcd = &prefix_c.etcd;
                let replica = match back {
                    None => Replica::new(range.clone()),
                    Some(back) => {
                        let at = (etcd.revision().get() - i64::from(back)).max(1);
                        let at = Revision::new(at);
                        let held = etcd.state_at(&range, at).unwrap();
                        Replica::holding(range.clone(), &etcd.epoch(), at, held)
                    }
                };
                streams.push(Stream::of(&prefix_c.fanout, replica, range, patches).await);
            }
            Event::Step(at) => {
                if let Some(stream) = streams.get_mut(at) {
                    stream.step();
                }
            }
            Event::Drain(at) => {
                if let Some(stream) = streams.get_mut(at) {
                    stream.drain();
                }
            }
            Event::Leave(at) if at < streams.len() => drop(streams.remove(at)),
            Event::Leave(_) => {}
        }
        streams
            .iter()
            .for_each(|stream| stream.check(&prefix_c.etcd));
    }
    prefix_c.publisher.flush();
    prefix_c.resolve_all();
    for stream in &mut streams {
        stream.drain();
        stream.check(&prefix_c.etcd);
        let range = stream.subscriber.range();
        assert_eq!(stream.replica.entries(), prefix_c.etcd.state(range));
    }
    prefix_c.progress();
    for stream in &mut streams {
        stream.drain();
        assert_eq!(stream.replica.revision(), prefix_c.etcd.revision());
    }
    drop(streams);
    prefix_c.publisher.flush();
    assert_eq!(prefix_c.fanout.metrics().scopes.get(), 0);
    assert_eq!(prefix_c.frames_kept(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_stream_is_at_a_state_etcd_had(events in events()) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().start_paused(true).build().unwrap();
        runtime.block_on(scenario(events));
    }
}
