//! Which served prefix a range lies under.

use driftless_proto::{KeyRange, v1};
use tonic::Status;

use super::{Served, Service};

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
                let names: Vec<String> = self
                    .0
                    .served
                    .iter()
                    .map(|served| served.fanout.prefix().start().to_string())
                    .collect();
                let names = names.join(", ");
                let suggestion = match self.suggestion(&range) {
                    Some(prefix) => format!("; did you mean {prefix}?"),
                    None => String::new(),
                };
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
            return Some(prefix.start().to_string());
        }
        let covers = |prefix: &KeyRange| with_slash.starts_with(prefix.start().as_ref());
        prefixes.any(covers).then(|| format!("/{}", range.start()))
    }
}
