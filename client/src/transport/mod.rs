//! Connections to servers, and the calls on them: the only user of tonic and hyper.
//!
//! One connection is shared by everything that a client does at the same time. Its users own it (an `Arc`
//! each); the [`Transport`] refers to it weakly, so an idle client holds no socket. A connection owns its
//! tasks and aborts them when its last user drops it, or when the transport is closed.

mod caller;
mod connection;
mod dial;
mod error;
mod keepalive;
mod pool;
mod reports;
mod requests;
mod tasks;
mod token;

pub(crate) use connection::{Connection, Frames};
pub(crate) use dial::Security;
pub(crate) use error::{CallError, pause, truncate};
pub(crate) use pool::Transport;
pub(crate) use reports::ReportSlot;
pub(crate) use token::TokenFile;
