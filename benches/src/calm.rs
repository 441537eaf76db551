//! Is this core ours alone? On a rented machine its other hardware thread may be somebody else's, and while that one works, code
//! that keeps the whole core busy takes up to twice as long, and a locked instruction that waits for the one before it does not.
//! A figure taken then says how busy the neighbours were.
//!
//! So a loop of independent instructions is timed before and after each repetition of each contender: it takes longer than at
//! its best exactly while somebody else is on the core.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::contest::nanos;

/// A core counts as ours alone while the loop takes at most this many times what it took at its best.
const TOLERANCE: f64 = 1.2;

/// How long the first look may take: long enough to see the core at its best once.
const FIRST_LOOK: Duration = Duration::from_millis(20);

/// The longest single wait: whoever is on the core for longer may stay for the whole run.
const LONGEST: Duration = Duration::from_secs(3);

/// Watches the core on which it is asked.
pub struct Calm {
    /// The least that the loop took, in nanoseconds.
    best: f64,
    /// How much longer this run may wait for calm.
    patience: Duration,
}

impl Calm {
    /// A watcher that waits no longer than this in all.
    #[must_use]
    pub fn new(patience: Duration) -> Self {
        let (start, mut calm) = (Instant::now(), Self { best: f64::INFINITY, patience });
        while start.elapsed() < FIRST_LOOK {
            calm.is_now();
        }
        calm
    }

    /// Whether the core is ours alone at this instant.
    pub fn is_now(&mut self) -> bool {
        let took = sample();
        self.best = self.best.min(took);
        took <= self.best * TOLERANCE
    }

    /// Waits until the core is ours alone, as long as patience lasts; says whether it is.
    pub fn wait(&mut self) -> bool {
        let (start, most) = (Instant::now(), self.patience.min(LONGEST));
        let mut calm = self.is_now();
        while !calm && start.elapsed() < most {
            calm = self.is_now();
        }
        self.patience = self.patience.saturating_sub(start.elapsed());
        calm
    }
}

/// One passage of the loop: eight chains that need nothing from each other, in registers alone.
fn sample() -> f64 {
    const ROUNDS: u64 = 5_000;
    let mut chains = black_box([1_u64, 2, 3, 4, 5, 6, 7, 8]);
    let start = Instant::now();
    for round in 0..ROUNDS {
        for chain in &mut chains {
            *chain = chain.rotate_left(7) ^ chain.wrapping_add(round);
        }
    }
    let took = nanos(start.elapsed());
    black_box(chains);
    took
}

/// The repetitions of one contender in one contest.
#[derive(Default)]
pub struct Repetitions {
    calm: Vec<f64>,
    disturbed: Vec<f64>,
    spent: Duration,
}

impl Repetitions {
    /// Fewer calm ones than this say too little: then the others count too.
    const ENOUGH: usize = 3;

    /// Notes one that took this long with all that is around it.
    pub fn note(&mut self, value: f64, calm: bool, took: Duration) {
        if calm {
            self.calm.push(value)
        } else {
            self.disturbed.push(value)
        }
        self.spent += took;
    }

    /// Whether one more is wanted of `reps`, for each of which there may be one that does not count. More than
    /// three only within the budget, and within twice of it where those are disturbed.
    #[must_use]
    pub fn wants_more(&self, reps: usize, budget: Duration) -> bool {
        let (calm, all) = (self.calm.len(), self.calm.len() + self.disturbed.len());
        let budget = if calm < Self::ENOUGH { budget * 2 } else { budget };
        calm < reps && all < reps * 2 && (all < Self::ENOUGH || self.spent <= budget)
    }

    /// Those that count, and how many were put aside: none where too few were calm.
    #[must_use]
    pub fn settle(mut self, reps: usize) -> (Vec<f64>, usize) {
        if self.calm.len() >= Self::ENOUGH.min(reps) {
            return (self.calm, self.disturbed.len());
        }
        self.calm.append(&mut self.disturbed);
        (self.calm, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(1);
    const SHORT: Duration = Duration::from_millis(1);

    /// Repetitions of which the first so many are calm, until no more are wanted.
    fn run(calm: usize, reps: usize, budget: Duration) -> Repetitions {
        let (mut seen, mut nth) = (Repetitions::default(), 0);
        while seen.wants_more(reps, budget) {
            seen.note(if nth < calm { 1.0 } else { 2.0 }, nth < calm, SHORT);
            nth += 1;
        }
        seen
    }

    #[test]
    fn disturbed_ones_are_taken_again_and_put_aside() {
        let mut seen = Repetitions::default();
        for nth in 0..13 {
            assert!(seen.wants_more(7, LONG), "{nth}");
            seen.note(f64::from(nth), nth % 2 == 0, SHORT);
        }
        let (mut values, aside) = seen.settle(7);
        assert_eq!((values.len(), aside), (7, 6));
        assert!((crate::contest::median(&mut values) - 6.0).abs() < f64::EPSILON);
    }

    #[test]
    fn where_too_few_were_calm_all_count() {
        for (calm, values, aside) in [(7, 7, 0), (3, 3, 11), (2, 14, 0), (0, 14, 0)] {
            let (seen, put_aside) = run(calm, 7, LONG).settle(7);
            assert_eq!((seen.len(), put_aside), (values, aside), "{calm} were calm");
        }
        assert_eq!(run(1, 1, LONG).settle(1).0.len(), 1);
    }

    #[test]
    fn the_budget_ends_what_takes_long() {
        // Three in any case; then as many as the budget has room for, or twice that where fewer than three were calm.
        assert_eq!(run(usize::MAX, 31, SHORT * 10).settle(31).0.len(), 11);
        assert_eq!(run(0, 31, SHORT * 10).settle(31).0.len(), 21);
        assert_eq!(run(0, 31, Duration::ZERO).settle(31).0.len(), 3);
    }

    #[test]
    fn patience_ends() {
        let mut calm = Calm { best: 0.001, patience: SHORT };
        assert!(!calm.wait(), "nothing is as quick as that");
        assert_eq!(calm.patience, Duration::ZERO);
        assert!(!calm.wait(), "and no patience is left");
        assert!(Calm { best: f64::INFINITY, patience: Duration::ZERO }.wait());
    }
}
