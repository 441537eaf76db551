//! Taking one aligned block: first where the thread took from last, then where the hints point.
//!
//! Small requests fill the fullest GiB first and keep out of each other's way; a starving one takes from anyone's. "None
//! left" is said only by [`Moves::settled`](super::moves::Moves::settled).

use pageless_metadata::Order;

use super::Frames;
use super::place::{GIB_LANES, LANE_LOG2, Place, each_bit, ones};
use super::prefer::Slot;
use super::store::{CLASSES, Group, Lane, Supply, lane_of_gib, take_all, take_lowest};
use crate::sync::Ordering;

/// Whether a seeker keeps away from what other threads prefer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Courtesy {
    Polite,
    Starving,
}

impl Frames {
    #[inline]
    pub(super) fn take_frame(&self) -> Option<Place> {
        let slot = self.preferences.mine();
        if let Some(word) = slot.word() {
            let at = Place(word << 6);
            let group = &self.groups[at.group()];
            if let Some(lane) = group.lanes().and_then(|lanes| lanes.get(at.lane()))
                && let Some(found) = take_in_leaf(slot, lane, at)
            {
                return Some(found);
            }
        }
        self.moves.settled(|| self.seek_frame(slot))
    }

    #[inline]
    pub(super) fn take_block(&self) -> Option<Place> {
        let slot = self.preferences.mine();
        if let Some(number) = slot.lane() {
            let at = Place(number << LANE_LOG2);
            if let Some(lane) = self.groups[at.group()].lanes().and_then(|lanes| lanes.get(at.lane()))
                && let Some(block) = take_lowest(&lane.whole)
            {
                return Some(Place::of_block(at.group(), at.lane(), block));
            }
        }
        self.moves.settled(|| self.seek_block(slot))
    }

    #[inline]
    pub(super) fn take_gib(&self) -> Option<Place> {
        self.moves.settled(|| {
            self.groups_with(Supply::Gibs).find_map(|index| {
                let group = &self.groups[index];
                if let Some(gib) = take_lowest(&group.whole) {
                    return Some(Place::of_gib(index, gib));
                }
                self.seek_full_gib(index, group)
            })
        })
    }

    #[cold]
    fn seek_frame(&self, slot: &Slot) -> Option<Place> {
        self.seek_mixed(slot, Courtesy::Polite)
            .or_else(|| self.seek_block_to_cut(slot))
            .or_else(|| self.seek_mixed(slot, Courtesy::Starving))
            // A cut GiB is a move, so the caller looks again and finds its blocks.
            .or_else(|| self.cut_any_gib())
    }

    #[cold]
    fn seek_block(&self, slot: &Slot) -> Option<Place> {
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
            for (nth, lane) in group.lanes_of(gib).iter().enumerate() {
                let mixed = lane.some.load(Ordering::SeqCst);
                // A polite seeker leaves whole blocks whole.
                let skipped = if courtesy == Courtesy::Polite { mixed & lane.full.load(Ordering::SeqCst) } else { 0 };
                left |= skipped != 0;
                for block in each_bit(mixed & !skipped) {
                    let at = Place::of_block(index, lane_of_gib(gib, nth), block);
                    if courtesy == Courtesy::Polite && self.preferences.others_want_block(slot, at.0 >> 9) {
                        left = true;
                    } else if let Some(found) = take_in_leaf(slot, lane, at) {
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
            for (nth, lane) in group.lanes_of(gib).iter().enumerate() {
                let number = lane_of_gib(gib, nth);
                for block in each_bit(lane.full.load(Ordering::SeqCst)) {
                    let at = Place::of_block(index, number, block);
                    let found = take_in_leaf(slot, lane, at);
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
                    let at = Place::of_block(index, number, block);
                    self.cut_block(group, lane, at, 1);
                    slot.prefer_word(at.0 >> 6);
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
            let lanes = group.lanes_of(gib);
            let mut left = false;
            for (nth, lane) in lanes.iter().enumerate() {
                if lane.whole.load(Ordering::SeqCst) == 0 {
                    continue;
                }
                let at = Place::of_block(index, lane_of_gib(gib, nth), 0);
                let number = at.0 >> LANE_LOG2;
                if courtesy == Courtesy::Polite && self.preferences.others_want_lane(slot, number) {
                    left = true;
                } else if let Some(block) = take_lowest(&lane.whole) {
                    slot.prefer_lane(number);
                    return Some(Place::of_block(index, at.lane(), block));
                }
            }
            for (nth, lane) in lanes.iter().enumerate() {
                for block in each_bit(lane.full.load(Ordering::SeqCst)) {
                    let at = Place::of_block(index, lane_of_gib(gib, nth), block);
                    if courtesy == Courtesy::Polite && self.preferences.others_want_block(slot, at.0 >> 9) {
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
    #[cold]
    fn seek_full_gib(&self, index: usize, group: &Group) -> Option<Place> {
        for gib in each_bit(group.full.load(Ordering::SeqCst)) {
            let at = Place::of_gib(index, gib);
            for (nth, lane) in group.lanes_of(gib).iter().enumerate() {
                let cut = !lane.whole.load(Ordering::SeqCst) & lane.full.load(Ordering::SeqCst);
                for block in each_bit(cut).filter(|&block| !lane.leaf_is_full(block)) {
                    self.clear_full(group, lane, Place::of_block(index, lane_of_gib(gib, nth), block));
                }
            }
            let took = group.may_be_full(gib) && self.claim(at.0, at.0 + Order::GIB1.frames());
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
    #[cold]
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
        let group = &self.groups[at.group()];
        let lanes = self.lanes(at.group());
        for lane in &lanes[at.lane()..at.lane() + GIB_LANES] {
            lane.whole.fetch_or(!0, Ordering::SeqCst);
        }
        self.hint_blocks(group, at);
    }

    /// Makes the block around `at`, whose bit the caller has taken, free frames, except those of `kept` in the word of `at`,
    /// which stay the caller's. The caller holds a move.
    pub(super) fn cut_block(&self, group: &Group, lane: &Lane, at: Place, kept: u64) {
        for (nth, word) in lane.leaf_or_new(at.block()).0.iter().enumerate() {
            word.fetch_or(if nth == at.word() { !kept } else { !0 }, Ordering::SeqCst);
        }
        self.hint_some(group, lane, at);
    }

    /// Cuts the GiB around `at` if it is whole. The caller holds a move.
    pub(super) fn cut_gib_around(&self, at: Place) {
        if take_all(&self.groups[at.group()].whole, ones(at.gib(), 1)).is_ok() {
            self.cut_gib(at.align_down(Order::GIB1));
        }
    }
}

/// Takes a frame of the leaf around `at`, from the word of `at` if that has one, and prefers it from now on.
#[inline]
fn take_in_leaf(slot: &Slot, lane: &Lane, at: Place) -> Option<Place> {
    let (word, bit) = lane.leaf(at.block())?.take_one(at.word())?;
    let start = at.align_down(Order::MIB2).0 + 64 * word as u64;
    slot.prefer_word(start >> 6);
    Some(Place(start + u64::from(bit)))
}
