//! The host backing against the real kernel: real memory, real mappings, real pins.
//!
//! A test that lacks something writes a line that begins `skipped: ` straight to stderr, past libtest's capture, so that a
//! run can count them: `cargo test -p pageless-host 2>&1 | grep -c '^skipped: '`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod base;
mod counted;
mod file;
mod filesystems;
mod guest_memfd;
mod huge;
mod limits;
mod mapped;
mod pooled;
mod revoked;
mod sealed;
mod shut;
mod transparent;
mod vanished;
mod window;
mod witness;
mod zeroed_once;

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pageless::{Allocation, FRAME_BYTES, MetadataOnly, Pfn, PfnRange, Pool, Request};
use pageless_host::{HostBacking, HostMapping, HostMemory, HostMemoryBuilder, MapError, ProofMethod};

/// Frame numbers that no other test of this process uses: they name the memfds, which tests look for in /proc/self/fd.
fn unique_base() -> Pfn {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    Pfn::new(NEXT.fetch_add(1, Ordering::Relaxed) << 24)
}

fn builder(proof: ProofMethod) -> HostMemoryBuilder {
    HostMemory::builder().base(unique_base()).proof(proof)
}

/// `frames` frames that begin `offset` frames into the memory.
fn part(memory: &impl HostBacking, offset: u64, frames: u64) -> PfnRange {
    memory.frames().sub(offset, frames).unwrap()
}

/// An owner of all of a memory, through a pool of its own, with a mapping attached.
struct Guest {
    mapping: Arc<HostMapping>,
    ram: Allocation,
}

impl Guest {
    /// Allocates, and so commits, all of `memory`; the mapping lays out `extents` and maps nothing yet.
    fn of<B: HostBacking + Clone + 'static>(memory: &B, extents: impl IntoIterator<Item = (u64, PfnRange)>) -> Self {
        let pool = Pool::builder().backing(memory.clone()).build().unwrap();
        Self::in_pool(&pool, memory, extents)
    }

    /// The same, but for the pool there is no memory, so nothing is committed.
    fn uncommitted<B: HostBacking + Clone + 'static>(memory: &B) -> Self {
        let pool = Pool::builder().backing(MetadataOnly::new(memory.frames())).build().unwrap();
        Self::in_pool(&pool, memory, [(0, memory.frames())])
    }

    fn in_pool<B>(pool: &Pool, memory: &B, extents: impl IntoIterator<Item = (u64, PfnRange)>) -> Self
    where
        B: HostBacking + Clone + 'static,
    {
        let ram = pool.allocate(Request::bytes(memory.frames().bytes()).owner("guest")).unwrap();
        let mapping = Arc::new(HostMapping::new(memory, extents).unwrap());
        ram.attach("host", mapping.clone()).unwrap();
        Self { mapping, ram }
    }
}

impl Deref for Guest {
    type Target = HostMapping;

    fn deref(&self) -> &HostMapping {
        &self.mapping
    }
}

/// Maps `frames` under a guard of exactly those.
fn map(guest: &Guest, frames: PfnRange) -> Result<(), MapError> {
    let first = guest.ram.extents()[0].frames.start();
    let offset = (frames.start().get() - first.get()) * FRAME_BYTES;
    let guard = guest.ram.map_guard("host", offset..offset + frames.bytes()).unwrap();
    guest.mapping.map(&guard, frames)
}

/// Commits all of `memory` and maps it in order from guest offset 0.
fn map_all<B: HostBacking + Clone + 'static>(memory: &B) -> Guest {
    owner(&Pool::builder().backing(memory.clone()).build().unwrap(), memory)
}

/// The same in a pool that others use after it.
fn owner<B: HostBacking + Clone + 'static>(pool: &Pool, memory: &B) -> Guest {
    let guest = Guest::in_pool(pool, memory, [(0, memory.frames())]);
    map(&guest, memory.frames()).unwrap();
    guest
}

/// Whether all of the memory reads as zeroes.
fn is_zero(mapping: &HostMapping) -> bool {
    let mut bytes = vec![1; usize::try_from(mapping.bytes()).unwrap()];
    mapping.read(0, &mut bytes).unwrap();
    bytes.iter().all(|byte| *byte == 0)
}

fn write_all(mapping: &HostMapping) {
    mapping.write(0, &vec![7; usize::try_from(mapping.bytes()).unwrap()]).unwrap();
}

fn byte_at(mapping: &HostMapping, offset: u64) -> u8 {
    let mut byte = [0xee];
    mapping.read(offset, &mut byte).unwrap();
    byte[0]
}

/// What /proc/self/fd says is open on the segment that begins at the memory's frame `offset`.
fn open_descriptors(of: PfnRange) -> usize {
    let name = format!("memfd:pageless:{of}");
    let entries = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(Result::ok);
    entries
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .filter(|link| link.to_string_lossy().contains(&name))
        .count()
}

/// The kernel's own word, from /proc/self/maps, on how many bytes of a segment this process maps within the region.
fn bytes_the_kernel_maps(mapping: &HostMapping) -> u64 {
    let region = mapping.address() as u64..mapping.address() as u64 + mapping.bytes();
    let text = std::fs::read_to_string("/proc/self/maps").unwrap();
    let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
    let lines = text.lines().filter(|line| line.contains("memfd:pageless:"));
    let bounds = lines.map(|line| line.split_whitespace().next().unwrap().split_once('-').unwrap());
    bounds
        .map(|(start, end)| (hex(start), hex(end)))
        .filter(|(start, _)| region.contains(start))
        .map(|(start, end)| end - start)
        .sum()
}
