//! The open descriptors of this process, as the kernel lists them.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use crate::witness::{Reading, Unreadable, Witness, counted};

/// Where the kernel lists them.
const FOLDER: &str = "/proc/self/fd";

/// The number of descriptors that this process has open, by the kernel's count. Works on Linux.
///
/// It is the count of the whole process: a test that uses it must be alone in its process, or make
/// others wait.
#[derive(Clone, Copy, Debug)]
pub struct Descriptors {
    name: &'static str,
    /// The prefix of the kernel's name for them; all descriptors when empty.
    kind: &'static str,
}

impl Descriptors {
    /// All of them: files, sockets, pipes, timers.
    pub const fn all() -> Self {
        Self {
            name: "descriptors",
            kind: "",
        }
    }

    /// Sockets only.
    pub const fn sockets() -> Self {
        Self {
            name: "sockets",
            kind: "socket:",
        }
    }

    fn count(self) -> io::Result<i64> {
        let entries = fs::read_dir(FOLDER)?;
        let count = if self.kind.is_empty() {
            // Less the one that the counting itself opens.
            entries.count().saturating_sub(1)
        } else {
            let is_one = |target: &String| target.starts_with(self.kind);
            targets(entries).filter(is_one).count()
        };
        Ok(i64::try_from(count).unwrap_or(i64::MAX))
    }
}

/// What each descriptor leads to. One that was closed meanwhile is left out.
fn targets(entries: fs::ReadDir) -> impl Iterator<Item = String> {
    let links = entries.flatten().map(|entry| fs::read_link(entry.path()));
    links
        .flatten()
        .map(|target| target.to_string_lossy().into_owned())
}

/// "socket", "pipe", "eventpoll", or "file" for whatever has a path: a path may be private.
fn kind(target: &str) -> &str {
    if target.starts_with('/') {
        return "file";
    }
    let target = target.strip_prefix("anon_inode:").unwrap_or(target);
    let end = target.find(":[").unwrap_or(target.len());
    target[..end].trim_matches(['[', ']'])
}

impl Witness for Descriptors {
    fn name(&self) -> &str {
        self.name
    }

    fn read(&self) -> Reading<'_> {
        let count = self.count().map_err(|error| {
            Unreadable::new(
                self.name,
                format!("{FOLDER}: {error}; counting needs Linux"),
            )
        });
        counted(count)
    }

    /// How many there are of each kind.
    fn details(&self) -> Option<String> {
        let mut kinds = BTreeMap::<String, usize>::new();
        for target in targets(fs::read_dir(FOLDER).ok()?) {
            *kinds.entry(kind(&target).to_owned()).or_default() += 1;
        }
        let kinds = kinds.iter().map(|(kind, count)| format!("{count} {kind}"));
        Some(kinds.collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_is_called_by_its_kind() {
        for (target, expected) in [
            ("socket:[123]", "socket"),
            ("pipe:[4]", "pipe"),
            ("anon_inode:[eventpoll]", "eventpoll"),
            ("anon_inode:[eventfd]", "eventfd"),
            ("/somewhere/private", "file"),
        ] {
            assert_eq!(kind(target), expected);
        }
    }
}
