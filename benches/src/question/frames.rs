//! The frame layer: taking and putting runs of frames.

use std::time::Instant;

use anyhow::{Context, ensure};
use pageless::frames::Frames;
use pageless::{Order, Pfn, PfnRange};

use crate::bench::Bench;
use crate::contest::{Contest, Trial, as_f64, batch, hot, nanos};
use crate::dice::Dice;

/// See [`super::Question::tasks`].
pub const TASKS: &[&str] = &[
    "frames.4k_pair_hot",
    "frames.4k_put_random_1tib",
    "frames.4k_put_batch_1tib",
    "frames.2m_pair_hot",
    "frames.1g_pair",
    "frames.64g_pair",
    "frames.2m_fragmented_take",
    "frames.2m_fragmented_fail",
];

const GIB: u64 = Order::GIB1.frames();

/// Asks all of it that is wanted.
pub fn ask(bench: &mut Bench) -> anyhow::Result<()> {
    pairs(bench)?;
    puts(bench)?;
    contiguous(bench)?;
    fragmented(bench)
}

/// A span of so many GiBs, all free.
pub fn layer(gibs: u64) -> anyhow::Result<Frames> {
    Ok(Frames::new(PfnRange::from_len(Pfn::new(0), gibs * GIB)?))
}

/// Takes a block and puts it back; whether both worked.
#[inline]
pub fn pair(frames: &Frames, order: Order) -> bool {
    frames.take(order).is_some_and(|pfn| frames.put(PfnRange::block(pfn, order)).is_ok())
}

fn pairs(bench: &mut Bench) -> anyhow::Result<()> {
    let orders = [("frames.4k_pair_hot", Order::BASE), ("frames.2m_pair_hot", Order::MIB2), ("frames.1g_pair", Order::GIB1)];
    for (key, order) in orders {
        if bench.wants(key) {
            let frames = layer(bench.scale.pool_gibs)?;
            let contest = Contest::new(format!("take and put {order}"), "64 GiB, free").key(key);
            bench.run(contest.entry("pageless", hot(|| pair(&frames, order))))?;
        }
    }
    Ok(())
}

/// A span in which every block is cut and every frame is taken but one in each block.
pub fn taken(gibs: u64) -> anyhow::Result<Frames> {
    let frames = layer(gibs)?;
    frames.take_at(frames.span())?;
    for block in 0..gibs * 512 {
        // Frame 511 of each block stays free, so that every leaf exists.
        frames.put(PfnRange::single(Pfn::new(block * 512 + 511)))?;
    }
    Ok(frames)
}

/// Which frames of a [`taken`] span are put in which round: in each round one frame of every block of another eighth of the
/// span, in random order. What a round puts was last looked at seven rounds before, as it would be if frames came home at
/// random: neither brought into the cache beforehand nor driven out of it on purpose.
pub struct Rounds {
    blocks: Vec<u64>,
    per_round: usize,
    round: usize,
    before: Vec<Pfn>,
}

impl Rounds {
    /// Rounds over a [`taken`] span of so many GiBs.
    #[must_use]
    pub fn new(gibs: u64, seed: u64) -> Self {
        let mut blocks: Vec<u64> = (0..gibs * 512).collect();
        Dice::new(seed).shuffle(&mut blocks);
        Self { per_round: (blocks.len() / 8).max(1), blocks, round: 0, before: Vec::new() }
    }

    /// Takes back what the last round put.
    pub fn finish(&mut self, frames: &Frames) -> anyhow::Result<()> {
        Ok(self.before.drain(..).try_for_each(|frame| frames.take_at(PfnRange::single(frame)))?)
    }

    /// Takes back what the round before put, and tells what to put now.
    pub fn next(&mut self, frames: &Frames) -> anyhow::Result<Vec<Pfn>> {
        self.finish(frames)?;
        let (from, turn) = (self.round * self.per_round % self.blocks.len(), self.round as u64 / 8 * 73);
        self.round += 1;
        let blocks = self.blocks.iter().cycle().skip(from).take(self.per_round);
        let list: Vec<Pfn> = blocks.map(|block| Pfn::new(block * 512 + (turn + block * 31) % 511)).collect();
        self.before.clone_from(&list);
        Ok(list)
    }
}

/// Puts single frames, each by itself; how many were refused.
pub fn put_each(frames: &Frames, list: &[Pfn]) -> u64 {
    list.iter().map(|frame| u64::from(frames.put(PfnRange::single(*frame)).is_err())).sum()
}

/// Puts single frames in batches of 16; how many batches were refused.
pub fn put_sixteens(frames: &Frames, list: &[Pfn]) -> u64 {
    list.chunks(16).map(|batch| u64::from(frames.put_batch(batch).is_err())).sum()
}

fn puts(bench: &mut Bench) -> anyhow::Result<()> {
    let keys = [("frames.4k_put_random_1tib", false), ("frames.4k_put_batch_1tib", true)];
    if !keys.iter().fold(false, |any, (key, _)| bench.wants(key) | any) {
        return Ok(());
    }
    let gibs = bench.scale.tib_gibs;
    let frames = taken(gibs)?;
    for (key, batched) in keys.into_iter().filter(|(key, _)| bench.wants(key)).collect::<Vec<_>>() {
        let mut rounds = Rounds::new(gibs, 11);
        let operation = if batched { "put 4K in batches of 16, per frame" } else { "put one 4K" };
        let contest = Contest::new(operation, "random over 1 TiB, every block cut").key(key);
        let put = if batched { put_sixteens } else { put_each };
        bench.run(contest.entry("pageless", batch(|| rounds.next(&frames), |list| put(&frames, list))))?;
        rounds.finish(&frames)?;
    }
    Ok(())
}

/// A span with one frame taken in every fortieth GiB but one: a single hole is longer than 64 GiB.
pub fn holed(gibs: u64) -> anyhow::Result<Frames> {
    let frames = layer(gibs)?;
    for gib in (0..gibs).filter(|gib| gib % 40 == 3 && *gib != 523) {
        frames.take_at(PfnRange::single(Pfn::new(gib * GIB + 77)))?;
    }
    Ok(frames)
}

/// Takes so many frames in one run, aligned to a GiB, and puts them back; whether both worked.
#[inline]
pub fn run_pair(frames: &Frames, length: u64) -> bool {
    frames.take_run(length, Order::GIB1).is_some_and(|run| frames.put(run).is_ok())
}

fn contiguous(bench: &mut Bench) -> anyhow::Result<()> {
    if !bench.wants("frames.64g_pair") {
        return Ok(());
    }
    let gibs = bench.scale.tib_gibs;
    // The tests' span is too small for 64 GiB; there the run is one GiB.
    let length = 64.min(gibs / 4).max(1) * GIB;
    let frames = holed(gibs)?;
    let pair = || run_pair(&frames, length);
    let contest = Contest::new("take and put 64 GiB contiguous", "1 TiB, one hole long enough").key("frames.64g_pair");
    bench.run(contest.entry("pageless", hot(pair)))
}

/// A span where one block in a hundred is free and every other one misses a frame; and how many are free.
pub fn shattered(gibs: u64) -> anyhow::Result<(Frames, u64)> {
    let (frames, mut free) = (layer(gibs)?, 0);
    for block in 0..gibs * 512 {
        if block % 100 == 37 {
            free += 1;
        } else {
            frames.take_at(PfnRange::single(Pfn::new(block * 512 + block * 7 % 512)))?;
        }
    }
    Ok((frames, free))
}

fn fragmented(bench: &mut Bench) -> anyhow::Result<()> {
    let (take, fail) = ("frames.2m_fragmented_take", "frames.2m_fragmented_fail");
    if !(bench.wants(take) | bench.wants(fail)) {
        return Ok(());
    }
    let (frames, free) = shattered(bench.scale.tib_gibs)?;
    let state = format!("1 TiB, {free} blocks free, one 4K taken in every other");
    if bench.wants(take) {
        let contest = Contest::new("take 2M until none is left, p99.9", &state).key(take);
        bench.run(contest.entry("pageless", take_all(&frames, free)))?;
    }
    if bench.wants(fail) {
        while frames.take(Order::MIB2).is_some() {}
        let contest = Contest::new("take 2M where none is left", "1 TiB, no 2M block free, 4K free in every one").key(fail);
        bench.run(contest.entry("pageless", hot(|| frames.take(Order::MIB2).is_none())))?;
    }
    Ok(())
}

/// Takes every free block, each timed alone, and tells the 99.9th percentile; then puts all back in random order.
fn take_all(frames: &Frames, free: u64) -> Trial<'_> {
    let (clock, mut dice) = (crate::floor::clock_ns(), Dice::new(13));
    Box::new(move || {
        let mut times = Vec::with_capacity(usize::try_from(free).unwrap_or(0));
        let mut blocks = Vec::with_capacity(times.capacity());
        loop {
            let start = Instant::now();
            let block = frames.take(Order::MIB2);
            let elapsed = nanos(start.elapsed());
            let Some(block) = block else { break };
            times.push((elapsed - clock).max(0.1));
            blocks.push(block);
        }
        ensure!(blocks.len() as u64 == free, "{} of {free} free blocks were found", blocks.len());
        dice.shuffle(&mut blocks);
        blocks.iter().try_for_each(|block| frames.put(PfnRange::block(*block, Order::MIB2)))?;
        times.sort_by(f64::total_cmp);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let at = (as_f64(free) * 0.999) as usize;
        times.get(at.min(times.len().saturating_sub(1))).copied().context("no block was free")
    })
}
