//! One question, all contenders in one run: interleaved, so that whatever the machine does meanwhile hits all of them.

use std::hint::black_box;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use nix::time::{ClockId, clock_gettime};

/// One repetition: a value in the contest's unit, or what went wrong. A wrong answer is never a figure.
pub type Trial<'a> = Box<dyn FnMut() -> anyhow::Result<f64> + 'a>;

/// Contenders for one question.
pub struct Contest<'a> {
    /// A key of DESIGN §8, where this answers one of its lines.
    pub key: Option<&'static str>,
    /// What is asked.
    pub operation: String,
    /// Of what state.
    pub state: String,
    /// `ns`, `B` or `x`.
    pub unit: &'static str,
    /// Who answers, and how.
    pub entries: Vec<(String, Trial<'a>)>,
}

impl<'a> Contest<'a> {
    /// A contest in nanoseconds, without contenders so far.
    pub fn new(operation: impl Into<String>, state: impl Into<String>) -> Self {
        Self { key: None, operation: operation.into(), state: state.into(), unit: "ns", entries: Vec::new() }
    }

    /// The line of DESIGN §8 that it answers.
    #[must_use]
    pub fn key(mut self, key: &'static str) -> Self {
        self.key = Some(key);
        self
    }

    /// Another unit.
    #[must_use]
    pub fn unit(mut self, unit: &'static str) -> Self {
        self.unit = unit;
        self
    }

    /// One more contender.
    #[must_use]
    pub fn entry(mut self, contender: &str, trial: Trial<'a>) -> Self {
        self.entries.push((contender.to_owned(), trial));
        self
    }
}

/// Times a batch by the processor time of this thread: on a busy machine the time slices of others are no part of a figure
/// (what they do to the caches is). Reading it is a system call, so single operations are timed by the clock on the wall.
pub struct Stopwatch(Duration);

impl Stopwatch {
    /// Starts.
    #[must_use]
    pub fn start() -> Self {
        Self(Self::now())
    }

    /// Time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        Self::now().saturating_sub(self.0)
    }

    fn now() -> Duration {
        clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
    }
}

/// How long a batch of hot operations lasts at least, so that reading the clock does not show.
const BATCH: Duration = Duration::from_micros(200);

/// A trial that asks again and again, and tells the mean of one batch. `op` says whether the answer was right; nothing else
/// keeps the compiler from asking once, so a question that reads plain memory must hide its argument from it.
pub fn hot<'a>(mut op: impl FnMut() -> bool + 'a) -> Trial<'a> {
    let mut calls = 0_u32;
    Box::new(move || {
        if calls == 0 {
            calls = 1;
            while timed(calls, &mut op)? < BATCH && calls < 1 << 24 {
                calls *= 2;
            }
        }
        Ok(nanos(timed(calls, &mut op)?) / f64::from(calls))
    })
}

fn timed(calls: u32, op: &mut impl FnMut() -> bool) -> anyhow::Result<Duration> {
    let start = Stopwatch::start();
    // Counted where it goes wrong: see `hot_list`.
    let wrong = (0..calls).filter(|_| !op()).count();
    let elapsed = start.elapsed();
    ensure!(wrong == 0, "{wrong} of {calls} answers were wrong");
    Ok(elapsed)
}

/// A trial that prepares, untimed, and then runs all of a batch; it tells the mean of one. `run` says how many went wrong.
pub fn batch<'a, Q: 'a>(
    mut prepare: impl FnMut() -> anyhow::Result<Vec<Q>> + 'a,
    mut run: impl FnMut(&[Q]) -> u64 + 'a,
) -> Trial<'a> {
    Box::new(move || {
        let list = prepare()?;
        let start = Stopwatch::start();
        let wrong = run(&list);
        let elapsed = nanos(start.elapsed());
        ensure!(wrong == 0, "{wrong} of {} operations went wrong", list.len());
        Ok(elapsed / as_f64(list.len().max(1) as u64))
    })
}

/// A trial that asks the same hot questions, drawn beforehand, again and again, and tells the mean of one. `ask` says whether
/// an answer was right.
pub fn hot_list<'a, Q: 'a>(questions: Vec<Q>, mut ask: impl FnMut(&Q) -> bool + 'a) -> Trial<'a> {
    const ROUNDS: u32 = 64;
    Box::new(move || {
        let start = Stopwatch::start();
        // Counted where it goes wrong. A sum of all answers is carried from one to the next, through the stack where registers
        // are short, and takes longer than an answer.
        let wrong: usize = (0..ROUNDS).map(|_| questions.iter().filter(|question| !ask(question)).count()).sum();
        let elapsed = nanos(start.elapsed());
        ensure!(wrong == 0, "{wrong} answers were wrong");
        Ok(elapsed / f64::from(ROUNDS) / as_f64(questions.len().max(1) as u64))
    })
}

/// A trial that runs so many operations that were drawn beforehand, and tells the mean of one. `prepare` is not timed; `run`
/// says how many went wrong.
pub fn drawn<'a>(
    operations: usize,
    mut prepare: impl FnMut() -> anyhow::Result<()> + 'a,
    mut run: impl FnMut() -> u64 + 'a,
) -> Trial<'a> {
    Box::new(move || {
        prepare()?;
        let start = Stopwatch::start();
        let wrong = run();
        let elapsed = nanos(start.elapsed());
        ensure!(wrong == 0, "{wrong} of {operations} operations went wrong");
        Ok(elapsed / as_f64(operations.max(1) as u64))
    })
}

/// What so many operations take, seen from runs of some other number of them: for harnesses that ask so. `run` prepares, and
/// tells how long how many took.
pub fn scaled(operations: u64, mut run: impl FnMut() -> anyhow::Result<(Duration, u64)>) -> anyhow::Result<Duration> {
    let (mut spent, mut done) = (Duration::ZERO, 0);
    while done < operations {
        let (took, count) = run()?;
        ensure!(count > 0, "a run without operations");
        (spent, done) = (spent + took, done + count);
    }
    Ok(spent.mul_f64(as_f64(operations) / as_f64(done.max(1))))
}

/// A trial over one operation on swept caches, about something that `draw` chose before. The clock's own cost is taken off.
pub fn cold<'a, Q: 'a>(sweeper: &Rc<Sweeper>, mut draw: impl FnMut() -> Q + 'a, mut op: impl FnMut(Q) -> bool + 'a) -> Trial<'a> {
    let (clock, sweeper) = (crate::floor::clock_ns(), Rc::clone(sweeper));
    Box::new(move || {
        let question = draw();
        sweeper.sweep();
        // The clock's own code and data were swept too; they are no part of the question.
        black_box(Instant::now());
        let start = Instant::now();
        let right = black_box(op(question));
        let elapsed = nanos(start.elapsed());
        ensure!(right, "the answer was wrong");
        Ok((elapsed - clock).max(0.1))
    })
}

/// Pushes everything else out of the caches by writing more than they hold.
pub struct Sweeper(std::cell::RefCell<Vec<u64>>);

impl Sweeper {
    /// A sweeper over this many bytes.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self(std::cell::RefCell::new(vec![1; bytes / 8]))
    }

    /// Passes over all of it.
    pub fn sweep(&self) {
        for word in self.0.borrow_mut().iter_mut().step_by(8) {
            *word = word.wrapping_add(1);
        }
        black_box(&self.0);
    }
}

/// A duration in nanoseconds.
#[must_use]
pub fn nanos(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e9
}

/// A count as a number to divide by; far below 2^53.
#[must_use]
#[allow(clippy::cast_precision_loss)]
pub const fn as_f64(count: u64) -> f64 {
    count as f64
}

/// Sorts the values and tells the middle one; 0 of none.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_answer_is_an_error_and_no_figure() {
        let mut nth = 0;
        let mut trial = hot(|| {
            nth += 1;
            nth != 1000
        });
        assert!((0..100).any(|_| trial().is_err()));
        assert!(batch(|| Ok(vec![1, 2, 3]), |_| 1)().is_err());
    }

    #[test]
    fn the_median_is_the_middle_value() {
        assert!((median(&mut [3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!(median(&mut []).abs() < f64::EPSILON);
    }
}
