use super::*;

const INTERVAL: Duration = Duration::from_secs(5);

fn at(revision: i64) -> Revision {
    Revision::new(revision)
}

fn read(revision: i64, unchanged: bool) -> Event {
    Event::Read {
        revision: at(revision),
        unchanged,
        at_start: true,
    }
}

const TICK: Event = Event::Tick { reading: false };

/// A watch at position 10, whose clock stands still between the steps.
struct Watched {
    liveness: Liveness,
    position: Revision,
    now: Instant,
}

impl Watched {
    fn opened(orders_progress: bool) -> Self {
        let now = Instant::now();
        Self {
            liveness: Liveness::new(orders_progress, INTERVAL, now),
            position: at(10),
            now,
        }
    }

    fn step(&mut self, event: Event) -> Vec<Action> {
        self.liveness.step(event, self.position, self.now)
    }

    fn move_to(&mut self, position: i64) {
        self.position = at(position);
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
async fn silence_is_counted_in_intervals() {
    let mut watched = Watched::opened(true);
    assert_eq!(watched.step(TICK), [], "not due");
    assert_eq!(watched.tick(), [Action::RequestProgress]);
    assert_eq!(watched.tick(), [Action::RequestProgress]);
    assert_eq!(watched.step(Event::Message), []);
    assert_eq!(watched.tick(), [Action::RequestProgress]);
    assert_eq!(watched.tick(), [Action::RequestProgress]);
    let silence = INTERVAL * 3;
    assert_eq!(watched.tick(), [Action::Disconnect { silence }]);
}

#[tokio::test(start_paused = true)]
async fn stopped_server_counts_one_silent_interval() {
    let mut watched = Watched::opened(true);
    watched.now += INTERVAL * 100;
    assert_eq!(watched.step(TICK), [Action::RequestProgress]);
    assert_eq!(watched.step(TICK), [], "not due again");
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
        assert_eq!(*watched.state(), State::Current);
    }
    // A member that lags.
    let mut watched = Watched::opened(true);
    let lagging = Event::ProgressAnswer(at(8));
    assert_eq!(watched.step(lagging), [Action::Advance(at(10))]);
}

#[tokio::test(start_paused = true)]
async fn unordered_progress_is_proven_by_a_read() {
    let mut watched = Watched::opened(false);
    let answer = || Event::ProgressAnswer(at(12));
    assert_eq!(watched.step(answer()), [Action::ReportContact]);
    assert_eq!(*watched.state(), State::Ahead(at(12)));
    // Not before the proof is due.
    for _ in 1..PROOF_INTERVALS {
        assert_eq!(watched.tick(), [Action::RequestProgress]);
        watched.step(Event::Message);
        watched.step(answer());
    }
    assert_eq!(watched.tick(), [Action::RequestProgress, Action::Read]);
    assert_eq!(watched.step(read(13, true)), [Action::Advance(at(13))]);
    assert_eq!(*watched.state(), State::Current);
    watched.step(Event::Message);
    assert_eq!(watched.tick(), [Action::RequestProgress], "the next proof");
}

#[tokio::test(start_paused = true)]
async fn ahead_ends_when_events_reach_the_revision() {
    let mut watched = Watched::opened(false);
    watched.step(Event::ProgressAnswer(at(12)));
    watched.move_to(11);
    assert_eq!(*watched.state(), State::Ahead(at(12)));
    watched.move_to(12);
    assert_eq!(*watched.state(), State::Current);
    assert_eq!(
        watched.step(Event::ProgressAnswer(at(12))),
        [Action::ReportContact]
    );
    assert_eq!(*watched.state(), State::Current, "nothing to prove");
}

#[tokio::test(start_paused = true)]
async fn read_ahead_of_the_position_starts_a_wait() {
    let mut watched = Watched::opened(true);
    assert_eq!(watched.step(read(10, false)), []);
    assert_eq!(*watched.state(), State::Current);
    assert_eq!(watched.step(read(12, false)), [Action::RequestProgress]);
    assert_eq!(watched.waits_for(), Some(at(12)));
    let progress = Event::ProgressAnswer(at(12));
    assert_eq!(watched.step(progress), [Action::Advance(at(12))]);
    watched.move_to(12);
    assert_eq!(*watched.state(), State::Current);
}

#[tokio::test(start_paused = true)]
async fn read_proves_nothing_after_the_position_moved() {
    let mut watched = Watched::opened(false);
    let outdated = Event::Read {
        revision: at(12),
        unchanged: true,
        at_start: false,
    };
    assert_eq!(watched.step(outdated), []);
    assert_eq!(watched.waits_for(), Some(at(12)));
}

#[tokio::test(start_paused = true)]
async fn later_reads_extend_the_wait() {
    let mut watched = Watched::opened(true);
    watched.step(read(12, false));
    watched.step(read(15, false));
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
    for (orders_progress, attempt) in [(true, Action::RequestProgress), (false, Action::Read)] {
        let mut watched = Watched::opened(orders_progress);
        let start = watched.now;
        watched.step(read(12, false));
        for _ in 0..ATTEMPTS {
            assert_eq!(watched.tick(), std::slice::from_ref(&attempt));
        }
        let unreached = at(12);
        assert_eq!(watched.tick(), [Action::Relist { unreached }]);
        assert!(watched.now - start > Duration::from_secs(1));
    }
}

#[tokio::test(start_paused = true)]
async fn attempt_does_not_wait_for_the_read_before_it() {
    let mut watched = Watched::opened(false);
    watched.step(read(12, false));
    let tick = || Event::Tick { reading: true };
    for _ in 0..ATTEMPTS {
        watched.now = watched.liveness.due();
        assert_eq!(watched.step(tick()), [], "one read at a time");
    }
    watched.now = watched.liveness.due();
    let unreached = at(12);
    assert_eq!(watched.step(tick()), [Action::Relist { unreached }]);
}
