//! Contenders for allocation, from the crate registry.

use anyhow::{Context, anyhow};
use pageless::Order;
use pageless::frames::Frames;

use crate::bench::Bench;
use crate::contest::{Contest, Trial, as_f64, hot};
use crate::dice::Dice;
use crate::rival::buddy_slab::BuddySlab;
use crate::rival::frame_alloc::FrameAlloc;
use crate::rival::taker::{Addresses, Bitmap, Buddy, Ranges, Taker};
use crate::rival::tlsf::Tlsf;

/// See [`super::Question::tasks`].
pub const TASKS: &[&str] = &["allocate.empty", "allocate.half_full", "allocate.few_holes", "allocate.shattered"];

/// Asks all of it that is wanted.
pub fn ask(bench: &mut Bench) -> anyhow::Result<()> {
    let gibs = bench.scale.rival_gibs.max(2);
    let frames = gibs * Order::GIB1.frames();
    if bench.wants("allocate.empty") {
        for order in Order::DESCENDING {
            pairs(bench, order, frames, &[], &format!("{gibs} GiB, all free"), true)?;
        }
    }
    if bench.wants("allocate.half_full") {
        let taken: Vec<u64> = Dice::new(61).pick(frames, 0.5).collect();
        pairs(bench, Order::BASE, frames, &taken, &format!("{gibs} GiB, half of the frames taken at random"), false)?;
    }
    if bench.wants("allocate.few_holes") {
        let frames = 16_384;
        let taken: Vec<u64> = Dice::new(62).pick(frames, 0.5).collect();
        pairs(bench, Order::BASE, frames, &taken, "64 MiB, half of the frames taken at random", true)?;
    }
    if bench.wants("allocate.shattered") {
        shattered(bench, gibs)?;
    }
    Ok(())
}

/// Takes a block and puts it back.
fn pair<'a, T: Taker + 'a>(frames: u64, taken: &[u64], order: Order) -> anyhow::Result<Trial<'a>> {
    let mut taker = T::with_taken(frames, taken).with_context(|| format!("{}, {} frames taken", T::NAME, taken.len()))?;
    Ok(hot(move || taker.take(order).is_some_and(|frame| taker.put(frame, order))))
}

/// All contenders; `all` has those too that walk a list of every hole.
fn pairs(bench: &mut Bench, order: Order, frames: u64, taken: &[u64], state: &str, all: bool) -> anyhow::Result<()> {
    let linear = || anyhow!("linear in the number of holes; asked with fewer holes below");
    let ranges = if all { pair::<Ranges>(frames, taken, order) } else { Err(linear()) };
    let addresses = if all { pair::<Addresses>(frames, taken, order) } else { Err(linear()) };
    let trials = [
        (<Frames as Taker>::NAME, pair::<Frames>(frames, taken, order)),
        (FrameAlloc::NAME, pair::<FrameAlloc>(frames, taken, order)),
        (Buddy::NAME, pair::<Buddy>(frames, taken, order)),
        (BuddySlab::NAME, pair::<BuddySlab>(frames, taken, order)),
        (Bitmap::NAME, pair::<Bitmap>(frames, taken, order)),
        (Tlsf::NAME, pair::<Tlsf>(frames, taken, order)),
        (Ranges::NAME, ranges),
        (Addresses::NAME, addresses),
    ];
    let mut contest = Contest::new(format!("take and put {order}"), state);
    let mut absent = Vec::new();
    for (name, trial) in trials {
        match trial {
            Ok(trial) => contest = contest.entry(name, trial),
            Err(why) => absent.push((name, format!("{why:#}"))),
        }
    }
    let told = Contest::new(contest.operation.clone(), contest.state.clone());
    bench.run(contest)?;
    absent.iter().for_each(|(name, why)| bench.skip(&told, name, why));
    Ok(())
}

/// 1 % of the 2M blocks are free, and one 4K is taken in every other one.
fn shattered(bench: &mut Bench, gibs: u64) -> anyhow::Result<()> {
    let blocks = gibs * 512;
    let (free, cut): (Vec<u64>, Vec<u64>) = (0..blocks).partition(|block| block % 100 == 37);
    let taken: Vec<u64> = cut.iter().map(|block| block * 512 + block * 7 % 512).collect();
    let (frames, free) = (blocks * 512, free.len() as u64);
    let state = format!("{gibs} GiB, {free} 2M blocks free, one 4K taken in every other");
    pairs(bench, Order::MIB2, frames, &taken, &state, true)?;

    let mut fails = Contest::new("take 2M where none is left", "the same, all 2M blocks taken");
    exhaust::<Frames>(bench, &mut fails, &state, frames, &taken);
    exhaust::<FrameAlloc>(bench, &mut fails, &state, frames, &taken);
    exhaust::<Buddy>(bench, &mut fails, &state, frames, &taken);
    exhaust::<BuddySlab>(bench, &mut fails, &state, frames, &taken);
    exhaust::<Bitmap>(bench, &mut fails, &state, frames, &taken);
    exhaust::<Tlsf>(bench, &mut fails, &state, frames, &taken);
    exhaust::<Ranges>(bench, &mut fails, &state, frames, &taken);
    exhaust::<Addresses>(bench, &mut fails, &state, frames, &taken);
    bench.run(fails)
}

/// Takes every block that a contender finds, notes how many that were, and adds the question what it says then.
fn exhaust<'a, T: Taker + 'a>(bench: &mut Bench, fails: &mut Contest<'a>, state: &str, frames: u64, taken: &[u64]) {
    let contest = Contest::new("2M blocks found until none is left", state).unit("blocks");
    let mut taker = match T::with_taken(frames, taken) {
        Ok(taker) => taker,
        Err(why) => {
            bench.skip(&contest, T::NAME, &format!("{why:#}"));
            return;
        }
    };
    let found = std::iter::from_fn(|| taker.take(Order::MIB2)).count() as u64;
    bench.once(&contest, T::NAME, as_f64(found));
    fails.entries.push((T::NAME.to_owned(), hot(move || taker.take(Order::MIB2).is_none())));
}
