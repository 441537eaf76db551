//! The hot paths: one block from where the thread took before, and one block back. A few loads and one atomic
//! read-modify-write each. Whatever else there is to do is out of line, and the last thing that is done, so that nothing is
//! kept for it on the way.

use pageless_metadata::Pfn;

use super::Frames;
use super::outcome::PutError;
use super::place::{Level, Piece, Place, ones};
use super::prefer::Slot;
use super::store::{Supply, has, set_clear, take_lowest};
use crate::sync::Ordering;

impl Frames {
    #[inline]
    pub(super) fn take_frame(&self) -> Option<Pfn> {
        let slot = self.preferences.mine();
        let start = slot.frames_from();
        // No preference lies in no group.
        if let Some(group) = self.groups.get(start.group())
            && let Some(word) = group.leaf_word(start)
            && let Some(bit) = take_lowest(word)
        {
            return Some(self.pfn(Place(start.0 | u64::from(bit))));
        }
        self.take_frame_elsewhere(slot)
    }

    #[inline]
    pub(super) fn take_block(&self) -> Option<Pfn> {
        let slot = self.preferences.mine();
        let start = slot.blocks_from();
        if let Some(group) = self.groups.get(start.group())
            && let Some(gib) = group.gib(start.gib())
            && let Some(block) = take_lowest(&gib.pairs[start.lane()].whole)
        {
            return Some(self.pfn(start.block_of_lane(block)));
        }
        self.take_block_elsewhere(slot)
    }

    #[inline]
    pub(super) fn take_gib(&self) -> Option<Pfn> {
        // The first 64 groups are looked at here: 4 TiB.
        let told = self.tops.first()?.word(Supply::Gibs).load(Ordering::SeqCst);
        let index = told.trailing_zeros() as usize;
        if let Some(group) = self.groups.get(index)
            && let Some(gib) = take_lowest(&group.whole)
        {
            return Some(self.pfn(Place::of_gib(index, gib)));
        }
        self.take_gib_elsewhere()
    }

    #[cold]
    #[inline(never)]
    fn take_frame_elsewhere(&self, slot: &Slot) -> Option<Pfn> {
        let start = slot.frames_from();
        let leaf = self.groups.get(start.group()).and_then(|group| group.leaf(start));
        let found = super::seek::take_in_leaf(slot, leaf, start);
        Some(self.pfn(found.or_else(|| self.moves.settled(|| self.seek_frame(slot)))?))
    }

    #[cold]
    #[inline(never)]
    fn take_block_elsewhere(&self, slot: &Slot) -> Option<Pfn> {
        Some(self.pfn(self.moves.settled(|| self.seek_block(slot))?))
    }

    #[cold]
    #[inline(never)]
    fn take_gib_elsewhere(&self) -> Option<Pfn> {
        let found = self.moves.settled(|| {
            self.groups_with(Supply::Gibs).find_map(|index| {
                let group = &self.groups[index];
                if let Some(gib) = take_lowest(&group.whole) {
                    return Some(Place::of_gib(index, gib));
                }
                self.seek_full_gib(index, group)
            })
        });
        Some(self.pfn(found?))
    }

    /// Puts a frame of the span.
    #[inline]
    pub(super) fn put_frame(&self, at: Place) -> Result<(), PutError> {
        let group = &self.groups[at.group()];
        let (Some(gib), Some(word)) = (group.gib(at.gib()), group.leaf_word(at)) else {
            return self.put_piece(frame(at));
        };
        let pair = &gib.pairs[at.lane()];
        if has(&group.whole, at.gib()) || has(&pair.whole, at.block()) {
            return Err(self.already_free(at));
        }
        let Ok(now) = set_clear(word, 1 << at.bit()) else { return Err(self.already_free(at)) };
        let told = has(&pair.some, at.block()) && has(&group.some, at.gib());
        let told_full = || has(&gib.full[at.lane()], at.block()) && has(&group.blocks, at.gib()) && has(&group.full, at.gib());
        if told && (now != !0 || told_full()) {
            return Ok(());
        }
        self.tell_frames(at, now)
    }

    /// Puts a block of 2 MiB of the span.
    #[inline]
    pub(super) fn put_block(&self, at: Place) -> Result<(), PutError> {
        let group = &self.groups[at.group()];
        let piece = Piece { level: Level::Blocks, start: at, mask: 1 << at.block() };
        let Some(gib) = group.gib(at.gib()) else { return self.put_piece(piece) };
        let pair = &gib.pairs[at.lane()];
        // A block that was ever cut may have free frames.
        if has(&group.whole, at.gib()) || has(&pair.some, at.block()) {
            return self.put_piece(piece);
        }
        let Ok(now) = set_clear(&pair.whole, piece.mask) else { return Err(self.already_free(at)) };
        // If the GiB is said to be free as a whole, there is nothing to add; else that may be the case now.
        if has(&group.blocks, at.gib()) && (has(&group.full, at.gib()) || now | gib.full[at.lane()].load(Ordering::SeqCst) != !0)
        {
            return Ok(());
        }
        self.tell_blocks(at, now)
    }

    /// Puts a GiB of the span.
    #[inline]
    pub(super) fn put_gib(&self, at: Place) -> Result<(), PutError> {
        let group = &self.groups[at.group()];
        // A GiB that was ever cut may have free frames or blocks.
        if has(&group.some, at.gib()) || has(&group.blocks, at.gib()) {
            return self.put_piece(Piece { level: Level::Gibs, start: at, mask: 1 << at.gib() });
        }
        let Ok(_) = set_clear(&group.whole, 1 << at.gib()) else { return Err(self.already_free(at)) };
        if has(self.top(at.group()).word(Supply::Gibs), super::hints::top_bit(at.group())) {
            return Ok(());
        }
        self.tell_gibs(at)
    }

    /// Looks at all of a piece, and puts it if none of it is free.
    #[cold]
    #[inline(never)]
    pub(super) fn put_piece(&self, piece: Piece) -> Result<(), PutError> {
        self.first_free(piece).map_or_else(|| self.publish(piece), Err).map_err(|place| self.already_free(place))
    }

    #[cold]
    #[inline(never)]
    fn tell_frames(&self, at: Place, now: u64) -> Result<(), PutError> {
        let (group, lane) = (&self.groups[at.group()], self.lane(at));
        self.offer_frames(group, lane.some, at);
        if now == !0 {
            self.offer_full(group, lane.full, at);
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn tell_blocks(&self, at: Place, now: u64) -> Result<(), PutError> {
        self.offer_blocks(&self.groups[at.group()], self.lane(at).full, at, now);
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn tell_gibs(&self, at: Place) -> Result<(), PutError> {
        self.offer_gibs(at);
        Ok(())
    }
}

/// The piece that is this frame.
pub(super) fn frame(at: Place) -> Piece {
    Piece { level: Level::Frames, start: at, mask: ones(at.bit(), 1) }
}
