//! A GiB that one owner has whole, with nothing unusual about it: released and reclaimed in a few words' work.
//!
//! Hosts of confidential VMs hand out whole GiBs and get them back so. Each of these does what the general verb beside it
//! does, or says that somebody must look closer and does nothing.

use crate::{AllocationId, Gib, Intent, Mark, OperationId, Span, Tenant};

impl Gib {
    /// [`release`](Self::release) of all frames, if `allocation` has them all and no rare fact concerns one of them.
    #[inline]
    pub fn release_whole(&mut self, allocation: AllocationId) -> bool {
        let plain = self.rare.is_none() && self.tenure.live_owner_of_all() == Some(allocation);
        if plain {
            self.tenure.assign(Span::WHOLE, Tenant { allocation, released: true });
        }
        plain
    }

    /// Begins the reclaim of all frames, if `allocation` has released them all, nothing is under way, and no rare fact concerns
    /// one of them. The number of the operation is `first` or, where there is none yet, this GiB's next, which becomes `first`.
    #[inline]
    pub fn begin_reclaim_whole(&mut self, allocation: AllocationId, first: &mut Option<OperationId>, gib: u64) -> bool {
        let released = Some(Tenant { allocation, released: true });
        let plain = self.rare.is_none() && self.converting.is_empty() && self.tenure.tenant_of_all() == released;
        if plain {
            let operation = *first.get_or_insert_with(|| self.next_operation(gib));
            self.converting.mark(Mark { span: Span::WHOLE, operation, intent: Intent::Reclaim });
        }
        plain
    }

    /// Frees all frames at the end of a reclaim that was proven, if its mark stands as it was set and nothing came between.
    #[inline]
    pub fn free_whole(&mut self, operation: OperationId) -> bool {
        let mark = Mark { span: Span::WHOLE, operation, intent: Intent::Reclaim };
        let released = matches!(self.tenure.tenant_of_all(), Some(Tenant { released: true, .. }));
        let plain = self.rare.is_none() && released && self.converting.clear_exact(mark);
        if plain {
            self.tenure.vacate(Span::WHOLE);
            self.share.set(Span::WHOLE, false);
            self.share.compact();
        }
        plain
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{Ending, HoldId, HolderId, Shareability};

    const ID: AllocationId = AllocationId::new(3);

    fn owned() -> Gib {
        let mut gib = Gib::new();
        gib.allocate(Span::WHOLE, ID, Shareability::Shared);
        gib
    }

    #[test]
    fn the_short_ways_end_where_the_general_ones_do() {
        let (mut short, mut general, mut id) = (owned(), owned(), None);
        for gib in [&mut short, &mut general] {
            let (operation, _) = gib.begin_at_once(Span::single(77), ID, Intent::Unshare, 0).unwrap();
            assert!(gib.flip(operation, Span::single(77), Intent::Unshare));
        }
        assert!(short.release_whole(ID));
        general.release(Span::WHOLE, ID);
        assert_eq!(short.state(5), general.state(5));
        assert!(short.begin_reclaim_whole(ID, &mut id, 0));
        let operation = id.unwrap();
        assert_eq!(general.next_operation(0), operation);
        general.begin(Span::WHOLE, operation, Intent::Reclaim).unwrap();
        assert_eq!(short.state(5), general.state(5));
        assert!(short.free_whole(operation));
        general.finish(operation, Span::WHOLE, Ending::Proven);
        for gib in [&mut short, &mut general] {
            gib.check().unwrap();
            assert_eq!(gib.heap_bytes(), 64, "only what says that block 0 is mapped by 4 KiB leaves");
            assert_eq!((gib.state(5), gib.state(77)), (Gib::new().state(5), Gib::new().state(77)));
        }
    }

    #[test]
    fn anything_unusual_is_left_to_the_general_ways() {
        let unusual: [fn(&mut Gib); 4] = [
            |gib| {
                gib.poison(Span::single(9));
            },
            |gib| {
                gib.hold(HoldId(1), Span::single(9), HolderId::new("dma"));
            },
            |gib| gib.guard(Span::single(9)),
            |gib| {
                gib.release(Span::single(9), ID);
            },
        ];
        for (nth, unusual) in unusual.into_iter().enumerate() {
            let mut gib = owned();
            unusual(&mut gib);
            assert!(!gib.release_whole(ID), "{nth}");
        }
        assert!(!owned().release_whole(AllocationId::new(4)) && !Gib::new().release_whole(ID));

        let mut gib = owned();
        let mut first = None;
        assert!(!gib.begin_reclaim_whole(ID, &mut first, 0), "it is not released");
        let (conversion, _) = gib.begin_at_once(Span::single(1), ID, Intent::Unshare, 0).unwrap();
        assert!(gib.release_whole(ID), "an operation under way does not keep an owner");
        assert!(!gib.begin_reclaim_whole(ID, &mut first, 0), "an operation is under way");
        gib.finish(conversion, Span::single(1), Ending::Proven);
        assert!(gib.begin_reclaim_whole(ID, &mut first, 0));
        gib.poison(Span::single(4));
        assert!(!gib.free_whole(first.unwrap()), "a frame was poisoned meanwhile");
        assert!(!gib.free_whole(conversion));

        let mut gib = owned();
        gib.begin(Span::WHOLE, conversion, Intent::Reclaim).unwrap();
        assert!(!gib.free_whole(conversion), "nobody has released it");
        gib.cancel(conversion, Span::WHOLE);
        assert!(gib.release_whole(ID));
        gib.poison(Span::single(4));
        assert!(!gib.begin_reclaim_whole(ID, &mut None, 0), "a frame is poisoned");
    }
}
