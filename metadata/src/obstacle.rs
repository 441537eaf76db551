//! What stands in the way of an operation, asked before anything changes.
//!
//! The kinds have an order, the most fundamental first, so that an answer does not depend on how the question is cut: whose
//! the frames are, what is withdrawn, who holds them, and last what will pass by itself. A transient obstacle is never
//! reported while a lasting one stands.

use crate::{AllocationId, Gib, HolderId, NewDemotions, OperationId, Order, Shareability, Span, Uniformity, Withdrawal};

/// Something in the way of an operation, with the first frames of it that it concerns.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Obstacle {
    /// The frames are not the allocation's.
    NotOwner {
        /// Where.
        at: Span,
    },
    /// The allocation has released them.
    Released {
        /// Where.
        at: Span,
    },
    /// They are withdrawn.
    Withdrawn {
        /// Where.
        at: Span,
        /// The worst mark on them.
        state: Withdrawal,
    },
    /// Somebody holds them.
    Held {
        /// Where.
        at: Span,
        /// Who.
        holder: HolderId,
    },
    /// An operation is under way.
    Converting {
        /// Where.
        at: Span,
        /// Which.
        operation: OperationId,
    },
}

/// What somebody wants to do, as far as obstacles care.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Change what is reachable: convert, resize, release a part. Stopped by holds.
    Change,
    /// Establish a translation, hold, or detach: not stopped by holds.
    Use,
}

impl Obstacle {
    /// The place of this kind in the order: lower is more fundamental.
    #[must_use]
    pub const fn rank(&self) -> u8 {
        match self {
            Self::NotOwner { .. } => 0,
            Self::Released { .. } => 1,
            Self::Withdrawn { state: Withdrawal::Poisoned, .. } => 2,
            Self::Withdrawn { .. } => 3,
            Self::Held { .. } => 4,
            Self::Converting { .. } => 5,
        }
    }

    /// The frames that it concerns.
    #[must_use]
    pub const fn at(&self) -> Span {
        match self {
            Self::NotOwner { at }
            | Self::Released { at }
            | Self::Withdrawn { at, .. }
            | Self::Held { at, .. }
            | Self::Converting { at, .. } => *at,
        }
    }
}

impl Gib {
    /// The most fundamental obstacle to `purpose` on `span`; of several of that kind, the one at the lowest frame.
    #[must_use]
    pub fn obstacle(&self, span: Span, allocation: AllocationId, purpose: Purpose) -> Option<Obstacle> {
        if !self.tenure.is_live(span, allocation) {
            return Some(self.foreign_or_released(span, allocation));
        }
        if let Some(rare) = &self.rare {
            for (plane, state) in rare.withdrawals() {
                // Failed and quarantined rank alike: the lower frame is named.
                let other = if state == Withdrawal::Failed { rare.quarantined.first_run_in(span) } else { None };
                match (plane.first_run_in(span), other) {
                    (Some(at), Some(before)) if before.start() < at.start() => {
                        return Some(Obstacle::Withdrawn { at: before, state: Withdrawal::Quarantined });
                    }
                    (Some(at), _) => return Some(Obstacle::Withdrawn { at, state }),
                    (None, _) => {}
                }
            }
            if purpose == Purpose::Change
                && let Some((at, holder)) = rare.holds.overlap(span)
            {
                return Some(Obstacle::Held { at, holder: holder.clone() });
            }
        }
        self.converting_obstacle(span)
    }

    /// Whether nothing rare is known of any frame: none is withdrawn, unknown, held or guarded. One load.
    #[must_use]
    #[inline]
    pub const fn is_plain(&self) -> bool {
        self.rare.is_none()
    }

    /// Whether a map guard is out on a frame of `span`: an operation must wait until it is dropped.
    #[must_use]
    pub fn is_guarded(&self, span: Span) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.guards.iter().any(|guard| guard.overlaps(span)))
    }

    /// The worst mark on a frame, if it is withdrawn.
    #[must_use]
    pub fn withdrawal(&self, frame: u32) -> Option<Withdrawal> {
        self.rare.as_ref().and_then(|rare| rare.worst(frame))
    }

    /// Whether a frame of `span` is withdrawn.
    #[must_use]
    pub fn is_withdrawn(&self, span: Span) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.withdrawn(span))
    }

    /// A holder of frames in `span`.
    #[must_use]
    pub fn holder(&self, span: Span) -> Option<(Span, HolderId)> {
        self.rare.as_ref()?.holds.overlap(span).map(|(at, holder)| (at, holder.clone()))
    }

    /// The runs of `span` that are not poisoned.
    #[must_use]
    pub fn unpoisoned_runs(&self, span: Span) -> Vec<Span> {
        self.split_by_withdrawal(span)
            .into_iter()
            .filter(|(_, mark)| *mark != Some(Withdrawal::Poisoned))
            .map(|(part, _)| part)
            .collect()
    }

    /// Every frame with this mark, as runs, ascending.
    #[must_use]
    pub fn marked_runs(&self, state: Withdrawal) -> Vec<Span> {
        let planes = self.rare.iter().flat_map(|rare| rare.withdrawals());
        planes.filter(|(_, kind)| *kind == state).flat_map(|(plane, _)| plane.runs().collect::<Vec<_>>()).collect()
    }

    /// The first run of `span` whose frames are all in the same state and of the same tenant.
    #[must_use]
    pub fn alike(&self, span: Span) -> Span {
        let first = span.start();
        let clip = |whole: Span, end: u32| Span::new(first, end.min(whole.end())).unwrap_or(whole);
        let mut run = span;
        // Each axis shortens the run to where it changes.
        let tenant_end = match self.tenure.in_span(run).next() {
            Some((part, _)) if part.start() == first => part.end(),
            Some((part, _)) => part.start(),
            None => run.end(),
        };
        run = clip(run, tenant_end);
        run = clip(run, self.share.next_run(run, !self.share.is_shared(first)).map_or(run.end(), Span::start));
        for plane in self.rare.iter().flat_map(|rare| rare.planes()) {
            run = clip(run, change_after(run, plane.first_run_in(run)));
        }
        for mark in self.converting.marks() {
            run = clip(run, change_after(run, mark.span.intersect(run)));
        }
        run
    }

    /// The runs of `span` that are not withdrawn.
    #[must_use]
    pub fn sound_runs(&self, span: Span) -> Vec<Span> {
        self.split_by_withdrawal(span).into_iter().filter(|(_, mark)| mark.is_none()).map(|(part, _)| part).collect()
    }

    /// Everyone who holds frames of `span`, with those frames.
    pub fn holders(&self, span: Span) -> impl Iterator<Item = (Span, HolderId)> + '_ {
        self.rare.iter().flat_map(move |rare| rare.holds.in_span(span)).map(|(at, holder)| (at, holder.clone()))
    }

    /// The runs of `span` that `allocation` has and has not released, and whether they are withdrawn.
    #[must_use]
    pub fn live_runs(&self, span: Span, allocation: AllocationId) -> Vec<(Span, bool)> {
        let live = self.tenure.in_span(span).filter(|(_, tenant)| tenant.allocation == allocation && !tenant.released);
        live.flat_map(|(part, _)| self.split_by_withdrawal(part)).map(|(part, mark)| (part, mark.is_some())).collect()
    }

    /// Cuts the frames of `span` that `allocation` has released into what an operation could reclaim now (`None`) and what
    /// stands in its way.
    #[must_use]
    pub fn reclaimable(&self, span: Span, allocation: AllocationId) -> Vec<(Span, Option<Obstacle>)> {
        let mut cut = Vec::new();
        let released = self.tenure.in_span(span).filter(|(_, tenant)| tenant.allocation == allocation && tenant.released);
        for (part, mark) in released.flat_map(|(part, _)| self.split_by_withdrawal(part)) {
            match mark {
                Some(state) => cut.push((part, Some(Obstacle::Withdrawn { at: part, state }))),
                None => self.cut_by_users(part, &mut cut),
            }
        }
        cut
    }

    /// Cuts sound frames into what is held or converting and what is neither.
    fn cut_by_users(&self, span: Span, cut: &mut Vec<(Span, Option<Obstacle>)>) {
        let mut rest = Some(span);
        while let Some(part) = rest {
            let held = self.holder(part).map(|(at, holder)| Obstacle::Held { at, holder });
            let obstacle =
                [held, self.converting_obstacle(part)].into_iter().flatten().min_by_key(|obstacle| obstacle.at().start());
            let Some(obstacle) = obstacle else {
                cut.push((part, None));
                return;
            };
            let at = obstacle.at();
            cut.extend(Span::new(part.start(), at.start()).map(|before| (before, None)));
            cut.push((at, Some(obstacle)));
            rest = Span::new(at.end(), part.end());
        }
    }

    /// The mark of an operation on a frame of `span`, the lowest.
    #[must_use]
    pub fn converting_obstacle(&self, span: Span) -> Option<Obstacle> {
        if self.converting.is_empty() {
            return None;
        }
        let overlaps = self.converting.marks().filter_map(|mark| Some((mark.span.intersect(span)?, mark.operation)));
        let (at, operation) = overlaps.min_by_key(|(at, _)| at.start())?;
        Some(Obstacle::Converting { at, operation })
    }

    /// The first run of `span` that is not in the state `target` yet. Unknown frames never are.
    #[must_use]
    pub fn next_to_change(&self, span: Span, target: Shareability) -> Option<Span> {
        let mut found = self.first_to_change(span, target)?;
        // Known and unknown runs may take turns.
        while let Some(rest) = Span::new(found.end(), span.end())
            && let Some(more) = self.first_to_change(rest, target).filter(|more| more.start() == found.end())
        {
            found = Span::new(found.start(), more.end())?;
        }
        Some(found)
    }

    /// The first run that differs for one reason, as long as it can be.
    fn first_to_change(&self, span: Span, target: Shareability) -> Option<Span> {
        let known = self.share.next_run(span, target != Shareability::Shared);
        let unknown = self.rare.as_ref().and_then(|rare| rare.unknown.first_run_in(span));
        known.into_iter().chain(unknown).min_by_key(|run| run.start())
    }

    /// How much of `span` is not in the state `target` yet: nothing, everything, or a part.
    #[must_use]
    pub fn to_change(&self, span: Span, target: Shareability) -> ToChange {
        if self.rare.as_ref().is_none_or(|rare| !rare.unknown.overlaps(span)) {
            return match (self.share.uniformity(span), target) {
                (Uniformity::Mixed, _) => ToChange::Part,
                (Uniformity::AllShared, Shareability::Shared) | (Uniformity::AllPrivate, Shareability::Private) => {
                    ToChange::Nothing
                }
                _ => ToChange::Everything,
            };
        }
        if self.next_to_change(span, target) == Some(span) { ToChange::Everything } else { ToChange::Part }
    }

    /// Whether one leaf of the size of `span`, a block or the whole GiB, could map it: one owner, sound, one known
    /// shareability, no hold, nothing converting.
    #[must_use]
    pub fn could_be_one_leaf(&self, span: Span, allocation: AllocationId) -> bool {
        self.obstacle(span, allocation, Purpose::Change).is_none() && self.is_uniform(span)
    }

    /// The largest leaf that may map `frame` now: it lies in one block that [could be one
    /// leaf](Self::could_be_one_leaf) and has not been demoted. None where the frame itself may not be mapped.
    #[must_use]
    pub fn max_order(&self, frame: u32, allocation: AllocationId) -> Option<Order> {
        self.obstacle(Span::single(frame), allocation, Purpose::Use).is_none().then_some(())?;
        let leaf = self.demoted.leaf(frame);
        let fits = |order: Order, span: Span| order <= leaf && self.could_be_one_leaf(span, allocation);
        Some(match () {
            () if fits(Order::GIB1, Span::WHOLE) => Order::GIB1,
            () if fits(Order::MIB2, Span::block(frame / crate::BLOCK_FRAMES)) => Order::MIB2,
            () => Order::BASE,
        })
    }

    /// The leaves that an operation on `span` would demote.
    #[must_use]
    pub fn would_demote(&self, span: Span) -> NewDemotions {
        self.demoted.would_demote(span)
    }

    fn foreign_or_released(&self, span: Span, allocation: AllocationId) -> Obstacle {
        let (mut at, mut released) = (span.start(), None);
        for (part, tenant) in self.tenure.in_span(span) {
            if part.start() != at || tenant.allocation != allocation {
                break;
            }
            if tenant.released {
                released = released.or(Some(part));
            }
            at = part.end();
        }
        match (Span::new(at, span.end()), released) {
            (Some(foreign), _) => Obstacle::NotOwner { at: foreign },
            (None, released) => Obstacle::Released { at: released.unwrap_or(span) },
        }
    }
}

/// How much of a span an operation would change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ToChange {
    /// It is already so.
    Nothing,
    /// All of it.
    Everything,
    /// Some of it.
    Part,
}

/// Where, after the first frame of `span`, a run begins or ends; the end of `span` without one.
pub(crate) fn change_after(span: Span, run: Option<Span>) -> u32 {
    match run {
        Some(run) if run.start() == span.start() => run.end(),
        Some(run) => run.start(),
        None => span.end(),
    }
}
