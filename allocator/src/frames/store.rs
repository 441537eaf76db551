//! The words themselves, and the cache lines they live on.
//!
//! Invariant: a frame is free exactly when *one* of three bits says so: its GiB's in [`Group::whole`], its block's in
//! [`Lane::whole`], or its own in its [`Leaf`]. Never two of them. Everything else here is a hint: it may be set for nothing,
//! and it is never clear for something, except while a move is under way.

use pageless_metadata::Order;

use super::place::{GIB_LANES, LEAF_WORDS, Place};
use super::slab::{Lane, Slab};
use crate::sync::{AtomicU64, Late, Ordering};

/// Fullness classes of opened GiBs; the last one is the emptiest and has no word of its own.
pub(super) const CLASSES: usize = 4;

/// 64 GiBs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Group {
    /// Truth: GiBs that are free and uncut.
    pub(super) whole: AtomicU64,
    /// Hint: GiBs that were cut and may be free as a whole again.
    pub(super) full: AtomicU64,
    /// Hint: GiBs where some block may be free, uncut or whole again.
    pub(super) blocks: AtomicU64,
    /// Hint: GiBs where some leaf may have a free frame.
    pub(super) some: AtomicU64,
    /// GiBs by fullness, fullest first. A GiB in none of them is in the last class.
    pub(super) class: [AtomicU64; CLASSES - 1],
    /// Made when the first of the 64 GiBs is cut, and kept. Of its memory only what belongs to cut GiBs and blocks is touched.
    cut: Late<Slab>,
}

/// A lane and its leaves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spot<'a> {
    lane: &'a Lane,
    slab: &'a Slab,
    /// The lane's first frame.
    start: Place,
}

/// One 2 MiB block, a bit per frame: truth. All zero while the block is uncut, or taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaf<'a>(pub(super) &'a [AtomicU64; LEAF_WORDS]);

impl Group {
    /// The words of the cut GiBs, if a GiB was ever cut here.
    #[inline]
    pub(super) fn cut(&self) -> Option<&Slab> {
        self.cut.get()
    }

    /// Makes the words for cut GiBs, if they are not there, for the first `frames` frames of the group.
    #[cold]
    pub(super) fn make(&self, frames: u64) {
        #[allow(clippy::cast_possible_truncation, reason = "at most 2^24, the frames of a group")]
        let up_to = |order: Order| frames.div_ceil(order.frames()) as usize;
        self.cut.get_or_init(|| Slab::new(up_to(Order::GIB1), up_to(Order::MIB2)));
    }

    /// The leaf around `at`, if a GiB was ever cut here.
    #[inline]
    pub(super) fn leaf(&self, at: Place) -> Option<Leaf<'_>> {
        self.cut()?.leaf(at).map(Leaf)
    }

    /// The lane around `at`, if a GiB was ever cut here.
    #[inline]
    pub(super) fn lane(&self, at: Place) -> Option<Spot<'_>> {
        let slab = self.cut()?;
        Some(Spot { lane: slab.lane(at)?, slab, start: at.align_down_to_lane() })
    }

    /// The lanes of the GiB that starts at `at`, ascending, each with its first frame; none if it was never cut.
    pub(super) fn lanes_of(&self, at: Place) -> impl Iterator<Item = (Place, Spot<'_>)> {
        at.lanes().filter_map(|start| Some((start, self.lane(start)?)))
    }

    /// GiBs of this fullness class.
    pub(super) fn of_class(&self, class: usize) -> u64 {
        match self.class.get(class) {
            Some(word) => word.load(Ordering::SeqCst),
            None => !self.class.iter().fold(0, |sum, word| sum | word.load(Ordering::SeqCst)),
        }
    }

    /// Whether every block of the GiB that starts at `at` may be free, by the lanes' words and hints.
    pub(super) fn may_be_full(&self, at: Place) -> bool {
        let lanes = self.lanes_of(at).take_while(|(_, lane)| lane.may_have_blocks() == !0);
        lanes.count() == GIB_LANES
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        self.cut().map_or(0, Slab::bytes)
    }
}

impl std::ops::Deref for Spot<'_> {
    type Target = Lane;

    fn deref(&self) -> &Lane {
        self.lane
    }
}

impl<'a> Spot<'a> {
    /// The block's leaf, if one was ever made near it.
    #[inline]
    pub(super) fn leaf(&self, block: u32) -> Option<Leaf<'a>> {
        self.slab.leaf(self.start.block_of_lane(block)).map(Leaf)
    }

    /// The blocks that may be free, uncut or whole again.
    pub(super) fn may_have_blocks(&self) -> u64 {
        self.whole.load(Ordering::SeqCst) | self.full.load(Ordering::SeqCst)
    }

    /// Whether the block's leaf has all its frames.
    pub(super) fn leaf_is_full(&self, block: u32) -> bool {
        self.leaf(block).is_some_and(Leaf::is_full)
    }
}

impl Leaf<'_> {
    #[inline]
    pub(super) fn is_full(self) -> bool {
        self.0.iter().all(|word| word.load(Ordering::SeqCst) == !0)
    }

    pub(super) fn is_empty(self) -> bool {
        self.0.iter().all(|word| word.load(Ordering::SeqCst) == 0)
    }

    /// Takes one frame, looking at word `first` first; the word and the bit it came from.
    #[inline]
    pub(super) fn take_one(self, first: usize) -> Option<(usize, u32)> {
        (0..LEAF_WORDS).find_map(|nth| {
            let word = (first + nth) & (LEAF_WORDS - 1);
            take_lowest(&self.0[word]).map(|bit| (word, bit))
        })
    }
}

/// Which hint of the groups' a summary is about.
#[derive(Clone, Copy, Debug)]
pub(super) enum Supply {
    /// Groups with a GiB in `whole` or `full`.
    Gibs,
    /// Groups with a GiB in `blocks`.
    Blocks,
    /// Groups with a GiB in `some`.
    Some,
}

impl Supply {
    pub(super) const ALL: [Self; 3] = [Self::Gibs, Self::Blocks, Self::Some];

    /// The GiBs of a group that may have it.
    pub(super) fn in_group(self, group: &Group) -> u64 {
        match self {
            Self::Gibs => group.whole.load(Ordering::SeqCst) | group.full.load(Ordering::SeqCst),
            Self::Blocks => group.blocks.load(Ordering::SeqCst),
            Self::Some => group.some.load(Ordering::SeqCst),
        }
    }
}

/// Hints for 64 groups (4 TiB): which may have what.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Top([AtomicU64; 3]);

impl Top {
    #[inline]
    pub(super) fn word(&self, supply: Supply) -> &AtomicU64 {
        &self.0[supply as usize]
    }
}

/// Takes the lowest one bit of a truth word. Pairs with [`set_clear`].
#[inline]
pub(super) fn take_lowest(word: &AtomicU64) -> Option<u32> {
    let mut seen = word.load(Ordering::SeqCst);
    while seen != 0 {
        match word.compare_exchange_weak(seen, seen & (seen - 1), Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => return Some(seen.trailing_zeros()),
            Err(now) => seen = now,
        }
    }
    None
}

/// Takes all of `mask`, or nothing: the bits that were missing. Pairs with [`set_clear`].
#[inline]
pub(super) fn take_all(word: &AtomicU64, mask: u64) -> Result<(), u64> {
    let mut seen = word.load(Ordering::SeqCst);
    while seen & mask == mask {
        match word.compare_exchange_weak(seen, seen & !mask, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => return Ok(()),
            Err(now) => seen = now,
        }
    }
    Err(mask & !seen)
}

/// Sets all of `mask` if none of it is set, and tells the word as it is then; otherwise tells the bits that were set. Pairs
/// with [`take_lowest`] and [`take_all`].
#[inline]
pub(super) fn set_clear(word: &AtomicU64, mask: u64) -> Result<u64, u64> {
    let mut seen = word.load(Ordering::SeqCst);
    while seen & mask == 0 {
        match word.compare_exchange_weak(seen, seen | mask, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => return Ok(seen | mask),
            Err(now) => seen = now,
        }
    }
    Err(seen & mask)
}

/// Whether `bit` is set.
#[inline]
pub(super) fn has(word: &AtomicU64, bit: u32) -> bool {
    word.load(Ordering::SeqCst) >> bit & 1 == 1
}

/// Sets a hint's bit unless it is set.
#[inline]
pub(super) fn hint(word: &AtomicU64, bit: u32) {
    if !has(word, bit) {
        word.fetch_or(1 << bit, Ordering::SeqCst);
    }
}

/// Clears a hint's bit.
pub(super) fn unhint(word: &AtomicU64, bit: u32) {
    word.fetch_and(!(1 << bit), Ordering::SeqCst);
}
