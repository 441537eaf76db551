//! The words of a group's cut GiBs.

use super::place::{GIB_LANES, LEAF_WORDS, Place};
use crate::sync::{AtomicU64, zeroed_words};

/// All words about one lane, that is 64 blocks of 2 MiB: half a cache line, so what a put looks at is together, and four
/// threads can take blocks of one GiB without meeting.
#[derive(Debug, Default)]
#[repr(align(32))]
pub(super) struct Lane {
    /// Truth: blocks that are free and uncut.
    pub(super) whole: AtomicU64,
    /// Hint: blocks whose leaf may have a free frame.
    pub(super) some: AtomicU64,
    /// Hint: blocks whose leaf may be all free.
    pub(super) full: AtomicU64,
}

/// Lanes that share a cache line.
pub(super) const LINE_LANES: u64 = 2;

/// The lanes and the leaves. Both begin cache lines, and what belongs to a GiB is whole lines: 256 and 32,768 bytes.
#[derive(Debug)]
pub(super) struct Slab {
    lanes: Box<[Lane]>,
    /// The first lane that begins a cache line.
    first_lane: usize,
    /// All zero at first, which costs nothing where it is not touched.
    leaves: Box<[AtomicU64]>,
    /// The first word that begins a cache line.
    first_leaf: usize,
}

impl Slab {
    /// For so many GiBs, with leaves for their first `blocks` blocks of 2 MiB.
    pub(super) fn new(gibs: usize, blocks: usize) -> Self {
        let lanes: Box<[Lane]> = (0..1 + gibs * GIB_LANES).map(|_| Lane::default()).collect();
        let leaves = zeroed_words(LEAF_WORDS - 1 + blocks * LEAF_WORDS);
        // Bytes up to the next cache line: a whole number of lanes, or words, as each is aligned to its own size.
        let to_line = |address: usize| address.wrapping_neg() % 64;
        let first_lane = to_line(lanes.as_ptr().addr()) / size_of::<Lane>() % 2;
        let first_leaf = to_line(leaves.as_ptr().addr()) / size_of::<u64>() % LEAF_WORDS;
        Self { lanes, first_lane, leaves, first_leaf }
    }

    /// The lane around `at`, if there are so many.
    #[inline]
    pub(super) fn lane(&self, at: Place) -> Option<&Lane> {
        self.lanes.get(self.first_lane + at.lane_of_group())
    }

    /// The word of the leaf around `at`, if there are so many.
    #[inline]
    pub(super) fn leaf_word(&self, at: Place) -> Option<&AtomicU64> {
        self.leaves.get(self.first_leaf + at.leaf_word())
    }

    /// The leaf around `at`, if there are so many.
    #[inline]
    pub(super) fn leaf(&self, at: Place) -> Option<&[AtomicU64; LEAF_WORDS]> {
        let first = self.first_leaf + (at.leaf_word() & !(LEAF_WORDS - 1));
        self.leaves.get(first..first + LEAF_WORDS)?.try_into().ok()
    }

    /// Bytes, touched or not.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.lanes) + size_of_val(&*self.leaves)
    }
}
