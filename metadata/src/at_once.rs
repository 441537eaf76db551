//! The usual conversion in two short steps: begun where nothing at all is in its way, flipped where nothing came between.
//!
//! Each does what the general steps of [`Gib`] do, or says that somebody must look closer and does nothing.

use crate::gib::changes_shareability;
use crate::{AllocationId, Gib, Intent, Mark, OperationId, Shape, Span, Tenant};

impl Gib {
    /// Begins a conversion of `span` at once, if nothing at all is in its way and what changes is one run: returns that run. None,
    /// and nothing done, where somebody must look closer with [`obstacle`](Self::obstacle) and [`to_change`](Self::to_change).
    #[inline]
    pub fn begin_at_once(
        &mut self,
        span: Span,
        allocation: AllocationId,
        intent: Intent,
        gib: u64,
    ) -> Option<(OperationId, Span)> {
        let whole = self.tenure.live_owner_of_all() == Some(allocation);
        let clear = (whole || self.tenure.is_live(span, allocation))
            && self.rare.as_ref().is_none_or(|rare| rare.is_clear(span))
            && self.converting.overlap(span).is_none();
        if !clear {
            return None;
        }
        let changes = self.share.reserve_change(span, intent == Intent::Share)?;
        let operation = self.next_operation(gib);
        self.converting.mark(Mark { span, operation, intent });
        Some((operation, changes))
    }

    /// [`begin_at_once`](Self::begin_at_once) in a GiB whose [`Summary`](crate::Summary) says that it is quiet and all the
    /// asker's: nothing can be in the way. For a usual span of which every frame changes, where that is a matter of a few words:
    /// it allocates nothing and calls nobody. None, and nothing done, where it is not.
    #[inline(always)]
    pub fn begin_quickly(&mut self, shape: Shape, intent: Intent, gib: u64) -> Option<OperationId> {
        if !self.share.reserve_quickly(shape, intent == Intent::Share) {
            return None;
        }
        let operation = self.next_operation(gib);
        self.converting.mark_first(Mark { span: shape.span(), operation, intent });
        Some(operation)
    }

    /// The same for any span of which one run changes: returns that run too.
    #[inline(never)]
    pub fn begin_in_quiet(&mut self, span: Span, intent: Intent, gib: u64) -> Option<(OperationId, Span)> {
        let changes = self.share.reserve_change(span, intent == Intent::Share)?;
        let operation = self.next_operation(gib);
        self.converting.mark_first(Mark { span, operation, intent });
        Some((operation, changes))
    }

    /// [`flip_in_quiet`](Self::flip_in_quiet) of what [began quickly](Self::begin_quickly), where that is a matter of a few words
    /// again; false, and nothing converted, where it is not.
    #[inline(always)]
    pub fn flip_quickly(&mut self, shape: Shape, intent: Intent) -> bool {
        // The demotion first: it may be done although the rest is not.
        let flipped = self.demoted.demote_quickly(shape) && self.share.set_quickly(shape, intent == Intent::Share);
        if flipped {
            self.converting.clear_first();
        }
        flipped
    }

    /// Ends a proven conversion that nothing came between, at no more cost than it must have: no rare fact about its frames, one
    /// live owner, the mark as it was set. Says false, and does nothing, where [`finish`](Self::finish) must look closer.
    #[inline]
    pub fn flip(&mut self, operation: OperationId, span: Span, intent: Intent) -> bool {
        let live = self.tenure.live_owner_of_all().is_some() || self.has_one_live_tenant(span);
        let unusual = self.rare.as_ref().is_some_and(|rare| !rare.is_known_and_sound(span));
        if unusual || !live || !changes_shareability(intent) {
            return false;
        }
        if !self.converting.clear_exact(Mark { span, operation, intent }) {
            return false;
        }
        self.share.set_reserved(span, intent == Intent::Share);
        self.demoted.demote_again(span);
        true
    }

    /// [`flip`](Self::flip) of a conversion that [began in quiet](Self::begin_in_quiet), or quickly, where nothing has
    /// changed since. `tried` says that [it cannot be done quickly](Self::flip_quickly), which is not tried again then.
    #[inline(never)]
    pub fn flip_in_quiet(&mut self, operation: OperationId, span: Span, intent: Intent, tried: bool) {
        debug_assert!(self.converting.is_first(Mark { span, operation, intent }), "{operation} is not the first here");
        self.converting.clear_first();
        let shared = intent == Intent::Share;
        if tried {
            self.share.set_reserved_slowly(span, shared);
        } else {
            self.share.set_reserved(span, shared);
        }
        self.demoted.demote_again(span);
    }

    #[inline(never)]
    fn has_one_live_tenant(&self, span: Span) -> bool {
        matches!(self.tenure.sole(span), Some(Tenant { released: false, .. }))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{HoldId, HolderId, Shareability};

    const ID: AllocationId = AllocationId::new(7);
    const FRAME: Span = Span::single(700);

    fn owned(span: Span) -> Gib {
        let mut gib = Gib::new();
        gib.allocate(span, ID, Shareability::Private);
        gib
    }

    fn begins(gib: &mut Gib, span: Span) -> Option<Span> {
        let (operation, changes) = gib.begin_at_once(span, ID, Intent::Share, 0)?;
        assert!(gib.flip(operation, span, Intent::Share), "nothing came between");
        gib.check().unwrap();
        Some(changes)
    }

    #[test]
    fn only_the_owner_of_all_of_it_begins() {
        for part in [Span::WHOLE, Span::new(600, 800).unwrap()] {
            assert_eq!(begins(&mut owned(part), FRAME), Some(FRAME));
            assert!(owned(part).begin_at_once(FRAME, AllocationId::new(8), Intent::Share, 0).is_none(), "another's");
            let mut released = owned(part);
            released.release(part, ID);
            assert!(begins(&mut released, FRAME).is_none(), "released");
        }
        assert!(begins(&mut owned(Span::new(600, 800).unwrap()), Span::new(799, 801).unwrap()).is_none(), "half of it free");
        assert!(begins(&mut Gib::new(), FRAME).is_none(), "free");
    }

    #[test]
    fn nothing_begins_where_a_rare_fact_or_another_operation_is() {
        let in_the_way: [fn(&mut Gib); 5] = [
            |gib| assert_eq!(gib.poison(FRAME), 1),
            |gib| gib.set_shareability(FRAME, Shareability::Unknown),
            |gib| assert_eq!(gib.hold(HoldId(1), FRAME, HolderId::new("dma")), [FRAME]),
            |gib| gib.guard(FRAME),
            |gib| assert!(gib.begin_at_once(FRAME, ID, Intent::Share, 0).is_some()),
        ];
        for (nth, put_in_the_way) in in_the_way.into_iter().enumerate() {
            let mut gib = owned(Span::WHOLE);
            put_in_the_way(&mut gib);
            for span in [FRAME, Span::block(1), Span::WHOLE] {
                assert!(gib.begin_at_once(span, ID, Intent::Share, 0).is_none(), "{nth}: {span:?}");
            }
            let beside = Span::single(FRAME.end());
            assert_eq!(begins(&mut gib, beside), Some(beside), "{nth}: what is beside it is not in the way");
        }
    }

    #[test]
    fn what_changes_is_one_run_or_nothing_begins() {
        let mut gib = owned(Span::WHOLE);
        assert_eq!(begins(&mut gib, Span::new(100, 2000).unwrap()), Span::new(100, 2000));
        assert!(begins(&mut gib, Span::new(500, 1500).unwrap()).is_none(), "all of it is so already");
        assert_eq!(begins(&mut gib, Span::new(0, 300).unwrap()), Span::new(0, 100));
        assert_eq!(begins(&mut gib, Span::new(1000, 3000).unwrap()), Span::new(2000, 3000));
        assert_eq!(begins(&mut gib, Span::single(3500)), Some(Span::single(3500)));
        assert!(begins(&mut gib, Span::WHOLE).is_none(), "two runs change");
        assert_eq!(gib.counts().shared, 3001);
    }

    #[test]
    fn nothing_flips_that_is_not_as_it_was_marked() {
        let mut gib = owned(Span::WHOLE);
        let (operation, _) = gib.begin_at_once(FRAME, ID, Intent::Share, 0).unwrap();
        assert!(!gib.flip(operation, Span::single(3), Intent::Share), "another frame");
        assert!(!gib.flip(operation, FRAME, Intent::Unshare), "another intent");
        assert!(!gib.flip(OperationId::new(0, 99), FRAME, Intent::Share), "another operation");
        gib.poison(FRAME);
        assert!(!gib.flip(operation, FRAME, Intent::Share), "poisoned meanwhile");
        let mut gib = owned(Span::WHOLE);
        let (operation, _) = gib.begin_at_once(FRAME, ID, Intent::Share, 0).unwrap();
        gib.release(Span::WHOLE, ID);
        assert!(!gib.flip(operation, FRAME, Intent::Share), "released meanwhile");
        assert_eq!(gib.counts().shared, 0);
    }
}
