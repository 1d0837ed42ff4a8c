//! The output of `--json`: one object a line.
//!
//! UTF-8 keys and values are in `key` and `value`, others in `key_base64` and `value_base64`.

use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use driftless_client::{Entries, EntriesChange, Entry, EntryChange, Key};
use serde::Serialize;
use serde_json::ser::Formatter;

/// One line.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Line<'a> {
    /// A key at the start.
    Init {
        #[serde(flatten)]
        key: KeyField<'a>,
        #[serde(flatten)]
        value: ValueField<'a>,
        mod_revision: i64,
    },
    /// After the last initial key: the number of keys, and the revision.
    Synced { revision: i64, keys: usize },
    Put {
        #[serde(flatten)]
        key: KeyField<'a>,
        #[serde(flatten)]
        value: ValueField<'a>,
        mod_revision: i64,
        revision: i64,
    },
    Delete {
        #[serde(flatten)]
        key: KeyField<'a>,
        revision: i64,
    },
}

#[derive(Serialize)]
enum KeyField<'a> {
    #[serde(rename = "key")]
    Text(&'a str),
    #[serde(rename = "key_base64")]
    Base64(String),
}

#[derive(Serialize)]
enum ValueField<'a> {
    #[serde(rename = "value")]
    Text(&'a str),
    #[serde(rename = "value_base64")]
    Base64(String),
}

/// A key and its value, as `get` shows them.
#[derive(Serialize)]
struct Record<'a> {
    #[serde(flatten)]
    key: KeyField<'a>,
    #[serde(flatten)]
    value: ValueField<'a>,
    mod_revision: i64,
}

fn key_field(key: &Key) -> KeyField<'_> {
    key.as_str().map_or_else(
        || KeyField::Base64(STANDARD.encode(key.as_bytes())),
        KeyField::Text,
    )
}

fn value_field(entry: &Entry) -> ValueField<'_> {
    std::str::from_utf8(&entry.value).map_or_else(
        |_| ValueField::Base64(STANDARD.encode(&entry.value)),
        ValueField::Text,
    )
}

/// The state at the start of a watch: a line for each key, then `synced`.
pub(crate) fn state(entries: &Entries) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries.iter() {
        line(
            &mut out,
            &Line::Init {
                key: key_field(&entry.key),
                value: value_field(entry),
                mod_revision: entry.mod_revision.get(),
            },
        );
    }
    line(
        &mut out,
        &Line::Synced {
            revision: entries.revision().get(),
            keys: entries.len(),
        },
    );
    out
}

/// What changed: a line for each key.
pub(crate) fn change(change: &EntriesChange) -> Vec<u8> {
    let mut out = Vec::new();
    for one in &change.changes {
        let revision = change.revision.get();
        match one {
            EntryChange::Put { new, .. } => line(
                &mut out,
                &Line::Put {
                    key: key_field(&new.key),
                    value: value_field(new),
                    mod_revision: new.mod_revision.get(),
                    revision,
                },
            ),
            EntryChange::Delete { old, .. } => line(
                &mut out,
                &Line::Delete {
                    key: key_field(&old.key),
                    revision,
                },
            ),
            // There is no other kind yet. A later client library may add one.
            _ => {}
        }
    }
    out
}

/// The answer to a `get`: a line for each key.
pub(crate) fn records(entries: &Entries) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries.iter() {
        line(
            &mut out,
            &Record {
                key: key_field(&entry.key),
                value: value_field(entry),
                mod_revision: entry.mod_revision.get(),
            },
        );
    }
    out
}

fn line(out: &mut Vec<u8>, line: &impl Serialize) {
    let mut serializer = serde_json::Serializer::with_formatter(&mut *out, NoControls);
    line.serialize(&mut serializer)
        .expect("these types serialise, and a Vec takes everything");
    out.push(b'\n');
}

/// Compact JSON that also escapes the control characters which JSON allows as they are (DEL and
/// U+0080 to U+009F): some terminals obey them.
struct NoControls;

impl Formatter for NoControls {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(char::is_control) {
            let (before, from) = rest.split_at(at);
            writer.write_all(before.as_bytes())?;
            let mut chars = from.chars();
            if let Some(c) = chars.next() {
                write!(writer, "\\u{:04x}", u32::from(c))?;
            }
            rest = chars.as_str();
        }
        writer.write_all(rest.as_bytes())
    }
}
