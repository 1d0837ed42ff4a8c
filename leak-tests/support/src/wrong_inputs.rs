//! `server/WRONG_INPUTS.md`, the page of wrong inputs: compares its tables with what happened, or
//! writes them anew.

use std::fmt::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Set to write the tables anew.
const REGENERATE: &str = "DRIFTLESS_REGENERATE";

/// What every value and password in these tests contains, and no message may.
pub const CANARY: &str = "canary-8193";

/// What no message may contain: crashes, values, and the insides of programs.
const NEVER: [&str; 9] = [
    "panicked",
    "RUST_BACKTRACE",
    "stack backtrace",
    CANARY,
    "error: error",
    "Error {",
    "Some(",
    "Err(",
    "Os {",
];

/// One wrong input and what came of it.
#[derive(Debug)]
pub struct Row {
    wrong: String,
    done: String,
    result: String,
    says: Vec<String>,
}

impl Row {
    /// What was wrong, the command, its status or what it does, and what it printed.
    ///
    /// # Panics
    /// For what no output may contain.
    #[track_caller]
    #[must_use]
    pub fn new(
        wrong: &str,
        done: &str,
        result: impl ToString,
        says: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        let says: Vec<String> = says.into_iter().map(Into::into).collect();
        for line in &says {
            check_output(line);
        }
        Self {
            wrong: wrong.to_owned(),
            done: done.to_owned(),
            result: result.to_string(),
            says,
        }
    }

    fn line(&self) -> String {
        let says: Vec<String> = self.says.iter().map(|line| code(line)).collect();
        let says = match says.is_empty() {
            true => "nothing".to_owned(),
            false => says.join("<br>"),
        };
        let done = code(&self.done);
        format!("| {} | {done} | {} | {says} |", self.wrong, self.result)
    }
}

/// Fails for what no output may contain.
///
/// # Panics
/// When it contains that.
#[track_caller]
pub fn check_output(output: &str) {
    for never in NEVER {
        assert!(!output.contains(never), "{never:?} in: {output}");
    }
}

/// As a span of code in a table.
fn code(text: &str) -> String {
    assert!(!text.contains('\n'), "more than a line: {text}");
    let text = text.replace('|', "\\|");
    match text.contains('`') {
        true => format!("`` {text} ``"),
        false => format!("`{text}`"),
    }
}

fn path() -> &'static Path {
    Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../server/WRONG_INPUTS.md"
    ))
}

/// The titles of the page's tables.
///
/// # Panics
/// When the page cannot be read.
#[must_use]
pub fn sections() -> Vec<String> {
    let page = std::fs::read_to_string(path()).expect("it can be read");
    page.lines()
        .filter_map(|line| line.strip_prefix("## "))
        .map(str::to_owned)
        .collect()
}

/// Compares the table under a title with these rows; writes it anew when asked to.
///
/// # Panics
/// When they differ.
#[track_caller]
pub fn check_table(title: &str, rows: &[Row]) {
    /// Tests of one process run side by side.
    static PAGE: Mutex<()> = Mutex::new(());
    let _page = PAGE.lock().unwrap_or_else(PoisonError::into_inner);
    let path = path();
    let page = std::fs::read_to_string(path).expect("it can be read");
    let heading = format!("## {title}\n");
    let start = page.find(&heading).expect("the page has this section") + heading.len();
    let end = page[start..]
        .find("\n## ")
        .map_or(page.len(), |at| start + at + 1);
    let (above, section, below) = (&page[..start], &page[start..end], &page[end..]);
    let happened: Vec<String> = rows.iter().map(Row::line).collect();
    if std::env::var_os(REGENERATE).is_some() {
        let words = section.lines().take_while(|line| !line.starts_with('|'));
        let words = words.collect::<Vec<_>>().join("\n");
        let words = match words.trim() {
            "" => String::new(),
            words => format!("{words}\n\n"),
        };
        let below = match below {
            "" => String::new(),
            below => format!("\n{below}"),
        };
        let mut table = "| what is wrong | command | status | what it says |\n".to_owned();
        table.push_str("| --- | --- | --- | --- |\n");
        for line in &happened {
            writeln!(table, "{line}").expect("it is memory");
        }
        let page = format!("{above}\n{words}{table}{below}");
        std::fs::write(path, page).expect("it can be written");
        return;
    }
    let table = section.lines().filter(|line| line.starts_with('|'));
    let written: Vec<&str> = table.skip(2).collect();
    if written == happened {
        return;
    }
    let mut differences = String::new();
    for line in written
        .iter()
        .filter(|line| !happened.contains(&(**line).to_owned()))
    {
        writeln!(differences, "- {line}").expect("it is memory");
    }
    for line in happened
        .iter()
        .filter(|line| !written.contains(&line.as_str()))
    {
        writeln!(differences, "+ {line}").expect("it is memory");
    }
    panic!(
        "{}, {title}: the page (-) is not what happens (+), or the order is another; \
         {REGENERATE}=1 writes it anew:\n{differences}",
        path.display()
    );
}
