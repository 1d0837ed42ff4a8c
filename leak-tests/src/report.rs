//! The report on many rounds: one HTML page with a plot of each count, and JSON for machines.

use std::fmt::Write as _;
use std::path::Path;
use std::{fs, io};

use serde::{Deserialize, Serialize};

use crate::curve::Curve;
use crate::outcome::Outcome;
use crate::rounds::MIN_ROUNDS_FOR_GROWTH;
use crate::witness::Rule;

/// The page's name in its folder.
const PAGE: &str = "index.html";

/// The name of the JSON file.
const JSON: &str = "report.json";

/// The same without the points of the plots: small enough to be kept with a program's sources.
const SUMMARY: &str = "summary.json";

/// How wide a plot is, in CSS pixels.
const WIDTH: u32 = 260;
/// And its height.
const HEIGHT: u32 = 80;

/// One [`Outcome`], as it is stored and passed on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Record {
    /// The name of the scenario.
    pub name: String,
    /// What it does, in a sentence.
    pub about: String,
    /// How many rounds the verdict is about.
    pub rounds: u64,
    /// Whether something had grown, so that the rounds ran again, up to four times as many.
    pub repeated: bool,
    /// What each witness counted.
    pub plots: Vec<Plot>,
    /// The counts read only before the first round and after the last: the witness, and both counts.
    pub ends: Vec<(String, i64, i64)>,
    /// How long the counts took to return: the median in microseconds.
    pub median_us: Option<u64>,
    /// How long that may take by promise, in microseconds.
    pub promised_us: Option<u64>,
    /// What leaked, in words.
    pub leaks: Vec<String>,
    /// The witnesses that noticed.
    pub noticed_by: Vec<String>,
    /// The witnesses that must notice the fault of a control. Empty where nothing should leak.
    pub fault_for: Vec<String>,
    /// Where the kept memory was allocated, the largest part first.
    pub stacks: Vec<String>,
}

/// What one witness counted over the rounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Plot {
    /// The name of the witness.
    pub witness: String,
    /// Round, lowest count, and highest count from there to the next point.
    pub points: Vec<(u64, i64, i64)>,
    /// The lowest counts in the second and in the last fifth.
    pub compared: Option<(i64, i64)>,
    /// By how much it may grow; `None` where it has to return exactly.
    pub slack: Option<i64>,
}

impl From<&Curve> for Plot {
    fn from(curve: &Curve) -> Self {
        let points = curve.points.iter();
        Self {
            witness: curve.witness.clone(),
            points: points.map(|p| (p.round, p.low, p.high)).collect(),
            compared: curve.compared,
            slack: match curve.rule {
                Rule::Returns => None,
                Rule::MayNotGrow { slack } => Some(slack),
            },
        }
    }
}

impl Record {
    /// The record of an outcome; `about` says in a sentence what was done.
    pub fn new(outcome: &Outcome, about: impl Into<String>) -> Self {
        let micros =
            |time: std::time::Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let noticed_by = outcome.noticed_by().into_iter();
        Self {
            name: outcome.name.clone(),
            about: about.into(),
            rounds: outcome.rounds,
            repeated: outcome.repeated,
            plots: outcome.curves.iter().map(Plot::from).collect(),
            ends: outcome.ends.clone(),
            median_us: outcome.median.map(micros),
            promised_us: outcome.promised.map(micros),
            leaks: outcome.leaks.iter().map(ToString::to_string).collect(),
            noticed_by: noticed_by.map(str::to_owned).collect(),
            fault_for: Vec::new(),
            stacks: outcome.stacks.clone(),
        }
    }

    /// The record of a scenario that failed before it had an outcome.
    pub fn failed(
        name: impl Into<String>,
        about: impl Into<String>,
        why: impl Into<String>,
    ) -> Self {
        Self {
            name: name.into(),
            about: about.into(),
            rounds: 0,
            repeated: false,
            plots: Vec::new(),
            ends: Vec::new(),
            median_us: None,
            promised_us: None,
            leaks: vec![why.into()],
            noticed_by: Vec::new(),
            fault_for: Vec::new(),
            stacks: Vec::new(),
        }
    }

    /// Marks a control: these witnesses must notice its fault.
    #[must_use = "without it the fault counts as a failure"]
    pub fn fault_for(mut self, witnesses: &[&str]) -> Self {
        self.fault_for = witnesses.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    /// Whether there were enough rounds, a hundred, for a verdict on growth.
    pub const fn can_judge_growth(&self) -> bool {
        self.rounds >= MIN_ROUNDS_FOR_GROWTH
    }

    /// Nothing leaked; or, in a control, every witness that must notice the fault did.
    pub fn passed(&self) -> bool {
        if self.fault_for.is_empty() {
            self.leaks.is_empty()
        } else {
            let mut meant = self.fault_for.iter();
            meant.all(|name| self.noticed_by.contains(name))
        }
    }

    /// The verdict in a few words.
    pub fn verdict(&self) -> String {
        let noticed = self.noticed_by.join(", ");
        match (self.fault_for.is_empty(), self.passed()) {
            (true, true) if !self.can_judge_growth() => {
                "nothing is kept; too few rounds to tell of growth".to_owned()
            }
            (true, true) => "nothing leaks".to_owned(),
            (true, false) => self.leaks.join("; "),
            (false, true) => format!("noticed by {noticed}"),
            (false, false) if noticed.is_empty() => format!(
                "the fault was not noticed by {}{}",
                self.fault_for.join(", "),
                self.leaks
                    .iter()
                    .fold(String::new(), |all, leak| all + "; " + leak)
            ),
            (false, false) => format!(
                "the fault was noticed by {noticed}, and not by all of {}",
                self.fault_for.join(", ")
            ),
        }
    }

    /// The median and the promise; empty when neither is known.
    fn times(&self) -> String {
        let shown = |micros: Option<u64>| micros.map(time);
        match (shown(self.median_us), shown(self.promised_us)) {
            (Some(median), Some(promised)) => format!("{median} of {promised}"),
            (Some(median), None) => median,
            (None, _) => String::new(),
        }
    }
}

/// A [`Record`] without the points of its plots.
#[derive(Serialize)]
struct Summary<'a> {
    name: &'a str,
    rounds: u64,
    repeated: bool,
    passed: bool,
    verdict: String,
    median_us: Option<u64>,
    promised_us: Option<u64>,
    counts: Vec<Counts<'a>>,
    ends: &'a [(String, i64, i64)],
}

/// The extremes of a [`Plot`].
#[derive(Serialize)]
struct Counts<'a> {
    witness: &'a str,
    lowest: Option<i64>,
    highest: Option<i64>,
    /// In the second and in the last fifth, where it may not grow.
    lowest_in_fifths: Option<(i64, i64)>,
}

impl<'a> From<&'a Record> for Summary<'a> {
    fn from(record: &'a Record) -> Self {
        let counts = record.plots.iter().map(|plot| Counts {
            witness: &plot.witness,
            lowest: plot.points.iter().map(|point| point.1).min(),
            highest: plot.points.iter().map(|point| point.2).max(),
            lowest_in_fifths: plot.compared.filter(|_| plot.slack.is_some()),
        });
        Self {
            name: &record.name,
            rounds: record.rounds,
            repeated: record.repeated,
            passed: record.passed(),
            verdict: record.verdict(),
            median_us: record.median_us,
            promised_us: record.promised_us,
            counts: counts.collect(),
            ends: &record.ends,
        }
    }
}

/// A line for each record, so that a person can compare two of them.
fn summary(records: &[Record]) -> io::Result<String> {
    let lines: Result<Vec<String>, _> = records
        .iter()
        .map(|record| serde_json::to_string(&Summary::from(record)))
        .collect();
    Ok(format!("[\n{}\n]\n", lines?.join(",\n")))
}

/// Writes the page (`index.html`), all counts (`report.json`), and the same without the points of the
/// plots (`summary.json`) into a folder, which is made if it is not there.
///
/// # Errors
/// When the folder or the files cannot be written.
pub fn write_report(folder: &Path, title: &str, records: &[Record]) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::write(folder.join(JSON), serde_json::to_vec(records)?)?;
    fs::write(folder.join(SUMMARY), summary(records)?)?;
    fs::write(folder.join(PAGE), page(title, records))
}

fn page(title: &str, records: &[Record]) -> String {
    let mut page = String::with_capacity(64 * 1024);
    let failed = records.iter().filter(|record| !record.passed()).count();
    // Writing to a string does not fail.
    let _ = write!(
        page,
        "<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>\
         <h1>{title}</h1><p>{} passed, {failed} failed. A count is taken after each round, once \
         everything is dropped; a point of a plot spans the lowest and the highest of some rounds. \
         What may not grow is compared by its lowest counts in the second and in the last fifth of \
         the rounds, which are shaded.</p>",
        records.len() - failed,
        title = escaped(title),
    );
    for (heading, is_control) in [
        ("Ways out", false),
        ("Controls: faults that must be found", true),
    ] {
        let part = records
            .iter()
            .filter(|record| record.fault_for.is_empty() != is_control);
        let part: Vec<&Record> = part.collect();
        if part.is_empty() {
            continue;
        }
        let _ = write!(
            page,
            "<h2>{heading}</h2><table><tr><th>what<th>rounds<th>back after, median<th>verdict"
        );
        for record in &part {
            let _ = write!(
                page,
                "<tr class={}><td><a href='#{name}'>{name}</a><td class=n>{}{}<td class=n>{}<td>{}",
                class(record),
                record.rounds,
                if record.repeated { " (again)" } else { "" },
                record.times(),
                escaped(&record.verdict()),
                name = escaped(&record.name),
            );
        }
        page.push_str("</table>");
        for record in part {
            section(&mut page, record);
        }
    }
    page
}

fn class(record: &Record) -> &'static str {
    if record.passed() { "ok" } else { "bad" }
}

fn section(page: &mut String, record: &Record) {
    let _ = write!(
        page,
        "<section id='{name}' class={}><h3>{name}</h3><p>{}</p><p class=v>{}</p><div>",
        class(record),
        escaped(&record.about),
        escaped(&record.verdict()),
        name = escaped(&record.name),
    );
    for shown in &record.plots {
        plot(page, record, shown);
    }
    page.push_str("</div>");
    for (witness, before, after) in &record.ends {
        let witness = escaped(witness);
        let _ = write!(
            page,
            "<p>{witness}: {before} before and {after} after all rounds</p>"
        );
    }
    if !record.stacks.is_empty() {
        page.push_str("<h4>Where it was allocated</h4>");
        for stack in &record.stacks {
            let _ = write!(page, "<pre>{}</pre>", escaped(stack));
        }
    }
    page.push_str("</section>");
}

fn plot(page: &mut String, record: &Record, shown: &Plot) {
    let low = shown.points.iter().map(|point| point.1).min();
    let high = shown.points.iter().map(|point| point.2).max();
    let (Some(low), Some(high)) = (low, high) else {
        return;
    };
    let noticed = record.noticed_by.contains(&shown.witness);
    let _ = write!(
        page,
        "<figure class={}><figcaption>{}: {}</figcaption>\
         <svg viewBox='0 0 {WIDTH} {HEIGHT}' width={WIDTH} height={HEIGHT}>",
        if noticed { "bad" } else { "ok" },
        escaped(&shown.witness),
        if low == high {
            low.to_string()
        } else {
            format!("{low} to {high}")
        },
    );
    let across = |round: u64| f64::from(WIDTH) * ratio(round.into(), record.rounds.max(1).into());
    // A flat line is in the middle.
    let up = |count: i64| {
        let span = i128::from(high) - i128::from(low);
        let part = if span == 0 {
            0.5
        } else {
            ratio(i128::from(count) - i128::from(low), span)
        };
        2.0 + (f64::from(HEIGHT) - 4.0) * (1.0 - part)
    };
    if shown.slack.is_some() {
        let fifth = record.rounds / 5;
        for from in [fifth, record.rounds - fifth] {
            let _ = write!(
                page,
                "<rect x={:.1} y=0 width={:.1} height={HEIGHT} />",
                across(from),
                across(fifth)
            );
        }
    }
    let mut line = String::new();
    for (round, _, high) in &shown.points {
        let _ = write!(line, "{:.1},{:.1} ", across(*round), up(*high));
    }
    for (round, low, _) in shown.points.iter().rev() {
        let _ = write!(line, "{:.1},{:.1} ", across(*round), up(*low));
    }
    let _ = write!(page, "<polygon points='{}' /></svg>", line.trim_end());
    if let Some((from, to)) = shown.compared.filter(|_| shown.slack.is_some()) {
        let _ = write!(page, "<small>{:+} between the fifths</small>", to - from);
    }
    page.push_str("</figure>");
}

fn ratio(part: i128, whole: i128) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "for a plot")]
    let ratio = part as f64 / whole as f64;
    ratio
}

/// Microseconds, in the unit that people would use.
fn time(micros: u64) -> String {
    let duration = std::time::Duration::from_micros(micros);
    format!("{duration:.3?}").replace(".000", "")
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&#39;"),
            '"' => escaped.push_str("&quot;"),
            _ => escaped.push(char),
        }
    }
    escaped
}

const STYLE: &str = "body{font:14px/1.45 system-ui,sans-serif;margin:2em auto;max-width:72em;padding:0 \
    1em;color:#222;background:#fff}h1{font-size:1.5em}table{border-collapse:collapse;width:100%}\
    th,td{text-align:left;padding:.3em .8em;border-bottom:1px solid #ddd;vertical-align:top}\
    td:first-child{min-width:20em}\
    td.n{white-space:nowrap}tr.ok td:last-child,section.ok .v{color:#17713a}\
    tr.bad td:last-child,section.bad .v{color:#b3261e;font-weight:600}\
    section{margin:2em 0;border-top:1px solid #ddd}section div{display:flex;flex-wrap:wrap;gap:1em}\
    figure{margin:0}figcaption,small{font-size:12px;color:#555}figure.bad figcaption{color:#b3261e}\
    svg{display:block;background:#f6f7f9}rect{fill:#e6eaf0}polygon{fill:#3465a4;stroke:#3465a4;\
    stroke-width:1.5;stroke-linejoin:round}.bad polygon{fill:#b3261e;stroke:#b3261e}\
    pre{background:#f6f7f9;padding:.6em;overflow-x:auto;font-size:12px}";

#[cfg(test)]
mod tests {
    use super::*;

    fn record(noticed_by: &[&str], leaks: &[&str]) -> Record {
        let mut record = Record::failed("a <name>", "about", "");
        record.leaks = leaks.iter().map(|leak| (*leak).to_owned()).collect();
        record.noticed_by = noticed_by.iter().map(|name| (*name).to_owned()).collect();
        record.rounds = 10;
        record.plots = vec![Plot {
            witness: "bytes".to_owned(),
            points: (0..10).map(|round| (round, 5, 7)).collect(),
            compared: Some((5, 6)),
            slack: Some(2),
        }];
        record
    }

    #[test]
    fn a_control_passes_only_when_its_witness_noticed() {
        assert!(record(&[], &[]).passed());
        assert!(!record(&["tasks"], &["kept"]).passed());
        assert!(
            record(&["tasks", "bytes"], &["kept"])
                .fault_for(&["tasks"])
                .passed()
        );
        assert!(!record(&["bytes"], &["kept"]).fault_for(&["tasks"]).passed());
        let unnoticed = record(&[], &[]).fault_for(&["tasks"]);
        assert!(!unnoticed.passed());
        assert_eq!(unnoticed.verdict(), "the fault was not noticed by tasks");
    }

    #[test]
    fn the_page_stands_alone_and_the_json_can_be_read_back() {
        let records = [
            record(&[], &[]),
            record(&["bytes"], &["it grew"]).fault_for(&["bytes"]),
        ];
        let folder = std::env::temp_dir().join(format!("leak-tests-{}", std::process::id()));
        write_report(&folder, "Title", &records).unwrap();
        let page = fs::read_to_string(folder.join(PAGE)).unwrap();
        let json = fs::read(folder.join(JSON)).unwrap();
        let summary = fs::read_to_string(folder.join(SUMMARY)).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(
            serde_json::from_slice::<Vec<Record>>(&json).unwrap(),
            records
        );
        let summed: serde_json::Value = serde_json::from_str(&summary).unwrap();
        assert_eq!(summed[1]["verdict"], "noticed by bytes");
        assert_eq!(summed[1]["counts"][0]["highest"], 7);
        assert_eq!(summary.lines().count(), 4);
        assert!(page.contains("a &lt;name&gt;") && !page.contains("<name>"));
        assert!(page.contains("2 passed, 0 failed") && page.contains("<polygon points='"));
        for outside in ["http:", "https:", "src=", "<script"] {
            assert!(!page.contains(outside), "{outside}");
        }
    }
}
