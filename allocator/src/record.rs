//! The records: one for each GiB, with its lock. All that the pool knows of a frame stands in its GiB's record.
//!
//! A record fills 128 bytes, two cache lines, which the CPU fetches and hands over as a pair: two threads on neighbouring GiBs
//! never write to the same pair. Locks are taken in the order of frame numbers and never held across a mapping's call.

use std::ops::Range;
use std::sync::Arc;

use pageless_metadata::{Gib, Order, Pfn, PfnRange, Span, Summary};
use smallvec::SmallVec;

use crate::backing::NodeFrames;
use crate::frames::Frames;
use crate::locked::{Locked, QuickGuard, RecordGuard};
use crate::mappings::Mappings;
use crate::sync::{AtomicU64, Ordering, SpinLock};

/// One GiB's facts behind their lock, and the usual answers in a word beside it.
#[repr(align(128))]
pub(crate) struct Record {
    kept: SpinLock<Kept>,
    summary: AtomicU64,
}

/// What a record's lock is the lock of.
#[derive(Default)]
pub(crate) struct Kept {
    pub(crate) gib: Gib,
    /// The list that the last conversion in quiet read, for the next one. It belongs to an owner of the GiB's frames: whoever
    /// releases some of them, or detaches a mapping, takes it out. Never dropped under the lock, because a mapping's end is not
    /// pageless's code.
    pub(crate) list: Option<Arc<Mappings>>,
}

#[cfg(not(feature = "shuttle"))]
const _: () = assert!(size_of::<Record>() == 128);

impl Record {
    fn new() -> Self {
        Self { kept: SpinLock::new(Kept::default()), summary: AtomicU64::new(Summary::NOTHING.word()) }
    }

    #[inline]
    pub(crate) fn lock(&self) -> RecordGuard<'_> {
        RecordGuard::new(self.kept.lock(), &self.summary)
    }

    #[inline(always)]
    pub(crate) fn lock_quickly(&self) -> QuickGuard<'_> {
        QuickGuard::new(self.kept.lock(), &self.summary)
    }

    /// What the word beside the lock says: the truth at some instant between two changes, or nothing.
    #[inline]
    pub(crate) fn summary(&self) -> Summary {
        // Acquire: pairs with the store in `locked::say`.
        Summary::from_word(self.summary.load(Ordering::Acquire))
    }
}

/// One NUMA node: its free frames, and where its records begin.
pub(crate) struct Node {
    pub(crate) number: u32,
    pub(crate) frames: Frames,
    /// Index of the record of the node's first GiB.
    first_record: usize,
}

impl Node {
    pub(crate) fn span(&self) -> PfnRange {
        self.frames.span()
    }

    fn record_of(&self, pfn: Pfn) -> usize {
        let first_gib = self.span().start().align_down(Order::GIB1);
        self.first_record + gib_number(pfn.get() - first_gib.get())
    }
}

/// The part of a run that lies in one GiB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    /// Index of the GiB's record.
    pub(crate) record: usize,
    /// The frames within the GiB.
    pub(crate) span: Span,
    /// The same frames in the pool.
    pub(crate) frames: PfnRange,
}

/// Pieces of the runs of one operation; one in the usual case.
pub(crate) type Pieces = SmallVec<[Piece; 1]>;

/// All nodes and records of a pool.
pub(crate) struct Records {
    nodes: Vec<Node>,
    /// Every handle has them too: its way to them is short.
    records: Arc<[Record]>,
}

impl Records {
    /// Records for these nodes, which the builder has checked to be ascending and disjoint.
    pub(crate) fn new(nodes: &[NodeFrames]) -> Self {
        let mut first_record = 0;
        let nodes: Vec<Node> = nodes
            .iter()
            .map(|node| {
                let node = Node { number: node.node, frames: Frames::new(node.frames), first_record };
                first_record = node.record_of(node.span().end().align_up(Order::GIB1));
                node
            })
            .collect();
        Self { nodes, records: (0..first_record).map(|_| Record::new()).collect() }
    }

    pub(crate) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub(crate) fn node_of(&self, pfn: Pfn) -> Option<&Node> {
        self.nodes.iter().find(|node| node.span().contains(pfn))
    }

    /// All of them, for a handle.
    pub(crate) fn all(&self) -> Arc<[Record]> {
        Arc::clone(&self.records)
    }

    /// The record with this index; indices come from [`Piece::record`].
    #[inline]
    pub(crate) fn record(&self, index: usize) -> &Record {
        &self.records[index]
    }

    pub(crate) fn indices(&self) -> Range<usize> {
        0..self.records.len()
    }

    /// The frames of the pool that record `index` speaks for.
    pub(crate) fn frames_of(&self, index: usize) -> Option<PfnRange> {
        let node = self.nodes.iter().rev().find(|node| node.first_record <= index)?;
        let first_gib = node.span().start().align_down(Order::GIB1);
        let gib = PfnRange::block(first_gib.add((index - node.first_record) as u64 * Order::GIB1.frames()), Order::GIB1);
        gib.intersect(node.span())
    }

    /// The one piece of a run that lies in one GiB: the usual case, without a list.
    pub(crate) fn single(&self, range: PfnRange) -> Option<Piece> {
        let span = Span::head_of(range);
        let node = self.node_of(range.start())?;
        let one = u64::from(span.frames()) == range.frames() && node.span().contains_range(range);
        one.then(|| Piece { record: node.record_of(range.start()), span, frames: range })
    }

    /// The parts of `range` that belong to the pool, cut at GiBs and nodes, ascending.
    #[inline]
    pub(crate) fn pieces(&self, range: PfnRange) -> Cut<'_> {
        Cut { nodes: self.nodes.iter(), range, rest: None }
    }

    /// Locks the records of all `pieces`, each once, in the order of frame numbers.
    pub(crate) fn lock(&self, pieces: &[Piece]) -> Locked<'_> {
        let locked = |index: usize| (index, self.records[index].lock());
        if pieces.is_sorted_by(|one, next| one.record < next.record) {
            return Locked::new(pieces.iter().map(|piece| locked(piece.record)).collect());
        }
        let mut indices: SmallVec<[usize; 16]> = pieces.iter().map(|piece| piece.record).collect();
        indices.sort_unstable();
        indices.dedup();
        Locked::new(indices.into_iter().map(locked).collect())
    }

    /// Bytes of the records and all that hangs on them, and bytes of the frame layers.
    pub(crate) fn footprint(&self) -> (usize, usize) {
        let heap: usize = self.records.iter().map(|record| record.lock().heap_bytes()).sum();
        let frames: usize = self.nodes.iter().map(|node| node.frames.footprint_bytes()).sum();
        (size_of_val(&*self.records) + heap, frames)
    }
}

/// The pieces of a range, one after the other.
pub(crate) struct Cut<'p> {
    /// The nodes that have not been looked at.
    nodes: std::slice::Iter<'p, Node>,
    range: PfnRange,
    /// What is left of the range's part of a node.
    rest: Option<(&'p Node, PfnRange)>,
}

impl Iterator for Cut<'_> {
    type Item = Piece;

    #[inline]
    fn next(&mut self) -> Option<Piece> {
        while self.rest.is_none() {
            let node = self.nodes.next()?;
            self.rest = node.span().intersect(self.range).map(|part| (node, part));
        }
        let (node, part) = self.rest.take()?;
        let span = Span::head_of(part);
        let frames = if u64::from(span.frames()) == part.frames() { part } else { part.sub(0, u64::from(span.frames()))? };
        self.rest = PfnRange::new(frames.end(), part.end()).ok().map(|rest| (node, rest));
        Some(Piece { record: node.record_of(frames.start()), span, frames })
    }
}

fn gib_number(frames: u64) -> usize {
    // At most 2^40 frames, so at most 2^22 GiBs.
    #[allow(clippy::cast_possible_truncation)]
    let number = (frames >> Order::GIB1.log2()) as usize;
    number
}
