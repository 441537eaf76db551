//! One run of frames: non-empty, half-open, and never past the last frame number.
//!
//! A [`PfnRange`] cannot be empty and cannot overflow, so the code that takes one has nothing to check. Whatever could be
//! empty is an `Option<PfnRange>` or a [`RunSet`](crate::RunSet).

use std::fmt;

use crate::{FRAME_BYTES, Order, Pfn, Span};

/// A non-empty, half-open run of frames.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PfnRange {
    start: Pfn,
    end: Pfn,
}

/// Why two frame numbers do not make a [`PfnRange`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidRange {
    /// The end is not after the start.
    #[error("the range from {start} up to {end} holds no frame; the end must be after the start")]
    Empty {
        /// Where the range would start.
        start: Pfn,
        /// Where it would end.
        end: Pfn,
    },
    /// The end lies beyond [`Pfn::LIMIT`].
    #[error("the range of {frames} frames from {start} ends beyond {limit}, the last frame number there is", limit = Pfn::LIMIT)]
    BeyondLimit {
        /// Where the range would start.
        start: Pfn,
        /// Its length in frames.
        frames: u64,
    },
}

impl PfnRange {
    /// The frames from `start` up to, not including, `end`.
    pub const fn new(start: Pfn, end: Pfn) -> Result<Self, InvalidRange> {
        if end.get() <= start.get() {
            Err(InvalidRange::Empty { start, end })
        } else if end.get() > Pfn::LIMIT.get() {
            Err(InvalidRange::BeyondLimit { start, frames: end.get() - start.get() })
        } else {
            Ok(Self { start, end })
        }
    }

    /// `frames` frames from `start` on.
    pub const fn from_len(start: Pfn, frames: u64) -> Result<Self, InvalidRange> {
        match start.get().checked_add(frames) {
            Some(end) => Self::new(start, Pfn::new(end)),
            None => Err(InvalidRange::BeyondLimit { start, frames }),
        }
    }

    /// The one frame `pfn`; the last frame number there is when `pfn` lies beyond it.
    #[must_use]
    pub const fn single(pfn: Pfn) -> Self {
        let last = Pfn::LIMIT.get() - 1;
        let number = if pfn.get() > last { last } else { pfn.get() };
        Self { start: Pfn::new(number), end: Pfn::new(number + 1) }
    }

    /// The aligned block of `order` that holds `pfn`.
    #[must_use]
    pub const fn block(pfn: Pfn, order: Order) -> Self {
        let start = Self::single(pfn).start.align_down(order);
        Self { start, end: Pfn::new(start.get() + order.frames()) }
    }

    /// The run from the smaller of the starts to the larger of the ends.
    #[must_use]
    pub fn hull(self, other: Self) -> Self {
        Self { start: self.start.min(other.start), end: self.end.max(other.end) }
    }

    /// The first frame.
    #[must_use]
    pub const fn start(self) -> Pfn {
        self.start
    }

    /// The frame after the last.
    #[must_use]
    pub const fn end(self) -> Pfn {
        self.end
    }

    /// Length in frames: at least 1.
    #[must_use]
    pub const fn frames(self) -> u64 {
        self.end.get() - self.start.get()
    }

    /// Length in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.frames() * FRAME_BYTES
    }

    /// Whether `pfn` is one of these frames.
    #[must_use]
    pub const fn contains(self, pfn: Pfn) -> bool {
        self.start.get() <= pfn.get() && pfn.get() < self.end.get()
    }

    /// Whether every frame of `other` is one of these.
    #[must_use]
    pub const fn contains_range(self, other: Self) -> bool {
        self.start.get() <= other.start.get() && other.end.get() <= self.end.get()
    }

    /// Whether the two share a frame.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.start.get() < other.end.get() && other.start.get() < self.end.get()
    }

    /// The frames that both have.
    #[must_use]
    pub fn intersect(self, other: Self) -> Option<Self> {
        Self::new(self.start.max(other.start), self.end.min(other.end)).ok()
    }

    /// What lies before and after `other`, which may lie anywhere.
    #[must_use]
    pub fn subtract(self, other: Self) -> [Option<Self>; 2] {
        [Self::new(self.start, self.end.min(other.start)).ok(), Self::new(self.start.max(other.end), self.end).ok()]
    }

    /// The first `frames` frames and the rest; either may be missing.
    #[must_use]
    pub fn split_at(self, frames: u64) -> (Option<Self>, Option<Self>) {
        let middle = self.start.add(frames).min(self.end);
        (Self::new(self.start, middle).ok(), Self::new(middle, self.end).ok())
    }

    /// `frames` frames that begin `offset` frames into this run, if they lie within it.
    #[must_use]
    pub fn sub(self, offset: u64, frames: u64) -> Option<Self> {
        let start = self.start.get().checked_add(offset)?;
        Self::from_len(Pfn::new(start), frames).ok().filter(|part| self.contains_range(*part))
    }

    /// The frames `span` of this run, which is a GiB: a span is never empty and never longer.
    #[inline]
    pub(crate) fn part_of_gib(self, span: Span) -> Self {
        debug_assert_eq!(self.frames(), Order::GIB1.frames(), "{self} is not a GiB");
        Self { start: self.start.add(u64::from(span.start())), end: self.start.add(u64::from(span.end())) }
    }

    /// The pieces of this run that lie in one aligned block of `order` each, in order.
    pub fn pieces(self, order: Order) -> impl Iterator<Item = Self> + Clone {
        let mut rest = Some(self);
        std::iter::from_fn(move || {
            let run = rest?;
            let end = run.start.align_down(order).add(order.frames()).min(run.end);
            rest = Self::new(end, run.end).ok();
            Some(Self { start: run.start, end })
        })
    }

    /// The largest aligned blocks that make up this run, in order: how page tables would map it.
    pub fn leaves(self) -> impl Iterator<Item = (Pfn, Order)> + Clone {
        let mut at = self.start;
        std::iter::from_fn(move || {
            let left = self.end.get().checked_sub(at.get()).filter(|&left| left > 0)?;
            let order = Order::largest_fit(at, left);
            let leaf = (at, order);
            at = at.add(order.frames());
            Some(leaf)
        })
    }

    /// The aligned blocks of `order` that lie wholly within this run, as one run.
    #[must_use]
    pub fn whole_blocks(self, order: Order) -> Option<Self> {
        Self::new(self.start.align_up(order), self.end.align_down(order)).ok()
    }

    /// Every frame, in order.
    pub fn iter(self) -> impl Iterator<Item = Pfn> + Clone {
        (self.start.get()..self.end.get()).map(Pfn::new)
    }
}

impl fmt::Display for PfnRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pfn:{:#x}..{:#x}", self.start.get(), self.end.get())
    }
}

impl fmt::Debug for PfnRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> PfnRange {
        PfnRange::new(Pfn::new(start), Pfn::new(end)).unwrap()
    }

    #[test]
    fn an_empty_or_overflowing_range_is_refused_with_its_numbers() {
        let empty = PfnRange::new(Pfn::new(7), Pfn::new(7)).unwrap_err();
        assert!(empty.to_string().contains("pfn:0x7"));
        assert!(matches!(PfnRange::from_len(Pfn::new(1), u64::MAX), Err(InvalidRange::BeyondLimit { .. })));
        assert!(matches!(PfnRange::from_len(Pfn::LIMIT, 1), Err(InvalidRange::BeyondLimit { .. })));
    }

    #[test]
    fn subtracting_leaves_what_is_before_and_after() {
        assert_eq!(range(10, 20).subtract(range(12, 14)), [Some(range(10, 12)), Some(range(14, 20))]);
        assert_eq!(range(10, 20).subtract(range(0, 30)), [None, None]);
        assert_eq!(range(10, 20).subtract(range(30, 40)), [Some(range(10, 20)), None]);
        assert_eq!(range(10, 20).subtract(range(0, 5)), [None, Some(range(10, 20))]);
    }

    #[test]
    fn a_run_is_cut_into_the_largest_leaves() {
        let leaves: Vec<_> = range(511, 262_144 + 513).leaves().map(|(pfn, order)| (pfn.get(), order)).collect();
        assert_eq!(leaves.first(), Some(&(511, Order::BASE)));
        assert_eq!(leaves[1], (512, Order::MIB2));
        assert_eq!(leaves.last(), Some(&(262_144 + 512, Order::BASE)));
        assert_eq!(leaves.iter().map(|(_, order)| order.frames()).sum::<u64>(), 262_146);
    }

    #[test]
    fn pieces_stay_within_their_block() {
        let pieces: Vec<_> = range(500, 1030).pieces(Order::MIB2).collect();
        assert_eq!(pieces, [range(500, 512), range(512, 1024), range(1024, 1030)]);
    }
}
