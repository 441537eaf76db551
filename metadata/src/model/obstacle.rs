//! Why the model says no.

use std::ops::Range;

use super::{Model, Spot};
use crate::{AllocationId, FRAME_BYTES, HolderId, Occupancy, Order, Pfn, Purpose, Withdrawal};

/// Why a verb is refused. Offsets are in bytes of the allocation, as everywhere in the pool's answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refused {
    /// Not a multiple of 4 KiB.
    Unaligned,
    /// No byte.
    Empty,
    /// Beyond the end.
    Outside,
    /// The frame is somebody else's, or free.
    NotOwner {
        /// Where.
        offset: u64,
    },
    /// The frame has been released.
    Released {
        /// Where.
        offset: u64,
    },
    /// Frames are quarantined or failed.
    Withdrawn {
        /// Where.
        offset: u64,
        /// How many.
        frames: u64,
        /// Which.
        state: Withdrawal,
    },
    /// Frames are poisoned.
    Poisoned {
        /// Where.
        offset: u64,
        /// How many.
        frames: u64,
    },
    /// Somebody holds frames.
    Held {
        /// Where.
        offset: u64,
        /// Everybody who holds that frame.
        holders: Vec<HolderId>,
    },
    /// An operation is under way, a guard is out, or a mapping said so.
    Busy,
    /// A mapping will not.
    Mapping {
        /// The name it was attached under.
        name: String,
    },
    /// The frame is sound.
    NotLost {
        /// Where.
        offset: u64,
    },
    /// The block cannot be one leaf.
    NotOneLeaf {
        /// Where.
        offset: u64,
        /// How large.
        order: Order,
    },
    /// No such mapping is attached.
    NoSuchMapping,
    /// The name is taken.
    NameTaken,
    /// No frame is left.
    NoFrame {
        /// Where.
        offset: u64,
    },
}

impl Model {
    /// The frames behind a range of bytes, in guest order.
    pub(super) fn spots(&self, id: AllocationId, range: &Range<u64>) -> Result<Vec<Spot>, Refused> {
        let places = &self.allocations[&id].places;
        if !range.start.is_multiple_of(FRAME_BYTES) || !range.end.is_multiple_of(FRAME_BYTES) {
            return Err(Refused::Unaligned);
        }
        if range.end <= range.start {
            return Err(Refused::Empty);
        }
        let (from, to) = (range.start / FRAME_BYTES, range.end / FRAME_BYTES);
        if to > places.len() as u64 {
            return Err(Refused::Outside);
        }
        Ok((0..).zip(places).filter(|(at, _)| (from..to).contains(at)).map(|(at, place)| (at, place.pfn)).collect())
    }

    /// What stands in the way of `purpose`: the most fundamental obstacle, and of several of that kind the first.
    pub(super) fn obstacle(&self, id: AllocationId, spots: &[Spot], purpose: Purpose) -> Result<(), Refused> {
        let ranked = spots.iter().enumerate().filter_map(|(nth, spot)| Some((self.rank(id, spot.1, purpose)?, nth)));
        let Some((rank, nth)) = ranked.min() else { return Ok(()) };
        let (at, pfn) = spots[nth];
        let offset = at * FRAME_BYTES;
        let frame = &self.frames[&pfn];
        Err(match rank {
            0 => Refused::NotOwner { offset },
            1 => Refused::Released { offset },
            2 => Refused::Poisoned { offset, frames: self.alike(id, &spots[nth..], |state| state.poisoned) },
            3 if frame.state.failed => {
                let frames = self.alike(id, &spots[nth..], |state| state.failed);
                Refused::Withdrawn { offset, frames, state: Withdrawal::Failed }
            }
            3 => {
                let frames = self.alike(id, &spots[nth..], |state| state.quarantined.is_some());
                Refused::Withdrawn { offset, frames, state: Withdrawal::Quarantined }
            }
            4 => Refused::Held { offset, holders: self.holders(pfn) },
            _ => Refused::Busy,
        })
    }

    /// Everybody who holds a frame.
    #[must_use]
    pub fn holders(&self, pfn: Pfn) -> Vec<HolderId> {
        self.frames[&pfn].holds.iter().map(|(_, holder)| holder.clone()).collect()
    }

    fn rank(&self, id: AllocationId, pfn: Pfn, purpose: Purpose) -> Option<u8> {
        let frame = &self.frames[&pfn];
        match () {
            () if frame.tenant != Some(id) => Some(0),
            () if frame.state.occupancy == Occupancy::Released => Some(1),
            () if frame.state.poisoned => Some(2),
            () if frame.state.withdrawal().is_some() => Some(3),
            () if purpose == Purpose::Change && !frame.holds.is_empty() => Some(4),
            () if frame.state.converting.is_some() => Some(5),
            () => None,
        }
    }

    /// How many spots from the first on bear the same mark, within one run, GiB and node: what an answer counts.
    fn alike(&self, id: AllocationId, spots: &[Spot], marked: impl Fn(&crate::FrameState) -> bool) -> u64 {
        let joined =
            spots.windows(2).take_while(|pair| self.is_joined(id, pair[0], pair[1]) && marked(&self.frames[&pair[1].1].state));
        joined.count() as u64 + 1
    }

    /// Whether two spots are neighbours in one run of one GiB.
    pub(super) fn is_joined(&self, id: AllocationId, one: Spot, next: Spot) -> bool {
        let begins = self.allocations[&id].places.get(index(next.0)).is_none_or(|place| place.begins);
        let same_gib = one.1.align_down(Order::GIB1) == next.1.align_down(Order::GIB1);
        one.0 + 1 == next.0 && one.1.add(1) == next.1 && !begins && same_gib && self.node_of(one.1) == self.node_of(next.1)
    }
}

pub(super) fn index(at: u64) -> usize {
    usize::try_from(at).expect("a frame of a pool that fits into memory")
}
