//! Everything pageless knows of the frames of one GiB, behind one interface.
//!
//! The planes (shareability, unknown, quarantined, failed, poisoned), the tenants, the marks of operations under way, the
//! demoted leaves, the holds and the map guards of one GiB live side by side here, and only this module moves them, so that
//! they agree with the table in [`transition`](crate::FrameState::after) at every step. What stands in an operation's way is
//! answered in [`obstacle`](crate::Obstacle); this file changes state.

use smallvec::{SmallVec, smallvec};

use crate::{
    AllocationId, Converting, Demoted, FrameState, HoldId, HolderId, Holds, Intent, Mark, NoMemory, Occupancy, OperationId,
    SharePlane, Shareability, Span, SparsePlane, Tenant, Tenure, Uniformity, Withdrawal, obstacle::change_after,
};

/// The facts about one GiB of frames. No lock of its own: its user brings one.
#[derive(Debug, Default)]
pub struct Gib {
    pub(crate) share: SharePlane,
    pub(crate) tenure: Tenure,
    pub(crate) converting: Converting,
    pub(crate) demoted: Demoted,
    /// What most GiBs never need; absent until then, and again after `compact`.
    pub(crate) rare: Option<Box<Rare>>,
}

/// Facts that most GiBs never have.
#[derive(Debug, Default)]
pub(crate) struct Rare {
    pub(crate) unknown: SparsePlane,
    pub(crate) quarantined: SparsePlane,
    pub(crate) failed: SparsePlane,
    pub(crate) poisoned: SparsePlane,
    pub(crate) holds: Holds,
    pub(crate) guards: Vec<Span>,
}

/// How an operation ends for some frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// Every mapping proved them unreachable: the intent is carried out.
    Proven,
    /// No proof for now.
    Quarantine,
    /// No proof ever.
    Fail,
}

/// What became of a part of the frames when their operation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// The intent was carried out.
    Done,
    /// The frames are withdrawn as the ending said.
    Lost,
    /// The owner had released them meanwhile: they are released and sound, and nothing else happened.
    Released,
    /// They are withdrawn for another reason that came up meanwhile.
    Withdrawn(Withdrawal),
    /// The operation had been declared hung, and its frames quarantined, before it came back.
    TooLate,
}

/// The parts into which an ending splits the frames, ascending within each kind; usually one.
pub type Parts = SmallVec<[(Span, Ended); 2]>;

impl Gib {
    /// A GiB whose frames nobody has.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            share: SharePlane::new(),
            tenure: Tenure::new(),
            converting: Converting::new(),
            demoted: Demoted::new(),
            rare: None,
        }
    }

    /// Everything known of one frame. A frame without a tenant counts as free.
    #[must_use]
    pub fn state(&self, frame: u32) -> FrameState {
        let span = Span::single(frame);
        let tenant = self.tenure.sole(span);
        let intent = match tenant {
            Some(Tenant { released: true, .. }) => Intent::Reclaim,
            _ => Intent::Resize,
        };
        let rare = |plane: fn(&Rare) -> &SparsePlane| self.rare.as_ref().is_some_and(|rare| plane(rare).contains(frame));
        FrameState {
            occupancy: match tenant {
                None => Occupancy::Free,
                Some(Tenant { released: true, .. }) => Occupancy::Released,
                Some(_) => Occupancy::Allocated,
            },
            shareability: self.shareability(frame),
            converting: self.converting.overlap(span).map(|mark| mark.intent),
            // The plane keeps one bit; the intent of a live owner's quarantine is in the pool's registry of withdrawals.
            quarantined: rare(|rare| &rare.quarantined).then_some(intent),
            failed: rare(|rare| &rare.failed),
            poisoned: rare(|rare| &rare.poisoned),
        }
    }

    /// Who may reach the frame.
    #[must_use]
    pub fn shareability(&self, frame: u32) -> Shareability {
        match self.rare.as_ref().is_some_and(|rare| rare.unknown.contains(frame)) {
            true => Shareability::Unknown,
            false if self.share.is_shared(frame) => Shareability::Shared,
            false => Shareability::Private,
        }
    }

    /// The tenants of `span`, ascending.
    pub fn tenants(&self, span: Span) -> impl Iterator<Item = (Span, Tenant)> + '_ {
        self.tenure.in_span(span)
    }

    /// The marks of operations under way.
    pub fn marks(&self) -> impl Iterator<Item = Mark> + '_ {
        self.converting.marks()
    }

    /// Gives free, sound frames to an owner. The caller has taken them from whatever keeps the free frames.
    pub fn allocate(&mut self, span: Span, allocation: AllocationId, shareability: Shareability) {
        debug_assert!(self.tenure.in_span(span).next().is_none(), "{span:?} has a tenant");
        self.tenure.assign(span, Tenant { allocation, released: false });
        self.set_shareability(span, shareability);
        if span.is_whole() {
            self.demoted.promote_gib();
        } else {
            let [head, tail] = span.partial_blocks();
            span.blocks()
                .filter(|&block| Some(block) != head && Some(block) != tail)
                .for_each(|block| self.demoted.promote_block(block));
        }
    }

    /// Marks the live frames of `allocation` in `span` as released, and returns which those were.
    pub fn release(&mut self, span: Span, allocation: AllocationId) -> SmallVec<[Span; 2]> {
        let live = Tenant { allocation, released: false };
        let released: SmallVec<[Span; 2]> =
            self.tenure.in_span(span).filter(|(_, tenant)| *tenant == live).map(|(part, _)| part).collect();
        released.iter().for_each(|part| self.tenure.assign(*part, Tenant { allocation, released: true }));
        released
    }

    /// A number for an operation that begins in this GiB, the `gib`th of the pool.
    #[inline]
    pub fn next_operation(&mut self, gib: u64) -> OperationId {
        OperationId::new(gib, self.demoted.next_turn())
    }

    /// Begins an operation on `span`. The caller has seen no obstacle.
    ///
    /// Whatever the flip of a conversion will need is reserved here, so that the flip cannot fail.
    pub fn begin(&mut self, span: Span, operation: OperationId, intent: Intent) -> Result<(), NoMemory> {
        if changes_shareability(intent) {
            self.share.reserve(span)?;
        }
        self.converting.mark(Mark { span, operation, intent });
        Ok(())
    }

    /// The operation was refused: nothing has happened.
    pub fn cancel(&mut self, operation: OperationId, span: Span) {
        while let Some((part, intent)) = self.clear_mark(operation, span) {
            self.unreserve(part, intent);
        }
    }

    /// Ends the operation for `span`, and returns what became of its parts. Marks that are no longer the operation's are
    /// left alone.
    pub fn finish(&mut self, operation: OperationId, span: Span, ending: Ending) -> Parts {
        let mut parts = Parts::new();
        let mut late: SmallVec<[Span; 2]> = smallvec![span];
        while let Some((part, intent)) = self.clear_mark(operation, span) {
            late = late.into_iter().flat_map(|rest| rest.subtract(part)).flatten().collect();
            // The reservation ends first: the set that it was made for is the next thing that happens here.
            self.unreserve(part, intent);
            match ending {
                Ending::Proven => self.complete(part, intent, &mut parts),
                Ending::Quarantine => {
                    self.rare_mut().quarantined.insert(part);
                    parts.push((part, Ended::Lost));
                }
                Ending::Fail => {
                    self.rare_mut().failed.insert(part);
                    parts.push((part, Ended::Lost));
                }
            }
        }
        parts.extend(late.into_iter().map(|rest| (rest, Ended::TooLate)));
        parts
    }

    /// A retry brought the proof for the quarantined frames of `span`: lifts the quarantine and carries the intent out.
    pub fn prove_later(&mut self, span: Span, intent: Intent) -> Parts {
        let mut parts = Parts::new();
        self.rare_mut().quarantined.remove(span);
        self.complete(span, intent, &mut parts);
        parts
    }

    /// A retry brought the verdict that the quarantined frames of `span` will never be proven.
    pub fn fail_later(&mut self, span: Span) {
        let rare = self.rare_mut();
        rare.quarantined.remove(span);
        rare.failed.insert(span);
    }

    /// The hardware reported an error in `span`; returns how many frames of it were not poisoned before.
    pub fn poison(&mut self, span: Span) -> u32 {
        self.rare_mut().poisoned.insert(span)
    }

    /// The platform was reset: lifts the failed mark from `span`, and only that (invariant I4).
    pub fn lift_failed(&mut self, span: Span) -> u32 {
        self.rare.as_mut().map_or(0, |rare| rare.failed.remove(span))
    }

    /// The memory was replaced: lifts the poisoned mark from `span`, and only that (invariant I4).
    pub fn lift_poisoned(&mut self, span: Span) -> u32 {
        self.rare.as_mut().map_or(0, |rare| rare.poisoned.remove(span))
    }

    /// Adds a hold; returns the frames that were not held before.
    pub fn hold(&mut self, id: HoldId, span: Span, holder: HolderId) -> Vec<Span> {
        self.rare_mut().holds.add(id, span, holder)
    }

    /// Ends a hold; returns the frames that nobody holds any more.
    pub fn unhold(&mut self, id: HoldId) -> Vec<Span> {
        self.rare.as_mut().map_or_else(Vec::new, |rare| rare.holds.remove(id))
    }

    /// Registers a map guard.
    pub fn guard(&mut self, span: Span) {
        self.rare_mut().guards.push(span);
    }

    /// Ends a map guard.
    pub fn unguard(&mut self, span: Span) {
        if let Some(rare) = &mut self.rare
            && let Some(at) = rare.guards.iter().position(|guard| *guard == span)
        {
            rare.guards.swap_remove(at);
        }
    }

    /// Demotes the leaves that straddle the edges of `span`.
    pub fn demote(&mut self, span: Span) {
        self.demoted.demote(span);
    }

    /// One leaf of the size of `span`, a whole GiB or a 2 MiB block, maps it again.
    pub fn promote(&mut self, span: Span) {
        if span.is_whole() { self.demoted.promote_gib() } else { self.demoted.promote_block(span.blocks().start) }
    }

    /// Records who may reach `span`.
    pub fn set_shareability(&mut self, span: Span, shareability: Shareability) {
        match (shareability, &mut self.rare) {
            (Shareability::Unknown, _) => {
                self.rare_mut().unknown.insert(span);
            }
            (_, Some(rare)) => {
                rare.unknown.remove(span);
            }
            (_, None) => {}
        }
        self.share.set(span, shareability == Shareability::Shared);
    }

    /// Folds what is in use into what is small at rest; returns whether anything became smaller.
    pub fn compact(&mut self) -> bool {
        let idle = self.rare.as_ref().is_some_and(|rare| rare.is_empty());
        if idle {
            self.rare = None;
        }
        self.share.compact() || idle
    }

    /// Whether all frames of `span` have one known shareability.
    #[must_use]
    pub fn is_uniform(&self, span: Span) -> bool {
        let unknown = self.rare.as_ref().is_some_and(|rare| rare.unknown.overlaps(span));
        !unknown && self.share.uniformity(span) != Uniformity::Mixed
    }

    /// Takes the operation's mark off a part of `span`, and says which part. The reservation for that part stays, until the
    /// caller undoes it.
    fn clear_mark(&mut self, operation: OperationId, span: Span) -> Option<(Span, Intent)> {
        let mark = self.converting.marks().find(|mark| mark.operation == operation && mark.span.overlaps(span))?;
        let part = self.converting.clear(operation, span)?;
        if part != mark.span && changes_shareability(mark.intent) {
            self.cut_reservation(mark.span, part);
        }
        Some((part, mark.intent))
    }

    /// Only a part of a mark goes: what was reserved for the whole is reserved for that part and for what is left, so that
    /// each is undone by itself. Happens only when frames were lost; then the blocks at the cuts become mixed anyway.
    fn cut_reservation(&mut self, whole: Span, part: Span) {
        for piece in whole.subtract(part).into_iter().flatten().chain([part]) {
            self.share.reserve(piece).unwrap_or_else(|refused| refused.abort());
        }
        self.share.unreserve(whole);
    }

    fn unreserve(&mut self, part: Span, intent: Intent) {
        if changes_shareability(intent) {
            self.share.unreserve(part);
        }
    }

    /// Carries `intent` out on the frames of `span` that are sound and still have the owner the intent was for.
    fn complete(&mut self, span: Span, intent: Intent, parts: &mut Parts) {
        let reclaims = intent == Intent::Reclaim;
        for (part, withdrawal) in self.split_by_withdrawal(span) {
            if let Some(withdrawal) = withdrawal {
                parts.push((part, Ended::Withdrawn(withdrawal)));
                continue;
            }
            let tenants: SmallVec<[(Span, Tenant); 1]> = self.tenure.in_span(part).collect();
            for (part, tenant) in tenants {
                if tenant.released == reclaims {
                    self.carry_out(part, intent);
                    parts.push((part, Ended::Done));
                } else {
                    parts.push((part, Ended::Released));
                }
            }
        }
    }

    fn carry_out(&mut self, span: Span, intent: Intent) {
        match intent {
            Intent::Share => self.set_shareability(span, Shareability::Shared),
            Intent::Unshare => self.set_shareability(span, Shareability::Private),
            Intent::Reclaim => {
                self.tenure.vacate(span);
                self.set_shareability(span, Shareability::Private);
                if self.share.whole().is_some() {
                    // A free GiB needs no leaves. Only a GiB in use keeps them against the next conversion.
                    self.share.compact();
                }
            }
            Intent::Detach | Intent::Resize => {}
        }
    }

    /// Cuts `span` into runs of one worst mark each.
    pub(crate) fn split_by_withdrawal(&self, span: Span) -> SmallVec<[(Span, Option<Withdrawal>); 1]> {
        let Some(rare) = self.rare.as_ref().filter(|rare| rare.withdrawn(span)) else {
            return smallvec![(span, None)];
        };
        let mut cut = SmallVec::new();
        let mut at = span.start();
        while let Some(rest) = Span::new(at, span.end()) {
            let worst = rare.worst(at);
            let end = rare.next_change(rest);
            cut.extend(Span::new(at, end).map(|part| (part, worst)));
            at = end;
        }
        cut
    }

    pub(crate) fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }
}

impl Rare {
    #[cold]
    pub(crate) fn is_empty(&self) -> bool {
        self.planes().iter().all(|plane| plane.is_empty()) && self.holds.is_empty() && self.guards.is_empty()
    }

    /// Whether every frame of `span` is sound and of known shareability.
    #[cold]
    pub(crate) fn is_known_and_sound(&self, span: Span) -> bool {
        self.planes().iter().all(|plane| !plane.overlaps(span))
    }

    /// Whether no fact here concerns a frame of `span`.
    #[cold]
    pub(crate) fn is_clear(&self, span: Span) -> bool {
        self.planes().iter().all(|plane| !plane.overlaps(span))
            && self.holds.overlap(span).is_none()
            && !self.guards.iter().any(|guard| guard.overlaps(span))
    }

    pub(crate) const fn planes(&self) -> [&SparsePlane; 4] {
        [&self.unknown, &self.quarantined, &self.failed, &self.poisoned]
    }

    /// The planes of withdrawal, worst first.
    pub(crate) const fn withdrawals(&self) -> [(&SparsePlane, Withdrawal); 3] {
        [(&self.poisoned, Withdrawal::Poisoned), (&self.failed, Withdrawal::Failed), (&self.quarantined, Withdrawal::Quarantined)]
    }

    /// Whether a frame of `span` is withdrawn.
    pub(crate) fn withdrawn(&self, span: Span) -> bool {
        self.withdrawals().iter().any(|(plane, _)| plane.overlaps(span))
    }

    /// The worst mark on a frame.
    pub(crate) fn worst(&self, frame: u32) -> Option<Withdrawal> {
        self.withdrawals().iter().find(|(plane, _)| plane.contains(frame)).map(|(_, withdrawal)| *withdrawal)
    }

    /// Where, after the first frame of `span`, a mark begins or ends; the end of `span` where none does.
    fn next_change(&self, span: Span) -> u32 {
        let edges = self.withdrawals().map(|(plane, _)| change_after(span, plane.first_run_in(span)));
        edges.into_iter().min().unwrap_or(span.end())
    }
}

pub(crate) const fn changes_shareability(intent: Intent) -> bool {
    matches!(intent, Intent::Share | Intent::Unshare)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::GIB_FRAMES;

    /// A conversion of the frames `start..end` whose middle is lost, in a GiB where all of it is one allocation's.
    fn torn(start: u32, end: u32) -> Gib {
        let (mut gib, operation) = (Gib::new(), OperationId::new(0, 1));
        gib.allocate(Span::WHOLE, AllocationId::new(1), Shareability::Private);
        gib.begin(Span::new(start, end).unwrap(), operation, Intent::Share).unwrap();
        let lost = Span::new(start + 40, start + 41).unwrap();
        gib.finish(operation, Span::new(start, lost.start()).unwrap(), Ending::Proven);
        gib.finish(operation, lost, Ending::Quarantine);
        gib.finish(operation, Span::new(lost.end(), end).unwrap(), Ending::Proven);
        gib
    }

    #[test]
    fn a_torn_operation_leaves_no_reservation_behind() {
        for (start, end) in [(0, 100), (0, GIB_FRAMES), (500, 1600)] {
            let mut gib = torn(start, end);
            gib.check().unwrap();
            assert_eq!(gib.counts().shared, end - start - 1);
            assert!(gib.compact(), "a plane with reservations stays open: {gib:?}");
        }
    }
}
