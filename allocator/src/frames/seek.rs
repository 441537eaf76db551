//! Taking one aligned block: first where the thread took from last, then where the hints point.
//!
//! Small requests fill the fullest GiB first and keep out of each other's way; a starving one takes from anyone's. "None
//! left" is said only by [`Moves::settled`](super::moves::Moves::settled).

use pageless_metadata::Order;

use super::Frames;
use super::place::{Place, each_bit, ones};
use super::prefer::Slot;
use super::store::{CLASSES, Group, Leaf, Spot, Supply, take_all, take_lowest};
use crate::sync::Ordering;

/// Whether a seeker keeps away from what other threads prefer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Courtesy {
    Polite,
    Starving,
}

impl Frames {
    pub(super) fn seek_frame(&self, slot: &Slot) -> Option<Place> {
        self.seek_mixed(slot, Courtesy::Polite)
            .or_else(|| self.seek_block_to_cut(slot))
            .or_else(|| self.seek_mixed(slot, Courtesy::Starving))
            // A cut GiB is a move, so the caller looks again and finds its blocks.
            .or_else(|| self.cut_any_gib())
    }

    pub(super) fn seek_block(&self, slot: &Slot) -> Option<Place> {
        self.seek_whole(slot, Courtesy::Polite)
            .or_else(|| self.seek_whole(slot, Courtesy::Starving))
            .or_else(|| self.cut_any_gib())
    }

    /// Shows `look` the GiBs that may have such frames, fullest first; a polite seeker has patience for a few only.
    fn by_fullness<T>(
        &self,
        supply: Supply,
        courtesy: Courtesy,
        mut look: impl FnMut(usize, &Group, u32) -> Option<T>,
    ) -> Option<T> {
        /// GiBs that a polite seeker looks at before it starves: a preference must not cost a walk over all memory.
        const PATIENCE: u32 = 16;
        self.groups_with(supply).next()?;
        let mut seen = 0;
        for class in 0..CLASSES {
            for index in self.groups_with(supply) {
                let group = &self.groups[index];
                let supplied = supply.in_group(group);
                if supplied == 0 {
                    self.clear_top(supply, index);
                }
                for gib in each_bit(supplied & group.of_class(class)) {
                    // One that turns out emptier than it was filed is met again in its own class.
                    if self.classify(index, gib) > class {
                        continue;
                    }
                    if let Some(found) = look(index, group, gib) {
                        return Some(found);
                    }
                    seen += 1;
                    if courtesy == Courtesy::Polite && seen == PATIENCE {
                        return None;
                    }
                }
            }
        }
        None
    }

    /// A frame of a leaf that is cut already.
    fn seek_mixed(&self, slot: &Slot, courtesy: Courtesy) -> Option<Place> {
        self.by_fullness(Supply::Some, courtesy, |index, group, gib| {
            let mut left = false;
            for (start, lane) in group.lanes_of(Place::of_gib(index, gib)) {
                let mixed = lane.some.load(Ordering::SeqCst);
                // A polite seeker leaves whole blocks whole.
                let skipped = if courtesy == Courtesy::Polite { mixed & lane.full.load(Ordering::SeqCst) } else { 0 };
                left |= skipped != 0;
                for block in each_bit(mixed & !skipped) {
                    let at = start.block_of_lane(block);
                    if courtesy == Courtesy::Polite && self.preferences.others_want_block(slot, at) {
                        left = true;
                    } else if let Some(found) = take_in_leaf(slot, lane.leaf(block), at) {
                        return Some(found);
                    } else {
                        self.clear_some(group, lane, at);
                    }
                }
            }
            if !left {
                self.clear_gib(Supply::Some, index, gib);
            }
            None
        })
    }

    /// A frame of a whole block, which is cut for it.
    fn seek_block_to_cut(&self, slot: &Slot) -> Option<Place> {
        self.by_fullness(Supply::Blocks, Courtesy::Starving, |index, group, gib| {
            for (start, lane) in group.lanes_of(Place::of_gib(index, gib)) {
                for block in each_bit(lane.full.load(Ordering::SeqCst)) {
                    let at = start.block_of_lane(block);
                    let found = take_in_leaf(slot, lane.leaf(block), at);
                    self.clear_full(group, lane, at);
                    if found.is_some() {
                        return found;
                    }
                }
                if lane.whole.load(Ordering::SeqCst) == 0 {
                    continue;
                }
                let _move = self.moves.begin();
                if let Some(block) = take_lowest(&lane.whole) {
                    let at = start.block_of_lane(block);
                    self.cut_block(lane, at, 1);
                    slot.prefer_word(at);
                    return Some(at);
                }
            }
            self.clear_gib(Supply::Blocks, index, gib);
            None
        })
    }

    /// A whole block: one that was never cut, or else one that has all its frames again.
    fn seek_whole(&self, slot: &Slot, courtesy: Courtesy) -> Option<Place> {
        self.by_fullness(Supply::Blocks, courtesy, |index, group, gib| {
            let at = Place::of_gib(index, gib);
            let mut left = false;
            for (start, lane) in group.lanes_of(at) {
                if lane.whole.load(Ordering::SeqCst) == 0 {
                    continue;
                }
                if courtesy == Courtesy::Polite && self.preferences.others_want_lane(slot, start) {
                    left = true;
                } else if let Some(block) = take_lowest(&lane.whole) {
                    slot.prefer_lane(start);
                    return Some(start.block_of_lane(block));
                }
            }
            for (start, lane) in group.lanes_of(at) {
                for block in each_bit(lane.full.load(Ordering::SeqCst)) {
                    let at = start.block_of_lane(block);
                    if courtesy == Courtesy::Polite && self.preferences.others_want_block(slot, at) {
                        left = true;
                        continue;
                    }
                    let took = lane.leaf_is_full(block) && self.claim(at.0, at.0 + Order::MIB2.frames());
                    self.clear_full(group, lane, at);
                    if took {
                        return Some(at);
                    }
                }
            }
            if !left {
                self.clear_gib(Supply::Blocks, index, gib);
            }
            None
        })
    }

    /// A GiB that was cut and has all its blocks again.
    pub(super) fn seek_full_gib(&self, index: usize, group: &Group) -> Option<Place> {
        for gib in each_bit(group.full.load(Ordering::SeqCst)) {
            let at = Place::of_gib(index, gib);
            for (start, lane) in group.lanes_of(at) {
                let cut = !lane.whole.load(Ordering::SeqCst) & lane.full.load(Ordering::SeqCst);
                for block in each_bit(cut).filter(|&block| !lane.leaf_is_full(block)) {
                    self.clear_full(group, lane, start.block_of_lane(block));
                }
            }
            let took = group.may_be_full(at) && self.claim(at.0, at.0 + Order::GIB1.frames());
            self.clear_gib(Supply::Gibs, index, gib);
            if took {
                return Some(at);
            }
        }
        if Supply::Gibs.in_group(group) == 0 {
            self.clear_top(Supply::Gibs, index);
        }
        None
    }

    /// Cuts some whole GiB into blocks. Finds nothing itself: the move makes the caller look again.
    fn cut_any_gib(&self) -> Option<Place> {
        for index in self.groups_with(Supply::Gibs) {
            let group = &self.groups[index];
            if group.whole.load(Ordering::SeqCst) == 0 {
                // Not a move: one for nothing would make every thread look again for nothing.
                continue;
            }
            let _move = self.moves.begin();
            if let Some(gib) = take_lowest(&group.whole) {
                self.cut_gib(Place::of_gib(index, gib));
                return None;
            }
        }
        None
    }

    /// Makes the GiB at `at`, whose bit the caller has taken, 512 free blocks. The caller holds a move.
    pub(super) fn cut_gib(&self, at: Place) {
        for start in at.lanes() {
            self.lane(start).whole.fetch_or(!0, Ordering::SeqCst);
        }
        self.hint_blocks(&self.groups[at.group()], at);
    }

    /// Makes the block around `at`, whose bit the caller has taken, free frames, except those of `kept` in the word of `at`,
    /// which stay the caller's. The caller holds a move.
    pub(super) fn cut_block(&self, lane: Spot<'_>, at: Place, kept: u64) {
        for (nth, word) in self.leaf(at).0.iter().enumerate() {
            word.fetch_or(if nth == at.word() { !kept } else { !0 }, Ordering::SeqCst);
        }
        self.hint_some(&self.groups[at.group()], &lane.some, at);
    }

    /// Cuts the GiB around `at` if it is whole. The caller holds a move.
    pub(super) fn cut_gib_around(&self, at: Place) {
        if take_all(&self.groups[at.group()].whole, ones(at.gib(), 1)).is_ok() {
            self.cut_gib(at.align_down(Order::GIB1));
        }
    }
}

/// Takes a frame of the leaf around `at`, from the word of `at` if that has one, and prefers it from now on.
pub(super) fn take_in_leaf(slot: &Slot, leaf: Option<Leaf<'_>>, at: Place) -> Option<Place> {
    let (word, bit) = leaf?.take_one(at.word())?;
    let start = at.align_down(Order::MIB2).0 + 64 * word as u64;
    slot.prefer_word(Place(start));
    Some(Place(start + u64::from(bit)))
}
