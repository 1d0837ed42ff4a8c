//! The service of `make demo`: watches `/config/shop/` as one typed value and
//! prints a line for each state of it.
//!
//! It shows what a service has to write: a struct, a `watch`, a loop. It prints
//! the values because it is a demo; the library never does.
//!
//! ```text
//! demo_service [URL]
//! ```

// Printing is what this program is for.
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;

use driftless_client::{Client, KeyRange};
use serde::Deserialize;

/// The default of the first argument: where the server listens.
const DEFAULT_SERVER: &str = "http://127.0.0.1:7400";

/// The shop's configuration: each field is a key below `/config/shop/`. A field
/// without a key has its default.
#[derive(Deserialize)]
#[serde(default)]
struct Shop {
    /// `currency`, as text.
    currency: String,
    /// `banner`, as text; gone when its key is deleted.
    banner: Option<String>,
    /// `limits/rps` and `limits/burst`.
    limits: Limits,
    /// `prices/…`, in cents by item.
    prices: BTreeMap<String, u32>,
}

/// How many requests the shop accepts.
#[derive(Deserialize)]
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
            limits: Limits::default(),
            prices: BTreeMap::new(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { rps: 10, burst: 20 }
    }
}

/// One line, which `examples/demo/demo.sh` compares with the expected one.
impl fmt::Display for Shop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "rps={} burst={} currency={} banner={} prices={}",
            self.limits.rps,
            self.limits.burst,
            self.currency,
            self.banner.as_deref().unwrap_or("none"),
            self.prices.len(),
        )
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let server = std::env::args()
        .nth(1)
        .unwrap_or_else(|| DEFAULT_SERVER.to_owned());
    let client = Client::connect(&server)?;
    let mut shop = client
        .watch::<Shop>(KeyRange::prefix("/config/shop/")?)
        .await?;
    loop {
        println!("{}", *shop.load());
        shop.changed().await?;
    }
}
