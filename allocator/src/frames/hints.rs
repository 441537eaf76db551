//! Hints: setting them after frames became free, and clearing those that turned out empty.
//!
//! Setting: the truth first, then the hint from the lane up. Clearing: the hint first, then another look at the truth, and
//! the hint again if there is something after all. Whichever comes first, one of the two sees the other (`offer_*` pairs
//! with `clear_*`). A hint that must be set, and every clearing, is a move, so no scan fails because of a half-done one.

use pageless_metadata::Order;

use super::Frames;
use super::place::{Place, each_bit};
use super::store::{CLASSES, Group, Leaf, Spot, Supply, has, hint, unhint};
use crate::sync::{AtomicU64, Ordering};

impl Frames {
    /// Frames of the leaf around `at` became free; `some` is its lane's hint.
    #[inline]
    pub(super) fn offer_frames(&self, group: &Group, some: &AtomicU64, at: Place) {
        if (some.load(Ordering::SeqCst) >> at.block()) & (group.some.load(Ordering::SeqCst) >> at.gib()) & 1 == 0 {
            self.hint_some(group, some, at);
        }
    }

    /// The leaf around `at` may have all its frames, as one of its words has.
    #[inline]
    pub(super) fn offer_full(&self, group: &Group, full: &AtomicU64, at: Place) {
        let told = (full.load(Ordering::SeqCst) >> at.block()) & (group.blocks.load(Ordering::SeqCst) >> at.gib()) & 1;
        if told & (group.full.load(Ordering::SeqCst) >> at.gib()) == 0 {
            self.offer_untold(group, full, at, told == 1);
        }
    }

    #[inline(never)]
    fn offer_untold(&self, group: &Group, full: &AtomicU64, at: Place, told: bool) {
        if group.leaf(at).is_some_and(Leaf::is_full) && (!told || group.may_be_full(at.align_down(Order::GIB1))) {
            self.hint_full(group, full, at);
        }
    }

    /// Uncut blocks of a lane of the GiB around `at` became free; with those in `whole`, its blocks are all free if any are
    /// missing only in appearance.
    #[inline]
    pub(super) fn offer_blocks(&self, group: &Group, full: &AtomicU64, at: Place, whole: u64) {
        let completes = || whole | full.load(Ordering::SeqCst) == !0 && group.may_be_full(at.align_down(Order::GIB1));
        if !has(&group.blocks, at.gib()) || (!has(&group.full, at.gib()) && completes()) {
            self.hint_blocks(group, at);
        }
    }

    /// An uncut GiB became free.
    #[inline]
    pub(super) fn offer_gibs(&self, at: Place) {
        if !has(self.top(at.group()).word(Supply::Gibs), top_bit(at.group())) {
            let _move = self.moves.begin();
            self.hint_top(Supply::Gibs, at.group());
        }
    }

    #[cold]
    pub(super) fn hint_some(&self, group: &Group, some: &AtomicU64, at: Place) {
        let _move = self.moves.begin();
        hint(some, at.block());
        hint(&group.some, at.gib());
        self.hint_top(Supply::Some, at.group());
    }

    #[cold]
    fn hint_full(&self, group: &Group, full: &AtomicU64, at: Place) {
        let _move = self.moves.begin();
        hint(full, at.block());
        self.hint_blocks(group, at);
    }

    #[cold]
    pub(super) fn hint_blocks(&self, group: &Group, at: Place) {
        let _move = self.moves.begin();
        hint(&group.blocks, at.gib());
        self.hint_top(Supply::Blocks, at.group());
        if group.may_be_full(at.align_down(Order::GIB1)) {
            hint(&group.full, at.gib());
            self.hint_top(Supply::Gibs, at.group());
        }
    }

    fn hint_top(&self, supply: Supply, group: usize) {
        hint(self.top(group).word(supply), top_bit(group));
    }

    /// Clears the hint that the leaf around `at` has free frames, unless it has.
    pub(super) fn clear_some(&self, group: &Group, lane: Spot<'_>, at: Place) {
        let _move = self.moves.begin();
        unhint(&lane.some, at.block());
        if lane.leaf(at.block()).is_some_and(|leaf| !leaf.is_empty()) {
            self.hint_some(group, &lane.some, at);
        }
    }

    /// Clears the hint that the leaf around `at` has all its frames, unless it has.
    pub(super) fn clear_full(&self, group: &Group, lane: Spot<'_>, at: Place) {
        let _move = self.moves.begin();
        unhint(&lane.full, at.block());
        if lane.leaf_is_full(at.block()) {
            self.hint_full(group, &lane.full, at);
        }
    }

    /// Clears a group's hint about a GiB, unless its lanes' words and hints bear it out.
    pub(super) fn clear_gib(&self, supply: Supply, index: usize, gib: u32) {
        let group = &self.groups[index];
        let mut lanes = group.lanes_of(Place::of_gib(index, gib)).map(|(_, lane)| lane);
        let _move = self.moves.begin();
        let (word, borne_out): (_, &mut dyn FnMut() -> bool) = match supply {
            Supply::Gibs => (&group.full, &mut || group.may_be_full(Place::of_gib(index, gib))),
            Supply::Blocks => (&group.blocks, &mut || lanes.any(|lane| lane.may_have_blocks() != 0)),
            Supply::Some => (&group.some, &mut || lanes.any(|lane| lane.some.load(Ordering::SeqCst) != 0)),
        };
        unhint(word, gib);
        if borne_out() {
            hint(word, gib);
            self.hint_top(supply, index);
        }
    }

    /// Clears the topmost hint about a group, unless the group's own words bear it out.
    pub(super) fn clear_top(&self, supply: Supply, index: usize) {
        let _move = self.moves.begin();
        unhint(self.top(index).word(supply), top_bit(index));
        if supply.in_group(&self.groups[index]) != 0 {
            self.hint_top(supply, index);
        }
    }

    /// The groups that may have such frames, ascending.
    pub(super) fn groups_with(&self, supply: Supply) -> impl Iterator<Item = usize> {
        self.tops
            .iter()
            .enumerate()
            .flat_map(move |(nth, top)| each_bit(top.word(supply).load(Ordering::SeqCst)).map(move |bit| nth * 64 + bit as usize))
    }

    /// The GiB's fullness class, 0 for the fullest, by the blocks that are free and uncut; and files it there.
    pub(super) fn classify(&self, index: usize, gib: u32) -> usize {
        /// Classes 0 to 2 have at most this many free blocks.
        const AT_MOST: [u32; CLASSES - 1] = [31, 127, 383];
        let group = &self.groups[index];
        let lanes = group.lanes_of(Place::of_gib(index, gib));
        let free: u32 = lanes.map(|(_, lane)| lane.whole.load(Ordering::SeqCst).count_ones()).sum();
        let class = AT_MOST.iter().position(|&most| free <= most).unwrap_or(CLASSES - 1);
        for (nth, word) in group.class.iter().enumerate() {
            match (nth == class, has(word, gib)) {
                (true, false) => drop((self.moves.begin(), hint(word, gib))),
                (false, true) => drop((self.moves.begin(), unhint(word, gib))),
                _ => {}
            }
        }
        class
    }
}

/// The group's bit in its top word.
#[inline]
pub(super) fn top_bit(group: usize) -> u32 {
    #[allow(clippy::cast_possible_truncation, reason = "masked to six bits")]
    let bit = (group & 63) as u32;
    bit
}
