//! Huge pages that were there and are gone: an error with a name where a touch would be a SIGBUS.

use std::os::fd::BorrowedFd;

use nix::fcntl::{FallocateFlags, fallocate};
use pageless::{Backing, Order, Pool, Request};
use pageless_host::{HostBacking, HostMemory, MapError, PageSize, ProofMethod};

use crate::{Guest, builder, byte_at, map, map_all, part};
use pageless_hugepages::{Borrowed, HUGE_2M};

const PAGE: PageSize = PageSize::Huge2M;

fn memory(pages: u64) -> HostMemory {
    builder(ProofMethod::ProcessUnmap).page(PAGE).bytes(pages * PAGE.bytes()).build().unwrap()
}

/// What nobody should do with a descriptor that he was handed.
fn punch_first_page(fd: BorrowedFd<'_>) {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(fd, flags, 0, PAGE.bytes().try_into().unwrap()).unwrap();
}

/// Takes every free page of the host, as another program might.
fn take_the_rest() -> HostMemory {
    let rest = memory(pageless_host::probe()[1].bytes / PAGE.bytes());
    rest.commit(rest.frames()).unwrap();
    rest
}

#[test]
fn a_page_that_vanished_after_the_commit_is_an_error_at_the_next_mapping_and_the_next_commit() {
    let Some(_pages) = Borrowed::alone_or_skip("vanished 2M", HUGE_2M, 3) else { return };
    let memory = memory(2);
    let guest = Guest::of(&memory, [(0, memory.frames())]);
    let first = part(&memory, 0, Order::MIB2.frames());
    punch_first_page(memory.segment(first.start()).unwrap().fd());
    let rest = take_the_rest();
    let Err(MapError::Vanished(short)) = map(&guest, memory.frames()) else { panic!("mapped a page that is not there") };
    assert!(short.frames.overlaps(first) && short.reason.contains("0 2M pages free"), "{short}");
    assert!(!guest.is_mapped(first.start()));
    let short = memory.commit(first).unwrap_err();
    assert!(short.reason.contains("nr_hugepages"), "{short}");
    // The other page is as good as it was, and this one when the host has pages again.
    map(&guest, part(&memory, 512, 512)).unwrap();
    guest.write(2 << 20, &[7]).unwrap();
    drop(rest);
    map(&guest, first).unwrap();
    guest.write(0, &[7]).unwrap();
    assert_eq!(byte_at(&guest, 0), 7);
}

#[test]
fn a_page_that_vanished_is_taken_anew_where_the_host_has_one() {
    let Some(_pages) = Borrowed::alone_or_skip("vanished and refilled 2M", HUGE_2M, 2) else { return };
    let memory = memory(1);
    let guest = Guest::of(&memory, [(0, memory.frames())]);
    punch_first_page(memory.segment(memory.frames().start()).unwrap().fd());
    map(&guest, memory.frames()).unwrap();
    assert_eq!(byte_at(&guest, 0), 0);
}

#[test]
fn pages_that_others_took_between_build_and_commit_are_a_shortage_and_no_frame_is_lost() {
    let Some(_pages) = Borrowed::alone_or_skip("taken before the commit 2M", HUGE_2M, 2) else { return };
    let memory = memory(2);
    let pool = Pool::builder().backing(memory.clone()).build().unwrap();
    let rest = take_the_rest();
    let refused = pool.allocate(Request::bytes(2 * PAGE.bytes()).owner("vm-a")).unwrap_err();
    assert!(refused.to_string().contains("2M pages free"), "{refused}");
    assert_eq!(pool.stats().free, pool.stats().frames);
    drop(rest);
    drop(pool.allocate(Request::bytes(2 * PAGE.bytes()).owner("vm-a")).unwrap());
    assert_eq!(pool.reclaim().freed.frames(), 1024);
    drop(map_all(&memory));
}
