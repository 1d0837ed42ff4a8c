//! What `watch` and `get` ask for, and whom.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use driftless_client::{Client, KeyRange};

use crate::exit::{Failure, Kind};

/// Where the server may be named instead.
const SERVER_VARIABLE: &str = "DRIFTLESS_SERVER";

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
        env = SERVER_VARIABLE,
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
        builder.build().map_err(|error| {
            let flag = |argument: OsString| argument.as_bytes().starts_with(b"--server");
            let place = if std::env::args_os().any(flag) {
                "--server"
            } else {
                SERVER_VARIABLE
            };
            Failure::new(Kind::Usage, format_args!("{place}: {error}"))
        })
    }

    /// The server, for people.
    pub(crate) fn server(&self) -> String {
        self.server.join(", ")
    }

    /// Whether one key was asked for, by a name that prefixes have.
    pub(crate) fn is_like_a_prefix(&self) -> bool {
        self.is_one_key() && self.key.as_bytes().ends_with(b"/")
    }

    /// Whether one key was asked for.
    pub(crate) const fn is_one_key(&self) -> bool {
        !self.prefix
    }
}
