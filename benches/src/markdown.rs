//! What was seen as Markdown, for docs/BENCHMARKS.md: the lines of the design, then one table for each question.

use std::fmt::Write;

use crate::bar::Standing;
use crate::figures::digits;
use crate::report::{Report, Row};
use crate::table::{bar, value};

/// The whole part "What was seen".
#[must_use]
pub fn text(report: &Report) -> String {
    let (commit, machine, floor) = (&report.commit, &report.machine, report.floor.text());
    let mut text = format!("Commit {commit}; {machine}.\n\nFloor in this run: {floor}.\n\n### The lines of the design\n\n");
    text.push_str("| key | what, of what | median | min to max | x RMW | bar |\n|---|---|---|---|---|---|\n");
    for row in report.rows.iter().filter(|row| report.standing(row).is_some()) {
        let bar = bar(report, row);
        let bar = if report.standing(row) == Some(Standing::Missed) { format!("**{bar}**") } else { bar };
        let _ = writeln!(
            text,
            "| {} | {}; {} | {} | {} to {} | {} | {bar} |",
            row.key.unwrap_or(""),
            row.operation,
            row.state,
            value(row, row.median),
            value(row, row.min),
            value(row, row.max),
            row.per_rmw.map_or_else(String::new, digits),
        );
    }
    questions(report, &mut text);
    lost(report, &mut text);
    text
}

/// Every contest that is not a line of the design: our median, then the others'.
fn questions(report: &Report, text: &mut String) {
    let mut rows = report.rows.iter().filter(|row| row.key.is_none()).peekable();
    let mut question = "";
    while let Some(first) = rows.next() {
        if first.question != question {
            question = first.question;
            let _ = write!(text, "\n### {question}\n\n| what | of what | medians |\n|---|---|---|\n");
        }
        let mut medians = median(first);
        let same = |row: &&&Row| (row.question, &row.operation, state(row)) == (question, &first.operation, state(first));
        while let Some(row) = rows.next_if(|row| same(&row)) {
            let _ = write!(medians, "; {}", median(row));
        }
        let _ = writeln!(text, "| {} | {} | {medians} |", first.operation, state(first));
    }
}

/// The state without the reason why somebody is absent.
fn state(row: &Row) -> &str {
    row.state.split("; skipped: ").next().unwrap_or("")
}

fn median(row: &Row) -> String {
    let name = if row.is_ours() { "**pageless**" } else { row.contender.as_str() };
    match row.state.split_once("; skipped: ") {
        Some((_, why)) => format!("{name} absent ({why})"),
        None => format!("{name} {}", value(row, row.median)),
    }
}

fn lost(report: &Report, text: &mut String) {
    text.push_str("\n### Where a rival wins\n\n");
    let lost = report.lost();
    if lost.is_empty() {
        text.push_str("Nowhere in this run.\n");
    }
    for (ours, theirs) in lost {
        let (seen, own) = (value(theirs, theirs.median), value(ours, ours.median));
        let _ = writeln!(text, "- {}; {}: {} {seen}, pageless {own}", ours.operation, ours.state, theirs.contender);
    }
}
