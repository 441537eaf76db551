//! The usual conversion, without lists: one run in one GiB, nothing in its way, one run of it to change, and every mapping
//! proves it.
//!
//! This is the path that a guest walks millions of times. It does what the general way in [`operation`](crate::operation)
//! does, in the same order, and nothing else. Where anything is unusual it stops, and the general way goes on from there: that
//! is where each case is decided.

use std::ops::Range;
use std::sync::Arc;

use arc_swap::Guard;
use pageless_metadata::{Intent, OperationId, PfnRange};
use smallvec::smallvec;

use crate::allocation::Allocation;
use crate::extents::Extent;
use crate::mapping::{Contents, Operation, Refusal, Stuck};
use crate::mappings::Mappings;
use crate::operation::OpenOperation;

/// How far a conversion came at once.
pub(crate) enum AtOnce<'p> {
    /// It is done, for this run.
    Done(Extent),
    /// Nothing has happened: somebody must look closer.
    Look,
    /// It is under way, and something came up. Boxed, so that this stays small where nothing did.
    Snag(Box<Snag<'p>>),
}

/// An operation that cannot be ended here, and where it stands.
pub(crate) struct Snag<'p> {
    pub(crate) operation: OpenOperation<'p>,
    pub(crate) stage: Stage,
    /// The list that the stage counts in.
    pub(crate) mappings: Arc<Mappings>,
}

/// Where an operation stands.
pub(crate) enum Stage {
    /// The mappings before the `nth` are prepared, and that one may have refused.
    Preparing { nth: usize, refusal: Option<Refusal> },
    /// All are prepared, those before the `nth` have proved everything, and that one may be stuck. After the last mapping comes
    /// the backing.
    Invalidating { nth: usize, stuck: Option<Stuck> },
    /// Everything is proven.
    Proven,
}

/// The mark of an operation that is on its way: whoever drops it, because a mapping panicked, gives it to the general way.
pub(crate) struct Marked<'p> {
    pub(crate) allocation: &'p Allocation,
    pub(crate) op: Operation,
    /// Whether all of the run changes. What does not is as asked, and stays so while it is marked.
    pub(crate) changes_all: bool,
    /// How many marks had been swept before.
    pub(crate) swept: u64,
}

impl<'p> Marked<'p> {
    #[cold]
    fn open(&self) -> OpenOperation<'p> {
        let (pool, owned) = (&self.allocation.pool, &self.allocation.owned);
        let run = Extent { offset: self.op.guest_offset, frames: self.op.frames };
        OpenOperation::adopt(pool, owned, self.op.id, smallvec![run], self.op.intent, self.swept, self.changes_all)
    }

    #[cold]
    pub(crate) fn snag(self, stage: Stage, mappings: Arc<Mappings>) -> Box<Snag<'p>> {
        let operation = self.open();
        std::mem::forget(self);
        Box::new(Snag { operation, stage, mappings })
    }

    /// Whether no sweep has taken a mark from anybody since this operation began.
    #[inline(always)]
    fn is_undisturbed(&self) -> bool {
        self.swept == self.allocation.pool.swept()
    }

    /// Steps 2 and 3, for the part of the run that changes: every mapping, and last the backing.
    #[inline(always)]
    pub(crate) fn prove(&self, changes: PfnRange, mappings: &Mappings) -> Result<(), Box<Stage>> {
        for (nth, attached) in mappings.iter().enumerate() {
            if !attached.is_attached() || !self.is_undisturbed() {
                return Err(Box::new(Stage::Preparing { nth, refusal: None }));
            }
            attached.mapping.prepare(&self.op).map_err(|refusal| Box::new(Stage::Preparing { nth, refusal: Some(refusal) }))?;
        }
        for (nth, attached) in mappings.iter().enumerate() {
            if !self.is_undisturbed() {
                return Err(Box::new(Stage::Invalidating { nth, stuck: None }));
            }
            let proof = attached.mapping.invalidate(&self.op, changes);
            proof.map_err(|stuck| Box::new(Stage::Invalidating { nth, stuck: Some(stuck) }))?;
        }
        if self.op.intent == Intent::Share && self.op.contents == Contents::Zero {
            let nth = mappings.len();
            if !self.is_undisturbed() {
                return Err(Box::new(Stage::Invalidating { nth, stuck: None }));
            }
            let proof = self.allocation.pool.backing.scrub(&self.op, changes);
            proof.map_err(|stuck| Box::new(Stage::Invalidating { nth, stuck: Some(stuck) }))?;
        }
        Ok(())
    }
}

impl Drop for Marked<'_> {
    #[cold]
    fn drop(&mut self) {
        drop(self.open());
    }
}

impl Allocation {
    /// Converts the range if that can be done at once.
    pub(crate) fn convert_at_once(&self, range: &Range<u64>, intent: Intent) -> AtOnce<'_> {
        let Some((run, piece, record)) = self.sole_piece(range) else { return AtOnce::Look };
        let swept = self.pool.swept();
        let mut gib = record.lock();
        // Asked under the lock: what was found before may be from before a frame was replaced.
        let found = self.owned.extents.generation() == 0;
        let begun = if found { gib.begin_at_once(piece.span, self.owned.id, intent, piece.record as u64) } else { None };
        drop(gib);
        let Some((id, changes)) = begun else { return AtOnce::Look };
        let changes = if changes == piece.span { run.frames } else { changes.in_gib_of(run.frames.start()) };
        let changes_all = changes == run.frames;
        let marked = Marked { allocation: self, op: self.operation(id, intent, run), changes_all, swept };
        // Read after the mark: see `Ownership::mappings`.
        let mappings = self.owned.mappings.load();
        if let Err(stage) = marked.prove(changes, &mappings) {
            return AtOnce::Snag(marked.snag(*stage, Guard::into_inner(mappings)));
        }
        if !record.lock().flip(id, piece.span, intent) {
            // Something came up meanwhile: poison, or the owner's death.
            return AtOnce::Snag(marked.snag(Stage::Proven, Guard::into_inner(mappings)));
        }
        std::mem::forget(marked);
        AtOnce::Done(run)
    }

    /// What every mapping is told of an operation on one run.
    #[inline(always)]
    pub(crate) fn operation(&self, id: OperationId, intent: Intent, run: Extent) -> Operation {
        let (contents, allocation) = (self.owned.contents, self.owned.id);
        Operation { id, intent, contents, allocation, frames: run.frames, guest_offset: run.offset }
    }
}
