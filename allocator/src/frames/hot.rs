//! The hot paths: one block from where the thread took before, and one block back. A few loads and one atomic
//! read-modify-write each. Whatever else there is to do is out of line, and the last thing that is done, so that nothing is
//! kept for it on the way.

use pageless_metadata::Pfn;

use super::Frames;
use super::place::{Level, Piece, Place};
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
            && let Some(slab) = group.cut()
            && let Some(word) = slab.leaf_word(start)
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
            && let Some(slab) = group.cut()
            && let Some(lane) = slab.lane(start)
            && let Some(block) = take_lowest(&lane.whole)
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

    /// Puts a frame of the span; tells it if it is free already.
    #[inline(always)]
    pub(super) fn put_frame(&self, at: Place) -> Result<(), Place> {
        let group = &self.groups[at.group()];
        let Some(slab) = group.cut() else { return self.put_closely(Level::Frames, at) };
        let Some(lane) = slab.lane(at) else { return self.put_closely(Level::Frames, at) };
        let Some(word) = slab.leaf_word(at) else { return self.put_closely(Level::Frames, at) };
        if has(&group.whole, at.gib()) || has(&lane.whole, at.block()) {
            return Err(at);
        }
        let Ok(now) = set_clear(word, 1 << at.bit()) else { return Err(at) };
        // Not in closures, which the compiler leaves out of line.
        if has(&lane.some, at.block())
            && has(&group.some, at.gib())
            && (now != !0 || (has(&lane.full, at.block()) && has(&group.blocks, at.gib()) && has(&group.full, at.gib())))
        {
            return Ok(());
        }
        self.tell_frames(at, now)
    }

    /// Puts a block of 2 MiB of the span; tells its first free frame if there is one.
    #[inline(always)]
    pub(super) fn put_block(&self, at: Place) -> Result<(), Place> {
        let group = &self.groups[at.group()];
        let Some(slab) = group.cut() else { return self.put_closely(Level::Blocks, at) };
        let Some(lane) = slab.lane(at) else { return self.put_closely(Level::Blocks, at) };
        // A block that was ever cut may have free frames.
        if has(&group.whole, at.gib()) || has(&lane.some, at.block()) {
            return self.put_closely(Level::Blocks, at);
        }
        let Ok(now) = set_clear(&lane.whole, 1 << at.block()) else { return Err(at) };
        // If the GiB is said to be free as a whole, there is nothing to add; else that may be the case now.
        if has(&group.blocks, at.gib()) && (has(&group.full, at.gib()) || now | lane.full.load(Ordering::SeqCst) != !0) {
            return Ok(());
        }
        self.tell_blocks(at, now)
    }

    /// Puts a GiB of the span; tells its first free frame if there is one.
    #[inline(always)]
    pub(super) fn put_gib(&self, at: Place) -> Result<(), Place> {
        let group = &self.groups[at.group()];
        // A GiB that was ever cut may have free frames or blocks.
        if has(&group.some, at.gib()) || has(&group.blocks, at.gib()) {
            return self.put_closely(Level::Gibs, at);
        }
        let Ok(_) = set_clear(&group.whole, 1 << at.gib()) else { return Err(at) };
        if has(self.top(at.group()).word(Supply::Gibs), super::hints::top_bit(at.group())) {
            return Ok(());
        }
        self.tell_gibs(at)
    }

    /// Looks at all of the block at `at` that a bit of `level` speaks for, and puts it if none of it is free.
    #[cold]
    #[inline(never)]
    fn put_closely(&self, level: Level, at: Place) -> Result<(), Place> {
        let piece = one(level, at);
        self.first_free(piece).map_or_else(|| self.publish(piece), Err)
    }

    #[cold]
    #[inline(never)]
    fn tell_frames(&self, at: Place, now: u64) -> Result<(), Place> {
        let (group, lane) = (&self.groups[at.group()], self.lane(at));
        self.offer_frames(group, &lane.some, at);
        if now == !0 {
            self.offer_full(group, &lane.full, at);
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn tell_blocks(&self, at: Place, now: u64) -> Result<(), Place> {
        self.offer_blocks(&self.groups[at.group()], &self.lane(at).full, at, now);
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn tell_gibs(&self, at: Place) -> Result<(), Place> {
        self.offer_gibs(at);
        Ok(())
    }
}

/// The piece that one bit of `level` speaks for, the one for the block at `at`.
pub(super) fn one(level: Level, at: Place) -> Piece {
    let bit = match level {
        Level::Gibs => at.gib(),
        Level::Blocks => at.block(),
        Level::Frames => at.bit(),
    };
    Piece { level, start: at, mask: 1 << bit }
}
