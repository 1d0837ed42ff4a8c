//! The memory of the process: its limit, how much of it is used, and what follows from that.
//!
//! [`Monitor`] reads the resident memory some times a second and sets the [`Level`] of a [`Pressure`],
//! which others look at before they begin something that costs memory. Near the limit the server refuses
//! new snapshots first, then new connections; streams that keep up are never touched. So a server whose
//! load is too high serves fewer clients, instead of being killed with all of them.

mod level;
mod limit;
mod monitor;
mod resident;

pub(crate) use level::{Level, Pressure, RETRY_TIGHT};
pub(crate) use limit::cgroup_limit;
pub(crate) use monitor::Monitor;
pub(crate) use resident::Resident;
