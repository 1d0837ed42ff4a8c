//! Streams of all kinds on a simulated server: how long each takes, and at whose expense.

use std::net::IpAddr;

use super::*;
use crate::session::admission::readers::Readers;

/// 30 MiB in pieces of 64 KiB.
const LARGE: u32 = 480;

/// Room for slow ones without a permit: less than there is, so that fewer have to be simulated.
const BACKGROUND: usize = 400;

/// A MiB.
const SMALL: u32 = 16;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A client that reads one state, and takes so long for a piece if nothing else is slower.
#[derive(Clone, Debug)]
struct Client {
    who: Requester,
    comes: Duration,
    pieces: u32,
    piece: Duration,
    patience: Duration,
}

impl Client {
    fn new(connection: u64, address: [u8; 4], pieces: u32, piece: Duration) -> Self {
        Self {
            who: Requester::new(ConnectionId(connection), Some(IpAddr::from(address))),
            comes: Duration::ZERO,
            pieces,
            piece,
            patience: MINUTE,
        }
    }

    /// As many, each on a connection of its own, from one address.
    fn many(count: u64, address: [u8; 4], pieces: u32, piece: Duration) -> Vec<Self> {
        let first = u64::from(u32::from_be_bytes(address)) << 16;
        let connections = first..first + count;
        connections
            .map(|connection| Self::new(connection, address, pieces, piece))
            .collect()
    }

    fn comes(self, comes: Duration) -> Self {
        Self { comes, ..self }
    }
}

/// What became of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Waits(u64),
    /// Until when it takes its piece, and how many remain after that.
    Reads(u64, Instant, u32),
    /// How long after it came.
    Done(Duration),
    CutOff,
    Refused,
}

/// Runs the clients until all is over. `link` is how many pieces the server can send in a second.
fn simulate(clients: &[Client], link: f64) -> (Vec<Fate>, Peak) {
    let start = Instant::now();
    let mut readers = Readers::bounded(BACKGROUND, Metrics::new(), start);
    let mut fates: Vec<Option<Fate>> = vec![None; clients.len()];
    let (mut now, mut peak) = (start, Peak::default());
    let mut ticks = 0_u32;
    let is_over =
        |fate: &Option<Fate>| !matches!(fate, None | Some(Fate::Waits(_) | Fate::Reads(..)));
    while !fates.iter().all(is_over) {
        let reading = fates
            .iter()
            .filter(|it| matches!(it, Some(Fate::Reads(..))));
        let share = Duration::from_secs_f64(reading.count() as f64 / link);
        for (client, fate) in clients.iter().zip(&mut fates) {
            let piece = client.piece.max(share);
            *fate = match *fate {
                None if now < start + client.comes => None,
                None => match readers.request(client.who, client.patience, now) {
                    Ok(number) => Some(Fate::Waits(number)),
                    Err(_) => Some(Fate::Refused),
                },
                Some(Fate::Waits(number)) => {
                    let cx = Context::from_waker(Waker::noop());
                    Some(match readers.turn(number, &cx, now) {
                        Turn::Now => {
                            readers.piece_handed(number, now);
                            Fate::Reads(number, now + piece, client.pieces - 1)
                        }
                        Turn::Later => Fate::Waits(number),
                        _ => {
                            readers.leave(number, now);
                            Fate::Refused
                        }
                    })
                }
                Some(Fate::Reads(number, mut until, mut left)) => loop {
                    if until > now {
                        break Some(Fate::Reads(number, until, left));
                    }
                    if !readers.piece_taken(number, until) {
                        readers.leave(number, until);
                        break Some(Fate::CutOff);
                    }
                    if left == 0 {
                        readers.leave(number, until);
                        break Some(Fate::Done(until - start - client.comes));
                    }
                    readers.piece_handed(number, until);
                    (until, left) = (until + piece, left - 1);
                },
                over => over,
            };
        }
        if ticks.is_multiple_of(25) && readers.waiting() > 0 {
            readers.sweep(now);
        }
        readers.promote(now);
        peak.note(&readers);
        ticks += 1;
        now += ms(10);
        assert!(now - start < MINUTE * 100, "it comes to an end");
    }
    assert!(readers.is_empty());
    (fates.into_iter().flatten().collect(), peak)
}

/// The most that there were at a time.
#[derive(Debug, Default)]
struct Peak {
    reading: i64,
    background: i64,
}

impl Peak {
    fn note(&mut self, readers: &Readers) {
        let metrics = readers.metrics();
        self.reading = self.reading.max(metrics.syncs_in_progress.get());
        self.background = self.background.max(metrics.syncs_in_background.get());
    }
}

/// How long it took. All have to be done.
fn times(fates: &[Fate]) -> Vec<Duration> {
    let times = fates.iter().map(|fate| match fate {
        Fate::Done(took) => *took,
        other => panic!("{other:?}"),
    });
    times.collect()
}

/// Far more than anybody reads.
const FREE: f64 = 1e9;

/// Regression: honest reads waited for as long as the slow ones took, which is six minutes. A slow reader
/// takes a piece in less than the second that it was allowed.
#[test]
fn slow_readers_delay_no_cold_start() {
    for slow in [18, 40, 300] {
        // Two in a second.
        let many = Client::many(slow, [10, 0, 0, 1], LARGE, ms(800));
        let mut clients: Vec<_> = many
            .into_iter()
            .zip(0..)
            .map(|(it, n)| it.comes(ms(500 * n)))
            .collect();
        for second in [5, 20, 60] {
            let honest = Client::new(second, [10, 0, 0, 1], LARGE, ms(1));
            clients.push(honest.comes(ms(1_000 * second)));
        }
        // And a crowd, later.
        let crowd = Client::many(200, [10, 0, 0, 2], LARGE, ms(1));
        clients.extend(crowd.into_iter().map(|it| it.comes(MINUTE * 2)));
        let (fates, _) = simulate(&clients, FREE);
        let times = times(&fates);
        let slow = usize::try_from(slow).unwrap();
        let (slow, honest) = times.split_at(slow);
        assert!(honest[..3].iter().all(|it| *it < ms(2_500)), "{honest:?}");
        // With no more than the few permits of newcomers, it would take 25 s.
        let slowest = honest.iter().max().unwrap();
        assert!(*slowest <= ms(8_000), "{slowest:?} beside {}", slow.len());
        // Nor at the expense of the slow ones.
        assert!(slow.iter().all(|it| *it < ms(1_000) * LARGE));
    }
}

/// Even those that come at the same moment, and after all of them.
#[test]
fn cold_start_waits_seconds_behind_a_slow_crowd() {
    let mut clients = Client::many(200, [10, 0, 0, 1], LARGE, ms(800));
    clients.push(Client::new(1, [10, 0, 0, 2], LARGE, ms(1)));
    let (fates, _) = simulate(&clients, FREE);
    let times = times(&fates);
    assert!(times[200] <= ms(4_000), "{:?}", times[200]);
}

/// Whoever has a long read of a good speed keeps nobody out for long, either.
#[test]
fn long_reads_of_one_peer_delay_no_cold_start_of_another() {
    let mut clients = Client::many(100, [10, 0, 0, 1], LARGE * 10, ms(50));
    clients.push(Client::new(1, [10, 0, 0, 2], SMALL, ms(1)).comes(ms(10_000)));
    let (fates, peak) = simulate(&clients, FREE);
    let late = fates[100];
    assert!(
        matches!(late, Fate::Done(took) if took < ms(2_000)),
        "{late:?}"
    );
    assert!(peak.background > 0);
}

#[test]
fn many_streams_of_one_connection_delay_no_other() {
    let mut clients: Vec<_> = (0..500)
        .map(|_| Client::new(1, [10, 0, 0, 1], LARGE, ms(50)))
        .collect();
    let others = Client::many(30, [10, 0, 0, 1], SMALL, ms(1));
    clients.extend(others.into_iter().map(|it| it.comes(ms(5_000))));
    let (fates, _) = simulate(&clients, FREE);
    let slowest = *times(&fates[500..]).iter().max().unwrap();
    assert!(slowest <= ms(1_000), "{slowest:?}");
}

#[test]
fn streams_that_are_equally_slow_keep_their_permits() {
    for piece in [200, 800, 3_000] {
        let clients = Client::many(FIRST as u64, [10, 0, 0, 1], LARGE, ms(piece));
        let (fates, peak) = simulate(&clients, FREE);
        assert_eq!(peak.background, 0, "{piece} ms for a piece");
        assert!(times(&fates).iter().all(|it| *it <= ms(piece + 1) * LARGE));
    }
}

/// A busy link: all are slow, and none because of its client, which nobody can tell. They are read in
/// turns all the same, except for a few newcomers a second. At once, all would be done last.
#[test]
fn crowd_on_a_busy_link_is_read_in_turns() {
    const CROWD: u64 = 200;
    let link = 30.0;
    let clients = Client::many(CROWD, [10, 0, 0, 1], SMALL, ms(1));
    let clients: Vec<_> = clients
        .into_iter()
        .map(|it| Client {
            patience: MINUTE * 60,
            ..it
        })
        .collect();
    let (fates, peak) = simulate(&clients, link);
    let times = times(&fates);
    let all = Duration::from_secs_f64(f64::from(SMALL) * CROWD as f64 / link);
    let mean = times.iter().sum::<Duration>() / CROWD as u32;
    assert!(mean < all * 2 / 3, "{mean:?} of {all:?}, {peak:?}");
    assert!(peak.reading < CROWD as i64 / 2, "{peak:?}");
}

/// A slow link somewhere, and quick clients that come and go beside it.
#[test]
fn lone_slow_reader_is_left_in_peace() {
    let mut clients = vec![Client::new(1, [10, 0, 0, 1], LARGE, ms(700))];
    let quick = Client::many(300, [10, 0, 0, 2], LARGE, ms(1));
    let quick = quick.into_iter().zip(1..);
    clients.extend(quick.map(|(it, second)| it.comes(ms(1_000 * second))));
    let (fates, peak) = simulate(&clients, FREE);
    assert!(times(&fates)[0] <= ms(700) * LARGE + ms(10));
    assert_eq!(peak.background, 1);
}

/// Beyond the room in the background, slow ones begin anew: those of the peer that has most of it.
#[test]
fn background_is_bounded_and_shared() {
    let greedy = BACKGROUND + 100;
    let mut clients = Client::many(greedy as u64, [10, 0, 0, 1], LARGE * 2, ms(800));
    let others = Client::many(50, [10, 0, 0, 2], LARGE, ms(800));
    clients.extend(others.into_iter().map(|it| it.comes(MINUTE * 5)));
    let honest = Client::many(10, [10, 0, 0, 3], LARGE, ms(1));
    clients.extend(honest.into_iter().map(|it| it.comes(MINUTE * 6)));
    for client in &mut clients {
        client.patience = MINUTE * 60;
    }
    let (fates, peak) = simulate(&clients, FREE);
    assert!(peak.background <= BACKGROUND as i64, "{peak:?}");
    let (greedy, rest) = fates.split_at(greedy);
    assert!(greedy.contains(&Fate::CutOff));
    let times = times(rest);
    assert!(times[50..].iter().all(|it| *it < ms(2_000)), "{times:?}");
}
