//! The pool as a whole: allocation cycles, and building it.

use std::sync::Arc;
use std::time::Instant;

use anyhow::ensure;
use pageless::{Mapping, Order, Pool, Request};

use crate::bench::Bench;
use crate::contest::{Contest, Trial, hot, nanos};
use crate::guest::{self, NoOp};

/// See [`super::Question::tasks`].
pub const TASKS: &[&str] = &["pool.16g_cycle", "pool.build_1tib"];

/// Asks all of it that is wanted.
pub fn ask(bench: &mut Bench) -> anyhow::Result<()> {
    if bench.wants("pool.16g_cycle") {
        let gibs = 16.min(bench.scale.pool_gibs);
        let pool = guest::pool(bench.scale.pool_gibs)?;
        let operation = "allocate 16 GiB, attach a no-op mapping, release, reclaim";
        let contest = Contest::new(operation, "64 GiB, without a ledger").key("pool.16g_cycle");
        let stage2: Arc<dyn Mapping> = Arc::new(NoOp);
        bench.run(contest.entry("pageless", hot(|| cycle(&pool, gibs, &stage2))))?;
    }
    if bench.wants("pool.build_1tib") {
        let gibs = bench.scale.tib_gibs;
        let contest = Contest::new("build a pool", "1 TiB").key("pool.build_1tib");
        bench.run(contest.entry("pageless", build(gibs)))?;
    }
    Ok(())
}

/// One allocation's whole life; whether every frame came back.
pub fn cycle(pool: &Pool, gibs: u64, stage2: &Arc<dyn Mapping>) -> bool {
    let request = Request::bytes(gibs * Order::GIB1.bytes()).order(Order::GIB1).owner("guest");
    let Ok(ram) = pool.allocate(request) else { return false };
    let attached = ram.attach("stage 2", Arc::clone(stage2)).is_ok();
    let released = ram.release().is_ok();
    attached && released && pool.reclaim().freed.frames() == gibs * Order::GIB1.frames()
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
