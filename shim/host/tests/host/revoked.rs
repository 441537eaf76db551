//! What truncating a segment takes away, from whom, and what it costs. On 4 KiB pages without privilege; on 2 MiB ones where
//! there are some.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;
use pageless::Backing;
use pageless_host::{HostBacking, HostMemory, MapError, PageSize, ProofMethod, pin::KernelPin};
use pageless_hugepages::{Borrowed, HUGE_2M};

use crate::{Guest, builder, byte_at, map, map_all};

fn revocable(page: PageSize) -> (HostMemory, Guest) {
    let memory = builder(ProofMethod::Revoke).page(page).bytes(4 << 20).segment_bytes(4 << 20).build().unwrap();
    let mapping = map_all(&memory);
    mapping.write(0, b"secret").unwrap();
    (memory, mapping)
}

/// A client's copy of the descriptor.
fn client(memory: &HostMemory) -> OwnedFd {
    memory.segment(memory.frames().start()).unwrap().fd().try_clone_to_owned().unwrap()
}

/// The first byte of a mapping, or the kernel's refusal where a touch would be a SIGBUS: read by the kernel, as a debugger would.
fn touch(mapping: &MmapRaw) -> Result<u8, Option<i32>> {
    let mut byte = [0];
    let memory = File::open("/proc/self/mem").unwrap();
    memory.read_exact_at(&mut byte, mapping.as_ptr() as u64).map(|()| byte[0]).map_err(|error| error.raw_os_error())
}

fn a_client_loses_it(page: PageSize) {
    let (memory, mapping) = revocable(page);
    let client = client(&memory);
    let foreign = MmapOptions::new().len(4 << 20).map_raw(&client).unwrap();
    assert_eq!(touch(&foreign), Ok(b's'));
    mapping.unmap(memory.frames()).unwrap();
    memory.prove_granules(memory.frames()).unwrap();
    assert_eq!(touch(&foreign), Err(Some(Errno::EIO as i32)), "the client still reaches the memory");
    // Nor does it get anything back into the file, by whatever way.
    assert_eq!(fstat(client.as_fd()).unwrap().st_size, 0);
    assert_eq!(ftruncate(&client, 4 << 20), Err(Errno::EPERM));
    assert_eq!(fallocate(client.as_fd(), FallocateFlags::empty(), 0, 4 << 20), Err(Errno::EPERM));
    memory.commit(memory.frames()).unwrap();
    map(&mapping, memory.frames()).unwrap();
    assert_eq!(byte_at(&mapping, 0), 0, "the next owner gets other pages");
    mapping.write(0, b"public").unwrap();
    assert_eq!(touch(&foreign), Err(Some(Errno::EIO as i32)));
}

#[test]
fn a_client_loses_a_revoked_segment_and_cannot_get_it_back() {
    a_client_loses_it(PageSize::Base4K);
}

#[test]
fn a_client_loses_a_revoked_segment_of_2m_pages_and_cannot_get_it_back() {
    let Some(_pages) = Borrowed::or_skip("revoke 2M", HUGE_2M, 4) else { return };
    a_client_loses_it(PageSize::Huge2M);
}

#[test]
fn a_client_cannot_forbid_the_revocation() {
    let (memory, mapping) = revocable(PageSize::Base4K);
    let client = client(&memory);
    for seal in [SealFlag::F_SEAL_SHRINK, SealFlag::F_SEAL_WRITE, SealFlag::F_SEAL_FUTURE_WRITE] {
        assert_eq!(fcntl(&client, FcntlArg::F_ADD_SEALS(seal)), Err(Errno::EPERM), "{seal:?}");
    }
    mapping.unmap(memory.frames()).unwrap();
    memory.prove_granules(memory.frames()).unwrap();
}

#[test]
fn memory_that_this_process_maps_is_not_revoked() {
    let (memory, mapping) = revocable(PageSize::Base4K);
    let stuck = memory.prove_granules(memory.frames()).unwrap_err();
    assert!(stuck.cause.meaning.contains("1024 frames are still mapped"), "{stuck}");
    assert_eq!(byte_at(&mapping, 0), b's', "nothing was taken");
}

#[test]
fn a_pin_keeps_the_old_page_and_never_sees_the_new_one() {
    let (memory, mapping) = revocable(PageSize::Base4K);
    let pin = KernelPin::vmsplice(&mapping, 0, 6).unwrap();
    mapping.unmap(memory.frames()).unwrap();
    memory.prove_granules(memory.frames()).unwrap();
    memory.commit(memory.frames()).unwrap();
    map(&mapping, memory.frames()).unwrap();
    mapping.write(0, b"public").unwrap();
    assert_eq!(pin.drain().unwrap(), b"secret");
}

#[test]
fn a_segment_that_a_client_truncated_is_named_before_it_is_mapped_and_is_whole_after_the_next_proof() {
    let (memory, mapping) = revocable(PageSize::Base4K);
    mapping.unmap(memory.frames()).unwrap();
    ftruncate(client(&memory), 0).unwrap();
    let short = memory.commit(memory.frames()).unwrap_err();
    assert!(short.reason.contains("a holder of the descriptor has truncated the segment"), "{short}");
    match map(&mapping, memory.frames()) {
        Err(MapError::Vanished(short)) => assert!(short.reason.contains("truncated"), "{short}"),
        other => panic!("{other:?}"),
    }
    memory.prove_granules(memory.frames()).unwrap();
    memory.commit(memory.frames()).unwrap();
    map(&mapping, memory.frames()).unwrap();
    assert_eq!(byte_at(&mapping, 0), 0);
}
