//! The conversion that a guest walks millions of times: a frame, a block or a GiB of an owner who has the whole GiB, in which
//! nothing else is under way.
//!
//! The record's summary says all of that in one comparison, so nothing has to be looked for. What is left is a few words to
//! write under the lock, the mappings' proofs, and a few words again (ADR 0010). Nothing here allocates, loops over frames or
//! panics under the lock; where that is not enough, [`at_once`](crate::at_once) begins anew, or the rest is done slowly.

use std::ops::Range;
use std::sync::Arc;

use pageless_metadata::{Intent, Order, Shape, Span, SummaryKey};

use crate::allocation::Allocation;
use crate::at_once::{Marked, Stage};
use crate::convert::Converted;
use crate::extents::Extent;
use crate::mappings::Mappings;
use crate::outcome::Convert;
use crate::record::Record;

impl Allocation {
    /// Converts the range, quickly if it can be.
    // Always: each intent gets its own copy, in which nothing asks for the intent again.
    #[inline(always)]
    pub(crate) fn convert(&self, range: Range<u64>, intent: Intent) -> Result<Converted, Convert> {
        // An end before the start makes a length that no GiB has.
        let bytes = range.end.wrapping_sub(range.start);
        let shape = Span::of_bytes(range.start % Order::GIB1.bytes(), bytes).and_then(Span::shape);
        // Each shape gets its own copy too.
        match shape {
            Some(Shape::Frame(frame)) => self.convert_usual(range, Shape::Frame(frame), intent),
            Some(Shape::Block(block)) => self.convert_usual(range, Shape::Block(block), intent),
            Some(Shape::Whole) => self.convert_usual(range, Shape::Whole, intent),
            None => self.convert_looking(range, intent),
        }
    }

    #[inline(always)]
    fn convert_usual(&self, range: Range<u64>, shape: Shape, intent: Intent) -> Result<Converted, Convert> {
        let Some((index, record, frame)) = self.way.in_a_row(range.start) else { return self.convert_looking(range, intent) };
        let (swept, owner) = (self.pool.swept(), self.way.key());
        let Some((id, kept)) = record.lock_quickly().begin(shape, intent, index as u64, owner) else {
            return self.convert_looking(range, intent);
        };
        let run = Extent { offset: range.start, frames: shape.span().in_gib_of(frame) };
        let marked = Marked { allocation: self, op: self.operation(id, intent, run), changes_all: true, swept };
        // Looked at after the mark: see `Ownership::mappings`.
        let list = match kept {
            Some(list) if self.owned.mappings.is_current(&list) => list,
            other => self.read_list(other),
        };
        if let Err(stage) = marked.prove(run.frames, &list) {
            return Self::go_on_after(marked.snag(*stage, list));
        }
        match record.lock_quickly().flip(shape, (id, intent), owner, list) {
            Ok(before) => {
                std::mem::forget(marked);
                drop(before);
                Ok(Converted::changing(run.frames))
            }
            Err(list) => flip_slowly(marked, record, owner, list),
        }
    }

    /// The list as it is now, instead of one that is not, or of none.
    #[cold]
    fn read_list(&self, _dropped: Option<Arc<Mappings>>) -> Arc<Mappings> {
        self.owned.mappings.load_full()
    }
}

/// Ends a proven conversion for which more than a few words have to be written, or in whose GiB something has changed.
#[inline(never)]
fn flip_slowly(marked: Marked<'_>, record: &Record, owner: SummaryKey, list: Arc<Mappings>) -> Result<Converted, Convert> {
    let (id, intent, frames) = (marked.op.id, marked.op.intent, marked.op.frames);
    let span = Span::head_of(frames);
    let mut gib = record.lock();
    if gib.is_alone(id) {
        gib.flip_in_quiet(id, span, intent, owner);
    } else if !gib.flip(id, span, intent) {
        drop(gib);
        // Something came up meanwhile: poison, or the owner's death.
        return Allocation::go_on_after(marked.snag(Stage::Proven, list));
    }
    let before = gib.leave_list(list);
    drop(gib);
    std::mem::forget(marked);
    drop(before);
    Ok(Converted::changing(frames))
}
