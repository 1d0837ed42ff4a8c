//! Watches one key and prints its value, then each change of it.
//!
//! ```text
//! hello_watch [URL]
//! etcdctl put /config/hello world
//! ```

// Printing is what this program is for.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::time::Duration;

use driftless_client::Client;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    // The log says what the client waits for, and which values it rejects.
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let server = std::env::args().nth(1);
    let client = Client::connect(server.as_deref().unwrap_or("http://127.0.0.1:7400"))?;
    let mut name = client
        .watch::<Option<String>>("/config/hello") // `None` while there is no such key
        .first_value_within(Duration::from_secs(5)) // and if no server answers, an error
        .await?;
    loop {
        println!("hello, {}", name.load().as_deref().unwrap_or("nobody yet"));
        name.changed().await?;
    }
}
