//! Reclaim: proving released frames unreachable, and only then freeing them (invariant I2).
//!
//! A pass takes every released run that nothing stands in the way of, asks every mapping that was ever attached, and last the
//! backing, which proves whole granules: one frame where it can, a huge page or a segment where the kernel proves only that
//! much. A granule is proven when all of it is released or free; until then its frames wait, released. Quarantined runs that
//! are due are asked about again in the same pass.

use std::sync::Arc;
use std::time::Instant;

use pageless_metadata::{HolderId, Intent, Obstacle, PfnRange, RunSet};
use smallvec::SmallVec;

use crate::asking::Losses;
use crate::extents::{Extent, Runs, push_joined};
use crate::granule;
use crate::journal::EventKind;
use crate::ledger::LedgerError;
use crate::operation::{OpenOperation, Partition};
use crate::outcome::Blocked;
use crate::ownership::Ownership;
use crate::pool::{Inner, Pool};
use crate::recall::{Recall, guarded};
use crate::withdrawal::{Entry, Lost};

/// What a pass of `reclaim` or `retry` did. Every released frame that it looked at, and every quarantined one that it asked
/// about, is in exactly one of `freed`, `recovered`, `lost`, `waiting` and `withdrawn`.
#[derive(PartialEq, Eq, Debug, Default)]
pub struct Reclaimed {
    /// Proven unreachable, and free again.
    pub freed: RunSet,
    /// Quarantined frames of live owners that were proven now: their conversion is complete.
    pub recovered: RunSet,
    /// Withdrawn in this pass.
    pub lost: Vec<Lost>,
    /// Still released, and sound.
    pub waiting: Vec<Waiting>,
    /// Still withdrawn from before: released frames, and those of live owners that this pass asked about.
    pub withdrawn: RunSet,
}

/// Released frames that could not be freed in this pass.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Waiting {
    /// The frames.
    pub frames: PfnRange,
    /// What they wait for.
    pub why: WaitingFor,
}

/// What released frames wait for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WaitingFor {
    /// Somebody holds them.
    Holder(HolderId),
    /// An operation is under way on them, or a map guard is out.
    Operation,
    /// The ledger could not be written: nothing is freed before that is recorded.
    Ledger {
        /// Why not.
        why: LedgerError,
    },
    /// A mapping refused to prepare.
    Mapping {
        /// Why the pass was blocked.
        why: Blocked,
    },
    /// The backing proves them only together with frames that somebody still has, or that are withdrawn.
    Granule {
        /// All frames that must be proven together.
        granule: PfnRange,
    },
}

/// Frames of which a pass tells because they were quarantined.
struct Recalled {
    /// A live owner's when the pass began. What became of them is told already; if their owner has gone meanwhile, the next
    /// pass sees to them.
    told: RunSet,
    /// Given up before the pass began.
    asked: RunSet,
}

/// Which quarantined runs a pass asks about again.
#[derive(Clone, Copy)]
enum Scope {
    /// Those that are due, and have attempts left.
    Due,
    /// Those that overlap these frames, due or not.
    Asked(PfnRange),
}

impl Pool {
    /// Frees every released frame that can be proven unreachable now, and asks again about quarantined runs that are due.
    pub fn reclaim(&self) -> Reclaimed {
        self.0.pass(Scope::Due)
    }

    /// The same, and asks about all quarantined runs that overlap `frames`, or can be proven only together with those,
    /// whatever the retry policy says.
    pub fn retry(&self, frames: PfnRange) -> Reclaimed {
        self.0.pass(Scope::Asked(frames))
    }
}

impl Inner {
    fn pass(&self, scope: Scope) -> Reclaimed {
        let mut told = Reclaimed::default();
        if let Err(error) = self.record_pending() {
            tracing::warn!(%error, "withdrawals stay unrecorded");
        }
        let now = Instant::now();
        let wanted = |entry: &Entry| match scope {
            Scope::Due => entry.due <= now && entry.told.attempts < self.policy.retry.later,
            Scope::Asked(frames) => entry.told.frames.overlaps(frames),
        };
        let (reclaims, conversions): (Vec<Recall>, Vec<Recall>) =
            self.recall(wanted).into_iter().partition(|recall| recall.intent() == Intent::Reclaim);
        conversions.iter().for_each(|recall| self.tell_recall(recall, &mut told));

        let owners: Vec<Arc<Ownership>> = self.releasing.lock().values().cloned().collect();
        let recalled = Recalled {
            told: conversions.iter().map(|recall| recall.op.frames).collect(),
            asked: reclaims.iter().map(|recall| recall.op.frames).collect(),
        };
        let operations = owners.iter().filter_map(|owned| self.ask_owner(owned, &recalled, &mut told)).collect();
        self.prove_granules(operations, reclaims, &mut told);
        owners.iter().for_each(|owned| self.forget_if_empty(owned));
        told
    }

    /// Marks what can be reclaimed of an owner's released frames, and asks its mappings.
    fn ask_owner<'p>(
        &'p self,
        owned: &'p Ownership,
        recalled: &Recalled,
        told: &mut Reclaimed,
    ) -> Option<(OpenOperation<'p>, Losses)> {
        let (mut operation, has_guards) = self.mark_released(owned, recalled, told)?;
        let frames: SmallVec<[PfnRange; 1]> = operation.runs().iter().map(|run| run.frames).collect();
        let waits =
            |why: &dyn Fn() -> WaitingFor| frames.iter().map(|run| Waiting { frames: *run, why: why() }).collect::<Vec<_>>();
        if has_guards && !self.drained(&crate::operation::pieces_of(self, operation.runs())) {
            operation.cancel();
            told.waiting.extend(waits(&|| WaitingFor::Operation));
            return None;
        }
        let (mappings, mut losses, mut refused) = (owned.mappings.load_full(), Losses::default(), None);
        let ask = || {
            match operation.prepare(&mappings) {
                Ok(()) => operation.invalidate(&mappings, &mut losses),
                Err(blocked) => refused = Some(blocked),
            }
            Ok(())
        };
        let panicked = guarded("mapping", ask).err();
        if let Some(blocked) = refused {
            told.waiting.extend(waits(&|| WaitingFor::Mapping { why: blocked.clone() }));
            return None;
        }
        if let Some(cause) = panicked {
            frames.iter().for_each(|run| self.lose_rest(&mut losses, *run, &cause));
        }
        Some((operation, losses))
    }

    /// Begins one operation on all released frames of an owner that nothing stands in the way of; and whether map guards were out
    /// on some of them.
    fn mark_released<'p>(
        &'p self,
        owned: &'p Ownership,
        recalled: &Recalled,
        told: &mut Reclaimed,
    ) -> Option<(OpenOperation<'p>, bool)> {
        let mut released = owned.released.lock().clone();
        if !recalled.told.is_empty() {
            let rest = |extent: Extent| {
                (&recalled.told.gaps_in(extent.frames)).into_iter().filter_map(move |run| extent.clipped(run)).collect::<Vec<_>>()
            };
            released = released.into_iter().flat_map(rest).collect();
        }
        let (mut id, mut runs, mut guarded, swept) = (None, Runs::new(), false, self.swept());
        for (extent, piece) in
            released.iter().flat_map(|extent| self.records.pieces(extent.frames).map(move |piece| (extent, piece)))
        {
            let mut gib = self.records.record(piece.record).lock();
            if piece.span.is_whole() && gib.begin_reclaim_whole(owned.id, &mut id, piece.record as u64) {
                extent.clipped(piece.frames).into_iter().for_each(|run| push_joined(&mut runs, run));
                continue;
            }
            for (span, obstacle) in gib.reclaimable(piece.span, owned.id) {
                let frames = span.in_gib_of(piece.frames.start());
                let why = match obstacle {
                    None => {
                        let id = *id.get_or_insert_with(|| gib.next_operation(piece.record as u64));
                        // A reclaim reserves nothing, so it cannot be out of memory; if it ever is, the frames stay released.
                        if gib.begin(span, id, Intent::Reclaim).is_ok() {
                            guarded |= gib.is_guarded(span);
                            extent.clipped(frames).into_iter().for_each(|run| push_joined(&mut runs, run));
                        }
                        continue;
                    }
                    Some(Obstacle::Withdrawn { .. }) => {
                        told.withdrawn.extend(&RunSet::from(frames).difference(&recalled.asked));
                        continue;
                    }
                    Some(Obstacle::Held { holder, .. }) => WaitingFor::Holder(holder),
                    Some(_) => WaitingFor::Operation,
                };
                told.waiting.push(Waiting { frames, why });
            }
        }
        id.map(|id| (OpenOperation::adopt(self, owned, id, runs, Intent::Reclaim, swept, true), guarded))
    }

    /// Asks the backing about everything that the mappings proved, granule by granule, and frees what it proves too.
    fn prove_granules<'p>(&'p self, mut open: Vec<(OpenOperation<'p>, Losses)>, mut recalls: Vec<Recall>, told: &mut Reclaimed) {
        if self.backing.proof().granule_frames <= 1 {
            granule::prove_frames(self, &mut open, &mut recalls);
        } else {
            granule::prove_whole(self, &mut open, &mut recalls, told);
        }
        for (mut operation, losses) in open {
            self.record_proofs(&mut operation, &losses, told);
            let id = operation.owned().id;
            let ended = self.transit.moving(|| operation.finish(losses));
            ended.done.into_iter().for_each(|run| self.journal.write(run, Some(id), EventKind::Reclaimed));
            told.freed.extend(&ended.done);
            told.lost.extend(ended.lost);
        }
        for recall in &recalls {
            self.tell_recall(recall, told);
        }
    }

    /// Makes durable that what is proven is free, before it is; what cannot be recorded stays released.
    fn record_proofs(&self, operation: &mut OpenOperation<'_>, losses: &Losses, told: &mut Reclaimed) {
        if !self.has_ledger() {
            return;
        }
        let proven: RunSet = operation.runs().iter().flat_map(|run| losses.survivors(run.frames)).collect();
        if let Err(why) = self.record_reclaim(operation.owned().id, &proven) {
            for frames in &proven {
                operation.set_aside(frames);
                told.waiting.push(Waiting { frames, why: WaitingFor::Ledger { why: why.clone() } });
            }
        }
    }

    /// Ends a recall, and tells what became of each of its frames.
    fn tell_recall(&self, recall: &Recall, told: &mut Reclaimed) {
        let mut ended = Partition::default();
        self.transit.moving(|| self.end_recall(recall, &mut ended));
        let lost: RunSet = ended.lost.iter().map(Lost::frames).collect();
        let proven = ended.released.union(&ended.done);
        told.withdrawn.extend(&RunSet::from(recall.op.frames).difference(&proven).difference(&lost));
        told.freed.extend(&ended.released);
        told.recovered.extend(&ended.done);
        told.lost.extend(ended.lost);
    }

    /// An owner whose last released frame is free need not be remembered.
    fn forget_if_empty(&self, owned: &Ownership) {
        // Whoever is gone has listed all its frames as released once this is free.
        let _editing = owned.editing.lock();
        let mut releasing = self.releasing.lock();
        if owned.released.lock().is_empty() {
            releasing.remove(&owned.id);
            if !owned.is_live() {
                self.owners.lock().remove(&owned.id);
            }
        }
    }
}
