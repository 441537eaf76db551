//! The frame layer: takes and puts runs of frames, and knows nothing of owners.
//!
//! For those who bring their own bookkeeping, and for the pool, which adds owners, states and a ledger. A frame that must
//! not be handed out again is simply never put back.
//!
//! Direct-indexed atomic bitmaps, no lock (`store`): a bit per whole GiB, a bit per whole 2 MiB block in a GiB that was cut,
//! a bit per frame in a block that was cut. A frame is free exactly when one of its three bits is set. Taking clears that
//! bit and putting sets it, with one atomic read-modify-write each; all else is hints that say where to look (`hints`), and
//! an epoch that makes "none left" honest (`moves`). A cut block is never glued together: once all its frames are back it
//! is found through a hint, and whoever takes it as a whole takes its words.

mod batch;
mod claim;
mod gibs;
mod hints;
mod hot;
mod moves;
mod outcome;
mod place;
mod prefer;
mod put;
mod seek;
mod slab;
mod store;
mod survey;

use std::ops::ControlFlow;

use pageless_metadata::{Order, Pfn, PfnRange, RunSet};

use moves::Moves;
use outcome::first_outside;
pub use outcome::{Buildable, PutError, TakeAtError};
use place::{GIB_LOG2, GROUP_LOG2, Piece, Place, each_piece_of_gibs, pieces};
use prefer::Preferences;
use store::{Group, Leaf, Spot, Top};

use crate::sync::give_way;

/// One contiguous span of frames, for instance of one NUMA node; each frame is free or taken.
///
/// All verbs take `&self` and may be called from any number of threads. "None left" is an honest answer also then: it is
/// given only if nothing was on its way back or being cut meanwhile.
///
/// The caller may put only what it has taken. A put of a frame that is free is refused and changes nothing, however the
/// frame was taken and put before. What cannot be told apart is a double free that runs *at the same time* as a legitimate
/// put of the same frame in a run of another size: bookkeeping that may do this must serialise the two.
#[derive(Debug)]
pub struct Frames {
    span: PfnRange,
    /// The GiB boundary at or below the span's start: where [`Place`]s count from.
    origin: Pfn,
    groups: Box<[Group]>,
    tops: Box<[Top]>,
    moves: Moves,
    preferences: Preferences,
}

impl Frames {
    /// All frames of `span`, free.
    #[must_use]
    pub fn new(span: PfnRange) -> Self {
        let origin = span.start().align_down(Order::GIB1);
        let groups = (span.end().get() - origin.get()).div_ceil(1 << GROUP_LOG2);
        let frames = Self {
            span,
            origin,
            groups: (0..groups).map(|_| Group::default()).collect(),
            tops: (0..groups.div_ceil(64)).map(|_| Top::default()).collect(),
            moves: Moves::new(),
            preferences: Preferences::new(),
        };
        for piece in pieces(frames.place(span.start()).0, frames.place(span.end()).0) {
            // Nothing is free yet, so nothing can be free twice.
            let _ = frames.publish(piece);
        }
        frames
    }

    /// The frames there are.
    #[must_use]
    pub fn span(&self) -> PfnRange {
        self.span
    }

    /// Takes one aligned block of `order`; none when no such block is free.
    // Most callers know the size when they are compiled, and then little is left of this.
    #[inline(always)]
    pub fn take(&self, order: Order) -> Option<Pfn> {
        match order {
            Order::BASE => self.take_frame(),
            Order::MIB2 => self.take_block(),
            _ => self.take_gib(),
        }
    }

    /// Takes `frames` contiguous frames that start at a multiple of `align`. The run may cross GiBs. None when `frames` is 0
    /// or no such run is free. Runs of other lengths than a block's are found by search: in a few words from 1 GiB on, else
    /// in time proportional to the cut part of the span before the run.
    pub fn take_run(&self, frames: u64, align: Order) -> Option<PfnRange> {
        if frames == 0 {
            return None;
        }
        if align.frames() == frames {
            return self.take(align).map(|start| PfnRange::block(start, align));
        }
        if frames.is_multiple_of(Order::GIB1.frames())
            && let Some(start) = self.take_gibs(frames >> GIB_LOG2)
        {
            return self.run(start, start + frames);
        }
        let start = self.moves.settled(|| {
            let start = self.find_run(frames, align)?;
            // A claim is a move, so one that fails makes the search start over.
            self.claim(start, start + frames).then_some(start)
        })?;
        self.run(start, start + frames)
    }

    /// Takes exactly these frames, all or none. The error names the first frame that is not free, or, before that, the
    /// first outside the span.
    pub fn take_at(&self, range: PfnRange) -> Result<(), TakeAtError> {
        if let Some(pfn) = first_outside(self.span, range) {
            return Err(TakeAtError::Outside { pfn, span: self.span });
        }
        let (at, end) = (self.place(range.start()).0, self.place(range.end()).0);
        let mut tries = 0;
        loop {
            let mut taken = None;
            let all_free = self.moves.settled(|| {
                taken = self.first_taken(at, end);
                taken.is_none().then_some(())
            });
            if let (None, Some(place)) = (all_free, taken) {
                return Err(TakeAtError::NotFree { pfn: self.pfn(place) });
            }
            if self.claim(at, end) {
                return Ok(());
            }
            give_way(tries);
            tries = tries.saturating_add(1);
        }
    }

    /// Puts taken frames back. They need not have been taken together. On [`PutError::AlreadyFree`] and
    /// [`PutError::Foreign`] nothing has changed; the error names the first frame that is free already, or, before that, the
    /// first outside the span.
    // Most callers know the size when they are compiled, and then little is left of this.
    #[inline(always)]
    pub fn put(&self, range: PfnRange) -> Result<(), PutError> {
        if !self.span.contains_range(range) {
            return Err(self.foreign(range));
        }
        let (at, frames) = (self.place(range.start()), range.frames());
        let aligned = |order: Order| frames == order.frames() && at.0.is_multiple_of(frames);
        let put = match frames {
            1 => self.put_frame(at),
            _ if aligned(Order::MIB2) => self.put_block(at),
            _ if aligned(Order::GIB1) => self.put_gib(at),
            _ => return self.put_run(at.0, at.0 + frames),
        };
        put.map_err(|place| self.already_free(place))
    }

    /// Whether the frame is free; false outside the span.
    #[must_use]
    pub fn is_free(&self, pfn: Pfn) -> bool {
        self.span.contains(pfn) && self.moves.settled(|| self.frame_is_free(pfn).then_some(())).is_some()
    }

    /// The number of free frames. Counted, not kept: in time proportional to the cut part of the span.
    #[must_use]
    pub fn free_frames(&self) -> u64 {
        self.buildable().base
    }

    /// How many blocks of each order could be taken now. Counted as [`Frames::free_frames`] is.
    #[must_use]
    pub fn buildable(&self) -> Buildable {
        let mut sum = Buildable::default();
        self.each_run(true, |start, end| {
            let blocks = |order: Order| (end >> order.log2()).saturating_sub(start.div_ceil(order.frames()));
            sum.gib1 += blocks(Order::GIB1);
            sum.mib2 += blocks(Order::MIB2);
            sum.base += end - start;
            ControlFlow::Continue(())
        });
        sum
    }

    /// The free frames, as maximal runs.
    #[must_use]
    pub fn free_runs(&self) -> RunSet {
        let mut runs = RunSet::new();
        self.each_run(true, |start, end| {
            runs.extend(self.run(start, end));
            ControlFlow::Continue(())
        });
        runs
    }

    /// The free frames of `range`, as maximal runs.
    #[must_use]
    pub fn free_runs_in(&self, range: PfnRange) -> RunSet {
        let mut runs = RunSet::new();
        for part in range.intersect(self.span).iter().flat_map(|range| range.pieces(Order::GIB1)) {
            self.each_run_of_gib(self.place(part.start()), |start, end| {
                runs.extend(self.run(start, end).and_then(|run| run.intersect(part)));
            });
        }
        runs
    }

    /// Bytes of memory that the bookkeeping itself uses, this value included.
    #[must_use]
    pub fn footprint_bytes(&self) -> usize {
        let heap: usize = self.groups.iter().map(Group::heap_bytes).sum();
        size_of::<Self>() + size_of_val(&*self.groups) + size_of_val(&*self.tops) + heap
    }

    /// Compares every hint with what the bits say, and the bits with each other. Meant for tests and audits, while nothing
    /// else runs. The error says which frames disagree.
    pub fn check(&self) -> Result<(), String> {
        self.audit()
    }

    fn frame_is_free(&self, pfn: Pfn) -> bool {
        self.first_free(hot::one(place::Level::Frames, self.place(pfn))).is_some()
    }

    #[inline(never)]
    fn put_run(&self, at: u64, end: u64) -> Result<(), PutError> {
        if (at | end).is_multiple_of(Order::GIB1.frames()) && self.gibs_are_taken(at, end) {
            return self.publish_all(each_piece_of_gibs(at, end), at);
        }
        if let Some(place) = pieces(at, end).find_map(|piece| self.first_free(piece)) {
            return Err(self.already_free(place));
        }
        self.publish_all(pieces(at, end), at)
    }

    /// Sets the bits of all pieces of the run that starts at `at`.
    #[inline]
    fn publish_all(&self, mut pieces: impl Iterator<Item = Piece>, at: u64) -> Result<(), PutError> {
        pieces.try_for_each(|piece| {
            self.publish(piece).map_err(|place| match piece.start.0 == at {
                true => self.already_free(place),
                false => self.raced(place, piece.start),
            })
        })
    }

    #[cold]
    #[inline(never)]
    fn already_free(&self, place: Place) -> PutError {
        PutError::AlreadyFree { pfn: self.pfn(place) }
    }

    #[cold]
    #[inline(never)]
    fn foreign(&self, range: PfnRange) -> PutError {
        PutError::Foreign { pfn: first_outside(self.span, range).unwrap_or(range.start()), span: self.span }
    }

    #[cold]
    fn raced(&self, place: Place, from: Place) -> PutError {
        PutError::Raced { pfn: self.pfn(place), from: self.pfn(from) }
    }

    #[inline]
    fn place(&self, pfn: Pfn) -> Place {
        Place(pfn.get() - self.origin.get())
    }

    #[inline]
    fn pfn(&self, place: Place) -> Pfn {
        Pfn::new(self.origin.get() + place.0)
    }

    fn run(&self, start: u64, end: u64) -> Option<PfnRange> {
        PfnRange::new(self.origin.add(start), self.origin.add(end)).ok()
    }

    #[inline]
    fn top(&self, group: usize) -> &Top {
        &self.tops[group / 64]
    }

    /// The lane around `at`, its words made if need be.
    fn lane(&self, at: Place) -> Spot<'_> {
        let group = &self.groups[at.group()];
        group.lane(at).unwrap_or_else(|| {
            group.make(self.frames_of_group(at));
            self.lane(at)
        })
    }

    /// The leaf around `at`, made if need be.
    fn leaf(&self, at: Place) -> Leaf<'_> {
        let group = &self.groups[at.group()];
        group.leaf(at).unwrap_or_else(|| {
            group.make(self.frames_of_group(at));
            self.leaf(at)
        })
    }

    /// Frames from the start of the group around `at` to its end, or the span's if that comes first: at most 2^24.
    fn frames_of_group(&self, at: Place) -> u64 {
        let start = (at.group() as u64) << GROUP_LOG2;
        (self.place(self.span.end()).0 - start).min(1 << GROUP_LOG2)
    }
}
