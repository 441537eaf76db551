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
use crate::operation::OpenOperation;
use crate::ownership::{Mappings, Ownership};
use crate::pool::Inner;

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
    pub(crate) mappings: Guard<Arc<Mappings>>,
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
struct Marked<'p> {
    pool: &'p Inner,
    owned: &'p Ownership,
    run: Extent,
    /// The part of the run that changes: the rest is as asked, and stays so while it is marked.
    changes: PfnRange,
    id: OperationId,
    intent: Intent,
    swept: u64,
}

impl<'p> Marked<'p> {
    fn open(&self) -> OpenOperation<'p> {
        let changes_all = self.changes == self.run.frames;
        OpenOperation::adopt(self.pool, self.owned, self.id, smallvec![self.run], self.intent, self.swept, changes_all)
    }

    #[cold]
    fn snag(self, stage: Stage, mappings: Guard<Arc<Mappings>>) -> AtOnce<'p> {
        let operation = self.open();
        std::mem::forget(self);
        AtOnce::Snag(Box::new(Snag { operation, stage, mappings }))
    }

    /// Whether no sweep has taken a mark from anybody since this operation began.
    #[inline]
    fn is_undisturbed(&self) -> bool {
        self.swept == self.pool.swept()
    }

    /// Steps 2 and 3: every mapping, and last the backing.
    #[inline(always)]
    fn prove(&self, mappings: &Mappings) -> Result<(), Box<Stage>> {
        let op = Operation {
            id: self.id,
            intent: self.intent,
            contents: self.owned.contents,
            allocation: self.owned.id,
            frames: self.run.frames,
            guest_offset: self.run.offset,
        };
        for (nth, attached) in mappings.iter().enumerate() {
            if !attached.is_attached() || !self.is_undisturbed() {
                return Err(Box::new(Stage::Preparing { nth, refusal: None }));
            }
            attached.mapping.prepare(&op).map_err(|refusal| Box::new(Stage::Preparing { nth, refusal: Some(refusal) }))?;
        }
        for (nth, attached) in mappings.iter().enumerate() {
            if !self.is_undisturbed() {
                return Err(Box::new(Stage::Invalidating { nth, stuck: None }));
            }
            let proof = attached.mapping.invalidate(&op, self.changes);
            proof.map_err(|stuck| Box::new(Stage::Invalidating { nth, stuck: Some(stuck) }))?;
        }
        if self.intent == Intent::Share && self.owned.contents == Contents::Zero {
            let nth = mappings.len();
            if !self.is_undisturbed() {
                return Err(Box::new(Stage::Invalidating { nth, stuck: None }));
            }
            let proof = self.pool.backing.scrub(&op, self.changes);
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
    // Always: each intent gets its own copy, in which nothing asks for the intent again.
    #[inline(always)]
    pub(crate) fn convert_at_once(&self, range: &Range<u64>, intent: Intent) -> AtOnce<'_> {
        let Some((run, piece, record)) = self.sole_piece(range) else { return AtOnce::Look };
        let swept = self.pool.swept();
        let Some((id, changes)) = record.lock().begin_at_once(piece.span, self.owned.id, intent, piece.record as u64) else {
            return AtOnce::Look;
        };
        let changes = if changes == piece.span { run.frames } else { changes.in_gib_of(run.frames.start()) };
        let marked = Marked { pool: &self.pool, owned: &self.owned, run, changes, id, intent, swept };
        // Read after the mark: see `Ownership::mappings`.
        let mappings = self.owned.mappings.load();
        if let Err(stage) = marked.prove(&mappings) {
            return marked.snag(*stage, mappings);
        }
        if !record.lock().flip(id, piece.span, intent) {
            // Something came up meanwhile: poison, or the owner's death.
            return marked.snag(Stage::Proven, mappings);
        }
        std::mem::forget(marked);
        AtOnce::Done(run)
    }
}
