//! The host backing against the real kernel: real memory, real mappings, real pins.
//!
//! A test that lacks something writes a line that begins `skipped: ` straight to stderr, past libtest's capture, so that a
//! run can count them: `cargo test -p pageless-host 2>&1 | grep -c '^skipped: '`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod base;
mod huge;
mod limits;
mod mapped;
mod reservation;
mod sealed;
mod shut;

use std::sync::atomic::{AtomicU64, Ordering};

use pageless::{Backing, MapGuard, Pfn, PfnRange};
use pageless_host::{HostMapping, HostMemory, HostMemoryBuilder, MapError, ProofMethod};

/// Frame numbers that no other test of this process uses: they name the memfds, which tests look for in /proc/self/fd.
fn unique_base() -> Pfn {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    Pfn::new(NEXT.fetch_add(1, Ordering::Relaxed) << 24)
}

fn builder(proof: ProofMethod) -> HostMemoryBuilder {
    HostMemory::builder().base(unique_base()).proof(proof)
}

/// `frames` frames that begin `offset` frames into the memory.
fn part(memory: &HostMemory, offset: u64, frames: u64) -> PfnRange {
    memory.frames().sub(offset, frames).unwrap()
}

fn map(mapping: &HostMapping, frames: PfnRange) -> Result<(), MapError> {
    mapping.map(&MapGuard, frames)
}

/// Commits all of `memory` and maps it in order from guest offset 0.
fn map_all(memory: &HostMemory) -> HostMapping {
    memory.commit(memory.frames()).unwrap();
    let mapping = HostMapping::new(memory, [(0, memory.frames())]).unwrap();
    map(&mapping, memory.frames()).unwrap();
    mapping
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
