//! How far a backfill reaches, and that what one client requests costs the others nothing.

use proptest::prelude::*;

use super::*;

#[tokio::test(start_paused = true)]
async fn near_revisions_are_read_before_far_ones() {
    let mut prefix = Prefix::started();
    for back in [10_000, 2_000, 10] {
        prefix.request(FLOOR - back);
    }
    let mut from = FLOOR;
    for back in [1_024, 4_096, 16_384] {
        assert_eq!(prefix.requested(), span(FLOOR - back, from));
        assert!(matches!(prefix.backfill.state(), State::Requesting(_)));
        assert_eq!(prefix.backfill.due(), Due::Never);
        prefix.receive_nothing();
        prefix.adopt();
        from = FLOOR - back;
        assert_eq!(prefix.floor, from);
    }
    assert!(prefix.is_exhausted(), "that is as far as it goes");
}

#[tokio::test(start_paused = true)]
async fn slightly_older_clients_share_a_request() {
    let mut prefix = Prefix::started();
    prefix.request(FLOOR - 1);
    assert_eq!(prefix.requested(), span(FLOOR - 1_024, FLOOR));
}

#[tokio::test(start_paused = true)]
async fn request_that_comes_meanwhile_is_the_next() {
    let mut prefix = Prefix::verifying(FLOOR - 1);
    prefix.request(FLOOR - 2_000);
    assert!(matches!(prefix.backfill.state(), State::Verifying(_)));
    prefix.adopt();
    assert_eq!(prefix.requested(), span(FLOOR - 4_096, FLOOR - 1_024));
    assert!(prefix.reaches(FLOOR - 4_096), "by what is under way");
}

/// Regression: the oldest client chose the span, and when that was too much, nobody got a replay.
#[tokio::test(start_paused = true)]
async fn failed_far_span_leaves_the_near_one_adopted() {
    let mut prefix = Prefix::requesting(FLOOR - 16_000);
    prefix.request(FLOOR - 5);
    prefix.receive_nothing();
    prefix.adopt();
    assert!(!prefix.reaches(FLOOR - 5), "the log has it");
    assert_eq!(prefix.requested(), span(FLOOR - 16_384, FLOOR - 1_024));
    prefix.fail();
    assert!(!prefix.reaches(FLOOR - 16_000));
    assert!(prefix.is_idle(), "nobody waits");
    // Nearer than what failed.
    prefix.request(FLOOR - 3_000);
    assert_eq!(prefix.requested(), span(FLOOR - 4_096, FLOOR - 1_024));
    prefix.fail();
    assert!(prefix.is_exhausted());
}

#[tokio::test(start_paused = true)]
async fn failed_span_is_followed_by_nearer_ones() {
    let mut prefix = Prefix::started();
    prefix.request(FLOOR - 9);
    for back in [1_024, 256, 64, 16] {
        assert_eq!(prefix.requested(), span(FLOOR - back, FLOOR));
        prefix.fail();
    }
    assert!(prefix.is_exhausted());
}

#[tokio::test(start_paused = true)]
async fn span_that_will_not_fit_in_the_log_is_not_requested() {
    let mut prefix = Prefix::requesting(FLOOR - 1);
    let put = |back| {
        let put = Edit::Put(entry("/c/b", "v".repeat(1_000), FLOOR - back));
        transaction(FLOOR - back, vec![(put, None)])
    };
    let gone = Edit::Delete {
        key: Key::new("/c/b").unwrap(),
        mod_revision: at(FLOOR - 1),
    };
    let held = Some(entry("/c/b", "v".repeat(1_000), FLOOR - 2));
    let transactions = vec![put(2), transaction(FLOOR - 1, vec![(gone, held)])];
    let after = at(FLOOR - 1_024);
    prefix.quiet(Event::Received(BackfillEvent::Begin { after }));
    prefix.quiet(Event::Received(BackfillEvent::Transactions(transactions)));
    prefix.quiet(Event::Received(BackfillEvent::End));
    prefix.adopt();
    // Some 1,800 bytes in 1,024 revisions: three times as much before that, and fifteen times as much.
    prefix.room = 8 * 1024;
    for (back, fits) in [(10_000, false), (2_000, true)] {
        prefix.request(FLOOR - back);
        assert!(prefix.collects());
        let action = prefix.due();
        assert_eq!(action.is_some(), fits, "{back} back: {action:?}");
        assert_eq!(prefix.reaches(FLOOR - back), fits);
    }
}

/// What etcd can read, and when clients of which age request it.
#[derive(Clone, Debug)]
struct Crowd {
    /// How many revisions back can be read at a time.
    most: i64,
    /// How many revisions behind a client is, and how many steps are made before it comes.
    clients: Vec<(i64, usize)>,
}

fn crowds() -> impl Strategy<Value = Crowd> {
    let behind = prop_oneof![1i64..20, 1i64..2_000, 1i64..20_000];
    let clients = proptest::collection::vec((behind, 0usize..6), 1..12);
    let most = prop_oneof![Just(0i64), 1i64..2_000, 1i64..20_000];
    (most, clients).prop_map(|(most, clients)| Crowd { most, clients })
}

impl Prefix {
    /// One step. Returns false if there is nothing to do.
    fn proceed(&mut self, most: i64, asked: &mut usize) -> bool {
        if let State::Requesting(received) = self.backfill.state() {
            *asked += 1;
            match FLOOR - received.span().after.get() > most {
                true => self.fail(),
                false => self.receive_nothing(),
            }
            return true;
        }
        if self.backfill.due() == Due::Never {
            return false;
        }
        if let Some(Action::Adopt { floor, .. }) = self.due() {
            self.floor = floor.get();
            self.quiet(Event::Adopted { floor: Some(floor) });
        }
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn clients_get_what_can_be_read_whoever_else_comes(crowd in crowds()) {
        let mut prefix = Prefix::started();
        let mut asked = 0;
        for (behind, steps) in &crowd.clients {
            prefix.request(FLOOR - behind);
            for _ in 0..*steps {
                prefix.proceed(crowd.most, &mut asked);
            }
        }
        while prefix.proceed(crowd.most, &mut asked) {}
        prop_assert!(asked <= 6, "{asked} requests");
        for (behind, _) in &crowd.clients {
            let reached = prefix.floor <= FLOOR - behind;
            prop_assert!(!prefix.reaches(FLOOR - behind), "nobody is left waiting");
            prop_assert!(!reached || *behind <= crowd.most);
            // What one who is alone would get.
            let distances = [16, 64, 256, 1_024, 4_096, 16_384];
            let distance = distances.into_iter().find(|distance| behind <= distance);
            if distance.is_some_and(|distance| distance <= crowd.most) {
                prop_assert!(reached, "{behind} behind");
            }
        }
    }
}
