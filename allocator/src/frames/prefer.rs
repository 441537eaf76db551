//! Which words a thread looks at first. A preference is not a possession: anyone may take from anyone's, and one that is
//! out of date only costs a look.

use crate::sync::{AtomicU64, Ordering, thread_number};

/// Threads that can have a preference of their own; more share.
const SLOTS: usize = 16;
/// No preference.
const NONE: u64 = u64::MAX;

/// One thread's preferences, on a cache line pair of its own.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Slot {
    /// The leaf word, by number, that base frames come from.
    frames: AtomicU64,
    /// The lane, by number, that 2 MiB blocks come from.
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

    /// Whether another thread takes base frames from the block with this number.
    pub(super) fn others_want_block(&self, mine: &Slot, block: u64) -> bool {
        self.others(mine).any(|slot| slot.frames.load(Ordering::Relaxed) >> 3 == block)
    }

    /// Whether another thread takes blocks from the lane with this number.
    pub(super) fn others_want_lane(&self, mine: &Slot, lane: u64) -> bool {
        self.others(mine).any(|slot| slot.blocks.load(Ordering::Relaxed) == lane)
    }
}

impl Slot {
    #[inline]
    pub(super) fn word(&self) -> Option<u64> {
        Some(self.frames.load(Ordering::Relaxed)).filter(|&word| word != NONE)
    }

    #[inline]
    pub(super) fn prefer_word(&self, word: u64) {
        if self.frames.load(Ordering::Relaxed) != word {
            self.frames.store(word, Ordering::Relaxed);
        }
    }

    #[inline]
    pub(super) fn lane(&self) -> Option<u64> {
        Some(self.blocks.load(Ordering::Relaxed)).filter(|&lane| lane != NONE)
    }

    pub(super) fn prefer_lane(&self, lane: u64) {
        self.blocks.store(lane, Ordering::Relaxed);
    }
}
