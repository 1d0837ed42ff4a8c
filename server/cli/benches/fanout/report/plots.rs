//! Which plots there are.

use super::svg::Bars;
use crate::row::{self, Row};

/// The plots by file name; those without any figure are left out.
pub(super) fn all(rows: &[Row]) -> Vec<(&'static str, String)> {
    let compared = |row: &&Row| {
        ["small", "64k", "multiplexed", "stalled"].contains(&row.scenario.as_str())
            && row.contender != "driftless-client"
    };
    let rows: Vec<&Row> = rows.iter().filter(|row| row.missing.is_none()).collect();
    let several: Vec<&Row> = rows.iter().copied().filter(compared).collect();
    let growing: Vec<&Row> = rows
        .iter()
        .copied()
        .filter(|row| row.scenario.starts_with("keys-") || row.scenario.starts_with("scopes-"))
        .collect();
    [
        (
            "cpu.svg",
            "CPU per delivery, all processes of a contender",
            "µs",
            row::CPU,
            &several,
        ),
        (
            "p99.svg",
            "From put to arrival, 99 of 100",
            "ms",
            row::P99,
            &several,
        ),
        (
            "memory-idle.svg",
            "Memory per idle subscriber",
            "KiB",
            row::RSS_IDLE,
            &several,
        ),
        (
            "memory-after.svg",
            "Memory per subscriber after the changes",
            "KiB",
            row::RSS_AFTER,
            &several,
        ),
        (
            "growth.svg",
            "CPU of the server for a change, as keys and unrelated ranges grow",
            "µs",
            row::SERVER_CPU,
            &growing,
        ),
    ]
    .into_iter()
    .filter_map(|(file, title, axis, figure, rows)| {
        let bars = bars(title, axis, figure, rows);
        (!bars.groups.is_empty()).then(|| (file, bars.draw()))
    })
    .collect()
}

/// A group for each scenario and number of subscribers, a series for each contender.
fn bars(title: &str, axis: &str, figure: &str, rows: &[&Row]) -> Bars {
    let mut series: Vec<String> = Vec::new();
    let mut groups: Vec<(String, Vec<Option<f64>>)> = Vec::new();
    for row in rows {
        if !series.contains(&row.contender) {
            series.push(row.contender.clone());
        }
    }
    for row in rows {
        let Some(value) = row.get(figure) else {
            continue;
        };
        let name = match row.subscribers {
            1 => row.scenario.clone(),
            subscribers => format!("{}, {subscribers}", row.scenario),
        };
        let at = groups.iter().position(|(group, _)| *group == name);
        let at = at.unwrap_or_else(|| {
            groups.push((name, vec![None; series.len()]));
            groups.len() - 1
        });
        if let Some(own) = series.iter().position(|name| *name == row.contender) {
            groups[at].1[own] = Some(value);
        }
    }
    Bars {
        title: title.to_owned(),
        axis: axis.to_owned(),
        series,
        groups,
    }
}
