//! The words themselves, and the cache lines they live on.
//!
//! Invariant: a frame is free exactly when *one* of three bits says so: its GiB's in [`Group::whole`], its block's in
//! [`Lane::whole`], or its own in its [`Leaf`]. Never two of them. Everything else here is a hint: it may be set for nothing,
//! and it is never clear for something, except while a move is under way.

use std::sync::OnceLock;

use super::place::{GIB_LANES, GROUP_LANES, LEAF_WORDS, Place};
use crate::sync::{AtomicU64, Ordering};

/// Fullness classes of opened GiBs; the last one is the emptiest and has no word of its own.
pub(super) const CLASSES: usize = 4;

/// 64 GiBs. Two cache lines; the first holds everything that decides where to look.
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
    /// Made when the first of the 64 GiBs is cut, and kept.
    lanes: OnceLock<Box<[Lane]>>,
}

/// 64 blocks of 2 MiB: one cache line, so that two threads can work in one GiB without meeting.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Lane {
    /// Truth: blocks that are free and uncut.
    pub(super) whole: AtomicU64,
    /// Hint: blocks whose leaf may have a free frame.
    pub(super) some: AtomicU64,
    /// Hint: blocks whose leaf may be all free.
    pub(super) full: AtomicU64,
    /// Made when the first of the 64 blocks is cut, and kept: 4 KiB, so at most 32 MiB per TiB.
    leaves: OnceLock<Box<[Leaf; 64]>>,
}

/// One 2 MiB block, a bit per frame: truth. All zero while the block is uncut, or taken.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Leaf(pub(super) [AtomicU64; LEAF_WORDS]);

impl Group {
    /// The lanes, if a GiB was ever cut here.
    #[inline]
    pub(super) fn lanes(&self) -> Option<&[Lane]> {
        self.lanes.get().map(|lanes| &**lanes)
    }

    /// The lanes, made if need be; `count` of them.
    #[cold]
    pub(super) fn lanes_or_new(&self, count: usize) -> &[Lane] {
        self.lanes.get_or_init(|| (0..count.min(GROUP_LANES)).map(|_| Lane::default()).collect())
    }

    /// The lanes of one GiB; fewer than eight where the span ends.
    pub(super) fn lanes_of(&self, gib: u32) -> &[Lane] {
        let from = gib as usize * GIB_LANES;
        let lanes = self.lanes().unwrap_or(&[]);
        lanes.get(from..(from + GIB_LANES).min(lanes.len())).unwrap_or(&[])
    }

    /// GiBs of this fullness class.
    pub(super) fn of_class(&self, class: usize) -> u64 {
        match self.class.get(class) {
            Some(word) => word.load(Ordering::SeqCst),
            None => !self.class.iter().fold(0, |sum, word| sum | word.load(Ordering::SeqCst)),
        }
    }

    /// Whether every block of the GiB may be free, by the lanes' words and hints.
    pub(super) fn may_be_full(&self, gib: u32) -> bool {
        let lanes = self.lanes_of(gib);
        lanes.len() == GIB_LANES && lanes.iter().all(|lane| lane.may_have_blocks() == !0)
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        let lanes = self.lanes().unwrap_or(&[]);
        let leaves = lanes.iter().filter(|lane| lane.leaves.get().is_some()).count();
        size_of_val(lanes) + leaves * size_of::<[Leaf; 64]>()
    }
}

impl Lane {
    /// The block's leaf, if one was ever made near it.
    #[inline]
    pub(super) fn leaf(&self, block: u32) -> Option<&Leaf> {
        self.leaves.get().map(|leaves| &leaves[block as usize & 63])
    }

    /// The block's leaf, made if need be.
    #[inline]
    pub(super) fn leaf_or_new(&self, block: u32) -> &Leaf {
        self.leaf(block).unwrap_or_else(|| self.new_leaf(block))
    }

    #[cold]
    fn new_leaf(&self, block: u32) -> &Leaf {
        &self.leaves.get_or_init(|| Box::new(std::array::from_fn(|_| Leaf::default())))[block as usize & 63]
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

impl Leaf {
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.0.iter().all(|word| word.load(Ordering::SeqCst) == !0)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| word.load(Ordering::SeqCst) == 0)
    }

    /// Takes one frame, looking at word `first` first; the word and the bit it came from.
    #[inline]
    pub(super) fn take_one(&self, first: usize) -> Option<(usize, u32)> {
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

/// The lane number of a GiB's `nth` lane in its group.
pub(super) fn lane_of_gib(gib: u32, nth: usize) -> usize {
    gib as usize * GIB_LANES + nth
}

/// How many lanes a group needs when its frames end at `end`.
pub(super) fn lanes_up_to(end: Place, group: usize) -> usize {
    if end.group() > group { GROUP_LANES } else { Place(end.0.wrapping_sub(1)).lane() + 1 }
}
