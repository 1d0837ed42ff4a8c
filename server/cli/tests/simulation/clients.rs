//! The clients of a run, each on its own host. Every state of their watchers is checked.

use std::io;
use std::time::Duration;

use driftless_client::{
    Client, Closed, Connect, Connecting, Endpoint, Entry, Io, KeyRange, Status, StatusWatcher,
};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::interval;
use turmoil::net::TcpStream;

use crate::checks::{Observer, Pair, Position, Promise, Violation};
use crate::journal::Journal;
use crate::model::PREFIX;
use crate::plant::Plant;
use crate::world::{Shared, Shown};

/// How often to look at a watcher's state besides its changes: its revision may move without a change.
const LOOK: Duration = Duration::from_secs(1);

pub(crate) fn client_name(client: usize) -> &'static str {
    ["client-1", "client-2", "client-3"][client]
}

/// What every client watches entry by entry: nested ranges, keys that are prefixes of each other, and
/// one in which nothing ever happens.
pub(crate) fn ranges() -> Vec<KeyRange> {
    let prefix = |text| KeyRange::prefix(text).unwrap();
    let key = |text| KeyRange::key(text).unwrap();
    vec![
        prefix(PREFIX),
        prefix("/c/a"),
        prefix("/c/a/"),
        key("/c/a"),
        prefix("/c/idle/"),
    ]
}

/// Commands for clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Watch; anew when the number is another.
    Watch(u64),
    /// Drop everything.
    Leave,
}

/// Dials over the simulated network, and says so.
struct Dialer {
    name: &'static str,
    journal: Journal,
}

impl Connect for Dialer {
    fn connect(&self, endpoint: &Endpoint) -> Connecting {
        let (name, journal) = (self.name, self.journal.clone());
        let (host, port) = (endpoint.host().to_owned(), endpoint.port());
        Box::pin(async move {
            let dialled: io::Result<TcpStream> = TcpStream::connect((host.as_str(), port)).await;
            match dialled {
                Ok(stream) => {
                    journal.note(format_args!("{name} reaches {host}"));
                    Ok(Box::new(stream) as Box<dyn Io>)
                }
                Err(error) => {
                    journal.note(format_args!("{name} does not reach {host}"));
                    Err(error)
                }
            }
        })
    }
}

/// A client of these servers on the simulated network.
pub(crate) fn client(
    name: &'static str,
    endpoints: &[String],
    seed: u64,
    journal: &Journal,
) -> Client {
    let builder = endpoints
        .iter()
        .fold(Client::builder(), |builder, url| builder.endpoint(url));
    let dialer = Dialer {
        name,
        journal: journal.clone(),
    };
    builder.connector(dialer).simulated(seed).build().unwrap()
}

/// What runs on a client's host.
pub(crate) struct Member {
    pub(crate) number: usize,
    pub(crate) endpoints: Vec<String>,
    pub(crate) seed: u64,
    pub(crate) shared: Shared,
}

impl Member {
    /// Watches as it is told, for ever.
    pub(crate) async fn run(self, mut wanted: watch::Receiver<Wanted>) -> turmoil::Result {
        loop {
            let wants = *wanted.borrow_and_update();
            let Wanted::Watch(life) = wants else {
                // The host lives on, so that what is left of the watchers could be seen.
                return std::future::pending().await;
            };
            let client = client(
                client_name(self.number),
                &self.endpoints,
                self.seed.wrapping_add(life),
                &self.shared.journal,
            );
            let mut watchers = JoinSet::new();
            for (at, range) in ranges().into_iter().enumerate() {
                watchers.spawn(self.watcher(at).entries(client.clone(), range));
            }
            let at = watchers.len();
            watchers.spawn(self.watcher(at).pair(client.clone()));
            drop(client);
            tokio::select! {
                biased;
                changed = wanted.changed() => changed?,
                Some(ended) = watchers.join_next() => {
                    let what = format!("a watcher ended by itself: {ended:?}");
                    let violation = Violation::new(Promise::Available, what);
                    self.shared.journal.check(client_name(self.number), Err(violation));
                    return Ok(());
                }
            }
            if self.shared.plant == Plant::Keep {
                std::future::pending::<()>().await;
            }
            watchers.shutdown().await;
        }
    }

    fn watcher(&self, at: usize) -> Watching {
        Watching {
            line: (self.number, at),
            shared: self.shared.clone(),
        }
    }
}

/// One watcher, and the checks of everything that it shows.
struct Watching {
    /// Its client's number, and its own.
    line: (usize, usize),
    shared: Shared,
}

impl Watching {
    /// Follows the entries of a range: every change, and a look now and then.
    async fn entries(self, client: Client, range: KeyRange) -> Result<(), Closed> {
        let who = format!("{} {range}", client_name(self.line.0));
        let journal = &self.shared.journal;
        let mut watcher = match client.entries(range.clone()).await {
            Ok(watcher) => watcher,
            Err(error) => {
                let violation = Violation::new(Promise::Available, error.to_string());
                journal.check(&who, Err(violation));
                return Err(Closed::Ended);
            }
        };
        drop(client);
        let mut status = watcher.watch_status();
        let now = watcher.load();
        let begun = Observer::begin(
            &self.shared.record(),
            range.clone(),
            now.revision(),
            &now.iter().collect::<Vec<_>>(),
        );
        let mut observer = match begun {
            Ok(observer) => observer,
            Err(violation) => {
                journal.check(&who, Err(violation));
                return Err(Closed::Ended);
            }
        };
        journal.note(format_args!("{who}: begins at {}", now.revision()));
        // Of one range, which stands for the others of its client.
        let is_told_of = self.line.1 == 0;
        let mut looks = interval(LOOK);
        // Whoever is wrong may be so without an end.
        while !journal.is_broken() {
            tokio::select! {
                biased;
                changed = watcher.changed() => {
                    let changed = changed?;
                    let (revision, changes) = (changed.revision, &changed.changes);
                    let found = observer.is_told(&self.shared.record(), revision, changes);
                    journal.check(&who, found);
                    if is_told_of {
                        journal.note(format_args!("{who}: {revision}"));
                    }
                }
                () = tell(&who, &mut status, journal), if is_told_of => {}
                _ = looks.tick() => {
                    let now = watcher.load();
                    let entries: Vec<_> = now.iter().collect();
                    let found = observer.shows(&self.shared.record(), now.revision(), &entries);
                    journal.check(&who, found);
                    self.show(&who, Shown::Entries(range.clone(), now), &watcher.status());
                }
            }
        }
        std::future::pending().await
    }

    /// Looks at a pair of fields: at every state that is made, by the validator, and at what is left
    /// of them for the caller.
    async fn pair(self, client: Client) -> Result<(), Closed> {
        let who = format!("{} {}", client_name(self.line.0), Pair::PREFIX);
        let journal = self.shared.journal.clone();
        let validate = {
            let (who, journal) = (who.clone(), journal.clone());
            move |pair: &Pair| {
                journal.check(&who, pair.is_whole());
                Ok::<(), &'static str>(())
            }
        };
        let watch = client
            .watch::<Pair>(KeyRange::prefix(Pair::PREFIX))
            .first_value_within(Duration::from_secs(24 * 3600))
            .validate(validate);
        let mut watcher = match watch.await {
            Ok(watcher) => watcher,
            Err(error) => {
                let violation = Violation::new(Promise::Available, error.to_string());
                journal.check(&who, Err(violation));
                return Err(Closed::Ended);
            }
        };
        drop(client);
        let mut position = Position::default();
        let mut looks = interval(LOOK);
        loop {
            let (pair, revision) = {
                let loaded = watcher.load();
                (*loaded, loaded.revision())
            };
            let is_it = |state: &[Entry]| Pair::of(state) == pair;
            journal.check(&who, position.shows(&self.shared.record(), revision, is_it));
            self.show(&who, Shown::Pair(pair), &watcher.status());
            tokio::select! {
                biased;
                changed = watcher.changed() => drop(changed?),
                _ = looks.tick() => {}
            }
        }
    }

    /// Puts it on the board.
    fn show(&self, who: &str, shown: Shown, status: &Status) {
        self.shared.board().insert(self.line, shown);
        if status.diverged > 0 {
            let what = "a digest differed from the server's";
            let violation = Violation::new(Promise::SelfVerifying, what);
            self.shared.journal.check(who, Err(violation));
        }
    }
}

/// Notes a watcher's status in the journal when it changes.
async fn tell(who: &str, status: &mut StatusWatcher, journal: &Journal) {
    let now = status.changed().await;
    let endpoint = now.endpoint.unwrap_or_default();
    journal.note(format_args!("{who}: {} {endpoint}", now.state));
}
