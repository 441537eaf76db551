//! A pool with a guest in it: what most questions are asked of. Without real memory, so that only pageless is measured.

use std::sync::Arc;

use anyhow::Context;
use pageless::{Allocation, FRAME_BYTES, Mapping, MetadataOnly, Operation, Order, PfnRange, Pool, Refusal, Request, Stuck};

use crate::dice::Dice;

/// A mapping that proves everything at once and does nothing: what remains is the cost of pageless.
pub struct NoOp;

impl Mapping for NoOp {
    fn prepare(&self, _op: &Operation) -> Result<(), Refusal> {
        Ok(())
    }

    fn invalidate(&self, _op: &Operation, _frames: PfnRange) -> Result<(), Stuck> {
        Ok(())
    }

    fn promote(&self, _block: PfnRange) -> Result<(), Refusal> {
        Ok(())
    }
}

/// A pool, and one allocation that has all of it.
pub struct Guest {
    /// The pool.
    pub pool: Pool,
    /// The guest's memory, translated by one [`NoOp`] behind `dyn`.
    pub ram: Allocation,
    /// Its size.
    pub frames: u64,
}

/// A pool of this many GiBs.
pub fn pool(gibs: u64) -> anyhow::Result<Pool> {
    let backing = MetadataOnly::of_bytes(gibs * Order::GIB1.bytes());
    Pool::builder().backing(backing).build().context("no pool could be built")
}

/// An allocation of this many GiBs, translated by one [`NoOp`].
pub fn ram(pool: &Pool, gibs: u64) -> anyhow::Result<Allocation> {
    let ram = pool.allocate(Request::bytes(gibs * Order::GIB1.bytes()).order(Order::GIB1).owner("guest"))?;
    ram.attach("stage 2", Arc::new(NoOp))?;
    Ok(ram)
}

impl Guest {
    /// A guest with all of a pool of this size, everything private.
    pub fn new(gibs: u64) -> anyhow::Result<Self> {
        let pool = pool(gibs)?;
        let ram = ram(&pool, gibs)?;
        Ok(Self { pool, ram, frames: gibs * Order::GIB1.frames() })
    }

    /// Converts a run; true when it changed something, as everything that is measured must.
    #[inline]
    pub fn convert(&self, frame: u64, frames: u64, share: bool) -> bool {
        let bytes = frame * FRAME_BYTES..(frame + frames) * FRAME_BYTES;
        let result = if share { self.ram.share(bytes) } else { self.ram.unshare(bytes) };
        result.is_ok_and(|converted| converted.changed())
    }

    /// Shares random blocks of this order, each with this probability; how many that were.
    pub fn share_random(&self, order: Order, probability: f64, seed: u64) -> u64 {
        let blocks = Dice::new(seed).pick(self.frames / order.frames(), probability);
        blocks.filter(|block| self.convert(block * order.frames(), order.frames(), true)).count() as u64
    }
}

/// A stationary stream of conversions: shares a random private block, then makes a random shared one private, and so on.
/// What it plans is coded as twice the block's number, plus one to share.
pub struct Toggler {
    blocks: u64,
    shared: Vec<u64>,
    is_shared: Vec<bool>,
    dice: Dice,
}

impl Toggler {
    /// A stream over so many blocks of which each one is shared already with this probability, as
    /// [`Guest::share_random`] of the same seed does it.
    #[must_use]
    pub fn new(blocks: u64, probability: f64, seed: u64) -> Self {
        Self::of(blocks, Dice::new(seed).pick(blocks, probability).collect(), seed)
    }

    /// A stream over so many blocks of which these are shared already.
    #[must_use]
    pub fn of(blocks: u64, shared: Vec<u64>, seed: u64) -> Self {
        let mut is_shared = vec![false; usize::try_from(blocks).unwrap_or(0)];
        shared.iter().for_each(|block| is_shared[usize::try_from(*block).unwrap_or(0)] = true);
        Self { blocks, shared, is_shared, dice: Dice::new(!seed) }
    }

    /// The next conversions.
    pub fn plan(&mut self, count: usize) -> Vec<u64> {
        (0..count).map(|nth| if nth % 2 == 0 { self.share() } else { self.unshare() }).collect()
    }

    fn share(&mut self) -> u64 {
        loop {
            let block = self.dice.below(self.blocks);
            let is_shared = &mut self.is_shared[usize::try_from(block).unwrap_or(0)];
            if !*is_shared {
                *is_shared = true;
                self.shared.push(block);
                return block * 2 + 1;
            }
        }
    }

    fn unshare(&mut self) -> u64 {
        let at = usize::try_from(self.dice.below(self.shared.len() as u64)).unwrap_or(0);
        let block = self.shared.swap_remove(at);
        self.is_shared[usize::try_from(block).unwrap_or(0)] = false;
        block * 2
    }
}

/// Conversions that were drawn beforehand: run from first to last, then from last to first and undone, and so on. So every
/// run changes every frame in it, the density stays, and nothing is drawn, which would empty the caches, between runs.
pub struct Swing {
    frames: u64,
    /// As a [`Toggler`] codes them; 1 TiB of frames leaves room for the bit.
    steps: Vec<u32>,
    back: bool,
}

impl Swing {
    /// Conversions of blocks of this order, as a [`Toggler`] planned them.
    pub fn new(order: Order, plan: &[u64]) -> anyhow::Result<Self> {
        let steps = plan.iter().map(|coded| u32::try_from(*coded)).collect::<Result<_, _>>();
        Ok(Self { frames: order.frames(), steps: steps.context("a block's number is too large")?, back: false })
    }

    /// How many conversions one run has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether there is nothing to run.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// One run; how many conversions did not change what they should.
    pub fn run(&mut self, guest: &Guest) -> u64 {
        let (frames, back) = (self.frames, self.back);
        self.back = !back;
        let convert = |coded: &u32| {
            let start = u64::from(coded / 2) * frames;
            u64::from(!guest.convert(start, frames, (coded % 2 == 1) != back))
        };
        if back { self.steps.iter().rev().map(convert).sum() } else { self.steps.iter().map(convert).sum() }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_planned_conversion_changes_something_and_the_density_stays() {
        let guest = Guest::new(1).unwrap();
        let before = guest.share_random(Order::BASE, 0.1, 5);
        let mut toggler = Toggler::new(guest.frames, 0.1, 5);
        let mut swing = Swing::new(Order::BASE, &toggler.plan(10_000)).unwrap();
        for _ in 0..3 {
            assert_eq!(swing.run(&guest), 0);
        }
        assert_eq!(guest.pool.stats().shared, before);
        assert!(guest.pool.verify().is_sound());
    }
}
