//! The range and the server that `watch` and `get` name.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use driftless_client::{BuildError, Client, KeyRange};

use crate::exit::{Failure, Kind};

/// The variable of `--server`.
const SERVER_VARIABLE: &str = "DRIFTLESS_SERVER";

/// The variable of `--server-name`.
const SERVER_NAME_VARIABLE: &str = "DRIFTLESS_SERVER_NAME";

/// The variable of `--token-file`.
const TOKEN_FILE_VARIABLE: &str = "DRIFTLESS_TOKEN_FILE";

/// A key or prefix, written as for etcdctl, and a server.
#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// The key
    key: OsString,

    /// All keys that start with KEY
    #[arg(long)]
    prefix: bool,

    /// The server, or several, separated by commas: the first to answer is used
    #[arg(
        long,
        value_name = "URL",
        env = SERVER_VARIABLE,
        default_value = "http://127.0.0.1:7400",
        value_delimiter = ','
    )]
    server: Vec<String>,

    /// Trust servers whose certificate is from a CA in this file (PEM) [default: the system's CAs]
    #[arg(long, value_name = "FILE", env = "DRIFTLESS_CA")]
    ca: Option<PathBuf>,

    /// The client certificate for the server (PEM)
    #[arg(
        long,
        value_name = "FILE",
        env = "DRIFTLESS_CERT",
        requires = "key_file"
    )]
    cert: Option<PathBuf>,

    /// The key of the client certificate (PEM)
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

    /// Send the bearer token in this file to the server
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

    /// A client of the server, not yet connected.
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

    /// The server, for messages.
    pub(crate) fn server(&self) -> String {
        self.server.join(", ")
    }

    /// True for one key whose name ends like a prefix.
    pub(crate) fn is_like_a_prefix(&self) -> bool {
        self.is_one_key() && self.key.as_bytes().ends_with(b"/")
    }

    /// True for one key.
    pub(crate) const fn is_one_key(&self) -> bool {
        !self.prefix
    }
}

/// Where a setting came from: the flag if it was given, else the variable.
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
