//! The usual conversion in two short steps: begun where nothing at all is in its way, flipped where nothing came between.
//!
//! Each does what the general steps of [`Gib`] do, or says that somebody must look closer and does nothing.

use crate::gib::changes_shareability;
use crate::{AllocationId, Gib, Intent, Mark, OperationId, Span, Tenant};

impl Gib {
    /// Begins a conversion of `span` at once, if nothing at all is in its way and what changes is one run: returns that run. None,
    /// and nothing done, where somebody must look closer with [`obstacle`](Self::obstacle) and [`to_change`](Self::to_change).
    #[inline(always)]
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
        let shared = intent == Intent::Share;
        let changes = if self.share.reserve_change(span, shared) { span } else { self.reserve_one_run(span, shared)? };
        let operation = self.next_operation(gib);
        self.converting.mark(Mark { span, operation, intent });
        Some((operation, changes))
    }

    /// Reserves `span` where only one run of it is not `shared` (or not private) yet, and returns that run.
    #[inline(never)]
    fn reserve_one_run(&mut self, span: Span, shared: bool) -> Option<Span> {
        let run = self.share.next_run(span, !shared)?;
        let another = Span::new(run.end(), span.end()).and_then(|rest| self.share.next_run(rest, !shared));
        (another.is_none() && self.share.reserve(span).is_ok()).then_some(run)
    }

    /// Ends a proven conversion that nothing came between, at no more cost than it must have: no rare fact about its frames, one
    /// live owner, the mark as it was set. Says false, and does nothing, where [`finish`](Self::finish) must look closer.
    #[inline(always)]
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
        if !self.demoted.is_broken_at(span) {
            self.demoted.demote(span);
        }
        true
    }

    #[inline(never)]
    fn has_one_live_tenant(&self, span: Span) -> bool {
        matches!(self.tenure.sole(span), Some(Tenant { released: false, .. }))
    }
}
