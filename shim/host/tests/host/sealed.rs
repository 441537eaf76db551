//! What `F_ADD_SEALS(F_SEAL_WRITE)` sees, on 4 KiB pages. Runs without privilege.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use pageless::{Backing, FRAME_BYTES, Stuck, Verdict};
use pageless_host::{HostBacking, HostMemory, ProofMethod, pin::KernelPin};
use pageless_hugepages::Setting;

use crate::{Guest, builder, byte_at, map, map_all, part};

fn sealed_memory() -> (HostMemory, Guest) {
    let memory = builder(ProofMethod::Seal).bytes(2 << 20).build().unwrap();
    let mapping = map_all(&memory);
    mapping.write(0, b"secret").unwrap();
    (memory, mapping)
}

/// A descriptor copied for a test, as a client that got it would have it.
fn copied(fd: BorrowedFd<'_>) -> OwnedFd {
    fd.try_clone_to_owned().unwrap()
}

fn timed(memory: &HostMemory) -> (Result<(), Stuck>, Duration) {
    let began = Instant::now();
    (memory.prove_granules(memory.frames()), began.elapsed())
}

#[test]
fn a_proof_replaces_the_segment_by_zeroes() {
    let (memory, mapping) = sealed_memory();
    let old = memory.segment(memory.frames().start()).unwrap();
    mapping.unmap(memory.frames()).unwrap();
    memory.prove_granules(memory.frames()).unwrap();
    assert!(memory.segment(memory.frames().start()).is_none(), "the fresh file comes with the next commit");
    memory.commit(memory.frames()).unwrap();
    map(&mapping, memory.frames()).unwrap();
    assert_eq!(byte_at(&mapping, 0), 0);
    // The old file is another one, sealed for good, and still what it was to whoever kept the handle.
    assert_eq!(nix::sys::uio::pwrite(old.fd(), b"x", 0), Err(Errno::EPERM));
    let mut found = [0; 6];
    nix::sys::uio::pread(old.fd(), &mut found, 0).unwrap();
    assert_eq!(&found, b"secret");
}

#[test]
fn a_mapping_of_this_process_prevents_the_proof_and_is_named() {
    let (memory, mapping) = sealed_memory();
    let (result, took) = timed(&memory);
    let stuck = result.unwrap_err();
    assert_eq!((stuck.cause.status, stuck.at), (Errno::EBUSY as u64, memory.frames()));
    assert!(stuck.cause.meaning.contains("512 frames") && stuck.cause.meaning.contains("HostMapping"), "{stuck}");
    assert!(matches!(stuck.verdict, Verdict::Retry { .. }));
    println!("mapped writable: {took:?}");
    mapping.unmap(memory.frames()).unwrap();
    memory.prove_granules(memory.frames()).unwrap();
}

#[test]
fn a_writable_mapping_by_other_means_prevents_the_proof() {
    let (memory, mapping) = sealed_memory();
    mapping.unmap(memory.frames()).unwrap();
    let handle = memory.segment(memory.frames().start()).unwrap();
    let foreign = MmapOptions::new().len(4096).map_raw(&copied(handle.fd())).unwrap();
    let stuck = timed(&memory).0.unwrap_err();
    assert!(stuck.cause.meaning.contains("somebody other than this crate"), "{stuck}");
    drop(foreign);
    memory.prove_granules(memory.frames()).unwrap();
}

#[test]
fn a_pin_outlives_the_unmap_and_prevents_the_proof_until_it_drains() {
    let (memory, mapping) = sealed_memory();
    let pin = KernelPin::vmsplice(&mapping, 0, 6).unwrap();
    mapping.unmap(memory.frames()).unwrap();
    let (result, took) = timed(&memory);
    let stuck = result.unwrap_err();
    println!("pinned: {took:?}: {stuck}");
    assert_eq!((stuck.cause.status, stuck.cause.step.as_ref()), (Errno::EBUSY as u64, "F_ADD_SEALS(F_SEAL_WRITE)"));
    assert!(stuck.cause.meaning.contains("pin") && stuck.cause.meaning.contains("which page"), "{stuck}");
    assert!(matches!(stuck.verdict, Verdict::Retry { .. }));
    assert_eq!(pin.drain().unwrap(), b"secret");
    let (result, took) = timed(&memory);
    result.unwrap();
    println!("drained: {took:?}");
}

#[test]
fn a_dropped_pin_lets_its_page_go() {
    let (memory, mapping) = sealed_memory();
    let pin = KernelPin::vmsplice(&mapping, 100 * FRAME_BYTES + 8, 4096).unwrap();
    assert_eq!(pin.bytes(), 4096);
    mapping.unmap(memory.frames()).unwrap();
    assert!(memory.prove_granules(memory.frames()).is_err());
    drop(pin);
    memory.prove_granules(memory.frames()).unwrap();
}

#[test]
fn a_client_that_forbids_seals_makes_its_segment_unprovable_for_good() {
    let (memory, mapping) = sealed_memory();
    mapping.unmap(memory.frames()).unwrap();
    let handle = memory.segment(memory.frames().start()).unwrap();
    fcntl(handle.fd(), FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SEAL)).unwrap();
    let stuck = memory.prove_granules(memory.frames()).unwrap_err();
    assert_eq!((stuck.verdict, stuck.cause.status), (Verdict::Never, Errno::EPERM as u64));
}

#[test]
fn no_copy_of_the_descriptor_can_truncate_the_memory() {
    let (memory, mapping) = sealed_memory();
    let client = copied(memory.segment(memory.frames().start()).unwrap().fd());
    assert_eq!(nix::unistd::ftruncate(&client, 0), Err(Errno::EPERM));
    assert_eq!(nix::unistd::ftruncate(&client, 4 << 20), Err(Errno::EPERM));
    assert_eq!(byte_at(&mapping, 0), b's');
}

#[test]
fn a_read_only_mapping_through_a_read_only_descriptor_is_not_seen_and_keeps_the_old_pages() {
    let (memory, mapping) = sealed_memory();
    let handle = memory.segment(memory.frames().start()).unwrap();
    let path = format!("/proc/self/fd/{}", handle.fd().as_raw_fd());
    let read_only = MmapOptions::new().len(4096).map_raw_read_only(&File::open(path).unwrap()).unwrap();
    mapping.unmap(memory.frames()).unwrap();
    memory.prove_granules(memory.frames()).unwrap();
    memory.commit(memory.frames()).unwrap();
    map(&mapping, memory.frames()).unwrap();
    mapping.write(0, b"public").unwrap();
    assert_eq!(first_byte(&read_only), b's', "what the seal does not see reads the old page, never the next owner's");
}

#[test]
fn a_private_mapping_is_not_seen_and_keeps_the_old_pages() {
    let (memory, mapping) = sealed_memory();
    let handle = memory.segment(memory.frames().start()).unwrap();
    // SAFETY: the bytes are compared once and nobody writes them while they are borrowed.
    let private = unsafe { MmapOptions::new().len(4096).map_copy_read_only(&copied(handle.fd())) }.unwrap();
    mapping.unmap(memory.frames()).unwrap();
    memory.prove_granules(memory.frames()).unwrap();
    assert_eq!(private[0], b's');
}

#[test]
fn a_read_only_mapping_through_a_descriptor_that_can_write_is_seen() {
    // It may become writable by mprotect, so the kernel counts it as if it were.
    let (memory, mapping) = sealed_memory();
    let handle = memory.segment(memory.frames().start()).unwrap();
    let read_only = MmapOptions::new().len(4096).map_raw_read_only(&copied(handle.fd())).unwrap();
    mapping.unmap(memory.frames()).unwrap();
    assert!(memory.prove_granules(memory.frames()).is_err());
    drop(read_only);
    memory.prove_granules(memory.frames()).unwrap();
}

fn first_byte(map: &MmapRaw) -> u8 {
    // SAFETY: the mapping is at least one byte long and readable, and stays so: the file cannot shrink.
    unsafe { map.as_ptr().read_volatile() }
}

#[test]
fn a_pin_in_one_process_is_invisible_to_the_unmap_proof_but_keeps_the_old_page() {
    let memory = builder(ProofMethod::ProcessUnmap).bytes(2 << 20).build().unwrap();
    let mapping = map_all(&memory);
    mapping.write(0, b"secret").unwrap();
    let pin = KernelPin::vmsplice(&mapping, 0, 6).unwrap();
    mapping.unmap(memory.frames()).unwrap();
    memory.prove_granules(memory.frames()).unwrap();
    map(&mapping, memory.frames()).unwrap();
    mapping.write(0, b"public").unwrap();
    assert_eq!(pin.drain().unwrap(), b"secret", "the pin holds the old page, not the next owner's");
}

#[test]
fn a_pin_on_a_large_folio_is_seen_because_the_kernel_cannot_take_its_page_away() {
    let Some(_folios) = Setting::large_folios_or_skip("large folios") else { return };
    let memory = builder(ProofMethod::ProcessUnmap).bytes(2 << 20).build().unwrap();
    let mapping = map_all(&memory);
    mapping.write(0, &vec![7; 2 << 20]).unwrap();
    let (frame, neighbour) = (part(&memory, 5, 1), part(&memory, 6, 1));
    let pin = KernelPin::vmsplice(&mapping, 5 * FRAME_BYTES, 6).unwrap();
    mapping.unmap(part(&memory, 5, 2)).unwrap();
    let stuck = memory.prove_granules(frame).unwrap_err();
    assert!(stuck.at == frame && stuck.cause.meaning.contains("large folio"), "{stuck}");
    assert!(memory.prove_granules(neighbour).is_err(), "the folio is pinned as a whole");
    assert_eq!(pin.drain().unwrap(), [0; 6], "zeroed in place");
    memory.prove_granules(frame).unwrap();
    memory.prove_granules(neighbour).unwrap();
}
