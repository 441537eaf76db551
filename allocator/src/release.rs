//! Giving frames up. Released is not free: only `reclaim`, with every mapping's proof, makes it so.

use std::ops::Range;
use std::sync::Arc;

use pageless_metadata::{Gib, PfnRange, Purpose, RunSet};

use crate::allocation::Allocation;
use crate::extents::{Extent, Runs, push_joined};
use crate::journal::EventKind;
use crate::operation::pieces_of;
use crate::outcome::{Blocked, Refused};
use crate::ownership::Ownership;
use crate::pool::Inner;
use crate::record::Piece;

/// A release that was refused: the allocation comes back, unchanged.
#[derive(Debug, thiserror::Error)]
#[error("{allocation:?} was not released: {why}")]
pub struct ReleaseRefused {
    /// The allocation, still whole.
    pub allocation: Allocation,
    /// Why.
    pub why: Blocked,
}

impl Allocation {
    /// Gives everything up. Accepted also while operations are under way: their flips then do nothing for these frames.
    /// Refused while somebody holds a frame.
    ///
    /// Returns the frames that are released now; what was released before is not among them.
    pub fn release(self) -> Result<RunSet, Box<ReleaseRefused>> {
        // What is withdrawn must be recorded first; if it cannot be, that is found below.
        let _told_below = self.pool.record_pending();
        let editing = self.owned.editing.lock();
        let pieces = self.owned.extents.with(|extents| pieces_of(&self.pool, extents));
        let mut locked = self.pool.records.lock(&pieces);
        let held = pieces.iter().find_map(|piece| {
            let gib = locked.gib(piece.record);
            // Only what the owner still has: somebody may hold what was released and has another owner by now.
            let own = if gib.is_plain() { Vec::new() } else { gib.live_runs(piece.span, self.owned.id) };
            let (at, holder) = own.into_iter().find_map(|(span, _)| gib.holder(span))?;
            Some((at.in_gib_of(piece.frames.start()), holder))
        });
        if let Some((at, holder)) = held {
            drop((locked, editing));
            let offset = self.owned.offset_of(at);
            return Err(Box::new(ReleaseRefused { allocation: self, why: Blocked::Held { holder, offset } }));
        }
        if let Some(refused) = self.pool.unrecorded_of(&self.owned, &pieces) {
            drop((locked, editing));
            return Err(Box::new(ReleaseRefused { allocation: self, why: refused.into() }));
        }
        let mut released = Runs::new();
        if self.owned.end() {
            pieces.iter().for_each(|piece| {
                self.pool.release_piece(&self.owned, locked.gib(piece.record), *piece, &mut released);
            });
        }
        self.pool.tell_released(&self.owned, &released);
        let released: RunSet = released.iter().map(|run| run.frames).collect();
        let lists = locked.take_lists();
        drop((locked, editing));
        drop(lists);
        self.pool.enqueue(&self.owned);
        Ok(released)
    }

    /// Gives a part up, as a balloon does: `range` is in bytes, aligned to 4 KiB. Offsets keep their meaning; the part can
    /// never be used again. All or nothing: refused while a frame of it converts, is held, is withdrawn, or was released
    /// before.
    pub fn release_range(&self, range: Range<u64>) -> Result<RunSet, Blocked> {
        let (_, pieces, mut locked) = self.lock_runs(&range)?;
        self.pool.unobstructed(&self.owned, &pieces, &mut locked, Purpose::Change)?;
        let mut released = Runs::new();
        pieces.iter().for_each(|piece| {
            self.pool.release_piece(&self.owned, locked.gib(piece.record), *piece, &mut released);
        });
        self.pool.tell_released(&self.owned, &released);
        let released: RunSet = released.iter().map(|run| run.frames).collect();
        let lists = locked.take_lists();
        drop(locked);
        drop(lists);
        self.pool.enqueue(&self.owned);
        Ok(released)
    }
}

impl Drop for Allocation {
    /// Releases everything, also what somebody holds: a hold then keeps it from being reclaimed.
    fn drop(&mut self) {
        self.pool.release_all(&self.owned);
    }
}

impl Inner {
    /// Releases every frame that the owner still has; false when it was gone already.
    pub(crate) fn release_all(&self, owned: &Arc<Ownership>) -> bool {
        let editing = owned.editing.lock();
        if !owned.end() {
            return false;
        }
        let pieces = owned.extents.with(|extents| pieces_of(self, extents));
        let (mut locked, mut released) = (self.records.lock(&pieces), Runs::new());
        pieces.iter().for_each(|piece| self.release_piece(owned, locked.gib(piece.record), *piece, &mut released));
        self.tell_released(owned, &released);
        let lists = locked.take_lists();
        drop((locked, editing));
        drop(lists);
        self.enqueue(owned);
        true
    }

    /// Withdrawn frames of the pieces that the ledger does not have yet, with the pieces' GiBs locked.
    fn unrecorded_of(&self, owned: &Ownership, pieces: &[Piece]) -> Option<Refused> {
        if !self.has_ledger() {
            return None;
        }
        let registry = self.registry.lock();
        let unrecorded: RunSet = pieces.iter().flat_map(|piece| registry.unrecorded().clipped(piece.frames)).collect();
        let first = *unrecorded.runs().first()?;
        Some(Refused::Unrecorded { offset: owned.offset_of(first), frames: unrecorded.frames() })
    }

    /// Marks what the owner has of a piece as released, with the piece's GiB locked, and adds those runs to `released`.
    fn release_piece(&self, owned: &Ownership, gib: &mut Gib, piece: Piece, released: &mut Runs) {
        if piece.span.is_whole() && gib.release_whole(owned.id) {
            return list_released(owned, piece.frames, released);
        }
        let spans = gib.release(piece.span, owned.id);
        if gib.is_withdrawn(piece.span) {
            // Nobody wants the conversion any more: a later proof can only free the frames.
            let mut registry = self.registry.lock();
            spans.iter().for_each(|span| registry.give_up(span.in_gib_of(piece.frames.start())));
        }
        spans.iter().for_each(|span| list_released(owned, span.in_gib_of(piece.frames.start()), released));
    }

    /// Lists and tells what an owner has released, while its GiBs are locked: before anybody can find it released, or free.
    fn tell_released(&self, owned: &Ownership, released: &Runs) {
        for run in released {
            owned.add_released(*run);
            self.journal.write(run.frames, Some(owned.id), EventKind::Released);
        }
        self.record_release(owned.id, || released.iter().map(|run| run.frames).collect());
    }

    /// Lets `reclaim` know that the owner has released frames.
    pub(crate) fn enqueue(&self, owned: &Arc<Ownership>) {
        self.releasing.lock().insert(owned.id, Arc::clone(owned));
    }
}

fn list_released(owned: &Ownership, frames: PfnRange, released: &mut Runs) {
    let offset = owned.extents.find(frames.start()).map_or(0, |extent| extent.offset_of(frames.start()));
    push_joined(released, Extent { offset, frames });
}
