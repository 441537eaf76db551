//! What a run saw, and its JSON: `{commit, machine, floor, rows}`.

use serde::Serialize;

use crate::bar::{Standing, bar_of};
use crate::floor::Floor;

/// What no structure can beat: told beside the contenders' bytes.
pub const ENTROPY_LIMIT: &str = "entropy limit";

/// One contender's answer to one question.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Row {
    /// The line of DESIGN §8 that it answers; none where it answers another question.
    pub key: Option<&'static str>,
    /// The group of questions.
    pub question: &'static str,
    /// What was asked.
    pub operation: String,
    /// Of what state; of a contender that could not take part, why.
    pub state: String,
    /// Who answered: `pageless` is ours.
    pub contender: String,
    /// `ns`, `B` or `x`.
    pub unit: &'static str,
    /// The middle repetition; none of a contender that could not take part.
    pub median: Option<f64>,
    /// The least.
    pub min: Option<f64>,
    /// The most.
    pub max: Option<f64>,
    /// Repetitions that entered.
    pub reps: usize,
    /// The median as a multiple of the floor's locked read-modify-write; only of nanoseconds.
    pub per_rmw: Option<f64>,
}

impl Row {
    /// Whether it is ours.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.contender == "pageless"
    }
}

/// A whole run.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Report {
    /// The commit that was measured, with `+changes` where the work tree was not clean.
    pub commit: String,
    /// The machine in one line.
    pub machine: String,
    /// Its floor.
    pub floor: Floor,
    /// The answers, in the order of the questions.
    pub rows: Vec<Row>,
}

impl Report {
    /// Fills in the multiples, once the floor is settled.
    pub fn settle(&mut self) {
        let rmw = self.floor.rmw_ns;
        for row in self.rows.iter_mut().filter(|row| row.unit == "ns") {
            row.per_rmw = row.median.filter(|_| rmw > 0.0).map(|median| median / rmw);
        }
    }

    /// How a row of ours stands to its bar; none where it has none.
    #[must_use]
    pub fn standing(&self, row: &Row) -> Option<Standing> {
        let (bar, median) = (bar_of(row.key.filter(|_| row.is_ours())?)?, row.median?);
        Some(bar.standing(median, self.floor.rmw_ns, self.floor.load_1g_ns))
    }

    /// Where somebody else answered better than pageless: our row and the best of theirs.
    #[must_use]
    pub fn lost(&self) -> Vec<(&Row, &Row)> {
        let same = |a: &Row, b: &Row| (a.question, &a.operation, &a.state) == (b.question, &b.operation, &b.state);
        let better = |a: &Row, b: &Row| {
            let less = a.median.unwrap_or(f64::INFINITY) < b.median.unwrap_or(f64::INFINITY);
            let more = a.median.unwrap_or(0.0) > b.median.unwrap_or(0.0);
            if matches!(a.unit, "x" | "blocks") { more } else { less }
        };
        let ours = self.rows.iter().filter(|row| row.is_ours() && row.median.is_some());
        ours.filter_map(|ours| {
            // A limit takes no part.
            let takes_part =
                |row: &&Row| !row.contender.starts_with("pageless") && row.median.is_some() && row.contender != ENTROPY_LIMIT;
            let rivals = self.rows.iter().filter(takes_part).filter(|row| same(row, ours));
            let best = rivals.reduce(|best, row| if better(row, best) { row } else { best })?;
            better(best, ours).then_some((ours, best))
        })
        .collect()
    }
}
