//! Which served prefix a range lies under.

use std::fmt;

use driftless_proto::{KeyRange, v1};
use tonic::Status;

use super::grpc::cut;
use super::{Served, Service};

/// How much of a name a status shows, in bytes. Clients refuse headers of more than 8 KiB, and some then
/// try again for ever; a byte takes three of them at the worst.
const SHOWN: usize = 200;

/// How many served prefixes a status names, for the same reason.
const LISTED: usize = 8;

impl Service {
    /// The served prefix that `range` lies under.
    ///
    /// # Errors
    /// When the range is not valid, or lies under none.
    pub(super) fn find(&self, range: Option<v1::Range>) -> Result<(KeyRange, &Served), Status> {
        let range = KeyRange::try_from(range)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let served = self
            .0
            .served
            .iter()
            .find(|served| served.fanout.prefix().covers(&range));
        match served {
            Some(served) => Ok((range, served)),
            None => {
                let prefixes = self.0.served.iter().map(|served| served.fanout.prefix());
                let names: Vec<String> = prefixes.map(|it| shown(it.start())).collect();
                let names = listed(&names);
                let suggestion = match self.suggestion(&range) {
                    Some(prefix) => format!("; did you mean {prefix}?"),
                    None => String::new(),
                };
                let range = shown(&range);
                Err(Status::not_found(format!(
                    "{range} is not served here, only what starts with {names}{suggestion}"
                )))
            }
        }
    }

    /// A served prefix that the client may have meant: one that differs by a slash at the end, or at the
    /// beginning.
    fn suggestion(&self, range: &KeyRange) -> Option<String> {
        let start = range.start().as_ref();
        let with_slash = [b"/", start].concat();
        let mut prefixes = self.0.served.iter().map(|served| served.fanout.prefix());
        // The root is the beginning of everything.
        let begins = |prefix: &&KeyRange| prefix.start().as_ref().strip_suffix(b"/") == Some(start);
        if let Some(prefix) = prefixes.clone().find(begins) {
            return Some(shown(prefix.start()));
        }
        let covers = |prefix: &KeyRange| with_slash.starts_with(prefix.start().as_ref());
        prefixes
            .any(covers)
            .then(|| format!("/{}", shown(range.start())))
    }
}

/// A key, prefix or range for a status, which is sent in headers.
fn shown(name: &impl fmt::Display) -> String {
    let name = name.to_string();
    match cut(&name, SHOWN) {
        whole if whole.len() == name.len() => name,
        start => format!("{start}..."),
    }
}

/// The first of these names, and how many more there are.
fn listed(names: &[String]) -> String {
    let (first, rest) = names.split_at(names.len().min(LISTED));
    let first = first.join(", ");
    match rest.len() {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}
