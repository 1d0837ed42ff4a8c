//! Backfill: reads what changed before the server's start.
//!
//! A server starts with a state and no past. Clients that return hold earlier states, and the source
//! can read what changed since. One backfill serves all of them:
//!
//! 1. *Collecting*: a client [requests](Requests::request) a revision before the change log. Others may
//!    follow for a moment.
//! 2. *Requesting*: the source is asked for the span from there up to the start of the change log, and
//!    its transactions are received.
//! 3. *Verifying*: they are compared, key by key, with the state.
//! 4. The batches are adopted: they are put in front of the change log, and the deletes become known.
//!    What does not match the state is abandoned as a whole; those clients get a snapshot.
//!
//! The span reaches back in steps ([`Reaches`]), the nearest first, for as long as a client requests
//! more. So an old client costs those nothing that were away for a moment: what is near is read before,
//! if what is far is too much the next nearer step is tried, and what is farther than the last step is
//! not reachable from the start.
//!
//! [`Backfill`] is pure: events in, actions out, and the time is passed in. The ingest task of the
//! prefix owns it and carries out its actions. This room must not know about the source, the change log
//! or streams: only about the store.

mod reach;
mod received;
mod requests;
mod state;
#[cfg(test)]
mod tests;
mod verification;

pub use reach::{Reach, Reaches};
pub use requests::{Reachable, Requests};
pub use state::{Abandoned, Action, Backfill, Due, Event, LogStart, State};
pub use verification::Mismatch;
