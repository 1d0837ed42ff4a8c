//! The program of the project's README, except for the server's address, which is the first argument.
//! A test compares the two.

// Printing is what this program is for.
#![allow(clippy::print_stdout)]

use driftless_client::{Client, KeyRange};

#[derive(serde::Deserialize)]
#[serde(default)]
struct Limits {
    rps: u32,
    burst: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { rps: 10, burst: 20 }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The log says what the client waits for, and which values it rejects.
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let client = Client::connect(std::env::args().nth(1).ok_or("which server?")?)?;
    let range = KeyRange::prefix("/config/limits/");
    let mut limits = client.watch::<Limits>(range).await?;
    loop {
        let Limits { rps, burst } = *limits.load();
        println!("at most {rps} a second, {burst} at once");
        limits.changed().await?;
    }
}
