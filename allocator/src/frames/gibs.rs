//! Runs of whole GiBs: a few words, however long they are.

use pageless_metadata::Order;

use super::Frames;
use super::place::{GIB_LOG2, Piece, each_piece_of_gibs};
use super::store::{Supply, take_all};
use crate::sync::Ordering;

impl Frames {
    /// Takes `count` neighbouring GiBs that were never cut; where they start. None if there is no such run now.
    pub(super) fn take_gibs(&self, count: u64) -> Option<u64> {
        loop {
            let start = self.find_gibs(count)?;
            // If not, then somebody else has taken some of them.
            if self.claim_gibs(start, start + (count << GIB_LOG2)) {
                return Some(start);
            }
        }
    }

    fn claim_gibs(&self, at: u64, end: u64) -> bool {
        let claim = |piece: &Piece| take_all(&self.groups[piece.start.group()].whole, piece.mask).is_ok();
        let mut pieces = each_piece_of_gibs(at, end);
        let (Some(first), None) = (pieces.next(), pieces.next()) else {
            // What is claimed of a run in vain is out of sight for a moment.
            let _move = self.moves.begin();
            let Some(failed) = each_piece_of_gibs(at, end).position(|piece| !claim(&piece)) else { return true };
            for piece in each_piece_of_gibs(at, end).take(failed) {
                // Nobody else can have put what we took, unless it is a double free of theirs; then it is free either way.
                let _ = self.publish(piece);
            }
            return false;
        };
        claim(&first)
    }

    /// Whether the GiBs from `at` to `end` are all taken and have no block or frame that may be free.
    pub(super) fn gibs_are_taken(&self, at: u64, end: u64) -> bool {
        each_piece_of_gibs(at, end).all(|piece| {
            let group = &self.groups[piece.start.group()];
            let odd = group.whole.load(Ordering::SeqCst) | Supply::Some.in_group(group) | Supply::Blocks.in_group(group);
            odd & piece.mask == 0
        })
    }

    /// The first run of `count` whole GiBs: where it starts.
    pub(super) fn find_gibs(&self, count: u64) -> Option<u64> {
        if count >= 64 { self.find_many_gibs(count) } else { self.find_few_gibs(count) }
    }

    /// A run that is as long as a word's worth crosses into the next or is all of one: its ends are at words' ends.
    fn find_many_gibs(&self, count: u64) -> Option<u64> {
        // How many whole GiBs there are right before the word looked at.
        let mut before = 0;
        for (index, group) in self.groups.iter().enumerate() {
            let word = group.whole.load(Ordering::SeqCst);
            if before + u64::from(word.trailing_ones()) >= count {
                return Some((index as u64 * 64 - before) << GIB_LOG2);
            }
            before = if word == !0 { before + 64 } else { u64::from(word.leading_ones()) };
        }
        None
    }

    fn find_few_gibs(&self, count: u64) -> Option<u64> {
        let (mut start, mut end) = (0, 0);
        for (index, group) in self.groups.iter().enumerate() {
            let mut word = group.whole.load(Ordering::SeqCst);
            let first = index as u64 * 64;
            let mut at = 0;
            while word != 0 {
                let skip = word.trailing_zeros();
                let ones = (word >> skip).trailing_ones();
                at += skip;
                if end != first + u64::from(at) {
                    start = first + u64::from(at);
                }
                at += ones;
                end = first + u64::from(at);
                if end - start >= count {
                    return Some(start * Order::GIB1.frames());
                }
                word = if skip + ones >= 64 { 0 } else { word >> skip >> ones };
            }
        }
        None
    }
}
