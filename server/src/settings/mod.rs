//! What a server is told: from code, a file, the environment and flags, validated once.
//!
//! Every setting is declared once, in `table.rs`: its name, type, documentation, default and bounds.
//! Its place decides how it is spelled: `log_bytes` in a file, `DRIFTLESS_LOG_BYTES` in the environment,
//! `--log-bytes` as a flag. A later layer replaces what an earlier one said, lists included.
//! [`SettingsBuilder::build`] checks the whole, so a [`Settings`] that exists is valid. Each error says
//! which setting it is about, where it was given, and what to do.
//!
//! Owned by whoever starts a server. It reads the file that it is given and nothing else: no process
//! environment, no clock, no network. It uses nothing of the other rooms.

mod builder;
mod check;
mod declare;
mod error;
mod kind;
mod layers;
mod name;
#[allow(
    clippy::module_inception,
    reason = "named after the type that it holds"
)]
mod settings;
mod table;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

pub use self::builder::SettingsBuilder;
pub use self::error::{Given, Origin, SettingsError};
pub use self::kind::{MemoryLimit, parse_duration};
pub use self::layers::check_variables;
pub use self::name::ENVIRONMENT_PREFIX;
pub use self::settings::{Settings, TlsFiles};
pub use self::table::Setting;

/// The default of [`Setting::Listen`]: loopback, since there are no rights to check yet.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7400);

/// The default of [`Setting::Admin`] in `driftless serve`.
pub const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7401);
