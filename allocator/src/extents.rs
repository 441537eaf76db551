//! Where an allocation's frames are: guest offsets to frame numbers.
//!
//! The extents that an allocation began with never change, so translating costs no lock. Only `replace` puts another frame in
//! the place of a lost one; from then on a second list, under a lock, is the one that counts.

use std::ops::Range;
use std::sync::Arc;

use pageless_metadata::{FRAME_BYTES, Pfn, PfnRange};
use smallvec::{SmallVec, smallvec};

use crate::sync::{AtomicU64, Ordering, RwLock};

/// A run of an allocation: contiguous both in the pool and in the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Where it begins in the allocation, in bytes.
    pub offset: u64,
    /// Its frames.
    pub frames: PfnRange,
}

impl Extent {
    /// One past its last byte in the allocation.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.offset + self.frames.bytes()
    }

    /// Where `pfn`, one of its frames, lies in the allocation, in bytes.
    #[must_use]
    pub const fn offset_of(self, pfn: Pfn) -> u64 {
        self.offset + (pfn.get() - self.frames.start().get()) * FRAME_BYTES
    }

    /// The two as one, if `next` continues this both in the pool and in the allocation.
    #[must_use]
    pub fn joined(self, next: Self) -> Option<Self> {
        let touch = self.frames.end() == next.frames.start() && self.end() == next.offset;
        touch.then(|| Self { offset: self.offset, frames: self.frames.hull(next.frames) })
    }

    /// The part of it that `frames` covers.
    #[must_use]
    pub fn clipped(self, frames: PfnRange) -> Option<Self> {
        let part = self.frames.intersect(frames)?;
        Some(Self { offset: self.offset_of(part.start()), frames: part })
    }

    /// The part of it that lies in `range`, bytes of the allocation, aligned to frames.
    fn within(self, range: &Range<u64>) -> Option<Self> {
        let (from, to) = (range.start.max(self.offset), range.end.min(self.end()));
        let frames = to.checked_sub(from)? / FRAME_BYTES;
        Some(Self { offset: from, frames: self.frames.sub((from - self.offset) / FRAME_BYTES, frames)? })
    }
}

/// Runs of one verb; one in the usual case.
pub(crate) type Runs = SmallVec<[Extent; 1]>;

/// Adds a run; one that continues the last is joined to it.
pub(crate) fn push_joined(runs: &mut Runs, run: Extent) {
    match runs.last_mut().and_then(|last| Some((last.joined(run)?, last))) {
        Some((joined, last)) => *last = joined,
        None => runs.push(run),
    }
}

/// The extents of an allocation.
#[derive(Debug)]
pub(crate) struct Extents {
    first: Box<[Extent]>,
    /// How many frames have been replaced: 0 means that `first` still holds.
    replaced: AtomicU64,
    current: RwLock<Arc<[Extent]>>,
}

impl Extents {
    pub(crate) fn new(first: Vec<Extent>) -> Self {
        Self { first: first.into(), replaced: AtomicU64::new(0), current: RwLock::new(Arc::new([])) }
    }

    /// How often frames have been replaced. A verb that found its frames released asks whether they were replaced meanwhile.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        // Acquire: whoever sees a replacement sees its extents.
        self.replaced.load(Ordering::Acquire)
    }

    /// Runs `read` on the extents as they are now, in guest-offset order.
    pub(crate) fn with<R>(&self, read: impl FnOnce(&[Extent]) -> R) -> R {
        // Cloned under the lock, not read under it: whoever reads may want a GiB's lock.
        if self.generation() == 0 { read(&self.first) } else { read(&Arc::clone(&self.current.read())) }
    }

    /// The run behind `range`, if one extent has all of it. The range need not have been checked: a bad one has no run.
    pub(crate) fn single(&self, range: &Range<u64>) -> Option<Extent> {
        let aligned = (range.start | range.end).is_multiple_of(FRAME_BYTES);
        if self.generation() > 0 || !aligned {
            return None;
        }
        let at = if self.first.len() == 1 { 0 } else { self.first.partition_point(|extent| extent.end() <= range.start) };
        let run = self.first.get(at)?.within(range)?;
        (run.offset == range.start && run.end() == range.end).then_some(run)
    }

    /// The runs behind `range`, which has been checked against the allocation's size.
    pub(crate) fn translate(&self, range: &Range<u64>) -> Runs {
        self.with(|extents| {
            let from = extents.partition_point(|extent| extent.end() <= range.start);
            match extents.get(from).and_then(|extent| extent.within(range)) {
                // The usual case: one extent has all of it.
                Some(run) if run.end() == range.end => return smallvec![run],
                _ => {}
            }
            extents[from..].iter().map_while(|extent| extent.within(range)).collect()
        })
    }

    /// The run around `pfn`, if it is one of the allocation's frames.
    pub(crate) fn find(&self, pfn: Pfn) -> Option<Extent> {
        self.with(|extents| extents.iter().find(|extent| extent.frames.contains(pfn)).copied())
    }

    /// Puts `frame` in the place of the one at `offset`. The caller lets nobody else replace meanwhile.
    ///
    /// An offset that was given up may still list `frame` from an earlier time. It gets the lost frame instead, so that no
    /// frame is behind two offsets.
    pub(crate) fn replace(&self, offset: u64, frame: Pfn) {
        let mut list = self.with(<[Extent]>::to_vec);
        put_in_place(&mut list, offset, frame);
        *self.current.write() = list.into();
        // Release: pairs with the load in `generation`.
        self.replaced.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        size_of_val(&*self.first) + size_of_val(&**self.current.read())
    }
}

/// Puts `frame` in the place of the one at `offset`, as [`Extents::replace`] does.
pub(crate) fn put_in_place(list: &mut Vec<Extent>, offset: u64, frame: Pfn) {
    let Some(lost) = list.iter().find_map(|extent| extent.within(&(offset..offset + FRAME_BYTES))) else { return };
    if let Some(before) = list.iter().find(|extent| extent.frames.contains(frame)).copied() {
        place(list, before.offset_of(frame), lost.frames.start());
    }
    place(list, offset, frame);
}

/// Lists `frame` at `offset`, in the place of the one that was there.
fn place(list: &mut Vec<Extent>, offset: u64, frame: Pfn) {
    let at = list.partition_point(|extent| extent.end() <= offset);
    let Some(whole) = list.get(at).copied() else { return };
    let Some(old) = whole.within(&(offset..offset + FRAME_BYTES)) else { return };
    let [before, after] = whole.frames.subtract(old.frames).map(|part| part.and_then(|part| whole.clipped(part)));
    let fresh = Extent { offset, frames: PfnRange::single(frame) };
    list.splice(at..=at, [before, Some(fresh), after].into_iter().flatten());
}
