//! `driftless get`: prints the current state of a range.

use std::io::{self, IsTerminal};
use std::time::Duration;

use driftless_client::{Client, Entries, KeyRange};
use driftless_server::settings::parse_duration;

use crate::exit::Failure;
use crate::human::Tame;
use crate::json;
use crate::output;
use crate::target::Target;

/// Show a key, or all keys with a prefix, once
///
/// Prints each key and its value on separate lines, as etcdctl does. The bytes are exact, except on
/// a terminal, where control characters are escaped. A missing key ends with status 1. A prefix
/// without keys ends with status 0 and a note on the standard error.
///
/// With --json, one object a line: {"key":"/a","value":"1","mod_revision":7}, with "key_base64" or
/// "value_base64" for bytes that are not UTF-8.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  driftless get /config/shop/banner --print-value-only
  driftless get --prefix /config/shop/
  driftless get --prefix /config/ --json --server http://10.0.0.5:7400
  driftless get /config/a --server https://config.example:7400 --ca ca.pem")]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,

    /// Print one JSON object a line, for programs
    #[arg(long)]
    json: bool,

    /// Print values without their keys
    #[arg(long, conflicts_with = "json")]
    print_value_only: bool,

    /// How long to wait for the answer
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    timeout: Duration,
}

/// Runs until the answer is printed.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let range = args.target.range()?;
    let client = args.target.client()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::system("start the runtime", &error))?;
    let answer = runtime.block_on(ask(&client, &range, args.timeout));
    // Does not wait for a name look-up, which cannot be cancelled.
    runtime.shutdown_background();
    let entries = answer?;
    if entries.is_empty() && args.target.is_one_key() {
        let advice = if args.target.is_like_a_prefix() {
            "; add --prefix for the keys that start with it"
        } else {
            ""
        };
        return Err(Failure::failed(format_args!(
            "{range} does not exist{advice}"
        )));
    }
    if entries.is_empty() {
        // Not an error: the prefix may be empty. But it may also be misspelt.
        output::note(&format!("there is no key under {range}"));
    }
    let bytes = if args.json {
        json::records(&entries)
    } else {
        plain(&entries, args.print_value_only, io::stdout().is_terminal())
    };
    // A reader that has gone is not an error.
    output::write(&bytes).map(|_| ())
}

async fn ask(client: &Client, range: &KeyRange, timeout: Duration) -> Result<Entries, Failure> {
    Ok(client.get(range).timeout(timeout).await?)
}

fn plain(entries: &Entries, values_only: bool, terminal: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let mut line = |bytes: &[u8]| {
        if terminal {
            out.extend_from_slice(Tame(bytes).to_string().as_bytes());
        } else {
            out.extend_from_slice(bytes);
        }
        out.push(b'\n');
    };
    for entry in entries.iter() {
        if !values_only {
            line(entry.key.as_bytes());
        }
        line(&entry.value);
    }
    out
}
