//! The pool as a whole: allocation cycles, and building it.

use std::time::Instant;

use anyhow::ensure;
use pageless::{FRAME_BYTES, Order, Pool};

use crate::bench::Bench;
use crate::contest::{Contest, Trial, hot, nanos};
use crate::guest;

/// See [`super::Question::tasks`].
pub const TASKS: &[&str] = &["pool.16g_cycle", "pool.build_1tib"];

/// Asks all of it that is wanted.
pub fn ask(bench: &mut Bench) -> anyhow::Result<()> {
    if bench.wants("pool.16g_cycle") {
        let gibs = 16.min(bench.scale.pool_gibs);
        let pool = guest::pool(bench.scale.pool_gibs)?;
        let operation = "allocate 16 GiB, attach a no-op mapping, release, reclaim";
        let contest = Contest::new(operation, "64 GiB, no ledger yet").key("pool.16g_cycle");
        bench.run(contest.entry("pageless", hot(|| cycle(&pool, gibs))))?;
    }
    if bench.wants("pool.build_1tib") {
        let gibs = bench.scale.tib_gibs;
        let contest = Contest::new("build a pool", "1 TiB").key("pool.build_1tib");
        bench.run(contest.entry("pageless", build(gibs)))?;
    }
    Ok(())
}

/// One allocation's whole life; whether every frame came back.
pub fn cycle(pool: &Pool, gibs: u64) -> bool {
    let released = guest::ram(pool, gibs).ok().and_then(|ram| ram.release().ok());
    let freed = pool.reclaim().freed;
    released.is_some_and(|released| released == freed && freed.frames() == gibs * Order::GIB1.bytes() / FRAME_BYTES)
}

fn build<'a>(gibs: u64) -> Trial<'a> {
    Box::new(move || {
        let start = Instant::now();
        let pool = guest::pool(gibs)?;
        let elapsed = nanos(start.elapsed());
        ensure!(pool.stats().free == gibs * Order::GIB1.frames(), "not every frame is free");
        Ok(elapsed)
    })
}
