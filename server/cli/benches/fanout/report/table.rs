//! Tables in Markdown.

use std::fmt::Write;

use super::budgets::Budget;
use crate::row::{self, Row};

/// Counts worth a place in the last column, where there are any.
const COUNTS: [(&str, &str); 12] = [
    ("ns_per_read", "ns a read"),
    ("etcd_watchers", "etcd watches"),
    ("changes", "changes"),
    ("changes_encoded", "encoded"),
    ("frames_encoded", "frames"),
    ("snapshot_chunks_encoded", "snapshot chunks"),
    ("syncs_current", "answered current"),
    ("syncs_snapshot", "answered snapshot"),
    ("syncs_deferred", "told to come back"),
    ("conflated", "conflated"),
    (
        "rss_kib_per_subscriber_peak",
        "KiB a subscriber at the peak",
    ),
    ("wall_ms", "ms in all"),
];

/// All rows.
pub(super) fn rows(rows: &[Row]) -> String {
    let mut table = String::from(
        "| scenario | subscribers | contender | CPU µs per delivery (server alone) | × etcd | × floor | p50 ms | p99 ms \
         | wire bytes per delivery | KiB per subscriber idle (server alone) | after (server alone) | counts |\n\
         | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n",
    );
    for row in rows {
        let head = format!(
            "| {} | {} | {} |",
            row.scenario, row.subscribers, row.contender
        );
        if let Some(why) = &row.missing {
            put(
                &mut table,
                &format!("{head} not measured: {why} | | | | | | | | |"),
            );
            continue;
        }
        let both = |all: &str, server: &str| match (row.get(all), row.get(server)) {
            (Some(all), Some(server)) => format!("{} ({})", number(all), number(server)),
            (Some(all), None) => number(all),
            (None, _) => "–".to_owned(),
        };
        let one = |name: &str| row.get(name).map_or_else(|| "–".to_owned(), number);
        let ratio = |other: &str| {
            find(rows, other, &row.scenario, row.subscribers)
                .and_then(|other| Some(row.get(row::CPU)? / other.get(row::CPU)?))
                .map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}"))
        };
        let counts: Vec<String> = COUNTS
            .iter()
            .filter_map(|(name, label)| {
                let count = row.get(name).filter(|count| *count != 0.0)?;
                Some(format!("{} {label}", number(count)))
            })
            .collect();
        put(
            &mut table,
            &format!(
                "{head} {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                both(row::CPU, row::SERVER_CPU),
                ratio("etcd"),
                ratio("floor"),
                one(row::P50),
                one(row::P99),
                one(row::WIRE),
                both(row::RSS_IDLE, row::SERVER_RSS_IDLE),
                both(row::RSS_AFTER, row::SERVER_RSS_AFTER),
                counts.join(", "),
            ),
        );
    }
    table
}

/// The budgets, and whether they are kept.
pub(super) fn budgets(budgets: &[Budget]) -> String {
    let mut table =
        String::from("| budget | measured | allowed | |\n| --- | ---: | ---: | --- |\n");
    for budget in budgets {
        let kept = if budget.measured <= budget.allowed {
            "kept"
        } else {
            "missed"
        };
        put(
            &mut table,
            &format!(
                "| {} | {} | {} | {kept} |",
                budget.what,
                number(budget.measured),
                number(budget.allowed),
            ),
        );
    }
    table
}

/// The row of a contender.
pub(super) fn find<'a>(
    rows: &'a [Row],
    contender: &str,
    scenario: &str,
    subscribers: usize,
) -> Option<&'a Row> {
    rows.iter().find(|row| {
        (
            row.contender.as_str(),
            row.scenario.as_str(),
            row.subscribers,
        ) == (contender, scenario, subscribers)
    })
}

/// Three digits that count, or all before the point.
pub(super) fn number(number: f64) -> String {
    let size = number.abs();
    if size >= 100.0 || number == number.round() {
        format!("{number:.0}")
    } else if size >= 10.0 {
        format!("{number:.1}")
    } else {
        format!("{number:.2}")
    }
}

fn put(table: &mut String, line: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(table, "{line}");
}
