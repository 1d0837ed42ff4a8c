//! What `watch` and `get` ask for, and whom.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use driftless_client::{BuildError, Client, KeyRange};

use crate::exit::{Failure, Kind};

/// Where the server may be named instead.
const SERVER_VARIABLE: &str = "DRIFTLESS_SERVER";

/// Where the name in its certificate may be.
const SERVER_NAME_VARIABLE: &str = "DRIFTLESS_SERVER_NAME";

/// Where the file of the token may be named.
const TOKEN_FILE_VARIABLE: &str = "DRIFTLESS_TOKEN_FILE";

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

    /// Trust servers with a certificate of a CA in this file (PEM) [default: those of the system]
    #[arg(long, value_name = "FILE", env = "DRIFTLESS_CA")]
    ca: Option<PathBuf>,

    /// Show servers this certificate (PEM)
    #[arg(
        long,
        value_name = "FILE",
        env = "DRIFTLESS_CERT",
        requires = "key_file"
    )]
    cert: Option<PathBuf>,

    /// The certificate's key (PEM)
    #[arg(
        long = "key",
        value_name = "FILE",
        env = "DRIFTLESS_KEY",
        requires = "cert"
    )]
    key_file: Option<PathBuf>,

    /// The name in the server's certificate [default: the host of its URL]
    #[arg(long, value_name = "NAME", env = SERVER_NAME_VARIABLE)]
    server_name: Option<String>,

    /// Send servers the bearer token in this file
    #[arg(long, value_name = "FILE", env = TOKEN_FILE_VARIABLE)]
    token_file: Option<PathBuf>,
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
    /// When a URL or a name cannot be used.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        let mut builder = Client::builder().label("tool", "driftless");
        for url in &self.server {
            builder = builder.endpoint(url);
        }
        if let Some(path) = &self.ca {
            builder = builder.tls_ca_file(path);
        }
        if let Some((cert, key)) = self.cert.as_ref().zip(self.key_file.as_ref()) {
            builder = builder.tls_client_files(cert, key);
        }
        if let Some(name) = &self.server_name {
            builder = builder.tls_server_name(name);
        }
        if let Some(path) = &self.token_file {
            builder = builder.token_file(path);
        }
        builder.build().map_err(|error| {
            let place = match &error {
                BuildError::ServerName { .. } if self.server_name.is_some() => {
                    place("--server-name", SERVER_NAME_VARIABLE)
                }
                BuildError::TokenInClear { .. } => place("--token-file", TOKEN_FILE_VARIABLE),
                _ => place("--server", SERVER_VARIABLE),
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

/// Where something was said: by its flag, or else by its variable.
fn place(flag: &'static str, variable: &'static str) -> &'static str {
    let is_flag = |argument: OsString| {
        let rest = argument.as_bytes().strip_prefix(flag.as_bytes());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"="))
    };
    match std::env::args_os().any(is_flag) {
        true => flag,
        false => variable,
    }
}
