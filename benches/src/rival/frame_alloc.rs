//! The rival `frame-alloc`, which keeps its bitmap in the memory that it manages; and the one mapping of a file that the
//! kernel's scan needs.
#![allow(unsafe_code, reason = "frame-alloc's verbs are unsafe, and so is mapping memory; each call says why it holds")]

use std::fs::File;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use anyhow::{Context, anyhow};
use frame_alloc::{InitError, PageSize, PhysRange, PhysicalAllocator, Provenance, RegionInit, SummaryBuddyAllocator};
use memmap2::{Mmap, MmapMut, MmapOptions};
use pageless::Order;

use super::taker::Taker;

/// Orders from 4K to 1G.
const ORDERS: usize = 19;
const BASE: PageSize = PageSize::from_log2(12);

/// Recovers the provenance of the one mapping that stands for physical memory.
struct Exposed;

// SAFETY: the whole span is one mapping whose address was exposed in `FrameAlloc::with_taken`, and a pointer from it covers
// all of it. `destroy` gives the address back.
unsafe impl Provenance for Exposed {
    unsafe fn create(phys: usize) -> NonNull<u8> {
        // SAFETY: the allocator asks only about addresses within the mapping, which is never at 0.
        unsafe { NonNull::new_unchecked(std::ptr::with_exposed_provenance_mut(phys)) }
    }

    unsafe fn destroy<T>(pointer: NonNull<T>) -> usize {
        pointer.addr().get()
    }
}

/// `frame-alloc`, over memory that is reserved but, except for its bitmaps, never touched.
pub struct FrameAlloc {
    allocator: Box<SummaryBuddyAllocator<ORDERS, Exposed>>,
    base: usize,
    /// Kept mapped as long as the allocator lives.
    _memory: MmapMut,
}

impl Taker for FrameAlloc {
    const NAME: &'static str = "frame-alloc 0.1";

    fn with_taken(frames: u64, taken: &[u64]) -> anyhow::Result<Self> {
        let gib = 1_usize << 30;
        let bytes = usize::try_from(frames * pageless::FRAME_BYTES)?;
        let mut memory = MmapOptions::new().len(bytes + 2 * gib).no_reserve_swap().map_anon().context("no address space")?;
        let base = memory.as_mut_ptr().expose_provenance().next_multiple_of(gib);
        let at = |frame: u64| usize::try_from(frame * pageless::FRAME_BYTES).map(|offset| base + offset);
        let (mut usable, mut start) = (Vec::new(), 0);
        for &hole in taken.iter().chain([&frames]) {
            if hole > start {
                usable.push(PhysRange { base: at(start)?, len: at(hole)? - at(start)? });
            }
            start = hole + 1;
        }
        let allocator = Box::new(SummaryBuddyAllocator::new(BASE));
        let init = |span: usize, usable: &[PhysRange]| {
            // SAFETY: one thread; the mapping is ours alone, aligned to the largest block; the ranges are ascending, disjoint,
            // whole frames, within the span.
            unsafe { allocator.try_init(base, span, usable) }
        };
        let mut result = init(bytes, &usable);
        // Where no hole is long enough for its bitmaps, they get as much behind the span as they need.
        let mut behind = 0;
        while let Err(InitError::MetadataWontFit { required_bytes }) = result
            && required_bytes > behind
        {
            behind = required_bytes.next_multiple_of(4096);
            let all: Vec<PhysRange> = usable.iter().copied().chain([PhysRange { base: base + bytes, len: behind }]).collect();
            result = init(bytes + behind, &all);
        }
        result.map_err(|why| anyhow!("frame-alloc: {why}"))?;
        Ok(Self { allocator, base, _memory: memory })
    }

    #[inline]
    fn take(&mut self, order: Order) -> Option<u64> {
        let count = NonZeroUsize::MIN.checked_mul(NonZeroUsize::new(1 << order.log2())?)?;
        let address = self.allocator.allocate_physical(BASE, count).ok()?;
        Some((address - self.base) as u64 / pageless::FRAME_BYTES)
    }

    #[inline]
    fn put(&mut self, frame: u64, order: Order) -> bool {
        let Some(count) = NonZeroUsize::new(1 << order.log2()) else { return false };
        let Ok(offset) = usize::try_from(frame * pageless::FRAME_BYTES) else { return false };
        // SAFETY: the benchmark puts back only what it took, with the same order.
        unsafe { self.allocator.deallocate_physical(BASE, count, self.base + offset) };
        true
    }
}

/// Maps the first page, of so many bytes, of a file.
pub fn map_page(file: &File, bytes: usize) -> anyhow::Result<Mmap> {
    // SAFETY: nobody truncates or writes this memfd: its only descriptors are ours.
    Ok(unsafe { MmapOptions::new().len(bytes).map(file) }?)
}
