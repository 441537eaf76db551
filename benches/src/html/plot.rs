//! A contest as bars on a logarithmic scale: the median as a bar, the least to the most as a line across its end.

use std::fmt::Write;

use super::esc;
use crate::report::{Report, Row};
use crate::table::value;

/// Every question with its contests.
pub(super) fn sections(report: &Report, html: &mut String) {
    let mut rest = report.rows.as_slice();
    let mut question = "";
    while let Some(first) = rest.first() {
        let same = |row: &&Row| (row.question, &row.operation, &row.state) == (first.question, &first.operation, &first.state);
        let count = rest.iter().take_while(same).count();
        let (contest, after) = rest.split_at(count);
        if first.question != question {
            question = first.question;
            let _ = writeln!(html, "<h2>{}</h2>", esc(question));
        }
        plot(contest, html);
        rest = after;
    }
}

/// A scale from the power of ten below half the least value to the one above the greatest.
struct Scale {
    low: f64,
    high: f64,
}

/// Values below this have no place on a logarithmic scale: the bar is empty.
const LEAST: f64 = 0.1;

impl Scale {
    fn over(rows: &[Row]) -> Self {
        let values = || rows.iter().flat_map(|row| [row.min, row.max]).flatten().map(|value| value.max(LEAST));
        let (least, most) = (values().fold(f64::INFINITY, f64::min), values().fold(LEAST, f64::max));
        let low = (least.min(most) / 2.0).log10().floor();
        Self { low, high: most.log10().ceil().max(low + 1.0) }
    }

    /// Where a value lies, in percent.
    fn place(&self, value: f64) -> f64 {
        ((value.max(LEAST).log10() - self.low) / (self.high - self.low) * 100.0).clamp(0.4, 100.0)
    }

    fn grid(&self) -> String {
        let lines = std::iter::successors(Some(self.low), |at| Some(at + 1.0)).take_while(|at| *at <= self.high + 0.5);
        lines.fold(String::new(), |mut grid, at| {
            let x = (at - self.low) / (self.high - self.low) * 100.0;
            let _ = write!(grid, "<line x1=\"{x:.2}\" x2=\"{x:.2}\" y1=\"0\" y2=\"10\"/>");
            grid
        })
    }
}

fn plot(rows: &[Row], html: &mut String) {
    let Some(first) = rows.first() else { return };
    let scale = Scale::over(rows);
    let grid = scale.grid();
    let key = first.key.map_or_else(String::new, |key| format!(" ({key})"));
    let _ = writeln!(
        html,
        "<figure>\n<figcaption><h3>{}{}</h3><span>{}. Every gridline is ten times the one before.</span></figcaption>",
        esc(&first.operation),
        esc(&key),
        esc(&first.state)
    );
    for row in rows {
        let class = if row.is_ours() { "ours" } else { "theirs" };
        let x = row.median.map_or(0.0, |median| scale.place(median));
        let at = if x > 62.0 { format!("right:{:.2}%", 100.0 - x) } else { format!("left:{x:.2}%") };
        let _ = write!(
            html,
            "<div class=\"row\"><span>{}</span><div class=\"bar\"><svg viewBox=\"0 0 100 10\" preserveAspectRatio=\"none\" \
             aria-hidden=\"true\"><g class=\"grid\">{grid}</g><rect class=\"{class}\" x=\"0\" y=\"1\" width=\"{x:.2}\" height=\"8\"/>",
            esc(&row.contender)
        );
        if let (Some(min), Some(max), true) = (row.min, row.max, row.reps > 1) {
            let (from, to) = (scale.place(min), scale.place(max));
            let _ = write!(html, "<line class=\"whisker\" x1=\"{from:.2}\" x2=\"{to:.2}\" y1=\"9.5\" y2=\"9.5\"/>");
        }
        let _ = writeln!(html, "</svg><b style=\"{at}\">{}</b></div></div>", esc(&value(row, row.median)));
    }
    html.push_str("</figure>\n");
}
