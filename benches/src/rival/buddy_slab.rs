//! `buddy-slab-allocator`: ArceOS's buddy system with an entry for each page and free lists through them. One thread.
#![allow(unsafe_code, reason = "its pages lie in memory that it is given as a slice and keeps; SAFETY lines say why that holds")]

use anyhow::{Context, anyhow};
use buddy_slab_allocator::BuddyAllocator;
use memmap2::{MmapMut, MmapOptions};
use pageless::{FRAME_BYTES, Order};

use super::taker::Taker;

const PAGE: usize = 4096;

/// Its buddy part, over memory that is reserved but, except for the entries of its pages, never touched.
pub struct BuddySlab {
    allocator: BuddyAllocator<PAGE>,
    base: usize,
    /// Kept mapped as long as the allocator lives.
    _memory: MmapMut,
}

impl Taker for BuddySlab {
    const NAME: &'static str = "buddy-slab-allocator 0.6";

    fn with_taken(frames: u64, taken: &[u64]) -> anyhow::Result<Self> {
        let (gib, bytes) = (1_usize << 30, usize::try_from(frames * FRAME_BYTES)?);
        // Its entries lie before the frames, within what it is given.
        let length = bytes + bytes / 64 + (16 << 20);
        let mut memory = MmapOptions::new().len(length + gib).no_reserve_swap().map_anon().context("no address space")?;
        let start = memory.as_ptr().addr();
        let mut allocator = BuddyAllocator::<PAGE>::new();
        let mut init = |from: usize| {
            // SAFETY: the mapping is ours alone, writable, and lives as long as the allocator, which forgets what it had before.
            unsafe { allocator.init(&mut memory[from..from + length]) }
                .map_err(|why| anyhow!("buddy-slab-allocator: {why:?}"))?;
            anyhow::Ok(allocator.section(0).context("it has no section")?.start)
        };
        // Blocks are aligned as counted from its first frame: that is moved to where the largest block may lie.
        let before = init(0)? - start;
        let base = init((start + before).next_multiple_of(gib) - before - start)?;
        anyhow::ensure!(base.is_multiple_of(gib), "its first frame is at {base:#x}");
        // It cannot take a certain page, so all are taken, and those that shall be free are put back.
        while allocator.alloc_pages(1, PAGE).is_ok() {}
        let mut start = 0;
        for &hole in taken.iter().chain([&frames]) {
            for frame in start..hole {
                allocator.dealloc_pages(base + usize::try_from(frame * FRAME_BYTES)?, 1);
            }
            start = hole + 1;
        }
        Ok(Self { allocator, base, _memory: memory })
    }

    #[inline]
    fn take(&mut self, order: Order) -> Option<u64> {
        let pages = 1 << order.log2();
        let address = self.allocator.alloc_pages(pages, pages * PAGE).ok()?;
        Some((address - self.base) as u64 / FRAME_BYTES)
    }

    #[inline]
    fn put(&mut self, frame: u64, order: Order) -> bool {
        usize::try_from(frame * FRAME_BYTES).is_ok_and(|offset| {
            self.allocator.dealloc_pages(self.base + offset, 1 << order.log2());
            true
        })
    }
}
