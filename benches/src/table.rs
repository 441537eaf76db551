//! The answers as tables in the terminal.

use std::fmt::Write;

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};

use crate::bar::{BARS, Standing, WRITTEN_AT_RMW_NS, bar_of};
use crate::figures::{digits, quantity};
use crate::report::{Report, Row};

/// The whole report as text.
#[must_use]
pub fn text(report: &Report) -> String {
    let mut text = format!("commit {}\n{}\nfloor: {}\n", report.commit, report.machine, report.floor.text());
    let mut questions: Vec<&str> = report.rows.iter().map(|row| row.question).collect();
    questions.dedup();
    for question in questions {
        let _ = writeln!(text, "\n{question}\n{}", table(report, question));
    }
    text.push_str(&verdict(report));
    text
}

fn table(report: &Report, question: &str) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    if !table.is_tty() {
        table.set_width(190);
    }
    table.set_header(["key", "operation", "state", "contender", "median", "min to max", "reps", "x RMW", "bar"]);
    let mut before: Option<&Row> = None;
    for row in report.rows.iter().filter(|row| row.question == question) {
        // A row that only differs in its contender repeats nothing.
        let again = before.is_some_and(|before| before.operation == row.operation && before.state == row.state);
        let once = |text: &str| Cell::new(if again { "" } else { text });
        let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        table.add_row([
            once(row.key.unwrap_or("")),
            once(&row.operation),
            once(&row.state),
            Cell::new(&row.contender),
            right(value(row, row.median)),
            right(if row.reps > 1 { format!("{} to {}", value(row, row.min), value(row, row.max)) } else { String::new() }),
            right(if row.reps > 0 { row.reps.to_string() } else { String::new() }),
            right(row.per_rmw.map_or_else(String::new, digits)),
            Cell::new(bar(report, row)),
        ]);
        before = Some(row);
    }
    table
}

/// A value of a row as people write it.
pub(crate) fn value(row: &Row, value: Option<f64>) -> String {
    value.map_or_else(|| "skipped".to_owned(), |value| quantity(value, row.unit))
}

/// The bar of a row of ours, and whether it was met.
pub(crate) fn bar(report: &Report, row: &Row) -> String {
    let text = row.key.and_then(bar_of).map(crate::bar::Bar::text);
    match (text, report.standing(row)) {
        (Some(text), Some(Standing::Met)) => format!("{text}: met"),
        (Some(text), Some(Standing::MetInTime)) => format!("{text}: met in time"),
        (Some(text), Some(Standing::Missed)) => format!("{text}: MISSED"),
        _ => String::new(),
    }
}

/// What was met, what was missed, and where a rival wins.
pub(crate) fn verdict(report: &Report) -> String {
    let mut text = String::from("\n");
    let standings: Vec<(&str, Standing)> = BARS
        .iter()
        .filter_map(|(key, _)| {
            let rows = report.rows.iter().filter(|row| row.key == Some(*key));
            // One that is missed spoils the key.
            rows.filter_map(|row| report.standing(row)).max().map(|standing| (*key, standing))
        })
        .collect();
    let keys = |standing| -> Vec<&str> { standings.iter().filter(|(_, of)| *of == standing).map(|(key, _)| *key).collect() };
    let (met, in_time, missed) = (keys(Standing::Met), keys(Standing::MetInTime), keys(Standing::Missed));
    let _ = writeln!(text, "{} of {} bars met; missed: {}", met.len(), standings.len(), listed(&missed));
    if !in_time.is_empty() {
        let _ = writeln!(
            text,
            "missed in RMW of this machine, and met in time, at {WRITTEN_AT_RMW_NS} ns per RMW: {}",
            listed(&in_time)
        );
    }
    let lost = report.lost();
    let _ = writeln!(text, "where a rival wins: {}", if lost.is_empty() { "nowhere in this run" } else { "" });
    for (ours, theirs) in lost {
        let _ = writeln!(
            text,
            "  {}, {}: {} {}, pageless {}",
            ours.operation,
            ours.state,
            theirs.contender,
            value(theirs, theirs.median),
            value(ours, ours.median)
        );
    }
    text
}

fn listed(keys: &[&str]) -> String {
    if keys.is_empty() { "none".to_owned() } else { keys.join(", ") }
}
