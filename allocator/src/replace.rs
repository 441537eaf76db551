//! Another frame in the place of a lost one, under a live guest.

use pageless_metadata::{AllocationId, FRAME_BYTES, Order, Pfn, PfnRange, Shareability};

use crate::allocation::Allocation;
use crate::extents::Extent;
use crate::journal::EventKind;
use crate::outcome::{Blocked, Refused, checked_range};
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
        checked_range(&(offset..offset.saturating_add(FRAME_BYTES)), self.owned.bytes, FRAME_BYTES)?;
        let _editing = self.owned.editing.lock();
        let lost = self.run_at(offset)?.frames.start();
        let frame = self.swap(offset, lost)?;
        self.owned.extents.replace(offset, frame);
        self.pool.enqueue(&self.owned);
        let kind = EventKind::Replaced { by: PfnRange::single(frame) };
        self.pool.journal.write(PfnRange::single(lost), Some(self.owned.id), kind);
        Ok(Replaced { offset, lost, frame })
    }

    /// Releases `lost` and takes another frame.
    fn swap(&self, offset: u64, lost: Pfn) -> Result<Pfn, Blocked> {
        let run = Extent { offset, frames: PfnRange::single(lost) };
        let piece = self.piece(run)?;
        {
            let gib = self.pool.records.record(piece.record).lock();
            let live = gib.tenants(piece.span).any(|(_, tenant)| tenant.allocation == self.owned.id && !tenant.released);
            match (live, gib.is_withdrawn(piece.span)) {
                (false, _) => return Err(Refused::Released { offset }.into()),
                (true, false) => return Err(Refused::NotLost { offset }.into()),
                (true, true) => {}
            }
        }
        let frame = self.pool.take_sound_frame(lost, self.owned.id).ok_or(Refused::NoFrame { offset })?;
        let mut gib = self.pool.records.record(piece.record).lock();
        // The mark may have been lifted by proof in between; the frame then is released and sound, and reclaim frees it.
        gib.release(piece.span, self.owned.id);
        self.pool.registry.lock().give_up(run.frames);
        self.owned.add_released(run);
        Ok(frame)
    }
}

impl crate::pool::Inner {
    /// A free, sound, committed frame for `allocation`, from the node of `near` if it has one.
    fn take_sound_frame(&self, near: Pfn, allocation: AllocationId) -> Option<Pfn> {
        let near = self.records.node_of(near).map(|node| node.number);
        loop {
            let take = || {
                let nodes = self.records.nodes();
                let first = nodes.iter().filter(|node| Some(node.number) == near);
                let rest = nodes.iter().filter(|node| Some(node.number) != near);
                first.chain(rest).find_map(|node| node.frames.take(Order::BASE)).map(|pfn| vec![PfnRange::single(pfn)]).ok_or(())
            };
            let taken = self.transit.enter(take).ok()?;
            let run = *taken.first()?;
            if self.backing.commit(run).is_err() {
                self.transit.leave(&taken, || placement::put_back(&self.records, &taken));
                return None;
            }
            let piece = self.records.pieces(run).next()?;
            let assigned = self.transit.leave(&taken, || {
                let mut gib = self.records.record(piece.record).lock();
                let sound = !gib.is_withdrawn(piece.span);
                if sound {
                    gib.allocate(piece.span, allocation, Shareability::Private);
                }
                sound
            });
            // Else it was poisoned after it was taken: it stays out of the pool, and another is taken.
            if assigned {
                return Some(run.start());
            }
        }
    }
}
