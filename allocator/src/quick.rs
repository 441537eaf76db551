//! The conversion that a guest walks millions of times: a frame, a block or a GiB of an owner who has the whole GiB, in which
//! nothing else is under way.
//!
//! The record's summary says all of that in one comparison, so nothing has to be looked for. What is left is a few words to
//! write under the lock, the mappings' proofs, and a few words again (ADR 0010). Any other run in such a GiB, of which one run
//! changes, goes the same way more slowly; everything else begins anew in [`at_once`](crate::at_once).

use std::ops::Range;
use std::sync::Arc;

use pageless_metadata::{Intent, Order, PfnRange, Shape, Span, SummaryKey};

use crate::allocation::Allocation;
use crate::at_once::{Marked, Stage};
use crate::convert::Converted;
use crate::extents::Extent;
use crate::locked::Left;
use crate::mappings::Mappings;
use crate::outcome::Convert;
use crate::record::Record;

impl Allocation {
    /// Converts the range, quickly if it can be.
    // Always: each intent gets its own copy, in which nothing asks for the intent again.
    #[inline(always)]
    pub(crate) fn convert(&self, range: Range<u64>, intent: Intent) -> Result<Converted, Convert> {
        // An end before the start makes a length that no shape has. Each shape gets its own copy too.
        match Shape::of_bytes(range.start, range.end.wrapping_sub(range.start)) {
            Some(Shape::Frame(frame)) => self.convert_usual(range, Shape::Frame(frame), intent),
            Some(Shape::Block(block)) => self.convert_usual(range, Shape::Block(block), intent),
            Some(Shape::Whole) => self.convert_usual(range, Shape::Whole, intent),
            None => self.convert_in_quiet(range, intent),
        }
    }

    #[inline(always)]
    fn convert_usual(&self, range: Range<u64>, shape: Shape, intent: Intent) -> Result<Converted, Convert> {
        let Some((index, record, frame)) = self.way.in_a_row(range.start) else { return self.convert_in_quiet(range, intent) };
        let swept = self.pool.swept();
        let gib = record.lock_quickly();
        // Under the lock: before it, a frame may be replaced and come back behind another offset.
        let owner = self.way.key();
        let Some((id, left)) = gib.begin(shape, intent, index as u64, owner) else {
            // Where another operation is under way, nobody should want the lock twice in vain.
            let quiet = record.summary().is_quiet(owner);
            return if quiet { self.convert_in_quiet(range, intent) } else { self.convert_looking(range, intent) };
        };
        let span = shape.span();
        let run = Extent { offset: range.start, frames: span.in_gib_of(frame) };
        let marked = Marked { allocation: self, op: self.operation(id, intent, run), changes_all: true, swept };
        prove_and_flip(marked, run.frames, left, record, (Some(shape), span, owner))
    }

    /// The same for any run in a quiet GiB, wherever in the pool, of which one run changes.
    #[inline(never)]
    fn convert_in_quiet(&self, range: Range<u64>, intent: Intent) -> Result<Converted, Convert> {
        // An end before the start makes a length that no GiB has.
        let span = Span::of_bytes(range.start % Order::GIB1.bytes(), range.end.wrapping_sub(range.start));
        let (Some((index, record, frame)), Some(span)) = (self.way.find(range.start), span) else {
            return self.convert_looking(range, intent);
        };
        let swept = self.pool.swept();
        let gib = record.lock_quickly();
        // Under the lock: before it, a frame may be replaced and come back behind another offset.
        let owner = self.way.key();
        let Some((id, changes, left)) = gib.begin_run(span, intent, index as u64, owner) else {
            return self.convert_looking(range, intent);
        };
        let run = Extent { offset: range.start, frames: span.in_gib_of(frame) };
        let marked = Marked { allocation: self, op: self.operation(id, intent, run), changes_all: changes == span, swept };
        prove_and_flip(marked, changes.in_gib_of(frame), left, record, (None, span, owner))
    }

    /// The list as it is now, instead of one that is not, or of none.
    #[cold]
    fn read_list(&self, _dropped: Left) -> Arc<Mappings> {
        self.owned.mappings.load_full()
    }
}

/// What comes after the mark: the proofs of `changes`, and the flip.
#[inline(always)]
fn prove_and_flip(
    marked: Marked<'_>,
    changes: PfnRange,
    left: Left,
    record: &Record,
    (shape, span, owner): (Option<Shape>, Span, SummaryKey),
) -> Result<Converted, Convert> {
    let (id, intent, frames) = (marked.op.id, marked.op.intent, marked.op.frames);
    // Looked at after the mark: see `Ownership::mappings`.
    let list = match left {
        Some(list) if marked.allocation.owned.mappings.is_current(&list) => list,
        other => marked.allocation.read_list(other),
    };
    if let Err(stage) = marked.prove(changes, &list) {
        return Allocation::go_on_after(marked.snag(*stage, list));
    }
    match record.lock_quickly().flip(shape, (id, span, intent), owner, list) {
        Ok(before) => {
            std::mem::forget(marked);
            drop(before);
            Ok(Converted::changing(frames))
        }
        Err(list) => flip_beside(marked, record, span, list),
    }
}

/// Ends a proven conversion in whose GiB something has changed since it began.
#[inline(never)]
fn flip_beside(marked: Marked<'_>, record: &Record, span: Span, list: Arc<Mappings>) -> Result<Converted, Convert> {
    let mut gib = record.lock();
    if !gib.flip(marked.op.id, span, marked.op.intent) {
        drop(gib);
        // Something came up meanwhile: poison, or the owner's death.
        return Allocation::go_on_after(marked.snag(Stage::Proven, list));
    }
    let before = gib.leave_list(list);
    drop(gib);
    let frames = marked.op.frames;
    std::mem::forget(marked);
    drop(before);
    Ok(Converted::changing(frames))
}
