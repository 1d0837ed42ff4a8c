//! Who is woken when: pacing, coalescing and progress.

use super::*;

#[tokio::test(start_paused = true)]
async fn change_wakes_only_streams_it_touches() {
    let mut prefix_c = Prefix::new();
    let ranges = [
        prefix("/c/"),
        prefix("/c/a"),
        prefix("/c/a/"),
        KeyRange::key("/c/a").unwrap(),
        KeyRange::key("/c/b").unwrap(),
        prefix("/c/none"),
    ];
    let mut streams = Vec::new();
    for range in ranges {
        let mut stream = Stream::cold(&prefix_c, range).await;
        stream.drain();
        streams.push(stream);
    }
    let mut woken_by = |ops: Vec<Op>| {
        let before: Vec<usize> = streams.iter().map(Stream::woken).collect();
        prefix_c.txn(ops);
        let woken = streams.iter_mut().zip(before).map(|(stream, before)| {
            let woken = stream.woken() - before;
            stream.drain();
            assert!(stream.drain_is_quiet());
            woken
        });
        woken.collect::<Vec<_>>()
    };
    assert_eq!(woken_by(vec![Op::put("/c/a", "1")]), [1, 1, 0, 1, 0, 0]);
    assert_eq!(woken_by(vec![Op::put("/c/a/b", "1")]), [1, 1, 1, 0, 0, 0]);
    assert_eq!(woken_by(vec![Op::put("/c/b", "1")]), [1, 0, 0, 0, 1, 0]);
    assert_eq!(woken_by(vec![Op::put("/elsewhere", "1")]), [0; 6]);
    let both = vec![Op::delete("/c/a"), Op::put("/c/b", "2")];
    assert_eq!(woken_by(both), [1, 1, 0, 1, 1, 0], "once each");
}

#[tokio::test(start_paused = true)]
async fn changes_after_a_burst_are_held_back_and_coalesced() {
    let mut prefix_c = Prefix::new();
    let mut stream = Stream::cold(&prefix_c, prefix("/c/")).await;
    stream.drain();
    stream.applied();
    for n in 0..BURST {
        assert!(!prefix_c.put("/c/a", &n.to_string()));
        assert_eq!(stream.woken(), n as usize + 1, "at once");
        stream.drain();
        assert_eq!(stream.applied(), ["diff"]);
    }
    let woken = stream.woken();
    for n in 0..5 {
        assert!(prefix_c.put("/c/b", &n.to_string()), "held back");
        assert!(stream.drain_is_quiet());
    }
    assert_eq!(stream.woken(), woken);
    prefix_c.publisher.flush();
    assert_eq!(stream.woken(), woken + 1);
    assert!(matches!(stream.next(), Next::Coalesced { .. }));
    stream.drain();
    assert_eq!(stream.applied(), ["diff"; 5]);
    assert_eq!(
        stream.replica.entries(),
        prefix_c.etcd.state(&prefix("/c/"))
    );
}

/// Regression: two messages were sent per pace, one by the flush and one by the token earned until
/// then.
#[tokio::test(start_paused = true)]
async fn flood_sends_one_message_per_pace() {
    let mut prefix_c = Prefix::new();
    let mut stream = Stream::cold(&prefix_c, prefix("/c/")).await;
    stream.drain();
    for n in 0..2000 {
        prefix_c.put("/c/a", &n.to_string());
        tokio::time::advance(Duration::from_millis(1)).await;
        if prefix_c.publisher.due() <= Instant::now() {
            prefix_c.publisher.tick();
        }
        stream.drain();
    }
    let paced = stream.woken() - BURST as usize;
    assert!(
        (90..=100).contains(&paced),
        "{paced} messages in two seconds"
    );
}

#[tokio::test(start_paused = true)]
async fn held_back_changes_are_sent_within_a_pace() {
    let interval = Duration::from_secs(10);
    let (fanout, script, _ingest) = ingesting(&ScriptedEtcd::default(), interval).await;
    let subscriber = fanout.subscribe(prefix("/c/")).unwrap();
    let start = subscriber.view().unwrap().root.revision();
    let mut revision = start;
    for _ in 0..2 * BURST {
        revision = revision.next();
        say_put(&script, "/c/a", revision).await;
    }
    fanout.reached(revision).await;
    let published = Instant::now();
    let mut cursor = start;
    let caught_up = std::future::poll_fn(|cx| {
        loop {
            match subscriber.next(cursor, 0, cx) {
                Next::Frame { to, .. } | Next::Coalesced { to, .. } => cursor = to,
                Next::Nothing => return Poll::Pending,
                other => panic!("{other:?}"),
            }
            if cursor == revision {
                return Poll::Ready(());
            }
        }
    });
    caught_up.await;
    let held = published.elapsed();
    assert!(
        Duration::ZERO < held && held <= PACE + Duration::from_millis(1),
        "{held:?}"
    );

    // Progress is sent by the clock, even if nothing else happens.
    let mut seen = 0;
    for _ in 0..3 {
        let asked = Instant::now();
        let progress = std::future::poll_fn(|cx| match subscriber.next(cursor, seen, cx) {
            Next::Progress { number, to, .. } => {
                (cursor, seen) = (to, number);
                Poll::Ready(())
            }
            Next::Nothing => Poll::Pending,
            other => panic!("{other:?}"),
        });
        progress.await;
        assert!(asked.elapsed() <= interval);
    }
    assert_eq!(seen, 3);
}

/// Regression: the loop told all ranges of a progress before it took the next change.
#[tokio::test(start_paused = true)]
async fn change_does_not_wait_for_progress_of_many_ranges() {
    const RANGES: usize = 10_000;
    let interval = Duration::from_secs(10);
    let (fanout, script, _ingest) = ingesting(&ScriptedEtcd::default(), interval).await;
    let mut streams = Vec::new();
    for n in 0..RANGES {
        let stream = fanout.subscribe(prefix(&format!("/c/{n:04}/"))).unwrap();
        stream.view().unwrap();
        streams.push(stream);
    }
    let start = fanout.revision();
    let told = || {
        let told = streams.iter().filter(|stream| stream.progress_number() > 0);
        told.count()
    };
    assert_eq!(told(), 0);
    let first = std::future::poll_fn(|cx| match streams[0].next(start, 0, cx) {
        Next::Progress { .. } => Poll::Ready(()),
        Next::Nothing => Poll::Pending,
        other => panic!("{other:?}"),
    });
    first.await;
    assert!(told() < RANGES, "it is under way");
    let revision = start.next();
    say_put(&script, "/c/9999/a", revision).await;
    let change = std::future::poll_fn(|cx| match streams[RANGES - 1].next(start, 0, cx) {
        Next::Frame { to, .. } => Poll::Ready(to),
        Next::Nothing => Poll::Pending,
        other => panic!("{other:?}"),
    });
    assert_eq!(change.await, revision);
    assert!(told() < RANGES, "the change did not wait for its end");
    // Ranges that were told later got the newer revision; none was left out.
    let all = async {
        while told() < RANGES {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(interval, all).await.expect("all are");
    assert!(streams.iter().all(|stream| stream.progress_number() == 1));
    let cx = Context::from_waker(Waker::noop());
    let last = streams[RANGES - 1].next(revision, 0, &cx);
    assert!(matches!(last, Next::Progress { to, .. } if to == revision));
}

#[tokio::test(start_paused = true)]
async fn progress_is_encoded_once_for_all_streams_of_a_range() {
    let mut prefix_c = Prefix::new();
    let mut one = Stream::cold(&prefix_c, prefix("/c/")).await;
    let mut two = Stream::cold(&prefix_c, prefix("/c/")).await;
    let bytes = |stream: &mut Stream| match stream.next() {
        Next::Progress { bytes, number, to } => {
            (stream.progress, stream.cursor) = (number, to);
            bytes
        }
        other => panic!("{other:?}"),
    };
    one.drain();
    two.drain();
    let (woken_one, woken_two) = (one.woken(), two.woken());
    prefix_c.progress();
    assert_eq!((one.woken(), two.woken()), (woken_one + 1, woken_two + 1));
    let (from_one, from_two): (Bytes, Bytes) = (bytes(&mut one), bytes(&mut two));
    assert_eq!(from_one.as_ptr(), from_two.as_ptr(), "shared");
    assert!(one.drain_is_quiet() && two.drain_is_quiet());
    // A stream that missed a progress gets the latest.
    prefix_c.progress();
    prefix_c.progress();
    bytes(&mut one);
    assert!(one.drain_is_quiet());
    // A stream with changes newer than the progress sends those.
    prefix_c.put("/c/a", "2");
    two.drain();
    assert_eq!(two.replica.entries(), prefix_c.etcd.state(&prefix("/c/")));
    assert!(two.applied().ends_with(&["diff"]));
}
