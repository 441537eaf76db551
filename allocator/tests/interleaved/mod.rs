//! What the tests under shuttle share: how interleavings are tried, how several acts begin at once, and what must hold in the end.
#![allow(
    dead_code,
    unused_macros,
    unused_imports,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "for tests, of which not every file uses every part"
)]

use std::time::Duration;

use pageless::{Policy, Pool, RetryPolicy};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Schedule, Scheduler, Task, TaskId};
use shuttle::thread;

pub const POLICY: Policy = Policy {
    retry: RetryPolicy { at_once: 0, pause: Duration::ZERO, later: 16, later_after: Duration::ZERO },
    guard_drain: Duration::from_micros(60),
    busy_after: Duration::ZERO,
};

/// Schedules tried by each scheduler.
const TRIES: usize = 800;

fn config() -> shuttle::Config {
    let mut config = shuttle::Config::new();
    // A GiB's flat bits, 32 KiB, lie on the stack for a moment where planes change form.
    config.stack_size = 256 << 10;
    config
}

/// Tries interleavings at random.
pub fn explore(world: impl Fn() + Send + Sync + Copy + 'static) {
    shuttle::Runner::new(RandomScheduler::new(TRIES), config()).run(world);
    shuttle::Runner::new(PctScheduler::new(3, TRIES), config()).run(world);
}

/// Tries interleavings at random, and those in which one of the first two threads is stopped once.
pub fn explore_each_stop(world: impl Fn() + Send + Sync + Copy + 'static) {
    explore(world);
    for stopped in 1..=2 {
        shuttle::Runner::new(StopsOnce { stopped, at: 0, steps: 0, yields: 0 }, config()).run(world);
    }
}

/// Stops one thread once, at each of its steps in turn, until the others are through or wait for it: whatever was looked at too
/// early is found, and by no luck.
struct StopsOnce {
    /// The thread, in the order of their making.
    stopped: usize,
    at: usize,
    steps: usize,
    yields: usize,
}

impl Scheduler for StopsOnce {
    fn new_execution(&mut self) -> Option<Schedule> {
        if self.steps < self.at {
            return None;
        }
        (self.at, self.steps, self.yields) = (self.at + 1, 0, 0);
        Some(Schedule::new(0))
    }

    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, is_yielding: bool) -> Option<TaskId> {
        let with = |number: usize| runnable.iter().map(|task| task.id()).find(|id| usize::from(*id) == number);
        let stopped = with(self.stopped);
        if self.steps < self.at
            && let Some(stopped) = stopped
        {
            self.steps += 1;
            return Some(stopped);
        }
        // Who yields in a loop may wait for the one that is stopped.
        self.yields += usize::from(is_yielding);
        let waits = is_yielding && self.yields > 100;
        let others = runnable.iter().map(|task| task.id()).filter(|id| Some(*id) != stopped && !(waits && Some(*id) == current));
        others.max_by_key(|id| usize::from(*id)).or(stopped).or(current)
    }

    fn next_u64(&mut self) -> u64 {
        0
    }
}

/// Runs all of them at once, and waits for them.
pub fn at_once<const N: usize>(acts: [Box<dyn FnOnce() + Send>; N]) {
    let running = acts.map(|act| thread::spawn(act));
    running.into_iter().for_each(|act| act.join().unwrap());
}

/// The books agree, and nothing is under way.
pub fn settle(pool: &Pool) {
    let found = pool.verify();
    assert!(found.is_sound(), "{:#?}", found.faults);
    assert_eq!(pool.stats().converting, 0);
}

/// An act for [`at_once`], with handles of its own.
macro_rules! act {
    ([$($shared:ident),*] $body:expr) => {{
        $(let $shared = $shared.clone();)*
        Box::new(move || { $body; })
    }};
}
pub(crate) use act;
