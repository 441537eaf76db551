//! Which words a thread looks at first. A preference is not a possession: anyone may take from anyone's, and one that is
//! out of date only costs a look.

use pageless_metadata::Order;

use super::place::{LANE_LOG2, Place};
use super::slab::LINE_LANES;
use crate::sync::{AtomicU64, Ordering, thread_number};

/// Threads that can have a preference of their own; more share.
const SLOTS: usize = 16;
/// No preference: a place that no layer has.
const NONE: u64 = !63;

/// One thread's preferences, on a cache line pair of its own.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Slot {
    /// The first frame of the leaf word that base frames come from.
    frames: AtomicU64,
    /// The first frame of the lane that 2 MiB blocks come from.
    blocks: AtomicU64,
}

/// All threads' preferences. Relaxed throughout: they order nothing and decide nothing.
#[derive(Debug)]
pub(super) struct Preferences([Slot; SLOTS]);

impl Preferences {
    pub(super) fn new() -> Self {
        Self(std::array::from_fn(|_| Slot { frames: AtomicU64::new(NONE), blocks: AtomicU64::new(NONE) }))
    }

    /// The calling thread's.
    #[inline]
    pub(super) fn mine(&self) -> &Slot {
        &self.0[thread_number() & (SLOTS - 1)]
    }

    fn others<'a>(&'a self, mine: &'a Slot) -> impl Iterator<Item = &'a Slot> {
        self.0.iter().filter(move |slot| !std::ptr::eq(*slot, mine))
    }

    /// Whether another thread takes base frames from the block around `at`.
    pub(super) fn others_want_block(&self, mine: &Slot, at: Place) -> bool {
        let block = at.align_down(Order::MIB2);
        self.others(mine).any(|slot| slot.frames_from().align_down(Order::MIB2) == block)
    }

    /// Whether another thread takes blocks from a lane on the cache line of the one that starts at `at`.
    pub(super) fn others_want_lane(&self, mine: &Slot, at: Place) -> bool {
        let line = |at: Place| at.0 >> LANE_LOG2 >> LINE_LANES.trailing_zeros();
        self.others(mine).any(|slot| line(slot.blocks_from()) == line(at))
    }
}

impl Slot {
    /// The first frame of the leaf word to look at first; outside any layer if there is none.
    #[inline]
    pub(super) fn frames_from(&self) -> Place {
        Place(self.frames.load(Ordering::Relaxed))
    }

    /// Base frames shall come from the word around `at`.
    #[inline]
    pub(super) fn prefer_word(&self, at: Place) {
        let start = at.0 & !63;
        if self.frames.load(Ordering::Relaxed) != start {
            self.frames.store(start, Ordering::Relaxed);
        }
    }

    /// The first frame of the lane to look at first; outside any layer if there is none.
    #[inline]
    pub(super) fn blocks_from(&self) -> Place {
        Place(self.blocks.load(Ordering::Relaxed))
    }

    /// Blocks shall come from the lane that starts at `at`.
    pub(super) fn prefer_lane(&self, at: Place) {
        self.blocks.store(at.0, Ordering::Relaxed);
    }
}
