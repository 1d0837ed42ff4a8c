//! The rooms of the server's source know each other in one direction only.
//!
//! A room is a folder of `src` (or a file beside them). The test reads each file and collects which
//! rooms it names, in `use` lines and in paths such as `crate::store::Batch`, and compares that with
//! one table of allowed arrows. Test code may use what it likes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Which rooms each room may use.
const ALLOWED: &[(&str, &[&str])] = &[
    // service → session → fanout → encode → delta → store
    ("store", &[]),
    ("delta", &["store", "metrics"]),
    ("encode", &["delta", "store", "metrics"]),
    ("fanout", &["encode", "delta", "store", "metrics"]),
    (
        "session",
        &[
            "fanout", "encode", "delta", "store", "auth", "memory", "net", "metrics",
        ],
    ),
    (
        "service",
        &[
            "session", "ingest", "fanout", "encode", "delta", "store", "auth", "memory", "net",
            "metrics",
        ],
    ),
    // ingest takes from source and backfill, and hands to fanout
    (
        "ingest",
        &[
            "source", "backfill", "fanout", "encode", "delta", "store", "metrics",
        ],
    ),
    ("source", &["store", "metrics"]),
    ("backfill", &["store"]),
    // what operators see
    ("ops", &["service", "session", "net", "metrics"]),
    // leaves
    ("auth", &[]),
    ("memory", &["metrics"]),
    ("metrics", &[]),
    ("net", &[]),
    ("settings", &[]),
];

/// What puts the rooms together, and may use them all.
const COMPOSERS: &[&str] = &["lib", "server", "engine"];

/// Used by tests only.
const TEST_ROOMS: &[&str] = &["testing"];

/// One use of a room by another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Arrow {
    file: String,
    line: usize,
    from: String,
    to: String,
}

impl std::fmt::Display for Arrow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            file,
            line,
            from,
            to,
        } = self;
        write!(f, "src/{file}:{line}: {from} → {to} is not allowed")
    }
}

fn allowed() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let rooms = ALLOWED.iter();
    rooms
        .map(|(room, uses)| (*room, uses.iter().copied().collect()))
        .collect()
}

/// The module path of a file below `src`: `fanout/scope.rs` is `fanout`, `scope`.
fn module_path(file: &str) -> Vec<&str> {
    let mut path: Vec<&str> = file.trim_end_matches(".rs").split('/').collect();
    if path.last() == Some(&"mod") {
        path.pop();
    }
    path
}

/// Whether a file holds nothing but test code.
fn is_test_file(file: &str) -> bool {
    let path = module_path(file);
    path.contains(&"tests") || TEST_ROOMS.contains(&path[0])
}

/// The source without comments and test code, of the same length: line numbers stay.
fn product_code(source: &str) -> String {
    let mut code: Vec<u8> = source.into();
    let mut blank = |range: std::ops::Range<usize>| {
        for byte in &mut code[range] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
    };
    let mut start = 0;
    for line in source.split_inclusive('\n') {
        if let Some(at) = line.find("//") {
            blank(start + at..start + line.len());
        }
        start += line.len();
    }
    let without_comments = String::from_utf8(code.clone()).expect("only whole lines' ends went");
    const TEST: &str = "#[cfg(test)]";
    let mut blank = |range: std::ops::Range<usize>| {
        for byte in &mut code[range] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
    };
    let mut at = 0;
    while let Some(found) = without_comments[at..].find(TEST) {
        let start = at + found;
        let end = start + TEST.len() + item_len(&without_comments[start + TEST.len()..]);
        blank(start..end);
        at = end;
    }
    String::from_utf8(code).expect("only whole items went")
}

/// The length of the item, field or statement that the text begins with.
fn item_len(text: &str) -> usize {
    let is_use = text
        .trim_start()
        .trim_start_matches("pub ")
        .starts_with("use ");
    let mut depth = 0_usize;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' if depth == 0 => return at,
            b')' | b']' => depth -= 1,
            b'}' => {
                depth -= 1;
                if depth == 0 && !is_use {
                    return at + 1;
                }
            }
            b';' if depth == 0 => return at + 1,
            // The end of a field.
            b',' if depth == 0 && !text[..at].contains(" fn ") => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The names that a path goes on with: one, or those of a group.
fn first_names(rest: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        let text = text.trim_start();
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
        text[..end.unwrap_or(text.len())].to_owned()
    };
    let Some(group) = rest.strip_prefix('{') else {
        return vec![name(rest)];
    };
    let mut names = Vec::new();
    let (mut depth, mut start) = (0_usize, 0);
    for (at, byte) in group.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 0 => {
                names.push(name(&group[start..at]));
                break;
            }
            b'}' => depth -= 1,
            b',' if depth == 0 => {
                names.push(name(&group[start..at]));
                start = at + 1;
            }
            _ => {}
        }
    }
    names
}

/// Which rooms a file uses, apart from its own.
fn arrows(file: &str, source: &str) -> Vec<Arrow> {
    let code = product_code(source);
    let path = module_path(file);
    let mut arrows = Vec::new();
    let mut note = |at: usize, rest: &str| {
        for to in first_names(rest) {
            // Macros and items of the crate's root begin with `crate::` too, in other cases.
            if to.starts_with(|c: char| c.is_lowercase()) && to != path[0] && to != "self" {
                arrows.push(Arrow {
                    file: file.to_owned(),
                    line: 1 + code[..at].matches('\n').count(),
                    from: path[0].to_owned(),
                    to,
                });
            }
        }
    };
    let is_path_start = |at: usize| {
        let before = code[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
    };
    for (at, found) in code.match_indices("crate::") {
        if is_path_start(at) {
            note(at, &code[at + found.len()..]);
        }
    }
    for (at, _) in code.match_indices("super::") {
        if !is_path_start(at) {
            continue;
        }
        let mut rest = &code[at..];
        let mut up = 0;
        while let Some(next) = rest.strip_prefix("super::") {
            (rest, up) = (next, up + 1);
        }
        // Out of the room, and into another.
        if up >= path.len() {
            note(at, rest);
        }
    }
    arrows
}

/// The arrows of these that the table does not allow.
fn violations(arrows: impl IntoIterator<Item = Arrow>) -> Vec<String> {
    let allowed = allowed();
    let is_allowed = |arrow: &Arrow| {
        COMPOSERS.contains(&arrow.from.as_str())
            || allowed
                .get(arrow.from.as_str())
                .is_some_and(|uses| uses.contains(arrow.to.as_str()))
    };
    let arrows = arrows.into_iter().filter(|arrow| !is_allowed(arrow));
    arrows.map(|arrow| arrow.to_string()).collect()
}

fn source_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("it can be read").path();
        if path.is_dir() {
            source_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// All arrows of the product.
fn product_arrows() -> Vec<Arrow> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    source_files(&src, &mut files);
    let mut all = Vec::new();
    for file in files {
        let name = file.strip_prefix(&src).expect("it is below");
        let name = name.to_str().expect("its name is text").to_owned();
        if !is_test_file(&name) {
            let source = fs::read_to_string(&file).expect("it can be read");
            all.extend(arrows(&name, &source));
        }
    }
    all.sort();
    all
}

#[test]
fn rooms_use_each_other_in_one_direction() {
    let arrows = product_arrows();
    assert!(arrows.len() > 50, "{} arrows were found", arrows.len());
    let violations = violations(arrows);
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

#[test]
fn table_of_rooms_has_no_cycle() {
    let mut left = allowed();
    while !left.is_empty() {
        let rooms: BTreeSet<_> = left.keys().copied().collect();
        let before = left.len();
        left.retain(|_, uses| uses.iter().any(|room| rooms.contains(room)));
        assert!(left.len() < before, "a cycle among {rooms:?}");
    }
}

#[test]
fn planted_backward_arrow_is_found() {
    let found = |file: &str, source: &str| violations(arrows(file, source));
    let back = |file: &str, line: usize, arrow: &str| {
        vec![format!("src/{file}:{line}: {arrow} is not allowed")]
    };
    let file = "store/writer.rs";
    let cases = [
        "\nuse crate::fanout::ChangeLog;",
        "\nuse crate::{fanout::ChangeLog, store::Batch};",
        "\npub(crate) use crate::fanout;",
        "\nuse super::super::fanout::ChangeLog;",
        "\nfn f() { crate::fanout::fanout(); }",
    ];
    for source in cases {
        assert_eq!(
            found(file, source),
            back(file, 2, "store → fanout"),
            "{source}"
        );
    }
    let source = "use super::fanout::ChangeLog;";
    assert_eq!(
        found("store/mod.rs", source),
        back("store/mod.rs", 1, "store → fanout")
    );
    let after_tests = "#[cfg(test)]\nuse crate::{a, b};\n#[cfg(test)]\nfn f(a: A, b: B) { {} }\n\
        struct S {\n#[cfg(test)]\ngate: G,\nlog: crate::fanout::ChangeLog }";
    assert_eq!(found(file, after_tests), back(file, 8, "store → fanout"));
    assert_eq!(
        found("a_new_room/mod.rs", "use crate::store::Batch;"),
        back("a_new_room/mod.rs", 1, "a_new_room → store"),
        "a room that is not in the table"
    );
    for source in [
        "// use crate::fanout::ChangeLog;",
        "/// [`ChangeLog`](crate::fanout::ChangeLog)",
        "use super::snapshot::Snapshot;",
        "use crate::store::Batch;",
        "#[cfg(test)]\nmod tests {\n    use crate::fanout::ChangeLog;\n}",
    ] {
        assert!(found(file, source).is_empty(), "{source}");
    }
    let forward = "use crate::encode::EncodedBatch;\nuse crate::store::Batch;";
    assert!(found("fanout/scope.rs", forward).is_empty());
}
