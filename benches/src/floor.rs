//! What this machine can do at best: the units in which everything else is told.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde::Serialize;

use crate::contest::{Stopwatch, median, nanos};
use crate::dice::Dice;

/// The machine's floor, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Floor {
    /// One locked `xadd` on a hot line whose result the next one needs: the median of samples over the whole run.
    pub rmw_ns: f64,
    /// The quickest sample of it.
    pub rmw_min_ns: f64,
    /// The slowest sample of it: how much the machine moved during the run.
    pub rmw_max_ns: f64,
    /// One load whose address the load before it gave, over 256 KiB.
    pub load_l2_ns: f64,
    /// The same over 2 MiB, twice what a core's own cache holds today: the median of samples over the whole run. It tells
    /// whether the cache that cores share was ours.
    pub load_2m_ns: f64,
    /// The quickest sample of it.
    pub load_2m_min_ns: f64,
    /// The slowest sample of it.
    pub load_2m_max_ns: f64,
    /// The same over 32 MiB, once before the questions.
    pub load_32m_ns: f64,
    /// The same over 1 GiB, once before the questions, with the TLB misses of 4 KiB pages (or what the kernel made of them).
    pub load_1g_ns: f64,
    /// Reading the clock twice, which is taken off where single operations are timed.
    pub clock_ns: f64,
}

/// One sample of the locked read-modify-write: `xadd` on a line that stays in the nearest cache, each adding what the one
/// before it gave, so that none starts before its forerunner has ended.
#[must_use]
pub fn rmw_sample() -> f64 {
    const CALLS: u32 = 32_768;
    let line = AtomicU64::new(1);
    let line = black_box(&line);
    let start = Stopwatch::start();
    let mut next = 1;
    for _ in 0..CALLS {
        next = line.fetch_add(next, Ordering::SeqCst);
    }
    black_box(next);
    nanos(start.elapsed()) / f64::from(CALLS)
}

/// A chain of pointers through every line of some memory, in one random circle.
pub struct Chase {
    next: Vec<[u32; 16]>,
    at: u32,
}

impl Chase {
    /// A circle through `bytes` bytes.
    #[must_use]
    pub fn new(bytes: usize, seed: u64) -> Self {
        let lines = u32::try_from(bytes / 64).unwrap_or(1).max(1);
        let mut next: Vec<[u32; 16]> = (0..lines).map(|line| [line; 16]).collect();
        // Sattolo's shuffle: one circle through all.
        let mut dice = Dice::new(seed);
        for line in (1..next.len()).rev() {
            let other = usize::try_from(dice.below(line as u64)).unwrap_or(0);
            let (one, two) = (next[line][0], next[other][0]);
            (next[line][0], next[other][0]) = (two, one);
        }
        Self { next, at: 0 }
    }

    /// Nanoseconds per load, over this many.
    pub fn sample(&mut self, loads: u32) -> f64 {
        let start = Stopwatch::start();
        let mut at = self.at;
        for _ in 0..loads {
            at = self.next[at as usize][0];
        }
        self.at = black_box(at);
        nanos(start.elapsed()) / f64::from(loads)
    }

    fn median(&mut self, loads: u32, samples: usize) -> f64 {
        self.sample(loads);
        median(&mut (0..samples).map(|_| self.sample(loads)).collect::<Vec<_>>())
    }
}

/// What two readings of the clock say about nothing.
#[must_use]
pub fn clock_ns() -> f64 {
    let mut samples: Vec<f64> = (0..1001)
        .map(|_| {
            let start = Instant::now();
            nanos(start.elapsed())
        })
        .collect();
    median(&mut samples)
}

impl Floor {
    /// Measures the clock and the loads that are measured once. `largest` bytes stand in for the 1 GiB in tests. The rest
    /// follows from samples taken during the run.
    #[must_use]
    pub fn measure(largest: usize, samples: usize) -> Self {
        let mut floor = Self { clock_ns: clock_ns(), ..Self::default() };
        floor.load_l2_ns = Chase::new(256 << 10, 1).median(50_000, samples);
        floor.load_32m_ns = Chase::new(largest.min(32 << 20), 2).median(50_000, samples);
        floor.load_1g_ns = Chase::new(largest, 3).median(50_000, samples);
        floor
    }

    /// Fills in what the run's samples say.
    pub fn settle(&mut self, mut samples: Samples) {
        let spread = |samples: &mut Vec<f64>| {
            let middle = median(samples);
            (middle, samples.first().copied().unwrap_or(0.0), samples.last().copied().unwrap_or(0.0))
        };
        (self.rmw_ns, self.rmw_min_ns, self.rmw_max_ns) = spread(&mut samples.rmw);
        (self.load_2m_ns, self.load_2m_min_ns, self.load_2m_max_ns) = spread(&mut samples.load_2m);
    }

    /// The floor in a sentence.
    #[must_use]
    pub fn text(&self) -> String {
        format!(
            "locked RMW {:.2} ns ({:.2} to {:.2} during the run); dependent load {:.2} ns in L2, {:.1} over 2 MiB ({:.1} to {:.1}), \
             {:.1} over 32 MiB, {:.1} over 1 GiB; clock {:.0} ns",
            self.rmw_ns,
            self.rmw_min_ns,
            self.rmw_max_ns,
            self.load_l2_ns,
            self.load_2m_ns,
            self.load_2m_min_ns,
            self.load_2m_max_ns,
            self.load_32m_ns,
            self.load_1g_ns,
            self.clock_ns
        )
    }
}

/// What is sampled beside the questions, because it moves during a run.
pub struct Samples {
    rmw: Vec<f64>,
    load_2m: Vec<f64>,
    chase: Chase,
}

impl Samples {
    /// None so far. `largest` as for [`Floor::measure`].
    #[must_use]
    pub fn new(largest: usize) -> Self {
        Self { rmw: Vec::new(), load_2m: Vec::new(), chase: Chase::new(largest.min(2 << 20), 4) }
    }

    /// One more of the RMW.
    pub fn take_rmw(&mut self) {
        self.rmw.push(rmw_sample());
    }

    /// One more of the load over 2 MiB, after a passage over all of it.
    pub fn take_load(&mut self) {
        self.chase.sample(32_768);
        self.load_2m.push(self.chase.sample(16_384));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chase_passes_every_line_once_before_it_comes_back() {
        let chase = Chase::new(64 * 1000, 7);
        let (mut at, mut steps) = (0_u32, 0);
        loop {
            at = chase.next[at as usize][0];
            steps += 1;
            if at == 0 {
                break;
            }
        }
        assert_eq!(steps, 1000);
    }
}
