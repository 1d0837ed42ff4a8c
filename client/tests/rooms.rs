//! The rooms of the client's sources depend on each other in one direction.
//!
//! A room is a folder of `src`, or a file beside them. The tests read the paths that begin with `crate::`
//! and `super::`; comments and unit tests do not count.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Each room, and the rooms that it may use. A room that is not listed may use none.
const MAY_USE: &[(&str, &[&str])] = &[
    // What composes the others.
    (
        "builder",
        &["client", "error", "jitter", "net", "resources", "transport"],
    ),
    (
        "client",
        &[
            "builder",
            "error",
            "get",
            "range",
            "resources",
            "shutdown",
            "subscription",
            "transport",
            "watch",
        ],
    ),
    (
        "get",
        &[
            "error",
            "net",
            "resources",
            "subscription",
            "transport",
            "value",
        ],
    ),
    ("shutdown", &["resources", "subscription", "transport"]),
    // What a service holds, down to the sockets.
    (
        "watch",
        &["decode", "error", "resources", "subscription", "value"],
    ),
    (
        "subscription",
        &[
            "decode",
            "error",
            "jitter",
            "resources",
            "transport",
            "value",
        ],
    ),
    ("transport", &["error", "jitter", "net", "resources"]),
    ("net", &["error", "resources"]),
    // What is held, and how bytes become values.
    ("decode", &["error", "value"]),
    ("value", &["error"]),
    // Leaves.
    ("error", &[]),
    ("jitter", &[]),
    ("range", &[]),
    ("resources", &[]),
];

/// Libraries that one room wraps for all others.
const WRAPPED: &[(&str, &str)] = &[
    ("arc_swap", "value"),
    ("h2", "transport"),
    ("hyper", "transport"),
    ("hyper_util", "transport"),
    ("imbl", "value"),
    ("rustls_native_certs", "net"),
    ("serde_json", "decode"),
    ("serde_saphyr", "decode"),
    ("tokio_rustls", "net"),
    ("toml", "decode"),
    ("tonic", "transport"),
];

/// Files that may use each other: a type and its builder.
const PAIRS: &[(&str, &str)] = &[("builder", "client")];

/// Texts of source files by their path below `src`.
type Sources = BTreeMap<String, String>;

/// The client's sources, without `lib.rs`, which uses every room.
fn sources() -> Sources {
    let mut sources = Sources::new();
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    read(&src, "", &mut sources);
    sources.remove("lib.rs");
    assert!(sources.len() > 20, "only {} sources", sources.len());
    sources
}

fn read(folder: &Path, prefix: &str, sources: &mut Sources) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && name != "tests" {
            read(&path, &format!("{prefix}{name}/"), sources);
        } else if name.ends_with(".rs") && name != "tests.rs" {
            let text = fs::read_to_string(&path).unwrap();
            sources.insert(format!("{prefix}{name}"), text);
        }
    }
}

/// The lines of code before a file's unit tests, with their numbers. An import list is one line.
fn code(text: &str) -> Vec<(usize, String)> {
    let end = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
    let lines = text[..end].lines().map(str::trim);
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut in_list = false;
    for (number, line) in (1..).zip(lines).filter(|(_, line)| !line.starts_with("//")) {
        match found.last_mut() {
            Some((_, list)) if in_list => list.push_str(line),
            _ => found.push((number, line.to_owned())),
        }
        let is_use = |line: &str| line.starts_with("use ") || line.contains(" use ");
        in_list = (in_list || is_use(line)) && !line.ends_with(';');
    }
    found
}

/// The names behind each `from::` in a line; each name of a list in braces.
fn names<'a>(line: &'a str, from: &str) -> Vec<&'a str> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let path = format!("{from}::");
    let found = line.match_indices(&path).filter(|(at, _)| {
        let before = line[..*at].chars().next_back();
        !before.is_some_and(|c| is_name(c) || c == ':')
    });
    let lists = found.map(|(at, _)| {
        let rest = &line[at + path.len()..];
        match rest.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap_or(list),
            None => &rest[..rest.find(|c| !is_name(c)).unwrap_or(rest.len())],
        }
    });
    lists
        .flat_map(|list| list.split(','))
        .map(|name| name.trim().split("::").next().unwrap_or_default())
        .filter(|name| !name.is_empty())
        .collect()
}

fn room(file: &str) -> &str {
    file.split('/').next().unwrap().trim_end_matches(".rs")
}

/// What breaks the rules: file, line and arrow.
fn violations(sources: &Sources) -> Vec<String> {
    let mut found = Vec::new();
    for (file, text) in sources {
        let from = room(file);
        let allowed = MAY_USE.iter().find(|(room, _)| *room == from);
        let Some((_, allowed)) = allowed else {
            found.push(format!("src/{file}: no such room: {from}"));
            continue;
        };
        for (line, code) in code(text) {
            for to in names(&code, "crate") {
                if to != from && !allowed.contains(&to) {
                    found.push(format!("src/{file}:{line}: {from} -> {to}"));
                }
            }
            // A re-exported name would hide which file it is from.
            let is_type = |name: &&str| name.starts_with(char::is_uppercase);
            if names(&code, "super").iter().any(is_type) {
                found.push(format!("src/{file}:{line}: write super::file::Name"));
            }
            if code.contains("super::super::") {
                found.push(format!("src/{file}:{line}: write crate:: for another room"));
            }
            for (library, to) in WRAPPED {
                if from != *to && !names(&code, library).is_empty() {
                    found.push(format!(
                        "src/{file}:{line}: {from} -> {library}, not by {to}"
                    ));
                }
            }
        }
    }
    found
}

/// The files that can reach themselves by the paths in them.
fn cycles(sources: &Sources) -> BTreeSet<String> {
    let file = |path: String| sources.contains_key(&format!("{path}.rs")).then_some(path);
    let edges: BTreeMap<String, BTreeSet<String>> = sources
        .iter()
        .map(|(path, text)| {
            let from = path.trim_end_matches(".rs");
            let mut to = BTreeSet::new();
            for (_, line) in code(text) {
                if let Some((room, _)) = from.split_once('/') {
                    let siblings = names(&line, "super").into_iter();
                    to.extend(siblings.filter_map(|name| file(format!("{room}/{name}"))));
                }
                let rooms = names(&line, "crate").into_iter();
                to.extend(rooms.filter_map(|name| file(name.to_owned())));
            }
            let is_pair = |to: &String| {
                PAIRS
                    .iter()
                    .any(|(a, b)| [(from, &**to), (&**to, from)].contains(&(a, b)))
            };
            to.retain(|to| !is_pair(to));
            (from.to_owned(), to)
        })
        .collect();
    let reaches_itself = |start: &String| {
        let mut seen = BTreeSet::new();
        let mut next: Vec<&String> = edges[start].iter().collect();
        while let Some(file) = next.pop() {
            if seen.insert(file) {
                next.extend(&edges[file]);
            }
        }
        seen.contains(start)
    };
    edges
        .keys()
        .filter(|file| reaches_itself(file))
        .cloned()
        .collect()
}

#[test]
fn rooms_use_only_what_they_may() {
    let found = violations(&sources());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn files_do_not_use_each_other_in_a_circle() {
    let found = cycles(&sources());
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn allowed_arrows_form_no_circle() {
    let rank = |room: &str| MAY_USE.iter().position(|(name, _)| *name == room).unwrap();
    for (room, allowed) in MAY_USE {
        for to in *allowed {
            let is_pair = PAIRS.contains(&(to, room));
            assert!(is_pair || rank(room) < rank(to), "{room} -> {to}");
        }
    }
}

#[test]
fn planted_backward_arrow_is_found() {
    let mut sources = sources();
    let planted = "//! A comment about crate::watch.\n\nuse crate::error::Closed;\nuse crate::watch::Watcher;\n";
    sources.insert("value/planted.rs".to_owned(), planted.to_owned());
    assert_eq!(
        violations(&sources),
        ["src/value/planted.rs:4: value -> watch"]
    );
    let planted = "fn status() -> tonic::Status { crate::transport::status() }\n";
    sources.insert("value/planted.rs".to_owned(), planted.to_owned());
    assert_eq!(
        violations(&sources),
        [
            "src/value/planted.rs:1: value -> transport",
            "src/value/planted.rs:1: value -> tonic, not by transport"
        ]
    );
    let planted = "use crate::error::Closed;\nuse crate::{\n    error,\n    watch,\n};\n";
    sources.insert("value/planted.rs".to_owned(), planted.to_owned());
    assert_eq!(
        violations(&sources),
        ["src/value/planted.rs:2: value -> watch"]
    );
}

#[test]
fn planted_circle_of_files_is_found() {
    let mut sources = sources();
    for (file, other) in [("a", "b"), ("b", "c"), ("c", "a")] {
        let planted = format!("use super::{{cell, {other}}};\n");
        sources.insert(format!("value/{file}.rs"), planted);
    }
    let expected = ["value/a", "value/b", "value/c"].map(str::to_owned);
    assert_eq!(cycles(&sources), BTreeSet::from(expected));
}
