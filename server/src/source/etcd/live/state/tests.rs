use super::*;

const INTERVAL: Duration = Duration::from_secs(5);

fn at(revision: i64) -> Revision {
    Revision::new(revision)
}

/// A read that nobody waits for.
fn read(revision: i64) -> Event {
    Event::Read {
        revision: at(revision),
        wanted: false,
    }
}

/// A read that a client waits for.
fn wanted(revision: i64) -> Event {
    Event::Read {
        revision: at(revision),
        wanted: true,
    }
}

fn compared(revision: i64, unchanged: bool) -> Event {
    Event::Compared {
        revision: at(revision),
        unchanged,
        at_start: true,
    }
}

const TICK: Event = Event::Tick { reading: false };

/// What is asked at the end of an interval.
const ASK: [Action; 2] = [Action::RequestProgress, Action::Read];

/// A watch at position 10, whose clock stands still between the steps.
struct Watched {
    liveness: Liveness,
    position: Position,
    now: Instant,
}

impl Watched {
    fn opened(orders_progress: bool) -> Self {
        let now = Instant::now();
        Self {
            liveness: Liveness::new(orders_progress, INTERVAL, now),
            position: Position {
                revision: at(10),
                keys: 3,
            },
            now,
        }
    }

    fn step(&mut self, event: Event) -> Vec<Action> {
        self.liveness.step(event, self.position, self.now)
    }

    fn move_to(&mut self, position: i64) {
        self.position.revision = at(position);
        assert_eq!(self.step(Event::PositionMoved), []);
    }

    /// Steps at the time that is due next.
    fn tick(&mut self) -> Vec<Action> {
        self.now = self.liveness.due();
        self.step(TICK)
    }

    fn state(&self) -> &State {
        &self.liveness.state
    }

    fn waits_for(&self) -> Option<Revision> {
        match self.state() {
            State::Waiting(wait) => Some(wait.revision),
            State::Current | State::Ahead(_) => None,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn etcd_is_asked_twice_in_an_interval() {
    let mut watched = Watched::opened(true);
    let start = watched.now;
    for _ in 0..100 {
        assert_eq!(watched.tick(), ASK);
        watched.step(Event::Message);
        assert_eq!(watched.step(read(10)), []);
    }
    assert_eq!(watched.now - start, INTERVAL * 100);
}

#[tokio::test(start_paused = true)]
async fn silence_is_counted_in_intervals() {
    let mut watched = Watched::opened(true);
    assert_eq!(watched.step(TICK), [], "not due");
    assert_eq!(watched.tick(), ASK);
    assert_eq!(watched.tick(), ASK);
    assert_eq!(watched.step(Event::Message), []);
    assert_eq!(watched.tick(), ASK);
    // Answers to reads are no messages of the watch.
    assert_eq!(watched.step(read(10)), []);
    assert_eq!(watched.tick(), ASK);
    let silence = INTERVAL * 3;
    assert_eq!(watched.tick(), [Action::Disconnect { silence }]);
}

#[tokio::test(start_paused = true)]
async fn process_that_stood_still_asks_before_it_disconnects() {
    let mut watched = Watched::opened(true);
    assert_eq!(watched.tick(), ASK);
    assert_eq!(watched.tick(), ASK);
    // One more interval of silence, but this process would not have noticed a message.
    watched.now = watched.liveness.due() + INTERVAL * 100;
    assert_eq!(watched.step(TICK), ASK);
    assert_eq!(watched.step(TICK), [], "not due again");
    let silence = INTERVAL * 3;
    assert_eq!(watched.tick(), [Action::Disconnect { silence }]);
}

#[tokio::test(start_paused = true)]
async fn member_whose_reads_fail_is_given_up() {
    let mut watched = Watched::opened(true);
    for _ in 1..FAILED_INTERVALS {
        watched.tick();
        watched.step(Event::Message);
        for _ in 0..10 {
            assert_eq!(watched.step(Event::ReadFailed), [], "clients ask often");
        }
    }
    // One that succeeds starts the count again.
    assert_eq!(watched.step(read(10)), []);
    for _ in 1..FAILED_INTERVALS {
        watched.tick();
        watched.step(Event::Message);
        assert_eq!(watched.step(Event::ReadFailed), []);
    }
    watched.tick();
    watched.step(Event::Message);
    assert_eq!(watched.step(Event::ReadFailed), [Action::GiveUp]);
}

#[tokio::test(start_paused = true)]
async fn ordered_progress_advances_the_position() {
    for (orders_progress, event) in [
        (true, Event::ProgressAnswer(at(12))),
        (true, Event::ProgressNotification(at(12))),
        (false, Event::ProgressNotification(at(12))),
    ] {
        let mut watched = Watched::opened(orders_progress);
        assert_eq!(watched.step(event), [Action::Advance(at(12))]);
    }
    // A member that lags.
    let mut watched = Watched::opened(true);
    let lagging = Event::ProgressAnswer(at(8));
    assert_eq!(watched.step(lagging), [Action::Advance(at(10))]);
    // It may have overtaken events.
    let mut watched = Watched::opened(false);
    assert_eq!(watched.step(Event::ProgressAnswer(at(12))), []);
}

#[tokio::test(start_paused = true)]
async fn later_revision_is_reached_by_ordered_progress() {
    let mut watched = Watched::opened(true);
    assert_eq!(watched.step(read(12)), [Action::RequestProgress]);
    assert_eq!(*watched.state(), State::Ahead(at(12)));
    // etcd does not answer while the watch catches up.
    assert_eq!(watched.tick(), [Action::RequestProgress]);
    let progress = Event::ProgressAnswer(at(12));
    assert_eq!(watched.step(progress), [Action::Advance(at(12))]);
    watched.move_to(12);
    assert_eq!(*watched.state(), State::Current);
    assert_eq!(watched.tick(), ASK);
}

#[tokio::test(start_paused = true)]
async fn later_revision_is_reached_by_comparing_without_order() {
    let mut watched = Watched::opened(false);
    assert_eq!(watched.step(read(12)), [Action::Compare]);
    assert_eq!(*watched.state(), State::Ahead(at(12)));
    let reading = Event::Tick { reading: true };
    watched.now = watched.liveness.due();
    assert_eq!(watched.step(reading), [], "one read at a time");
    assert_eq!(watched.step(compared(13, true)), [Action::Advance(at(13))]);
    watched.move_to(13);
    assert_eq!(*watched.state(), State::Current);
}

#[tokio::test(start_paused = true)]
async fn comparison_is_repeated_until_the_events_are_there() {
    let mut watched = Watched::opened(false);
    assert_eq!(watched.step(read(12)), [Action::Compare]);
    assert_eq!(watched.step(compared(12, false)), []);
    watched.move_to(11);
    assert_eq!(*watched.state(), State::Ahead(at(12)));
    assert_eq!(watched.tick(), [Action::Compare]);
    watched.move_to(12);
    assert_eq!(*watched.state(), State::Current);
}

#[tokio::test(start_paused = true)]
async fn comparison_proves_nothing_after_the_position_moved() {
    let mut watched = Watched::opened(false);
    let outdated = Event::Compared {
        revision: at(12),
        unchanged: true,
        at_start: false,
    };
    assert_eq!(watched.step(outdated), []);
    assert_eq!(*watched.state(), State::Ahead(at(12)));
}

#[tokio::test(start_paused = true)]
async fn large_prefix_is_compared_rarely() {
    for (keys, pause) in [
        (3, AHEAD_INTERVAL),
        (20_000, Duration::from_secs(10)),
        (1_000_000, INTERVAL * PROVING_INTERVALS),
    ] {
        let mut watched = Watched::opened(false);
        watched.position.keys = keys;
        let start = watched.now;
        assert_eq!(watched.step(read(12)), [Action::Compare]);
        assert_eq!(watched.step(compared(12, false)), []);
        let (mut actions, mut reads) = (Vec::new(), 0);
        while !actions.contains(&Action::Compare) {
            actions = watched.tick();
            watched.step(Event::Message);
            reads += u32::from(actions.contains(&Action::Read));
        }
        assert_eq!(watched.now - start, pause);
        // In between only the cheap one.
        assert!(reads < 6, "{reads}");
    }
}

#[tokio::test(start_paused = true)]
async fn wanted_revision_has_to_be_reached() {
    for (orders_progress, question) in [(true, Action::RequestProgress), (false, Action::Compare)] {
        let mut watched = Watched::opened(orders_progress);
        assert_eq!(watched.step(wanted(10)), []);
        assert_eq!(*watched.state(), State::Current);
        assert_eq!(watched.step(wanted(12)), [question]);
        assert_eq!(watched.waits_for(), Some(at(12)));
        watched.move_to(12);
        assert_eq!(*watched.state(), State::Current);
    }
}

#[tokio::test(start_paused = true)]
async fn later_reads_extend_the_wait() {
    let mut watched = Watched::opened(true);
    watched.step(wanted(12));
    watched.step(wanted(15));
    watched.step(read(99));
    assert_eq!(watched.waits_for(), Some(at(12)));
    watched.move_to(13);
    assert_eq!(
        watched.waits_for(),
        Some(at(15)),
        "with attempts of its own"
    );
    watched.move_to(15);
    assert_eq!(*watched.state(), State::Current);
}

#[tokio::test(start_paused = true)]
async fn unreached_revision_leads_to_a_list() {
    for (orders_progress, attempt) in [(true, Action::RequestProgress), (false, Action::Compare)] {
        let mut watched = Watched::opened(orders_progress);
        let start = watched.now;
        watched.step(wanted(12));
        for _ in 0..ATTEMPTS {
            assert_eq!(watched.tick(), std::slice::from_ref(&attempt));
        }
        let unreached = at(12);
        assert_eq!(watched.tick(), [Action::Relist { unreached }]);
        assert!(watched.now - start > Duration::from_secs(1));
    }
}

#[tokio::test(start_paused = true)]
async fn revision_that_nobody_waits_for_leads_to_no_list() {
    let mut watched = Watched::opened(true);
    for _ in 0..100 {
        watched.step(Event::Message);
        watched.step(read(12));
        for action in watched.tick() {
            assert!(matches!(action, Action::RequestProgress | Action::Read));
        }
    }
    assert_eq!(*watched.state(), State::Ahead(at(12)));
}

#[tokio::test(start_paused = true)]
async fn changes_that_do_not_arrive_lead_to_a_list() {
    let mut watched = Watched::opened(false);
    assert_eq!(watched.step(read(20)), [Action::Compare]);
    assert_eq!(watched.step(compared(20, false)), []);
    // A watch that moves on delivers them.
    for position in 11..19 {
        watched.move_to(position);
        assert_eq!(watched.step(compared(20, false)), []);
    }
    for _ in 2..MISSED_COMPARISONS {
        assert_eq!(watched.step(compared(20, false)), []);
    }
    let unreached = at(20);
    let last = watched.step(compared(20, false));
    assert_eq!(last, [Action::Relist { unreached }]);
}

#[tokio::test(start_paused = true)]
async fn attempt_does_not_wait_for_the_read_before_it() {
    let mut watched = Watched::opened(false);
    watched.step(wanted(12));
    let tick = || Event::Tick { reading: true };
    for _ in 0..ATTEMPTS {
        watched.now = watched.liveness.due();
        assert_eq!(watched.step(tick()), [], "one read at a time");
    }
    watched.now = watched.liveness.due();
    let unreached = at(12);
    assert_eq!(watched.step(tick()), [Action::Relist { unreached }]);
}
