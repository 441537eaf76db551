//! Allocators of frames behind one trait.

use std::ops::Range;

use anyhow::{Context, ensure};
use bitmap_allocator::BitAlloc;
use buddy_system_allocator::FrameAllocator;
use pageless::frames::Frames;
use pageless::{Order, Pfn, PfnRange};
use range_alloc::RangeAllocator;
use vm_allocator::{AddressAllocator, AllocPolicy, RangeInclusive};

/// Takes and puts aligned blocks of frames.
pub trait Taker: Sized {
    /// How it is called in tables.
    const NAME: &'static str;

    /// An allocator of this many frames of which these, ascending, are taken.
    fn with_taken(frames: u64, taken: &[u64]) -> anyhow::Result<Self>;

    /// Takes a block; its first frame.
    fn take(&mut self, order: Order) -> Option<u64>;

    /// Puts a block that was taken; whether the allocator noticed nothing wrong.
    fn put(&mut self, frame: u64, order: Order) -> bool;
}

/// Our frame layer: the only one here that many threads may use at once, and that refuses a double free.
impl Taker for Frames {
    const NAME: &'static str = "pageless";

    fn with_taken(frames: u64, taken: &[u64]) -> anyhow::Result<Self> {
        let layer = Self::new(PfnRange::from_len(Pfn::new(0), frames)?);
        taken.iter().try_for_each(|frame| layer.take_at(PfnRange::single(Pfn::new(*frame))))?;
        Ok(layer)
    }

    #[inline]
    fn take(&mut self, order: Order) -> Option<u64> {
        Self::take(self, order).map(Pfn::get)
    }

    #[inline]
    fn put(&mut self, frame: u64, order: Order) -> bool {
        Self::put(self, PfnRange::block(Pfn::new(frame), order)).is_ok()
    }
}

/// rCore's buddy system: a tree of free blocks for each order.
pub struct Buddy(FrameAllocator<33>);

impl Taker for Buddy {
    const NAME: &'static str = "buddy_system_allocator 0.13";

    fn with_taken(frames: u64, taken: &[u64]) -> anyhow::Result<Self> {
        let mut buddy = FrameAllocator::new();
        // Only what is free is handed to it: taking single frames out again is slow.
        for range in gaps(frames, taken) {
            buddy.add_frame(usize::try_from(range.start)?, usize::try_from(range.end)?);
        }
        Ok(Self(buddy))
    }

    #[inline]
    fn take(&mut self, order: Order) -> Option<u64> {
        self.0.alloc(1 << order.log2()).map(|frame| frame as u64)
    }

    #[inline]
    fn put(&mut self, frame: u64, order: Order) -> bool {
        usize::try_from(frame).is_ok_and(|frame| {
            self.0.dealloc(frame, 1 << order.log2());
            true
        })
    }
}

/// rCore's cascade of 16-bit maps: at most 16 Mi frames.
pub struct Bitmap(Box<bitmap_allocator::BitAlloc16M>);

impl Taker for Bitmap {
    const NAME: &'static str = "bitmap-allocator 0.4";

    fn with_taken(frames: u64, taken: &[u64]) -> anyhow::Result<Self> {
        let most = bitmap_allocator::BitAlloc16M::CAP as u64;
        ensure!(frames <= most, "it holds {most} frames");
        // Built on the heap of a thread with a large stack: the value is 2 MiB.
        let build = || Box::new(bitmap_allocator::BitAlloc16M::DEFAULT);
        let thread = std::thread::Builder::new().stack_size(64 << 20).spawn(build)?;
        let mut map = thread.join().ok().context("the bitmap could not be built")?;
        for range in gaps(frames, taken) {
            map.insert(usize::try_from(range.start)?..usize::try_from(range.end)?);
        }
        Ok(Self(map))
    }

    #[inline]
    fn take(&mut self, order: Order) -> Option<u64> {
        let frame = if order == Order::BASE {
            self.0.alloc()
        } else {
            self.0.alloc_contiguous(None, 1 << order.log2(), usize::from(order.log2()))
        };
        frame.map(|frame| frame as u64)
    }

    #[inline]
    fn put(&mut self, frame: u64, order: Order) -> bool {
        let Ok(frame) = usize::try_from(frame) else { return false };
        if order == Order::BASE { self.0.dealloc(frame) } else { self.0.dealloc_contiguous(frame, 1 << order.log2()) }
    }
}

/// gfx-rs's list of free ranges, searched from one end to the other.
pub struct Ranges(RangeAllocator<u64>);

impl Taker for Ranges {
    const NAME: &'static str = "range-alloc 0.1";

    fn with_taken(frames: u64, taken: &[u64]) -> anyhow::Result<Self> {
        let mut ranges = RangeAllocator::new(0..frames);
        // It takes from the start of what is free, so everything is taken in order, and the gaps are put back.
        let gaps: Vec<Range<u64>> = gaps(frames, taken).collect();
        ranges.allocate_range(frames).ok().context("range-alloc refused its whole range")?;
        gaps.into_iter().for_each(|gap| ranges.free_range(gap));
        Ok(Self(ranges))
    }

    #[inline]
    fn take(&mut self, order: Order) -> Option<u64> {
        let range = self.0.allocate_range_aligned(order.frames(), order.frames()).ok()?;
        Some(range.start)
    }

    #[inline]
    fn put(&mut self, frame: u64, order: Order) -> bool {
        self.0.free_range(frame..frame + order.frames());
        true
    }
}

/// rust-vmm's interval tree, searched in order.
pub struct Addresses(AddressAllocator);

impl Taker for Addresses {
    const NAME: &'static str = "vm-allocator 0.1";

    fn with_taken(frames: u64, taken: &[u64]) -> anyhow::Result<Self> {
        let mut addresses = AddressAllocator::new(0, frames)?;
        // It takes from the start of what is free, so everything is taken in order, and the gaps are put back.
        let (mut free, mut at) = (Vec::new(), 0);
        for gap in gaps(frames, taken).chain(std::iter::once(frames..frames)) {
            for _ in at..gap.start {
                addresses.allocate(1, 1, AllocPolicy::FirstMatch).context("vm-allocator refused a frame")?;
            }
            at = gap.end;
            if !gap.is_empty() {
                free.push(
                    addresses.allocate(gap.end - gap.start, 1, AllocPolicy::FirstMatch).context("vm-allocator refused a run")?,
                );
            }
        }
        free.iter().try_for_each(|gap| addresses.free(gap)).context("vm-allocator refused to free")?;
        Ok(Self(addresses))
    }

    #[inline]
    fn take(&mut self, order: Order) -> Option<u64> {
        let range = self.0.allocate(order.frames(), order.frames(), AllocPolicy::FirstMatch).ok()?;
        Some(range.start())
    }

    #[inline]
    fn put(&mut self, frame: u64, order: Order) -> bool {
        let range = RangeInclusive::new(frame, frame + order.frames() - 1);
        range.is_ok_and(|range| self.0.free(&range).is_ok())
    }
}

/// What lies between the taken frames.
fn gaps(frames: u64, taken: &[u64]) -> impl Iterator<Item = Range<u64>> {
    let mut start = 0;
    taken.iter().copied().chain([frames]).filter_map(move |hole| {
        let gap = start..hole;
        start = hole + 1;
        (!gap.is_empty()).then_some(gap)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::rival::buddy_slab::BuddySlab;
    use crate::rival::frame_alloc::FrameAlloc;
    use crate::rival::tlsf::Tlsf;

    /// Every frame that is not taken is handed out once, as blocks where they are whole, and can be put back.
    fn is_fair<T: Taker>() {
        let taken: Vec<u64> = (0..4096).filter(|frame| frame % 512 == 9 && frame / 512 != 3).collect();
        let mut taker = T::with_taken(4096, &taken).unwrap();
        assert_eq!(taker.take(Order::MIB2), Some(3 * 512), "{}", T::NAME);
        assert_eq!(taker.take(Order::MIB2), None, "{}", T::NAME);
        assert!(taker.put(3 * 512, Order::MIB2), "{}", T::NAME);
        let mut all: Vec<u64> = std::iter::from_fn(|| taker.take(Order::BASE)).chain(taken).collect();
        all.sort_unstable();
        all.dedup();
        // frame-alloc keeps a few frames for itself.
        assert!(all.len() == 4096 || T::NAME.starts_with("frame-alloc") && all.len() > 4000, "{}: {}", T::NAME, all.len());
    }

    #[test]
    fn every_contender_hands_out_what_is_free_and_nothing_else() {
        is_fair::<Frames>();
        is_fair::<Buddy>();
        is_fair::<Bitmap>();
        is_fair::<Ranges>();
        is_fair::<Addresses>();
        is_fair::<FrameAlloc>();
        is_fair::<Tlsf>();
        is_fair::<BuddySlab>();
    }
}
