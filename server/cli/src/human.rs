//! Prints a range for people: its state, then a unified diff of each changed value.
//!
//! No key or value can move the terminal's cursor: control characters are escaped, and a value that is
//! not text is shown as its size and first bytes.

use std::fmt::{self, Write as _};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use driftless_client::{Entries, EntriesChange, Entry, EntryChange, KeyRange};
use similar::{ChangeTag, TextDiff};

/// Lines around a change that show where it is, as `diff -u` has them.
const CONTEXT_LINES: usize = 3;

/// How long a diff may take before it is made coarser, because it delays the next one.
const DIFF_WITHIN: Duration = Duration::from_millis(500);

/// How much of a value that is not text is shown: enough to recognise a magic number.
const BINARY_SHOWN: usize = 16;

const KEY: Style = Style::new().bold();
const NOTE: Style = Style::new().dimmed();
const HUNK: Style = AnsiColor::Cyan.on_default();
const REMOVED: Style = AnsiColor::Red.on_default();
const ADDED: Style = AnsiColor::Green.on_default();

/// Renders for people, with or without colours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Human {
    pub(crate) color: bool,
}

impl Human {
    /// The state at the start of a watch.
    pub(crate) fn state(self, range: &KeyRange, entries: &Entries) -> Vec<u8> {
        let mut out = String::new();
        for entry in entries.iter() {
            self.line(
                &mut out,
                KEY,
                format_args!("{}  (revision {})", entry.key, entry.mod_revision),
            );
            match text(&entry.value) {
                None => self.line(&mut out, NOTE, format_args!("{}", Binary(&entry.value))),
                Some("") => self.line(&mut out, NOTE, format_args!("(empty)")),
                Some(text) => {
                    for line in text.lines() {
                        self.line(&mut out, Style::new(), format_args!("{}", Line(line)));
                    }
                }
            }
        }
        let keys = match entries.len() {
            1 => "1 key".to_owned(),
            n => format!("{n} keys"),
        };
        self.line(
            &mut out,
            NOTE,
            format_args!(
                "{keys} in {range} at revision {}, watching",
                entries.revision()
            ),
        );
        out.into_bytes()
    }

    /// What changed.
    pub(crate) fn change(self, change: &EntriesChange) -> Vec<u8> {
        let mut out = String::new();
        for one in &change.changes {
            match one {
                EntryChange::Put { old, new } => self.diff(&mut out, old.as_ref(), Ok(new)),
                EntryChange::Delete { old, revision } => {
                    self.diff(&mut out, Some(old), Err((old, *revision)));
                }
                // A kind of change from a later client library.
                other => self.line(&mut out, KEY, format_args!("{} changed", other.key())),
            }
        }
        out.into_bytes()
    }

    /// The difference between two values of a key. `new` is the new entry, or the revision of its deletion.
    fn diff(
        self,
        out: &mut String,
        old: Option<&Entry>,
        new: Result<&Entry, (&Entry, driftless_client::Revision)>,
    ) {
        let key = match new {
            Ok(entry) | Err((entry, _)) => &entry.key,
        };
        match old {
            Some(old) => self.line(
                out,
                KEY,
                format_args!("--- {key}  (revision {})", old.mod_revision),
            ),
            None => self.line(out, KEY, format_args!("--- {key}  (new)")),
        }
        match new {
            Ok(new) => self.line(
                out,
                KEY,
                format_args!("+++ {key}  (revision {})", new.mod_revision),
            ),
            Err((_, revision)) => self.line(
                out,
                KEY,
                format_args!("+++ {key}  (deleted, revision {revision})"),
            ),
        }
        let before = old.map(|entry| &entry.value[..]);
        let after = new.ok().map(|entry| &entry.value[..]);
        if before == after {
            return self.line(out, NOTE, format_args!("(the same value, put again)"));
        }
        match (
            text(before.unwrap_or_default()),
            text(after.unwrap_or_default()),
        ) {
            (Some(""), Some("")) => self.line(out, NOTE, format_args!("(empty)")),
            (Some(before), Some(after)) => self.hunks(out, before, after),
            (before_text, after_text) => {
                for (sign, style, value, text) in [
                    ('-', REMOVED, before, before_text),
                    ('+', ADDED, after, after_text),
                ] {
                    match (value, text) {
                        (None, _) => {}
                        (Some(value), None) => {
                            self.line(out, style, format_args!("{sign}{}", Binary(value)));
                        }
                        (Some(_), Some(text)) => {
                            for line in text.lines() {
                                self.line(out, style, format_args!("{sign}{}", Line(line)));
                            }
                        }
                    }
                }
            }
        }
    }

    fn hunks(self, out: &mut String, before: &str, after: &str) {
        let diff = TextDiff::configure()
            .timeout(DIFF_WITHIN)
            .diff_lines(before, after);
        // Few values end with a newline, so it is mentioned only if the two differ in it.
        let hint = before.ends_with('\n') != after.ends_with('\n')
            && !before.is_empty()
            && !after.is_empty();
        for hunk in diff
            .unified_diff()
            .context_radius(CONTEXT_LINES)
            .iter_hunks()
        {
            self.line(out, HUNK, format_args!("{}", hunk.header()));
            for change in hunk.iter_changes() {
                let (sign, style) = match change.tag() {
                    ChangeTag::Equal => (' ', Style::new()),
                    ChangeTag::Delete => ('-', REMOVED),
                    ChangeTag::Insert => ('+', ADDED),
                };
                let line = change.value();
                let line = line.strip_suffix('\n').unwrap_or(line);
                self.line(out, style, format_args!("{sign}{}", Line(line)));
                if hint && change.missing_newline() {
                    self.line(out, NOTE, format_args!("\\ no line end at the end"));
                }
            }
        }
    }

    fn line(self, out: &mut String, style: Style, text: fmt::Arguments<'_>) {
        // Writing to a `String` never fails.
        let _ = if self.color && style != Style::new() {
            writeln!(out, "{style}{text}{style:#}")
        } else {
            writeln!(out, "{text}")
        };
    }
}

/// The value as text, if it is UTF-8 without zero bytes.
fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value)
        .ok()
        .filter(|text| !text.contains('\0'))
}

/// A value that is not text.
struct Binary<'a>(&'a [u8]);

impl fmt::Display for Binary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = if self.0.len() == 1 { "byte" } else { "bytes" };
        write!(f, "binary, {} {unit}: ", self.0.len())?;
        let shown = &self.0[..self.0.len().min(BINARY_SHOWN)];
        for byte in shown {
            write!(f, "{byte:02x}")?;
        }
        if shown.len() < self.0.len() {
            f.write_char('…')?;
        }
        Ok(())
    }
}

/// A line of text without control characters, tabs excepted.
struct Line<'a>(&'a str);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_tamed(f, self.0, |c| c == '\t')
    }
}

/// Bytes for a terminal: text as it is, with its lines and tabs, and the rest escaped.
pub(crate) struct Tame<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Tame<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            write_tamed(f, chunk.valid(), |c| matches!(c, '\t' | '\n'))?;
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

fn write_tamed(f: &mut fmt::Formatter<'_>, text: &str, harmless: fn(char) -> bool) -> fmt::Result {
    for c in text.chars() {
        if c.is_control() && !harmless(c) {
            write!(f, "{}", c.escape_default())?;
        } else {
            f.write_char(c)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use driftless_client::{Key, Revision};

    use super::*;

    fn entry(value: &[u8], revision: i64) -> Entry {
        Entry {
            key: Key::new("/a\x1b").unwrap(),
            value: Bytes::copy_from_slice(value),
            create_revision: Revision::new(1),
            mod_revision: Revision::new(revision),
            version: 1,
        }
    }

    fn shown(old: Option<&[u8]>, new: Option<&[u8]>, color: bool) -> String {
        let old = old.map(|value| entry(value, 2));
        let new = new.map(|value| entry(value, 3));
        let gone = || (old.as_ref().unwrap(), Revision::new(4));
        let mut out = String::new();
        let human = Human { color };
        human.diff(&mut out, old.as_ref(), new.as_ref().ok_or_else(gone));
        out
    }

    const OLD: &str = "--- /a\\u{1b}  (revision 2)\n";
    const NEW: &str = "+++ /a\\u{1b}  (revision 3)\n";

    #[test]
    fn change_is_a_unified_diff() {
        let lines: Vec<_> = (1..=9).map(|n| n.to_string()).collect();
        let before = lines.join("\n");
        let after = before.replace('5', "five");
        assert_eq!(
            shown(Some(before.as_bytes()), Some(after.as_bytes()), false),
            format!("{OLD}{NEW}@@ -2,7 +2,7 @@\n 2\n 3\n 4\n-5\n+five\n 6\n 7\n 8\n")
        );
    }

    #[test]
    fn new_deleted_and_empty_values_are_marked() {
        assert_eq!(
            shown(None, Some(b"1"), false),
            format!("--- /a\\u{{1b}}  (new)\n{NEW}@@ -0,0 +1 @@\n+1\n")
        );
        assert_eq!(
            shown(Some(b"1"), None, false),
            format!("{OLD}+++ /a\\u{{1b}}  (deleted, revision 4)\n@@ -1 +0,0 @@\n-1\n")
        );
        assert_eq!(
            shown(None, Some(b""), false),
            format!("--- /a\\u{{1b}}  (new)\n{NEW}(empty)\n")
        );
        assert_eq!(
            shown(Some(b"1"), Some(b"1"), false),
            format!("{OLD}{NEW}(the same value, put again)\n")
        );
    }

    #[test]
    fn final_newline_is_mentioned_only_if_it_changed() {
        assert!(!shown(Some(b"1"), Some(b"2"), false).contains("line end"));
        assert_eq!(
            shown(Some(b"1"), Some(b"1\n"), false),
            format!("{OLD}{NEW}@@ -1 +1 @@\n-1\n\\ no line end at the end\n+1\n")
        );
    }

    #[test]
    fn binary_values_show_size_and_first_bytes() {
        assert_eq!(
            shown(Some(b"\0\xff"), Some(&[0xab; 20]), false),
            format!(
                "{OLD}{NEW}-binary, 2 bytes: 00ff\n+binary, 20 bytes: {}…\n",
                "ab".repeat(16)
            )
        );
        assert_eq!(
            shown(Some(b"\xff"), Some(b"text\x1b[2J"), false),
            format!("{OLD}{NEW}-binary, 1 byte: ff\n+text\\u{{1b}}[2J\n")
        );
    }

    #[test]
    fn colours_end_with_their_line() {
        let shown = shown(Some(b"1"), Some(b"2\r"), true);
        assert!(shown.contains("\x1b[31m-1\x1b[0m\n"), "{shown:?}");
        assert!(shown.contains("\x1b[32m+2\\r\x1b[0m\n"), "{shown:?}");
    }

    #[test]
    fn control_bytes_are_escaped() {
        assert_eq!(
            Tame(b"a\tb\n\x1b[2J\xff\xc2\x9b").to_string(),
            "a\tb\n\\u{1b}[2J\\xff\\u{9b}"
        );
    }
}
