//! Runs contests and keeps what they saw.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};

use crate::calm::{Calm, Repetitions};
use crate::contest::{Contest, Sweeper, Trial, median};
use crate::counting::Counted;
use crate::floor::Samples;
use crate::report::Row;

/// How large and how long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scale {
    /// GiBs of what the questions call 1 TiB: 1024, except in this crate's own tests.
    pub tib_gibs: u64,
    /// GiBs of what the questions call the 64 GiB pool.
    pub pool_gibs: u64,
    /// GiBs over which the rivals of shareability are filled; their bytes are told per TiB.
    pub rival_gibs: u64,
    /// Repetitions, where the budget allows.
    pub reps: usize,
    /// What one contender may take for one question, after three repetitions.
    pub budget: Duration,
    /// How long the run may wait, in all, until it has the core alone.
    pub patience: Duration,
    /// Bytes that are written to sweep the caches.
    pub sweep_bytes: usize,
    /// Bytes of the largest chase of the floor.
    pub chase_bytes: usize,
}

impl Scale {
    /// The full run: within fifteen minutes on two cores.
    pub const FULL: Self = Self {
        tib_gibs: 1024,
        pool_gibs: 64,
        rival_gibs: 32,
        reps: 31,
        budget: Duration::from_millis(1500),
        patience: Duration::from_secs(180),
        sweep_bytes: 96 << 20,
        chase_bytes: 1 << 30,
    };
    /// `--quick`: within two minutes.
    pub const QUICK: Self =
        Self { rival_gibs: 4, reps: 7, budget: Duration::from_millis(150), patience: Duration::from_secs(30), ..Self::FULL };
    /// For tests of this crate: every question is asked, no figure means anything.
    pub const TINY: Self = Self {
        tib_gibs: 4,
        pool_gibs: 4,
        rival_gibs: 1,
        reps: 1,
        budget: Duration::ZERO,
        patience: Duration::ZERO,
        sweep_bytes: 1 << 20,
        chase_bytes: 1 << 20,
    };
}

/// A run in progress.
pub struct Bench {
    /// How large and how long.
    pub scale: Scale,
    /// Sweeps the caches between cold trials.
    pub sweeper: Rc<Sweeper>,
    filter: Option<String>,
    question: &'static str,
    whole_question: bool,
    progress: ProgressBar,
    seen: Vec<&'static str>,
    /// What was seen so far.
    pub rows: Vec<Row>,
    /// What is sampled beside the questions: the RMW with every round, the load with every contest.
    pub samples: Samples,
    /// Repetitions, and how many of them were put aside because the core was not ours alone.
    pub repetitions: (usize, usize),
    calm: Calm,
}

impl Bench {
    /// A run that has seen nothing. `steps` are the tasks that its progress bar counts, drawn on stderr.
    #[must_use]
    pub fn new(scale: Scale, filter: Option<&str>, steps: usize, show: bool) -> Self {
        let progress = if show { ProgressBar::new(steps as u64) } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {wide_msg}") {
            progress.set_style(style);
        }
        progress.enable_steady_tick(Duration::from_millis(250));
        Self {
            scale,
            sweeper: Rc::new(Sweeper::new(scale.sweep_bytes)),
            filter: filter.map(str::to_owned),
            question: "",
            whole_question: true,
            progress,
            seen: Vec::new(),
            rows: Vec::new(),
            samples: Samples::new(scale.chase_bytes),
            repetitions: (0, 0),
            calm: Calm::new(scale.patience),
        }
    }

    /// Begins a group of questions.
    pub fn begin(&mut self, question: &'static str) {
        self.question = question;
        self.whole_question = self.filter.as_ref().is_none_or(|word| question.contains(word.as_str()));
    }

    /// Whether this task is asked for: a key of DESIGN §8, or the name that the catalogue has for it. Whoever sets much up
    /// for it asks first.
    pub fn wants(&mut self, task: &'static str) -> bool {
        let wanted = self.whole_question || self.filter.as_ref().is_none_or(|word| task.contains(word.as_str()));
        if wanted && !self.seen.contains(&task) {
            self.seen.push(task);
            self.progress.inc(1);
            self.progress.set_message(task);
        }
        wanted
    }

    /// Runs one contest, in rounds of all who take part. See [`calm`](crate::calm) for which repetitions count.
    pub fn run(&mut self, mut contest: Contest<'_>) -> anyhow::Result<()> {
        let Scale { reps, budget, .. } = self.scale;
        let failed = |name: &str| format!("{}, {}: {name}", contest.operation, contest.state);
        self.samples.take_load();
        let mut seen: Vec<Repetitions> = Vec::new();
        for (name, trial) in &mut contest.entries {
            trial().with_context(|| failed(name))?;
            seen.push(Repetitions::default());
        }
        while seen.iter().any(|seen| seen.wants_more(reps, budget)) {
            self.samples.take_rmw();
            for ((name, trial), seen) in contest.entries.iter_mut().zip(&mut seen) {
                if seen.wants_more(reps, budget) {
                    self.repeat(trial, seen).with_context(|| failed(name))?;
                }
            }
        }
        for ((contender, _), seen) in contest.entries.iter().zip(seen) {
            let (mut values, put_aside) = seen.settle(reps);
            self.repetitions.0 += values.len() + put_aside;
            self.repetitions.1 += put_aside;
            let middle = median(&mut values);
            let row = self.row(&contest, contender, values.len());
            self.rows.push(Row { median: Some(middle), min: values.first().copied(), max: values.last().copied(), ..row });
        }
        Ok(())
    }

    /// One repetition, after a wait for calm.
    fn repeat(&mut self, trial: &mut Trial<'_>, seen: &mut Repetitions) -> anyhow::Result<()> {
        let before = self.calm.wait();
        let start = Instant::now();
        let value = trial()?;
        let took = start.elapsed();
        seen.note(value, before && self.calm.is_now(), took);
        Ok(())
    }

    /// Notes a size that was counted once.
    pub fn bytes(&mut self, contest: Contest<'_>, contender: &str, bytes: f64) {
        self.once(&contest.unit("B"), contender, bytes);
    }

    /// Notes a value that does not move, and was seen once.
    pub fn once(&mut self, contest: &Contest<'_>, contender: &str, value: f64) {
        let row = self.row(contest, contender, 1);
        self.rows.push(Row { median: Some(value), min: Some(value), max: Some(value), ..row });
    }

    /// Notes the bytes that a contender kept for `gibs` GiBs, as of a TiB.
    pub fn bytes_per_tib(&mut self, contest: Contest<'_>, contender: &str, counted: Counted, gibs: u64) {
        let bytes = crate::contest::as_f64(counted.live) * 1024.0 / crate::contest::as_f64(gibs.max(1));
        self.bytes(contest, contender, bytes);
    }

    /// Notes that a contender could not take part, and why.
    pub fn skip(&mut self, contest: &Contest<'_>, contender: &str, why: &str) {
        let row = self.row(contest, contender, 0);
        self.rows.push(Row { state: format!("{}; skipped: {why}", row.state), ..row });
    }

    /// Ends the run.
    pub fn finish(&self) {
        self.progress.finish_and_clear();
    }

    fn row(&self, contest: &Contest<'_>, contender: &str, reps: usize) -> Row {
        Row {
            key: contest.key,
            question: self.question,
            operation: contest.operation.clone(),
            state: contest.state.clone(),
            contender: contender.to_owned(),
            unit: contest.unit,
            median: None,
            min: None,
            max: None,
            reps,
            per_rmw: None,
        }
    }
}
