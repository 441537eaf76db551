//! Who is shared? The same map of frames in several structures.

use std::collections::BTreeMap;
use std::ops::Range;

use bitvec::prelude::{BitVec, Lsb0};
use pageless::metadata::{GIB_FRAMES, SharePlane, Span};
use rangemap::RangeSet;
use roaring::RoaringBitmap;

/// A map of frames, each shared or private.
pub trait Plane: Sized {
    /// How it is called in tables.
    const NAME: &'static str;

    /// All frames of so many GiBs, private.
    fn new(gibs: u64) -> Self;

    /// Makes the frames shared or private. Never across a GiB.
    fn set(&mut self, frames: Range<u64>, shared: bool);

    /// Whether a frame is shared.
    fn is_shared(&self, frame: u64) -> bool;

    /// Called when filled, for structures with a form to rest in.
    fn settle(&mut self) {}
}

const GIB: u64 = GIB_FRAMES as u64;

fn index(frame: u64) -> usize {
    usize::try_from(frame).unwrap_or(usize::MAX)
}

/// At most 2^28 frames are measured.
fn key(frame: u64) -> u32 {
    u32::try_from(frame).unwrap_or(u32::MAX)
}

/// The frames as a span of their GiB.
fn span_of(frames: &Range<u64>) -> Option<Span> {
    let start = frames.start % GIB;
    Span::new(key(start), key(start + (frames.end - frames.start)))
}

/// Our planes, one for each GiB, without records, locks and checks around them.
pub struct Ours(Vec<SharePlane>);

impl Plane for Ours {
    const NAME: &'static str = "pageless";

    fn new(gibs: u64) -> Self {
        Self((0..gibs).map(|_| SharePlane::new()).collect())
    }

    #[inline]
    fn set(&mut self, frames: Range<u64>, shared: bool) {
        if let Some(span) = span_of(&frames) {
            self.0[index(frames.start / GIB)].set(span, shared);
        }
    }

    #[inline]
    fn is_shared(&self, frame: u64) -> bool {
        self.0[index(frame / GIB)].is_shared(key(frame % GIB))
    }
}

/// One bit for each frame.
pub struct Flat(BitVec<u64, Lsb0>);

impl Plane for Flat {
    const NAME: &'static str = "flat bits (bitvec)";

    fn new(gibs: u64) -> Self {
        Self(BitVec::repeat(false, index(gibs * GIB)))
    }

    #[inline]
    fn set(&mut self, frames: Range<u64>, shared: bool) {
        self.0[index(frames.start)..index(frames.end)].fill(shared);
    }

    #[inline]
    fn is_shared(&self, frame: u64) -> bool {
        self.0[index(frame)]
    }
}

/// A tree of shared intervals, start to end: stands in for Linux's maple tree.
pub struct Intervals(BTreeMap<u64, u64>);

impl Plane for Intervals {
    const NAME: &'static str = "BTreeMap of intervals";

    fn new(_gibs: u64) -> Self {
        Self(BTreeMap::new())
    }

    fn set(&mut self, frames: Range<u64>, shared: bool) {
        let Range { mut start, mut end } = frames;
        // Intervals that overlap it or, when it is added, touch it.
        while let Some((&from, &to)) = self.0.range(..=end).next_back().filter(|(_, to)| **to >= start) {
            if !shared && (to == start || from == end) {
                if from == end {
                    // Only touches the end: look at what lies before it.
                    let Some((&from, &to)) = self.0.range(..end).next_back().filter(|(_, to)| **to > start) else { break };
                    self.cut(from, to, start, end);
                    continue;
                }
                break;
            }
            if shared {
                self.0.remove(&from);
                (start, end) = (start.min(from), end.max(to));
            } else {
                self.cut(from, to, start, end);
            }
        }
        if shared {
            self.0.insert(start, end);
        }
    }

    #[inline]
    fn is_shared(&self, frame: u64) -> bool {
        self.0.range(..=frame).next_back().is_some_and(|(_, end)| *end > frame)
    }
}

impl Intervals {
    fn cut(&mut self, from: u64, to: u64, start: u64, end: u64) {
        if from < start {
            self.0.insert(from, start);
        } else {
            self.0.remove(&from);
        }
        if to > end {
            self.0.insert(end, to);
        }
    }
}

/// The crate `rangemap`.
pub struct Ranges(RangeSet<u64>);

impl Plane for Ranges {
    const NAME: &'static str = "rangemap 1.8";

    fn new(_gibs: u64) -> Self {
        Self(RangeSet::new())
    }

    fn set(&mut self, frames: Range<u64>, shared: bool) {
        if shared { self.0.insert(frames) } else { self.0.remove(frames) }
    }

    fn is_shared(&self, frame: u64) -> bool {
        self.0.contains(&frame)
    }
}

/// One roaring bitmap for everything.
pub struct Roaring(RoaringBitmap);

impl Plane for Roaring {
    const NAME: &'static str = "one roaring";

    fn new(_gibs: u64) -> Self {
        Self(RoaringBitmap::new())
    }

    fn set(&mut self, frames: Range<u64>, shared: bool) {
        let keys = key(frames.start)..key(frames.end);
        if shared {
            self.0.insert_range(keys)
        } else {
            self.0.remove_range(keys)
        };
    }

    fn is_shared(&self, frame: u64) -> bool {
        self.0.contains(key(frame))
    }
}

/// A roaring bitmap for each GiB.
pub struct RoaringPerGib(Vec<RoaringBitmap>);

impl Plane for RoaringPerGib {
    const NAME: &'static str = "roaring per GiB";

    fn new(gibs: u64) -> Self {
        Self((0..gibs).map(|_| RoaringBitmap::new()).collect())
    }

    fn set(&mut self, frames: Range<u64>, shared: bool) {
        let start = key(frames.start % GIB);
        let keys = start..start + key(frames.end - frames.start);
        let plane = &mut self.0[index(frames.start / GIB)];
        if shared {
            plane.insert_range(keys)
        } else {
            plane.remove_range(keys)
        };
    }

    fn is_shared(&self, frame: u64) -> bool {
        self.0[index(frame / GIB)].contains(key(frame % GIB))
    }
}

/// Our planes after `compact`.
pub struct OursAtRest(Ours);

impl Plane for OursAtRest {
    const NAME: &'static str = "pageless, at rest";

    fn new(gibs: u64) -> Self {
        Self(Ours::new(gibs))
    }

    fn set(&mut self, frames: Range<u64>, shared: bool) {
        self.0.set(frames, shared);
    }

    fn is_shared(&self, frame: u64) -> bool {
        self.0.is_shared(frame)
    }

    fn settle(&mut self) {
        self.0.0.iter_mut().for_each(|plane| {
            plane.compact();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Dice;

    fn agrees<P: Plane>() {
        let (mut plane, mut model, mut dice) = (P::new(2), vec![false; 2000], Dice::new(71));
        for step in 0..2000 {
            let (start, shared) = (dice.below(1900), dice.below(2) == 0);
            let end = start + 1 + dice.below(if step % 2 == 0 { 1 } else { 99 });
            plane.set(GIB + start..GIB + end, shared);
            model[index(start)..index(end)].fill(shared);
            if step % 100 == 0 {
                plane.settle();
            }
            let wrong = (0..2000).find(|frame| plane.is_shared(GIB + frame) != model[index(*frame)]);
            assert_eq!(wrong, None, "{}, step {step}", P::NAME);
        }
    }

    #[test]
    fn every_structure_agrees_with_a_plain_list() {
        agrees::<Ours>();
        agrees::<OursAtRest>();
        agrees::<Flat>();
        agrees::<Intervals>();
        agrees::<Ranges>();
        agrees::<Roaring>();
        agrees::<RoaringPerGib>();
    }
}
