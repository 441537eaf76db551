//! Putting frames back: look whether all are taken, then set their bits.

use super::Frames;
use super::place::{LEAF_WORDS, Level, Piece, Place, each_bit, ones, pieces};
use super::store::{has, set_clear};
use crate::sync::Ordering;

impl Frames {
    /// Puts one taken frame; the frame again if it is free already.
    #[inline]
    pub(super) fn put_frame(&self, at: Place) -> Result<(), Place> {
        let group = &self.groups[at.group()];
        let lane = &self.lanes(at.group())[at.lane()];
        if has(&group.whole, at.gib()) || has(&lane.whole, at.block()) {
            return Err(at);
        }
        let word = &lane.leaf_or_new(at.block()).0[at.word()];
        let now = set_clear(word, 1 << at.bit()).map_err(|_| at)?;
        self.offer_frames(group, lane, at);
        if now == !0 {
            self.offer_full(group, lane, at);
        }
        Ok(())
    }

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
                let lane = &self.lanes(at.group())[at.lane()];
                let now = set_clear(&lane.whole, piece.mask).map_err(first)?;
                self.offer_blocks(group, at, now);
            }
            Level::Frames => {
                let lane = &self.lanes(at.group())[at.lane()];
                let word = &lane.leaf_or_new(at.block()).0[at.word()];
                let now = set_clear(word, piece.mask).map_err(first)?;
                self.offer_frames(group, lane, at);
                if now == !0 {
                    self.offer_full(group, lane, at);
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
        let lane = group.lanes()?.get(at.lane())?;
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
            (0..super::place::GIB_LANES as u64).find_map(|nth| {
                let start = Place(start.0 + (nth << super::place::LANE_LOG2));
                self.first_free(Piece { level: Level::Blocks, start, mask: !0 })
            })
        })
    }

    /// The first frame of the run that is not free.
    pub(super) fn first_taken(&self, at: u64, end: u64) -> Option<Place> {
        pieces(at, end).find_map(|piece| self.first_taken_of(piece))
    }

    fn first_taken_of(&self, piece: Piece) -> Option<Place> {
        let (at, group) = (piece.start, &self.groups[piece.start.group()]);
        let lane = || group.lanes().and_then(|lanes| lanes.get(at.lane()));
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
