//! Putting runs back: look whether all frames are taken, then set their bits.

use super::Frames;
use super::place::{LEAF_WORDS, Level, Piece, Place, each_bit, ones, pieces};
use super::store::{has, set_clear};
use crate::sync::Ordering;

impl Frames {
    /// Sets the bits of a piece; the first frame whose bit was set, and then nothing of the piece is set.
    #[inline]
    pub(super) fn publish(&self, piece: Piece) -> Result<(), Place> {
        let (at, group) = (piece.start, &self.groups[piece.start.group()]);
        let first = |set: u64| piece.of_bit(set.trailing_zeros());
        match piece.level {
            Level::Gibs => {
                set_clear(&group.whole, piece.mask).map_err(first)?;
                self.offer_gibs(at);
            }
            Level::Blocks => {
                let lane = self.lane(at);
                let now = set_clear(&lane.whole, piece.mask).map_err(first)?;
                self.offer_blocks(group, &lane.full, at, now);
            }
            Level::Frames => {
                let lane = self.lane(at);
                let now = set_clear(&self.leaf(at).0[at.word()], piece.mask).map_err(first)?;
                self.offer_frames(group, &lane.some, at);
                if now == !0 {
                    self.offer_full(group, &lane.full, at);
                }
            }
        }
        Ok(())
    }

    /// The first free frame of a piece.
    #[inline]
    pub(super) fn first_free(&self, piece: Piece) -> Option<Place> {
        let (at, group) = (piece.start, &self.groups[piece.start.group()]);
        if piece.level == Level::Gibs {
            return self.first_free_of_gibs(piece);
        }
        if has(&group.whole, at.gib()) {
            return Some(at);
        }
        let lane = group.lane(at)?;
        if piece.level == Level::Frames {
            if has(&lane.whole, at.block()) {
                return Some(at);
            }
            let free = lane.leaf(at.block())?.0[at.word()].load(Ordering::SeqCst) & piece.mask;
            return (free != 0).then(|| piece.of_bit(free.trailing_zeros()));
        }
        let whole = lane.whole.load(Ordering::SeqCst);
        // A leaf with a free frame has its hint, so the leaves of the others need no look.
        each_bit((whole | lane.some.load(Ordering::SeqCst)) & piece.mask).find_map(|bit| {
            let start = piece.of_bit(bit);
            if whole >> bit & 1 == 1 {
                return Some(start);
            }
            let leaf = lane.leaf(bit)?;
            (0..LEAF_WORDS).find_map(|nth| {
                let free = leaf.0[nth].load(Ordering::SeqCst);
                (free != 0).then(|| Place(start.0 + 64 * nth as u64 + u64::from(free.trailing_zeros())))
            })
        })
    }

    fn first_free_of_gibs(&self, piece: Piece) -> Option<Place> {
        let group = &self.groups[piece.start.group()];
        let whole = group.whole.load(Ordering::SeqCst);
        let suspects = whole | group.some.load(Ordering::SeqCst) | group.blocks.load(Ordering::SeqCst);
        each_bit(suspects & piece.mask).find_map(|bit| {
            let start = piece.of_bit(bit);
            if whole >> bit & 1 == 1 {
                return Some(start);
            }
            start.lanes().find_map(|start| self.first_free(Piece { level: Level::Blocks, start, mask: !0 }))
        })
    }

    /// The first frame of the run that is not free.
    pub(super) fn first_taken(&self, at: u64, end: u64) -> Option<Place> {
        pieces(at, end).find_map(|piece| self.first_taken_of(piece))
    }

    fn first_taken_of(&self, piece: Piece) -> Option<Place> {
        let (at, group) = (piece.start, &self.groups[piece.start.group()]);
        let lane = || group.lane(at);
        let whole = group.whole.load(Ordering::SeqCst);
        if piece.level != Level::Gibs && whole >> at.gib() & 1 == 1 {
            return None;
        }
        let (free, level, step) = match piece.level {
            Level::Gibs => (whole, Level::Blocks, 1 << super::place::LANE_LOG2),
            Level::Blocks => (lane().map_or(0, |lane| lane.whole.load(Ordering::SeqCst)), Level::Frames, 64),
            Level::Frames => {
                let uncut = lane().is_some_and(|lane| has(&lane.whole, at.block()));
                let leaf = lane().and_then(|lane| lane.leaf(at.block()));
                let free = leaf.map_or(0, |leaf| leaf.0[at.word()].load(Ordering::SeqCst));
                let taken = if uncut { 0 } else { piece.mask & !free };
                return (taken != 0).then(|| piece.of_bit(taken.trailing_zeros()));
            }
        };
        each_bit(piece.mask & !free).find_map(|bit| {
            let start = piece.of_bit(bit);
            (0..8).find_map(|nth| self.first_taken_of(Piece { level, start: Place(start.0 + nth * step), mask: ones(0, 64) }))
        })
    }
}
