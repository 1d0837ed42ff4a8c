//! `driftless watch`: prints the state of a range, then each change.
//!
//! A slow reader delays nobody. While a write to the standard output waits, the client goes on reading
//! its stream; afterwards the changes are printed as one difference.

use std::pin::pin;
use std::time::Duration;

use driftless_client::{
    Client, Entries, EntriesChange, EntriesWatcher, KeyRange, NoValue, Status, WatchError,
    WatchState,
};
use tokio::task::JoinHandle;

use crate::color::Color;
use crate::exit::{Failure, Kind};
use crate::human::Human;
use crate::json;
use crate::output::{self, Reader};
use crate::target::Target;

/// How long to wait for a first answer before saying why there is none.
const PATIENCE: Duration = Duration::from_secs(1);

/// Show a key, or all keys with a prefix, then each change
///
/// Shows the state, then a diff of each changed value. It continues after a restart of the server or
/// of etcd and shows what changed meanwhile. Messages about the connection go to the standard error.
/// A reader that falls behind gets several changes of a key as one. It ends with status 3 if the
/// server refuses the range, and with status 0 when its reader has gone.
///
/// With --json, one object a line:
///
///   {"type":"init","key":"/a","value":"1","mod_revision":7}          each key at the start
///   {"type":"synced","revision":9,"keys":1}                          then once
///   {"type":"put","key":"/a","value":"2","mod_revision":10,"revision":10}
///   {"type":"delete","key":"/a","revision":11}
///
/// A key or value that is not UTF-8 is in "key_base64" or "value_base64" instead. "revision" is the
/// revision of the new state: all lines of one transaction have the same.
#[derive(Debug, clap::Args)]
#[command(
    verbatim_doc_comment,
    after_long_help = "\
Examples:
  driftless watch /config/shop/banner
  driftless watch --prefix /config/shop/
  driftless watch --prefix /config/ --json | jq -r 'select(.type == \"put\").key'
  driftless watch --prefix /config/ --server http://10.0.0.5:7400
  driftless watch --prefix /config/ --server https://config.example:7400 --ca ca.pem"
)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,

    /// Print one JSON object a line, for programs
    #[arg(long)]
    json: bool,

    /// When to colour the output; NO_COLOR turns it off
    #[arg(
        long,
        value_name = "WHEN",
        default_value = "auto",
        conflicts_with = "json"
    )]
    color: Color,
}

/// Runs until the server refuses the range or the reader has gone.
pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let range = args.target.range()?;
    let client = args.target.client()?;
    let show = Show {
        range,
        json: args.json,
        human: Human {
            color: args.color.for_stdout(),
        },
    };
    // Several threads, so that showing a large change does not hold up the stream.
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| Failure::system("start the runtime", &error))?;
    let result = runtime.block_on(watch(&client, &show, &args.target.server()));
    // Does not wait for a write that the reader holds up.
    runtime.shutdown_background();
    result
}

/// How states and changes are shown.
struct Show {
    range: KeyRange,
    json: bool,
    human: Human,
}

impl Show {
    fn state(&self, entries: &Entries) -> Vec<u8> {
        if self.json {
            json::state(entries)
        } else {
            self.human.state(&self.range, entries)
        }
    }

    fn change(&self, change: &EntriesChange) -> Vec<u8> {
        if self.json {
            json::change(change)
        } else {
            self.human.change(change)
        }
    }
}

async fn watch(client: &Client, show: &Show, server: &str) -> Result<(), Failure> {
    let mut reader_gone = pin!(output::reader_gone());
    let mut watcher = tokio::select! {
        () = &mut reader_gone => return Ok(()),
        watcher = first_state(client, &show.range, server) => watcher?,
    };
    let mut statuses = watcher.watch_status();
    let mut connection = Connection::new();
    let mut refusal: Option<Failure> = None;
    let mut writing = Some(write(show.state(&watcher.load())));
    loop {
        tokio::select! {
            () = &mut reader_gone => return Ok(()),
            written = finished(&mut writing) => {
                writing = None;
                if written? == Reader::Gone {
                    return Ok(());
                }
            }
            status = statuses.changed() => {
                if let Some(message) = connection.tell(&status, server) {
                    output::note(&message);
                }
                if status.state == WatchState::Refused {
                    refusal = Some(match status.refused {
                        Some(refused) => refused.into(),
                        None => Failure::new(Kind::Refused, "the server refused the range"),
                    });
                }
            }
            changed = watcher.changed(), if writing.is_none() && refusal.is_none() => {
                writing = Some(write(show.change(&changed.map_err(Failure::failed)?)));
            }
        }
        // A write that has begun ends first.
        if writing.is_none()
            && let Some(refusal) = refusal
        {
            return Err(refusal);
        }
    }
}

/// Waits for the first state, and says why if that takes long.
async fn first_state(
    client: &Client,
    range: &KeyRange,
    server: &str,
) -> Result<EntriesWatcher, Failure> {
    let mut first = client.entries(range).into_future();
    let mut said = String::new();
    loop {
        tokio::select! {
            biased;
            watcher = &mut first => return watcher.map_err(Failure::from),
            // Shares the stream of `first`, and returns why it has no state.
            probe = client.entries(range).first_state_within(PATIENCE).into_future() => {
                if let Err(WatchError::NoFirstValue { why, .. }) = probe {
                    let why = match why {
                        NoValue::NotConnected { last_error: Some(error) } => error,
                        other => format!("{server}: {other}"),
                    };
                    let why = format!("{why}; trying again");
                    if why != said {
                        output::note(&why);
                        said = why;
                    }
                }
            }
        }
    }
}

/// Writes on a thread for blocking work. The loop above waits for it or ends the process.
fn write(bytes: Vec<u8>) -> JoinHandle<Result<Reader, Failure>> {
    tokio::task::spawn_blocking(move || output::write(&bytes))
}

/// Waits for a write, or for ever without one.
async fn finished(
    writing: &mut Option<JoinHandle<Result<Reader, Failure>>>,
) -> Result<Reader, Failure> {
    match writing {
        Some(writing) => writing
            .await
            .unwrap_or_else(|error| Err(Failure::failed(format_args!("cannot write: {error}")))),
        None => std::future::pending().await,
    }
}

/// The last message about the connection, so that it is not repeated.
struct Connection {
    lost: Option<String>,
}

impl Connection {
    const fn new() -> Self {
        Self { lost: None }
    }

    /// The message for a status, if it is new.
    fn tell(&mut self, status: &Status, server: &str) -> Option<String> {
        let endpoint = status.endpoint.as_deref().unwrap_or(server);
        match status.state {
            WatchState::Live => self
                .lost
                .take()
                .map(|_| format!("connected to {endpoint} again")),
            WatchState::Backoff => {
                let why = status.last_error.as_deref().unwrap_or("the stream ended");
                // Some errors start with the endpoint.
                let why = why
                    .strip_prefix(endpoint)
                    .and_then(|rest| rest.strip_prefix(": "))
                    .unwrap_or(why);
                let message = format!("lost {endpoint}: {why}; trying again");
                (self.lost.as_ref() != Some(&message)).then(|| {
                    self.lost = Some(message.clone());
                    message
                })
            }
            _ => None,
        }
    }
}
