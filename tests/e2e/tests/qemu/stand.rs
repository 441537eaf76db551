//! The owner's side: a pool of huge pages in which the memory of several owners lies alternately.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use pageless::{Allocation, Order, PfnRange, Pool, Request};
use pageless_host::{HostBacking, HostMapping, HostMemory, PageSize, ProofMethod};
use pageless_hugepages::{Borrowed, HUGE_2M};

/// Bytes of a segment, which is what is granted, proven and revoked. It is also the least that Linux adds to a running
/// x86-64 guest (a memory block, `MIN_MEMORY_BLOCK_SIZE` in arch/x86/mm/init_64.c for less than 64 GiB).
pub(crate) const SEGMENT: u64 = 128 << 20;
/// Segments of the pool: three of the machine, one for later, and a neighbour's before each of them.
const SEGMENTS: u64 = 8;
/// Segments of the machine.
pub(crate) const EXTENTS: u64 = 3;

/// What a neighbour's memory is full of.
const NEIGHBOUR: u8 = 0xa5;

/// A pool with neighbours in every other segment.
pub(crate) struct Stand {
    pub(crate) memory: HostMemory,
    pub(crate) pool: Pool,
    neighbours: Vec<Ram>,
    _pages: Borrowed,
}

/// An owner's memory, and the owner's view of it.
pub(crate) struct Ram {
    pub(crate) allocation: Allocation,
    pub(crate) host: Arc<HostMapping>,
}

impl Stand {
    /// Fills the pool with neighbours and has every other one go again, so that what is free is not adjacent.
    pub(crate) fn build(test: &str, proof: ProofMethod) -> Option<Self> {
        let pages = Borrowed::or_skip(test, HUGE_2M, SEGMENTS * SEGMENT / HUGE_2M)?;
        let memory = HostMemory::builder().bytes(SEGMENTS * SEGMENT).page(PageSize::Huge2M).segment_bytes(SEGMENT);
        let memory = memory.proof(proof).build().unwrap();
        let pool = Pool::builder().backing(memory.clone()).build().unwrap();
        let mut stand = Self { memory, pool, neighbours: Vec::new(), _pages: pages };
        let mut everywhere: Vec<Ram> = (0..SEGMENTS).map(|at| stand.ram(&format!("neighbour {at}"), SEGMENT)).collect();
        everywhere.sort_by_key(|ram| ram.allocation.extents()[0].frames);
        let mut at = 0;
        everywhere.retain(|_| {
            at += 1;
            at % 2 == 1
        });
        for ram in &everywhere {
            (0..SEGMENT).step_by(1 << 20).for_each(|offset| ram.host.write(offset, &[NEIGHBOUR; 1 << 20]).unwrap());
        }
        stand.neighbours = everywhere;
        let reclaimed = stand.pool.reclaim();
        assert_eq!(reclaimed.freed.frames() * 4096, SEGMENTS / 2 * SEGMENT, "{reclaimed:?}");
        Some(stand)
    }

    /// Memory for `owner`, mapped by this process, too.
    pub(crate) fn ram(&self, owner: &str, bytes: u64) -> Ram {
        let allocation = self.pool.allocate(Request::bytes(bytes).order(Order::MIB2).owner(owner)).unwrap();
        let host = Arc::new(HostMapping::of(&self.memory, &allocation).unwrap());
        allocation.attach("host", host.clone()).unwrap();
        let guard = allocation.map_guard("host", 0..bytes).unwrap();
        guard.extents().iter().for_each(|extent| host.map(&guard, extent.frames).unwrap());
        drop(guard);
        Ram { allocation, host }
    }

    /// A descriptor of the segment that begins at `frames`, and the offset of `frames` in it: what a machine is given.
    pub(crate) fn grant(&self, frames: PfnRange) -> (OwnedFd, u64) {
        let handle = self.memory.segment(frames.start()).unwrap();
        assert!(handle.frames().contains_range(frames), "one descriptor for one extent");
        (handle.fd().try_clone_to_owned().unwrap(), handle.offset())
    }

    /// Every byte of every neighbour is what the neighbour wrote.
    pub(crate) fn assert_neighbours_untouched(&self) {
        let mut bytes = vec![0; 1 << 20];
        for ram in &self.neighbours {
            for offset in (0..SEGMENT).step_by(1 << 20) {
                ram.host.read(offset, &mut bytes).unwrap();
                assert!(bytes.iter().all(|byte| *byte == NEIGHBOUR), "{} at {offset:#x}", ram.allocation.owner());
            }
        }
    }

    /// Everybody goes: all frames are free, and the host gets its pages back.
    pub(crate) fn assert_all_comes_back(mut self) {
        self.neighbours.clear();
        let reclaimed = self.pool.reclaim();
        assert!(reclaimed.lost.is_empty(), "{reclaimed:?}");
        let stats = self.pool.stats();
        assert_eq!((stats.free, stats.quarantined), (stats.frames, 0));
        let verified = self.pool.verify();
        assert!(verified.is_sound(), "{verified:?}");
    }
}

/// Whether `process` maps a file of the segment that begins at `frames` now. The kernel's word, not QEMU's.
pub(crate) fn maps(process: u32, frames: PfnRange) -> bool {
    let maps = std::io::read_to_string(File::open(format!("/proc/{process}/maps")).unwrap()).unwrap();
    maps.contains(&format!("memfd:pageless:{frames}"))
}
