//! What `watch` and `get` ask for, and whom.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use driftless_client::{Client, KeyRange};

use crate::exit::Failure;

/// A key or prefix, spelled like etcdctl's, and a server.
#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// The key
    key: OsString,

    /// All keys that start with KEY
    #[arg(long)]
    prefix: bool,

    /// The server; of several, separated by commas, one that answers
    #[arg(
        long,
        value_name = "URL",
        env = "DRIFTLESS_SERVER",
        default_value = "http://127.0.0.1:7400",
        value_delimiter = ','
    )]
    server: Vec<String>,
}

impl Target {
    /// The range.
    ///
    /// # Errors
    /// When it is empty or too long.
    pub(crate) fn range(&self) -> Result<KeyRange, Failure> {
        let bytes = self.key.as_bytes();
        let range = if self.prefix {
            KeyRange::prefix(bytes)
        } else {
            KeyRange::key(bytes)
        };
        range.map_err(Failure::from)
    }

    /// A client of the server, which is not dialled yet.
    ///
    /// # Errors
    /// When a URL cannot be used.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        let mut builder = Client::builder().label("tool", "driftless");
        for url in &self.server {
            builder = builder.endpoint(url);
        }
        builder.build().map_err(Failure::from)
    }

    /// The server, for people.
    pub(crate) fn server(&self) -> String {
        self.server.join(", ")
    }

    /// Whether one key was asked for.
    pub(crate) const fn is_one_key(&self) -> bool {
        !self.prefix
    }
}
