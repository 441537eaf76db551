//! Frames within one GiB, counted from its start: the key of every per-GiB structure.

use std::fmt;

use crate::{FRAME_BYTES, Order, Pfn, PfnRange};

/// Frames in a GiB.
pub const GIB_FRAMES: u32 = 262_144;
const GIB_BYTES: u64 = GIB_FRAMES as u64 * FRAME_BYTES;
/// Frames in a 2 MiB block.
pub const BLOCK_FRAMES: u32 = 512;
/// 2 MiB blocks in a GiB.
pub const GIB_BLOCKS: u32 = GIB_FRAMES / BLOCK_FRAMES;

/// A non-empty, half-open run of frames of one GiB, counted from the GiB's first frame. Never ends past 262,144.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    start: u32,
    end: u32,
}

/// What most spans are that anybody converts: what a page table has an entry for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// One frame, 0 to 262,143.
    Frame(u32),
    /// One 2 MiB block, 0 to 511.
    Block(u32),
    /// The GiB.
    Whole,
}

impl Shape {
    /// What `bytes` bytes from `offset` bytes on are in their GiB, if they are one of these: aligned to its own length.
    #[must_use]
    #[inline(always)]
    pub const fn of_bytes(offset: u64, bytes: u64) -> Option<Self> {
        const BLOCK_BYTES: u64 = BLOCK_FRAMES as u64 * FRAME_BYTES;
        if offset & bytes.wrapping_sub(1) != 0 {
            return None;
        }
        // Below 262,144.
        #[allow(clippy::cast_possible_truncation)]
        let frame = (offset / FRAME_BYTES) as u32 % GIB_FRAMES;
        match bytes {
            FRAME_BYTES => Some(Self::Frame(frame)),
            BLOCK_BYTES => Some(Self::Block(frame / BLOCK_FRAMES)),
            GIB_BYTES => Some(Self::Whole),
            _ => None,
        }
    }

    /// The span that it is.
    #[must_use]
    #[inline(always)]
    pub const fn span(self) -> Span {
        match self {
            Self::Frame(frame) => Span { start: frame, end: frame + 1 },
            Self::Block(block) => Span { start: block * BLOCK_FRAMES, end: block * BLOCK_FRAMES + BLOCK_FRAMES },
            Self::Whole => Span::WHOLE,
        }
    }
}

impl Span {
    /// The whole GiB.
    pub const WHOLE: Self = Self { start: 0, end: GIB_FRAMES };

    /// The frames from `start` up to, not including, `end`; none when that is empty or leaves the GiB.
    #[must_use]
    pub const fn new(start: u32, end: u32) -> Option<Self> {
        if start < end && end <= GIB_FRAMES { Some(Self { start, end }) } else { None }
    }

    /// The part of `range` that lies in the GiB of its first frame.
    #[must_use]
    pub fn head_of(range: PfnRange) -> Self {
        let start = range.start().in_gib();
        let room = u64::from(GIB_FRAMES - start);
        // At most `room`, so it fits.
        #[allow(clippy::cast_possible_truncation)]
        let frames = range.frames().min(room) as u32;
        Self { start, end: start + frames }
    }

    /// `bytes` bytes from `offset` bytes into the GiB on; none when that is empty, leaves the GiB, or is not made of whole frames.
    #[must_use]
    #[inline]
    pub const fn of_bytes(offset: u64, bytes: u64) -> Option<Self> {
        if !(offset | bytes).is_multiple_of(FRAME_BYTES) || offset >= GIB_BYTES || bytes > GIB_BYTES - offset {
            return None;
        }
        // Both at most 262,144.
        #[allow(clippy::cast_possible_truncation)]
        let (start, frames) = ((offset / FRAME_BYTES) as u32, (bytes / FRAME_BYTES) as u32);
        Self::new(start, start + frames)
    }

    /// The one frame `frame`, which must be below 262,144; the last one otherwise.
    #[must_use]
    pub const fn single(frame: u32) -> Self {
        let start = if frame < GIB_FRAMES { frame } else { GIB_FRAMES - 1 };
        Self { start, end: start + 1 }
    }

    /// The 2 MiB block with this number, 0 to 511; the last one for larger numbers.
    #[must_use]
    pub const fn block(number: u32) -> Self {
        let number = if number < GIB_BLOCKS { number } else { GIB_BLOCKS - 1 };
        Self { start: number * BLOCK_FRAMES, end: (number + 1) * BLOCK_FRAMES }
    }

    /// The first frame.
    #[must_use]
    pub const fn start(self) -> u32 {
        self.start
    }

    /// The frame after the last.
    #[must_use]
    pub const fn end(self) -> u32 {
        self.end
    }

    /// Length in frames: 1 to 262,144.
    #[must_use]
    pub const fn frames(self) -> u32 {
        self.end - self.start
    }

    /// Whether these are all frames of the GiB.
    #[must_use]
    pub const fn is_whole(self) -> bool {
        self.frames() == GIB_FRAMES
    }

    /// Whether `frame` is one of these.
    #[must_use]
    pub const fn contains(self, frame: u32) -> bool {
        self.start <= frame && frame < self.end
    }

    /// Whether all of `other` is in here.
    #[must_use]
    pub const fn contains_span(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// Whether the two share a frame.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// The frames that both have.
    #[must_use]
    pub fn intersect(self, other: Self) -> Option<Self> {
        Self::new(self.start.max(other.start), self.end.min(other.end))
    }

    /// What lies before and after `other`.
    #[must_use]
    pub fn subtract(self, other: Self) -> [Option<Self>; 2] {
        [Self::new(self.start, self.end.min(other.start)), Self::new(self.start.max(other.end), self.end)]
    }

    /// The numbers of the 2 MiB blocks that the span touches.
    #[must_use]
    pub const fn blocks(self) -> std::ops::Range<u32> {
        self.start / BLOCK_FRAMES..self.end.div_ceil(BLOCK_FRAMES)
    }

    /// The numbers of the 2 MiB blocks at the span's edges that it covers only in part: the head, the tail.
    #[must_use]
    pub const fn partial_blocks(self) -> [Option<u32>; 2] {
        let (first, last) = (self.start / BLOCK_FRAMES, (self.end - 1) / BLOCK_FRAMES);
        let head = !self.start.is_multiple_of(BLOCK_FRAMES) || (first == last && !self.end.is_multiple_of(BLOCK_FRAMES));
        let tail = !self.end.is_multiple_of(BLOCK_FRAMES) && first != last;
        [if head { Some(first) } else { None }, if tail { Some(last) } else { None }]
    }

    /// How many 2 MiB blocks the span covers only in part: 0, 1 or 2.
    #[must_use]
    #[inline]
    pub const fn partial_blocks_count(self) -> u32 {
        if self.is_in_one_block() {
            (self.frames() != BLOCK_FRAMES) as u32
        } else {
            !self.start.is_multiple_of(BLOCK_FRAMES) as u32 + !self.end.is_multiple_of(BLOCK_FRAMES) as u32
        }
    }

    /// Whether all of it lies in one 2 MiB block.
    #[must_use]
    #[inline]
    pub const fn is_in_one_block(self) -> bool {
        self.start / BLOCK_FRAMES == (self.end - 1) / BLOCK_FRAMES
    }

    /// Whether it covers every 2 MiB block that it touches.
    #[must_use]
    #[inline]
    pub const fn is_made_of_blocks(self) -> bool {
        (self.start | self.end).is_multiple_of(BLOCK_FRAMES)
    }

    /// What it is, if it is one of the usual.
    #[must_use]
    #[inline(always)]
    pub const fn shape(self) -> Option<Shape> {
        match self.frames() {
            1 => Some(Shape::Frame(self.start)),
            BLOCK_FRAMES if self.is_made_of_blocks() => Some(Shape::Block(self.start / BLOCK_FRAMES)),
            GIB_FRAMES => Some(Shape::Whole),
            _ => None,
        }
    }

    /// The frames of the pool that these are, in the GiB that holds `anywhere`.
    #[must_use]
    #[inline]
    pub fn in_gib_of(self, anywhere: Pfn) -> PfnRange {
        PfnRange::block(anywhere, Order::GIB1).part_of_gib(self)
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn partial_blocks_are_those_at_the_edges_only() {
        let partial = |start, end| Span::new(start, end).unwrap().partial_blocks();
        assert_eq!(partial(0, 512), [None, None]);
        assert_eq!(partial(0, 511), [Some(0), None]);
        assert_eq!(partial(1, 512), [Some(0), None]);
        assert_eq!(partial(1, 513), [Some(0), Some(1)]);
        assert_eq!(partial(512, 1600), [None, Some(3)]);
        assert_eq!(partial(511, 2048), [Some(0), None]);
        for (start, end) in [(0, 512), (0, 511), (1, 512), (1, 513), (512, 1600), (511, 2048), (700, 701), (0, GIB_FRAMES)] {
            let count = u32::try_from(partial(start, end).into_iter().flatten().count()).unwrap();
            assert_eq!(Span::new(start, end).unwrap().partial_blocks_count(), count, "{start}..{end}");
        }
    }

    #[test]
    fn a_shape_is_the_span_of_its_bytes() {
        let lengths = [0, 1, 2048, FRAME_BYTES, FRAME_BYTES * 2, 2 << 20, GIB_BYTES, GIB_BYTES * 2, 1 << 63, u64::MAX];
        let starts =
            [0, 1, 2048, FRAME_BYTES, 3 * FRAME_BYTES, 2 << 20, (2 << 20) + FRAME_BYTES, 511 << 21, GIB_BYTES - FRAME_BYTES];
        for (start, bytes) in starts.into_iter().flat_map(|start| lengths.map(|bytes| (start, bytes))) {
            let span = Span::of_bytes(start, bytes);
            let shape = Shape::of_bytes(start, bytes);
            assert_eq!(shape, span.and_then(Span::shape), "{start:#x}, {bytes:#x}");
            assert_eq!(Shape::of_bytes(7 * GIB_BYTES + start, bytes), shape, "in another GiB");
            assert!(shape.is_none_or(|shape| Some(shape.span()) == span));
        }
        assert_eq!(Shape::of_bytes(3 << 20, 2 << 20), None, "a block begins where blocks do");
    }

    #[test]
    fn a_span_ends_with_its_gib() {
        let range = PfnRange::from_len(Pfn::new(262_143), 10).unwrap();
        assert_eq!(Span::head_of(range), Span::new(262_143, 262_144).unwrap());
        assert_eq!(Span::new(0, GIB_FRAMES + 1), None);
        assert_eq!(Span::new(5, 7).unwrap().in_gib_of(Pfn::new(262_144)).start(), Pfn::new(262_149));
    }
}
