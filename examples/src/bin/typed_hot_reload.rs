//! Watches `/config/shop/` as one validated struct, and prints the old and new value of each field that
//! changed.
//!
//! A value that does not decode or validate changes nothing: the program keeps the last good one and
//! says which key to fix.
//!
//! ```text
//! typed_hot_reload [URL]
//! etcdctl put /config/shop/limits/rps 100
//! ```

// Printing is what this program is for.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use driftless_client::{Client, KeyRange, RejectedState, Watcher};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The default of the first argument: where the server listens.
const DEFAULT_SERVER: &str = "http://127.0.0.1:7400";

/// How long to wait for a server before saying that there is none: a person is watching the terminal.
const FIRST_VALUE: Duration = Duration::from_secs(5);

/// Everything below `/config/shop/`. A field without a key has its default, so deleting a key resets
/// the field.
#[derive(Debug, Deserialize, Serialize)]
#[serde(default)]
struct Shop {
    /// `/config/shop/currency`, as text.
    currency: String,
    /// `/config/shop/banner`, as text; `None` while there is no such key.
    banner: Option<String>,
    /// `/config/shop/limits/…`: a nested struct is one more level of keys.
    limits: Limits,
    /// `/config/shop/prices/…`: a map takes any keys, here prices in cents.
    prices: BTreeMap<String, u32>,
}

/// How many requests the shop accepts.
#[derive(Debug, Deserialize, Serialize)]
#[serde(default)]
struct Limits {
    /// Requests per second.
    rps: u32,
    /// Requests at once.
    burst: u32,
}

impl Default for Shop {
    fn default() -> Self {
        Self {
            currency: "EUR".to_owned(),
            banner: None,
            limits: Limits { rps: 10, burst: 20 },
            prices: BTreeMap::new(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Shop::default().limits
    }
}

impl Shop {
    /// Checks what the types cannot express. The reasons are constant texts without values, so the
    /// library shows them. It does not show the text of other errors.
    fn check(&self) -> Result<(), &'static str> {
        if self.limits.burst < self.limits.rps {
            return Err("limits.burst must be at least limits.rps");
        }
        Ok(())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("typed_hot_reload: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let server = std::env::args().nth(1);
    if server
        .as_ref()
        .is_some_and(|server| server.starts_with('-'))
    {
        return Err("usage: typed_hot_reload [URL], such as http://127.0.0.1:7400".into());
    }
    let client = Client::connect(server.as_deref().unwrap_or(DEFAULT_SERVER))?;
    let mut shop = client
        .watch::<Shop>(KeyRange::prefix("/config/shop/"))
        .first_value_within(FIRST_VALUE)
        .validate(Shop::check)
        .await?;

    // A rejected state changes no value, so `changed` does not report it.
    let mut status = shop.watch_status();
    let mut told = None;
    let mut shown = BTreeMap::new();
    show(&shop, &mut shown)?;
    loop {
        tokio::select! {
            changed = shop.changed() => {
                changed?;
                show(&shop, &mut shown)?;
            }
            status = status.changed() => {
                let rejected = status.last_rejection;
                // Other news of the status, such as a lost server, is not shown here.
                if let Some(rejected) = rejected.as_ref().filter(|_| rejected != told) {
                    refused(&shop, rejected);
                }
                told = rejected;
            }
        }
    }
}

/// Prints the differences from the last printed value, and remembers this one.
fn show(shop: &Watcher<Shop>, shown: &mut BTreeMap<String, Value>) -> Result<(), Box<dyn Error>> {
    let shop = shop.load();
    let fields = fields(&*shop)?;
    println!("revision {}", shop.revision());
    let paths: BTreeSet<_> = shown.keys().chain(fields.keys()).collect();
    for path in paths {
        let (old, new) = (shown.get(path), fields.get(path));
        if old != new {
            println!("  {path}: {} → {}", text(old), text(new));
        }
    }
    *shown = fields;
    Ok(())
}

/// Prints which key to fix, and which value is used until then.
fn refused(shop: &Watcher<Shop>, rejected: &RejectedState) {
    let why = &rejected.rejection;
    println!("revision {} refused: {}", rejected.revision, why.kind());
    if let Some(key) = why.key() {
        println!("  key: {key}");
    }
    if !why.path().is_empty() {
        println!("  field: {}", why.path());
    }
    println!("  {why}");
    println!("  still used: revision {}", shop.load().revision());
}

/// The fields of a struct by their paths, such as `limits.rps`. A field that is `None` has no path.
fn fields(of: &impl Serialize) -> serde_json::Result<BTreeMap<String, Value>> {
    fn collect(path: &str, value: Value, into: &mut BTreeMap<String, Value>) {
        match value {
            Value::Null => {}
            Value::Object(fields) => {
                for (name, value) in fields {
                    let dot = if path.is_empty() { "" } else { "." };
                    collect(&format!("{path}{dot}{name}"), value, into);
                }
            }
            leaf => {
                into.insert(path.to_owned(), leaf);
            }
        }
    }
    let mut fields = BTreeMap::new();
    collect("", serde_json::to_value(of)?, &mut fields);
    Ok(fields)
}

fn text(value: Option<&Value>) -> String {
    value.map_or_else(|| "none".to_owned(), Value::to_string)
}
