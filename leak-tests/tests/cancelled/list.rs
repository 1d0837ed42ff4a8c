//! Reads Rust sources and lists the public futures in them, so that none is forgotten.
//!
//! It knows as much of Rust as the sources use, formatted as `cargo fmt` does: items begin at the
//! left margin, and what belongs to one is indented. What is public, but in nobody's reach, is listed
//! all the same.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// The traits whose implementations are futures, or become one, and which function says so. A stream
/// is waited for as well.
const TRAITS: [(&str, &str); 3] = [
    ("IntoFuture", "into_future"),
    ("Future", "poll"),
    ("Stream", "poll_next"),
];

/// The heading that each has to have.
const HEADING: &str = "# Cancel safety";

/// A public future.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    /// `Type::function`, or `file::function` outside of a type.
    pub(crate) name: String,
    file: PathBuf,
    line: usize,
    pub(crate) says_cancel_safety: bool,
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}:{})", self.name, self.file.display(), self.line)
    }
}

/// All in a folder and the folders in it, but for unit tests.
pub(crate) fn public_futures(folder: &Path) -> Vec<Listed> {
    let mut sources = Vec::new();
    read(folder, &mut sources);
    sources.sort();
    assert!(!sources.is_empty(), "{} has no sources", folder.display());
    let mut found: Vec<Listed> = Vec::new();
    for (file, text) in &sources {
        found.extend(in_source(file, text, &sources));
    }
    found
}

fn read(folder: &Path, sources: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            sources.push((path, text));
        }
    }
}

/// What an `impl` at the left margin is about.
struct Block {
    of: String,
    /// One of [`TRAITS`].
    future: Option<(&'static str, usize)>,
    says_cancel_safety: bool,
}

fn in_source(file: &Path, text: &str, all: &[(PathBuf, String)]) -> Vec<Listed> {
    let module = file.file_stem().unwrap().to_string_lossy().into_owned();
    let mut found = Vec::new();
    let mut block: Option<Block> = None;
    let mut documented = false;
    let lines: Vec<&str> = text.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let at_margin = code.len() == line.len();
        if let Some(words) = code.strip_prefix("///") {
            documented |= words.trim() == HEADING;
            continue;
        }
        if code.is_empty() || code.starts_with('#') || code.starts_with("//") {
            if at_margin && code == "#[cfg(test)]" {
                // Unit tests are at the end of a file, or one function between others.
                let next = lines.get(index + 1).copied().unwrap_or_default();
                if next.starts_with("mod tests {") {
                    break;
                }
            }
            continue;
        }
        if at_margin && (code.starts_with("impl ") || code.starts_with("impl<")) {
            let header = header(&lines[index..]);
            block = implemented(&header).map(|(of, future)| Block {
                of,
                future: future.map(|function| (function, index + 1)),
                says_cancel_safety: documented,
            });
        } else if at_margin && code.starts_with('}') {
            if let Some(Block {
                of,
                future: Some((function, line)),
                says_cancel_safety,
            }) = block.take()
                && let Some(documented) = public_type(&of, all)
            {
                found.push(Listed {
                    name: format!("{of}::{function}"),
                    file: file.to_owned(),
                    line,
                    says_cancel_safety: says_cancel_safety || documented,
                });
            }
        } else if let Some(block) = &mut block
            && let Some((function, _)) = block.future
        {
            let is_it = code.split_once("fn ").is_some_and(|(_, rest)| {
                rest.strip_prefix(function)
                    .is_some_and(|rest| rest.starts_with(['(', '<']))
            });
            block.says_cancel_safety |= is_it && documented;
        } else if code.starts_with("pub ")
            && let Some(function) = public_future(&header(&lines[index..]))
        {
            let of = block.as_ref().filter(|_| !at_margin);
            let of = of.map_or(module.as_str(), |block| block.of.as_str());
            found.push(Listed {
                name: format!("{of}::{function}"),
                file: file.to_owned(),
                line: index + 1,
                says_cancel_safety: documented,
            });
        }
        documented = false;
    }
    found
}

/// An item up to its body, on one line.
fn header(lines: &[&str]) -> String {
    let mut header = String::new();
    for line in lines {
        header.push_str(line.trim());
        header.push(' ');
        if line.contains('{') || line.trim_end().ends_with(';') {
            break;
        }
    }
    header
}

/// The name of a public function that is a future, or gives one.
fn public_future(header: &str) -> Option<String> {
    let signature = header.split(" where ").next()?;
    let (before, after) = signature.split_once("fn ")?;
    let name: String = after
        .chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect();
    // The last arrow: arguments may be functions.
    let gives = after.rsplit_once("->").map_or("", |(_, gives)| gives);
    let gives_one = ["impl ", "dyn "].iter().any(|kind| {
        let mut kinds = gives.split(kind).skip(1);
        kinds.any(|bound| TRAITS.iter().any(|(name, _)| names(bound, name)))
    });
    (before.contains("async ") || gives_one).then_some(name)
}

/// What an `impl` is for, and of which of the traits.
fn implemented(header: &str) -> Option<(String, Option<&'static str>)> {
    let rest = header.strip_prefix("impl")?;
    let rest = match rest.strip_prefix('<') {
        Some(generics) => generics[closing(generics)?..].trim_start(),
        None => rest.trim_start(),
    };
    let (future, of) = match rest.split_once(" for ") {
        Some((implemented, of)) => {
            let function = TRAITS.iter().find(|(name, _)| names(implemented, name));
            (function.map(|(_, function)| *function), of)
        }
        None => (None, rest),
    };
    let of: String = of
        .chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect();
    Some((of, future))
}

/// Whether a bound or a path begins with this trait, by whatever path.
fn names(bound: &str, name: &str) -> bool {
    let end = bound.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    let path = &bound[..end.unwrap_or(bound.len())];
    path.rsplit("::").next() == Some(name)
}

/// Behind the `>` that belongs to an opening bracket before the text.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 1;
    let mut before = ' ';
    for (index, char) in text.char_indices() {
        match char {
            '<' => depth += 1,
            '>' if before != '-' => depth -= 1,
            _ => {}
        }
        before = char;
        if depth == 0 {
            return Some(index + 1);
        }
    }
    None
}

/// Whether there is a public type of that name, and then whether its documentation has the heading.
fn public_type(name: &str, all: &[(PathBuf, String)]) -> Option<bool> {
    for (_, text) in all {
        let mut documented = false;
        for line in text.lines() {
            if let Some(words) = line.strip_prefix("///") {
                documented |= words.trim() == HEADING;
            } else if let Some(rest) = ["pub struct ", "pub enum "]
                .iter()
                .find_map(|item| line.strip_prefix(item))
            {
                if rest.strip_prefix(name).is_some_and(|rest| {
                    !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_')
                }) {
                    return Some(documented);
                }
                documented = false;
            } else if !line.starts_with('#') {
                documented = false;
            }
        }
    }
    None
}

#[test]
fn what_is_public_and_waits_is_listed() {
    let source = r#"
//! A module.

/// A handle.
pub struct Handle<T>(T);

/// Options.
///
/// # Cancel safety
/// Yes.
#[must_use]
pub struct Builder;

pub(crate) struct Hidden;

impl<T: Fn() -> u32> Handle<T> {
    /// Waits.
    ///
    /// # Cancel safety
    /// Yes.
    pub async fn one(&self) {}

    /// Says nothing of it.
    pub async fn two<F: Fn() -> u32>(
        &self,
    ) -> u32
    where
        F: Send,
    {
    }

    /// # Cancel safety
    /// Yes.
    pub fn three(
        &self,
    ) -> impl std::future::Future<Output = ()> + Send {
    }

    /// Boxed.
    pub fn four(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {}

    pub(crate) async fn hidden(&self) {}

    async fn private(&self) {}

    pub fn not_one(&self, f: impl Future<Output = ()>) -> u32 {}
}

impl IntoFuture for Builder {
    type Output = ();

    fn into_future(self) -> Self::IntoFuture {}
}

impl<T> futures_core::Stream for Handle<T> {
    /// # Cancel safety
    /// Yes.
    fn poll_next(self: Pin<&mut Self>) {}
}

impl Future for Hidden {
    fn poll(self: Pin<&mut Self>) {}
}

pub async fn free() {}

#[cfg(test)]
mod tests {
    pub async fn in_a_test() {}
}
"#;
    let file = PathBuf::from("module.rs");
    let all = [(file.clone(), source.to_owned())];
    let found = in_source(&file, source, &all);
    let found: Vec<_> = found
        .iter()
        .map(|found| (found.name.as_str(), found.says_cancel_safety))
        .collect();
    assert_eq!(
        found,
        [
            ("Handle::one", true),
            ("Handle::two", false),
            ("Handle::three", true),
            ("Handle::four", false),
            ("Builder::into_future", true),
            ("Handle::poll_next", true),
            ("module::free", false),
        ]
    );
}
