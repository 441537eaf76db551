//! Another frame in the place of a lost one, under a live guest.

use pageless_metadata::{FRAME_BYTES, Order, Pfn, PfnRange, Shareability};

use crate::allocation::Allocation;
use crate::extents::Extent;
use crate::journal::EventKind;
use crate::ledger::{Entry, LedgerError};
use crate::outcome::{Blocked, Refused};
use crate::placement;

/// What `replace` did. The new frame is private and zeroed; nothing maps it yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Replaced {
    /// Where in the allocation, in bytes.
    pub offset: u64,
    /// The withdrawn frame: released now, and still withdrawn.
    pub lost: Pfn,
    /// The frame that took its place.
    pub frame: Pfn,
}

impl Allocation {
    /// Puts a sound frame in the place of the withdrawn one at `offset`, in bytes, aligned to 4 KiB.
    ///
    /// The lost frame's contents are gone. It stays withdrawn; if it is only quarantined, a later proof frees it for others.
    pub fn replace(&self, offset: u64) -> Result<Replaced, Blocked> {
        if !offset.is_multiple_of(FRAME_BYTES) {
            return Err(Refused::Unaligned { value: offset, unit: FRAME_BYTES }.into());
        }
        // Also keeps the owner from ending meanwhile, which would leave the new frame with nobody.
        let _editing = self.owned.editing.lock();
        let lost = self.run_at(offset)?;
        self.check_lost(lost)?;
        let frame = loop {
            let taken = self.pool.take_frame(lost.frames.start()).ok_or(Refused::NoFrame { offset })?;
            if let Err(error) = self.record_replacement(lost, taken) {
                self.pool.transit.leave(&[taken], || placement::put_back(&self.pool.records, &[taken]));
                return Err(Refused::Ledger(error).into());
            }
            // In one step for `verify`: the new frame is the owner's, the lost one is not, and the extents say so.
            if self.pool.transit.leave(&[taken], || self.swap(lost, taken)) {
                break taken;
            }
            self.undo_replacement(taken);
            // It was poisoned after it was taken: it stays out of the pool, and another is taken.
        };
        self.pool.enqueue(&self.owned);
        self.pool.journal.write(lost.frames, Some(self.owned.id), EventKind::Replaced { by: frame });
        Ok(Replaced { offset, lost: lost.frames.start(), frame: frame.start() })
    }

    /// The replacement is durable before it is made. If it cannot be, its undoing comes before any other use of the frame.
    fn record_replacement(&self, lost: Extent, taken: PfnRange) -> Result<(), LedgerError> {
        let entry =
            || Entry::Replaced { allocation: self.owned.id, offset: lost.offset, lost: lost.frames.start(), by: taken.start() };
        self.pool.commit_entries(|| vec![entry()]).inspect_err(|_| self.undo_replacement(taken))
    }

    fn undo_replacement(&self, taken: PfnRange) {
        self.pool.submit_entry(|| Entry::Reclaimed { allocation: self.owned.id, frames: taken.into() });
    }

    /// Only a withdrawn frame that the owner still has can be replaced.
    fn check_lost(&self, run: Extent) -> Result<(), Refused> {
        let (piece, offset) = (self.piece(run)?, run.offset);
        let gib = self.pool.records.record(piece.record).lock();
        let live = gib.tenants(piece.span).any(|(_, tenant)| tenant.allocation == self.owned.id && !tenant.released);
        match (live, gib.is_withdrawn(piece.span)) {
            (false, _) => Err(Refused::Released { offset }),
            (true, false) => Err(Refused::NotLost { offset }),
            (true, true) => Ok(()),
        }
    }

    /// Makes `taken` the owner's in the place of `lost`; false when it has been poisoned.
    fn swap(&self, lost: Extent, taken: PfnRange) -> bool {
        for piece in self.pool.records.pieces(taken) {
            let mut gib = self.pool.records.record(piece.record).lock();
            if gib.is_withdrawn(piece.span) {
                return false;
            }
            // Before the frame is the owner's, and under its lock: an offset that was given up may list it from an earlier time,
            // and whoever comes from there must find that the extents have changed. Before the lost frame goes too: whoever
            // finds it released looks whether they have, and then again.
            self.way.close();
            self.owned.extents.replace(lost.offset, taken.start());
            gib.allocate(piece.span, self.owned.id, Shareability::Private);
        }
        for piece in self.pool.records.pieces(lost.frames) {
            let mut gib = self.pool.records.record(piece.record).lock();
            // The mark may have been lifted by proof since it was checked; the frame then is released and sound, and
            // reclaim frees it.
            gib.release(piece.span, self.owned.id);
            let list = gib.take_list();
            self.pool.registry.lock().give_up(piece.frames);
            self.owned.add_released(lost);
            drop(gib);
            // Never the last that has a mapping: whoever detaches one takes it out of every record.
            drop(list);
        }
        true
    }
}

impl crate::pool::Inner {
    /// A free, committed frame, in transit now, from the node of `near` if it has one.
    fn take_frame(&self, near: Pfn) -> Option<PfnRange> {
        let near = self.records.node_of(near).map(|node| node.number);
        let take = || {
            let nodes = self.records.nodes();
            let first = nodes.iter().filter(|node| Some(node.number) == near);
            let rest = nodes.iter().filter(|node| Some(node.number) != near);
            first.chain(rest).find_map(|node| node.frames.take(Order::BASE)).map(|pfn| vec![PfnRange::single(pfn)]).ok_or(())
        };
        let taken = self.transit.enter(take).ok()?;
        self.commit(&taken).ok()?;
        taken.first().copied()
    }
}
