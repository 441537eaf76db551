//! Two threads that convert at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use pageless::Order;

use crate::bench::Bench;
use crate::contest::{Contest, Trial};
use crate::dice::Dice;
use crate::guest::Guest;

/// See [`super::Question::tasks`].
pub const TASKS: &[&str] = &["threads.disjoint_2", "threads.same_gib_2"];

const GIB: u64 = Order::GIB1.frames();
/// Frames of one thread's list.
const FRAMES: usize = 100_000;
/// How often a round shares all of the list and takes it back: it lasts tens of milliseconds, in which starting together and
/// ending together do not show.
const PASSES: usize = 3;

/// Two threads' work: a guest, and the frames that each thread shares and takes back.
pub struct Team {
    guest: Guest,
    lists: [Vec<u64>; 2],
}

impl Team {
    /// Each thread has one of two neighbouring GiBs.
    pub fn neighbours() -> anyhow::Result<Self> {
        Self::new([frames(GIB, GIB, 41), frames(2 * GIB, GIB, 42)])
    }

    /// Both work in one GiB, a half each: nobody waits because the other converts the same frame just now.
    pub fn same_gib() -> anyhow::Result<Self> {
        Self::new([frames(GIB, GIB / 2, 43), frames(GIB * 3 / 2, GIB / 2, 44)])
    }

    /// Every tenth frame is shared already, and in no list.
    fn new(lists: [Vec<u64>; 2]) -> anyhow::Result<Self> {
        let guest = Guest::new(4)?;
        for frame in (GIB..3 * GIB).step_by(10) {
            guest.convert(frame - frame % 10, 1, true);
        }
        Ok(Self { guest, lists })
    }

    /// How many conversions a round of one thread has.
    #[must_use]
    pub fn conversions(&self) -> u64 {
        (self.lists[0].len() * 2 * PASSES) as u64
    }

    /// How long one thread alone takes for its round.
    pub fn alone(&self, nth: usize) -> anyhow::Result<Duration> {
        together(&self.guest, &self.lists[nth..=nth])
    }

    /// How long both take, at once.
    pub fn both(&self) -> anyhow::Result<Duration> {
        together(&self.guest, &self.lists)
    }
}

fn frames(first: u64, count: u64, seed: u64) -> Vec<u64> {
    let mut list: Vec<u64> = (first..first + count).filter(|frame| frame % 10 != 0).collect();
    Dice::new(seed).shuffle(&mut list);
    list.truncate(FRAMES);
    list
}

/// Asks all of it that is wanted.
pub fn ask(bench: &mut Bench) -> anyhow::Result<()> {
    type Make = fn() -> anyhow::Result<Team>;
    let cases: [(_, _, Make); 2] = [
        ("threads.disjoint_2", "neighbouring GiBs, every tenth 4K shared", Team::neighbours),
        ("threads.same_gib_2", "one GiB, a half each, every tenth 4K shared", Team::same_gib),
    ];
    for (key, state, make) in cases {
        if bench.wants(key) {
            let contest = Contest::new("4K conversions of two threads over those of one", state).key(key).unit("x");
            bench.run(contest.entry("pageless", ratio(make()?)))?;
        }
    }
    Ok(())
}

/// Throughput of two threads over that of one.
fn ratio<'a>(team: Team) -> Trial<'a> {
    Box::new(move || {
        let alone = team.alone(0)? + team.alone(1)?;
        Ok(alone.as_secs_f64() / team.both()?.as_secs_f64())
    })
}

/// Runs each list in a thread of its own, all at once; how long the slowest took.
fn together(guest: &Guest, lists: &[Vec<u64>]) -> anyhow::Result<Duration> {
    let missing = AtomicUsize::new(lists.len());
    let run = |list: &Vec<u64>| {
        missing.fetch_sub(1, Ordering::AcqRel);
        // Nobody sleeps here: waking up would be a head start for the others. A busy machine may need the processor.
        while missing.load(Ordering::Acquire) > 0 {
            thread::yield_now();
        }
        let start = Instant::now();
        let pass = |share| list.iter().filter(|frame| !guest.convert(**frame, 1, share)).count();
        let wrong: usize = (0..PASSES).map(|_| pass(true) + pass(false)).sum();
        (wrong, start, Instant::now())
    };
    let results: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = lists.iter().map(|list| scope.spawn(|| run(list))).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let wrong: usize = results.iter().map(|(wrong, ..)| wrong).sum();
    ensure!(results.len() == lists.len() && wrong == 0, "{wrong} conversions changed nothing");
    let start = results.iter().map(|(_, start, _)| *start).min();
    let end = results.iter().map(|(.., end)| *end).max();
    Ok(end.zip(start).map_or(Duration::ZERO, |(end, start)| end - start))
}
