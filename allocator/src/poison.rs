//! Poison, and the two recorded events that end what is otherwise for ever.
//!
//! Poison comes from the hardware, at any moment and to any frame; it is recorded beside whatever else is true of the frame.
//! Failed ends only with a platform reset, poisoned only with replaced hardware, each on evidence and with no live allocation
//! (invariant I3); neither touches another mark (invariant I4).

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use pageless_metadata::{PfnRange, RunSet, Span, Withdrawal};

use crate::journal::EventKind;
use crate::ledger::LedgerError;
use crate::mapping::Cause;
use crate::placement;
use crate::pool::{Inner, Pool};
use crate::record::Piece;
use crate::withdrawal::{Entry, Withdrawn};

/// Why a reset or a replacement was not recorded. Nothing has changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LiftRefused {
    /// No evidence was given.
    #[error("no evidence was given; say what shows that {what} took place")]
    NoEvidence {
        /// What is claimed.
        what: &'static str,
    },
    /// Allocations are live: with guests running the event cannot have taken place.
    #[error("{live} allocations are live; {what} cannot have taken place while guests run")]
    Live {
        /// How many.
        live: usize,
        /// What is claimed.
        what: &'static str,
    },
    /// The range has frames that are not the pool's.
    #[error("{frames} reaches beyond the pool's frames")]
    Outside {
        /// The range that was given.
        frames: PfnRange,
    },
    /// Withdrawals are just being recorded.
    #[error("{frames} withdrawn frames are not recorded yet; try again")]
    Unrecorded {
        /// How many.
        frames: u64,
    },
    /// It could not be recorded.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

const RESET: &str = "a platform reset";
const REPLACEMENT: &str = "a replacement of the hardware";

impl Pool {
    /// The hardware reported an uncorrectable error in `frames`: they are never handed out again. Accepted in any state.
    ///
    /// Returns the frames of the range that the pool has and that were not poisoned before.
    pub fn poison(&self, frames: PfnRange, cause: Cause) -> RunSet {
        let poison = || self.0.records.pieces(frames).flat_map(|piece| self.0.poison_piece(piece, &cause)).collect();
        let fresh: RunSet = self.0.transit.moving(poison);
        for run in &fresh {
            self.0.backing.keep_shut(run);
            tracing::error!(frames = %run, %cause, "frames poisoned");
        }
        if let Err(error) = self.0.record_pending() {
            // The marks stand in memory, allocation stops, and every later verb tries again.
            tracing::error!(frames = %fresh, %error, "poison is not recorded");
        }
        fresh
    }

    /// Records a platform reset and lifts every failed mark. The frames are released then, and free once `reclaim` has proven
    /// them. Refused without evidence, and while any allocation is live.
    pub fn platform_reset(&self, evidence: &str) -> Result<RunSet, LiftRefused> {
        let kind = EventKind::PlatformReset { evidence: evidence.into() };
        self.0.lift_marks(Withdrawal::Failed, &kind, |pool| {
            pool.check_lift(evidence, RESET)?;
            let failed = pool.registry.lock().frames(Withdrawal::Failed);
            pool.record_lift(Withdrawal::Failed, &failed, evidence)?;
            Ok(failed)
        })
    }

    /// Records that the memory behind `frames` was replaced while the host was off, and lifts their poisoned mark. Refused
    /// without evidence, while any allocation is live, and for frames that are not the pool's.
    ///
    /// Returns the frames that were poisoned. Those that nobody had are free; the others are as their other marks say.
    pub fn hardware_replaced(&self, frames: PfnRange, evidence: &str) -> Result<RunSet, LiftRefused> {
        let kind = EventKind::HardwareReplaced { evidence: evidence.into() };
        self.0.lift_marks(Withdrawal::Poisoned, &kind, |pool| {
            pool.check_lift(evidence, REPLACEMENT)?;
            let known: u64 = pool.records.pieces(frames).map(|piece| piece.frames.frames()).sum();
            if known != frames.frames() {
                return Err(LiftRefused::Outside { frames });
            }
            let poisoned: RunSet = pool.registry.lock().frames(Withdrawal::Poisoned).clipped(frames).collect();
            pool.record_lift(Withdrawal::Poisoned, &poisoned, evidence)?;
            Ok(poisoned)
        })
    }
}

impl Inner {
    fn poison_piece(&self, piece: Piece, cause: &Cause) -> Vec<PfnRange> {
        let mut gib = self.records.record(piece.record).lock();
        let fresh = gib.unpoisoned_runs(piece.span);
        gib.poison(piece.span);
        for span in &fresh {
            for (part, tenant) in parts_by_tenant(&gib, *span) {
                let frames = part.in_gib_of(piece.frames.start());
                if tenant.is_none() {
                    self.take_out(frames);
                }
                let owned = tenant.and_then(|tenant| self.owners.lock().get(&tenant.allocation).cloned());
                let told = Withdrawn {
                    frames,
                    state: Withdrawal::Poisoned,
                    intent: None,
                    cause: cause.clone(),
                    allocation: owned.as_ref().map(|owned| owned.id),
                    owner: owned.as_ref().map(|owned| Arc::clone(&owned.owner)),
                    offset: owned.as_ref().map_or(0, |owned| owned.origin_of(frames)),
                    holder: None,
                    since: SystemTime::now(),
                    attempts: 0,
                };
                self.registry.lock().insert(Entry { told, due: Instant::now(), asking: false, recorded: self.unless_ledger() });
                let kind = EventKind::Withdrawn { state: Withdrawal::Poisoned, cause: cause.clone() };
                self.journal.write(frames, owned.map(|owned| owned.id), kind);
            }
        }
        fresh.into_iter().map(|span| span.in_gib_of(piece.frames.start())).collect()
    }

    /// Takes free frames out of the frame layer. One that somebody has just taken will be found poisoned before it is
    /// assigned.
    pub(crate) fn take_out(&self, frames: PfnRange) {
        let Some(node) = self.records.node_of(frames.start()) else { return };
        if node.frames.take_at(frames).is_err() {
            // Which of them are free is a race with allocating threads; either they get a frame out, or this does.
            for pfn in frames.iter() {
                let _taken_by_either = node.frames.take_at(PfnRange::single(pfn));
            }
        }
    }

    fn check_lift(&self, evidence: &str, what: &'static str) -> Result<(), LiftRefused> {
        if evidence.trim().is_empty() {
            return Err(LiftRefused::NoEvidence { what });
        }
        match self.owners.lock().values().filter(|owned| owned.is_live()).count() {
            0 => {}
            live => return Err(LiftRefused::Live { live, what }),
        }
        // What is to be lifted must have been recorded first.
        self.record_pending()?;
        let unrecorded = self.registry.lock().unrecorded().frames();
        if unrecorded > 0 {
            return Err(LiftRefused::Unrecorded { frames: unrecorded });
        }
        Ok(())
    }

    /// Lifts one kind of mark from the frames that `which` finds while nothing moves. Those that nobody has and that bear no
    /// other mark are free then; until the backing knows, they are in transit.
    fn lift_marks(
        &self,
        state: Withdrawal,
        kind: &EventKind,
        which: impl FnOnce(&Self) -> Result<RunSet, LiftRefused>,
    ) -> Result<RunSet, LiftRefused> {
        let (mut marked, mut sound) = (RunSet::new(), RunSet::new());
        let freed = self.transit.enter_stopped(|in_transit| {
            marked = which(self)?;
            Ok::<_, LiftRefused>(self.unmark(&marked, state, in_transit, &mut sound))
        })?;
        sound.into_iter().for_each(|run| self.open(run));
        self.transit.leave(&freed, || placement::put_back(&self.records, &freed));
        marked.into_iter().flat_map(|run| self.records.pieces(run)).for_each(|piece| {
            self.journal.write(piece.frames, None, kind.clone());
        });
        Ok(marked)
    }

    /// Takes the marks off, and returns the frames that nobody has. Those that somebody has taken and not been given yet are
    /// not among them: whoever took them assigns them or puts them back.
    fn unmark(&self, marked: &RunSet, state: Withdrawal, in_transit: &RunSet, sound: &mut RunSet) -> Vec<PfnRange> {
        let mut nobodys = Vec::new();
        for piece in marked.into_iter().flat_map(|run| self.records.pieces(run)) {
            let in_pool = |span: Span| span.in_gib_of(piece.frames.start());
            let mut gib = self.records.record(piece.record).lock();
            if state == Withdrawal::Failed {
                gib.lift_failed(piece.span)
            } else {
                gib.lift_poisoned(piece.span)
            };
            self.registry.lock().lift(piece.frames, state);
            for span in gib.sound_runs(piece.span) {
                sound.insert(in_pool(span));
                let parts = parts_by_tenant(&gib, span).into_iter().filter(|(_, tenant)| tenant.is_none());
                parts.for_each(|(part, _)| nobodys.extend(&in_transit.gaps_in(in_pool(part))));
            }
        }
        nobodys
    }

    /// Tells the backing that no mark stands on `frames` any more.
    pub(crate) fn open(&self, frames: PfnRange) {
        self.backing.lift(frames);
        // Looked at after the lift: a withdrawal enters the registry before it tells the backing, so either it is found here,
        // or it shuts the pages after this.
        let again = self.registry.lock().covering(frames);
        again.iter().for_each(|entry| self.backing.keep_shut(entry.told.frames));
    }
}

/// Cuts a span into parts with one tenant, or none, each.
fn parts_by_tenant(gib: &pageless_metadata::Gib, span: Span) -> Vec<(Span, Option<pageless_metadata::Tenant>)> {
    let (mut parts, mut at) = (Vec::new(), span.start());
    for (part, tenant) in gib.tenants(span) {
        parts.extend(Span::new(at, part.start()).map(|gap| (gap, None)));
        parts.push((part, Some(tenant)));
        at = part.end();
    }
    parts.extend(Span::new(at, span.end()).map(|gap| (gap, None)));
    parts
}
