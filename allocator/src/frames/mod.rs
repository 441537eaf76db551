//! The frame layer: takes and puts runs of frames, and knows nothing of owners.
//!
//! For those who bring their own bookkeeping, and for the pool, which adds owners, states and a ledger. A frame that must
//! not be handed out again is simply never put back.

mod outcome;

use std::collections::BTreeMap;

use pageless_metadata::{Order, Pfn, PfnRange, RunSet};

use crate::sync::Mutex;
use outcome::first_outside;
pub use outcome::{Buildable, PutError, TakeAtError};

/// One contiguous span of frames, for instance of one NUMA node; each frame is free or taken.
#[derive(Debug)]
pub struct Frames {
    span: PfnRange,
    /// Maximal free runs: start to end.
    free: Mutex<BTreeMap<u64, u64>>,
}

fn run(start: u64, end: u64) -> Option<PfnRange> {
    PfnRange::new(Pfn::new(start), Pfn::new(end)).ok()
}

fn remove(free: &mut BTreeMap<u64, u64>, range: PfnRange) {
    let (start, end) = (range.start().get(), range.end().get());
    if let Some((&from, &to)) = free.range(..=start).next_back() {
        free.remove(&from);
        if from < start {
            free.insert(from, start);
        }
        if end < to {
            free.insert(end, to);
        }
    }
}

fn insert(free: &mut BTreeMap<u64, u64>, range: PfnRange) {
    let (mut start, mut end) = (range.start().get(), range.end().get());
    if let Some((&from, _)) = free.range(..start).next_back().filter(|(_, to)| **to == start) {
        free.remove(&from);
        start = from;
    }
    if let Some(to) = free.remove(&end) {
        end = to;
    }
    free.insert(start, end);
}

fn first_free(free: &BTreeMap<u64, u64>, range: PfnRange) -> Option<Pfn> {
    let (start, end) = (range.start().get(), range.end().get());
    if free.range(..=start).next_back().is_some_and(|(_, &to)| to > start) {
        return Some(range.start());
    }
    free.range(start..end).next().map(|(&from, _)| Pfn::new(from))
}

impl Frames {
    /// All frames of `span`, free.
    #[must_use]
    pub fn new(span: PfnRange) -> Self {
        Self { span, free: Mutex::new(BTreeMap::from([(span.start().get(), span.end().get())])) }
    }

    /// The frames there are.
    #[must_use]
    pub fn span(&self) -> PfnRange {
        self.span
    }

    /// Takes one aligned block of `order`; none when no such block is free.
    pub fn take(&self, order: Order) -> Option<Pfn> {
        self.take_run(order.frames(), order).map(PfnRange::start)
    }

    /// Takes `frames` contiguous frames that start at a multiple of `align`. The run may cross GiBs. None when `frames` is 0
    /// or no such run is free.
    pub fn take_run(&self, frames: u64, align: Order) -> Option<PfnRange> {
        let mut free = self.free.lock();
        let found = free.iter().find_map(|(&start, &end)| {
            let start = Pfn::new(start).align_up(align);
            PfnRange::from_len(start, frames).ok().filter(|found| found.end().get() <= end)
        })?;
        remove(&mut free, found);
        Some(found)
    }

    /// Takes exactly these frames, all or none. The error names the first frame that is not free, or, before that, the
    /// first outside the span.
    pub fn take_at(&self, range: PfnRange) -> Result<(), TakeAtError> {
        if let Some(pfn) = first_outside(self.span, range) {
            return Err(TakeAtError::Outside { pfn, span: self.span });
        }
        let mut free = self.free.lock();
        match free.range(..=range.start().get()).next_back() {
            Some((_, &end)) if end >= range.end().get() => {
                remove(&mut free, range);
                Ok(())
            }
            Some((_, &end)) if end > range.start().get() => Err(TakeAtError::NotFree { pfn: Pfn::new(end) }),
            _ => Err(TakeAtError::NotFree { pfn: range.start() }),
        }
    }

    /// Puts taken frames back. They need not have been taken together. On [`PutError::AlreadyFree`] and
    /// [`PutError::Foreign`] nothing has changed; the error names the first frame that is free already, or, before that, the
    /// first outside the span.
    pub fn put(&self, range: PfnRange) -> Result<(), PutError> {
        if let Some(pfn) = first_outside(self.span, range) {
            return Err(PutError::Foreign { pfn, span: self.span });
        }
        let mut free = self.free.lock();
        if let Some(pfn) = first_free(&free, range) {
            return Err(PutError::AlreadyFree { pfn });
        }
        insert(&mut free, range);
        Ok(())
    }

    /// Puts single taken frames back, faster than one by one, in any order. A frame named twice is a double free. Errors as
    /// for [`Frames::put`].
    pub fn put_batch(&self, frames: &[Pfn]) -> Result<(), PutError> {
        let mut sorted = frames.to_vec();
        sorted.sort_unstable();
        if let Some(&pfn) = sorted.iter().find(|pfn| !self.span.contains(**pfn)) {
            return Err(PutError::Foreign { pfn, span: self.span });
        }
        let mut free = self.free.lock();
        for (nth, &pfn) in sorted.iter().enumerate() {
            if first_free(&free, PfnRange::single(pfn)).is_some() || (nth > 0 && sorted[nth - 1] == pfn) {
                return Err(PutError::AlreadyFree { pfn });
            }
        }
        sorted.iter().for_each(|pfn| insert(&mut free, PfnRange::single(*pfn)));
        Ok(())
    }

    /// Whether the frame is free; false outside the span.
    #[must_use]
    pub fn is_free(&self, pfn: Pfn) -> bool {
        pfn < Pfn::LIMIT && first_free(&self.free.lock(), PfnRange::single(pfn)).is_some()
    }

    /// The number of free frames.
    #[must_use]
    pub fn free_frames(&self) -> u64 {
        self.buildable().base
    }

    /// How many blocks of each order could be taken now.
    #[must_use]
    pub fn buildable(&self) -> Buildable {
        let blocks = |range: PfnRange, order| range.whole_blocks(order).map_or(0, |run| run.frames() / order.frames());
        let free = self.free.lock();
        free.iter().filter_map(|(&start, &end)| run(start, end)).fold(Buildable::default(), |sum, run| Buildable {
            gib1: sum.gib1 + blocks(run, Order::GIB1),
            mib2: sum.mib2 + blocks(run, Order::MIB2),
            base: sum.base + run.frames(),
        })
    }

    /// The free frames, as maximal runs.
    #[must_use]
    pub fn free_runs(&self) -> RunSet {
        self.free.lock().iter().filter_map(|(&start, &end)| run(start, end)).collect()
    }

    /// Bytes of memory that the bookkeeping itself uses.
    #[must_use]
    pub fn footprint_bytes(&self) -> usize {
        size_of::<Self>() + self.free.lock().len() * 2 * size_of::<u64>()
    }

    /// Compares every summary with what the leaf bits say. Meant for tests and audits, while nothing else runs.
    pub fn check(&self) -> Result<(), String> {
        let free = self.free.lock();
        let mut last = self.span.start().get();
        for (nth, (&start, &end)) in free.iter().enumerate() {
            if start >= end || start < last || (nth > 0 && start == last) || end > self.span.end().get() {
                return Err(format!("run {start:#x}..{end:#x} overlaps, touches or leaves {}", self.span));
            }
            last = end;
        }
        Ok(())
    }
}
