//! From one owner to the next each frame is zeroed once: never twice, and never not at all.
//!
//! The backings count what they have zeroed. That the count is true is seen from the other side: the next owner reads zeroes,
//! so it was not less, and a proof that is followed by a commit counts a frame once, so it was not more.

use pageless::{Pool, Request};
use pageless_host::{FileMemory, GuestMemfd, HostBacking, HostMemory, PageSize, ProofMethod, SharedSide};

use crate::filesystems::{folders, with_mount};
use crate::guest_memfd::Vm;
use crate::reservation::Reservation;
use crate::{builder, is_zero, map, owner, unique_base, write_all};

/// Three owners, one after another; the second converts a quarter to shared and back and to shared again.
fn lives<B: HostBacking + Clone + 'static>(memory: &B, zeroed: impl Fn(&B) -> u64) {
    let frames = memory.frames().frames();
    let pool = Pool::builder().backing(memory.clone()).build().unwrap();
    let first = owner(&pool, memory);
    assert!(is_zero(&first));
    write_all(&first);
    let before = zeroed(memory);
    drop(first);
    assert_eq!(pool.reclaim().freed.frames(), frames);
    let second = owner(&pool, memory);
    assert_eq!(zeroed(memory) - before, frames, "from the first owner to the second: {memory:?}");
    assert!(is_zero(&second));
    write_all(&second);
    let quarter = memory.frames().bytes() / 4;
    second.ram.share(0..quarter).unwrap();
    assert_eq!(zeroed(memory) - before, frames + frames / 4, "a share zeroes its range");
    second.ram.share(0..quarter).unwrap();
    second.ram.unshare(0..quarter).unwrap();
    assert_eq!(zeroed(memory) - before, frames + frames / 4, "a second one has nothing to do, and an unshare keeps contents");
    map(&second, memory.frames()).unwrap();
    write_all(&second);
    drop(second);
    let _ = pool.reclaim();
    // An owner who never maps anything, and so leaves nothing.
    drop(pool.allocate(Request::bytes(memory.frames().bytes()).owner("third")).unwrap());
    let _ = pool.reclaim();
    assert_eq!(zeroed(memory) - before, 3 * frames + frames / 4);
    assert!(is_zero(&owner(&pool, memory)));
}

#[test]
fn frames_of_a_memfd_are_zeroed_once_from_owner_to_owner() {
    lives(&builder(ProofMethod::ProcessUnmap).bytes(4 << 20).build().unwrap(), HostMemory::zeroed);
    lives(&builder(ProofMethod::Seal).bytes(4 << 20).build().unwrap(), HostMemory::zeroed);
}

#[test]
fn huge_pages_are_zeroed_once_from_owner_to_owner() {
    let Some(_pages) = Reservation::take("zeroed once 2M", PageSize::Huge2M, 4) else { return };
    for proof in [ProofMethod::ProcessUnmap, ProofMethod::Seal] {
        let memory = builder(proof).page(PageSize::Huge2M).bytes(8 << 20).build().unwrap();
        lives(&memory, HostMemory::zeroed);
    }
}

#[test]
fn frames_of_a_guest_memfd_are_zeroed_once_from_owner_to_owner() {
    for side in [SharedSide::InPlace, SharedSide::Beside] {
        let Some(vm) = Vm::with(&format!("zeroed once, guest_memfd {side}"), side) else { continue };
        lives(&vm.memory(side, 4 << 20), GuestMemfd::zeroed);
    }
}

fn file(folder: &std::path::Path, bytes: u64) -> FileMemory {
    FileMemory::at(folder.join("memory")).base(unique_base()).bytes(bytes).build().unwrap()
}

#[test]
fn frames_of_a_file_are_zeroed_once_from_owner_to_owner() {
    folders().iter().for_each(|folder| lives(&file(folder.path(), 4 << 20), FileMemory::zeroed));
}

#[test]
fn frames_of_a_file_that_cannot_be_punched_are_zeroed_once_from_owner_to_owner() {
    with_mount("zeroed once on ramfs", "ramfs", "mode=0700", |folder| lives(&file(folder, 4 << 20), FileMemory::zeroed));
}

#[test]
fn a_file_on_hugetlbfs_is_zeroed_once_from_owner_to_owner() {
    let Some(_pages) = Reservation::take("zeroed once on hugetlbfs 2M", PageSize::Huge2M, 4) else { return };
    with_mount("zeroed once on hugetlbfs 2M", "hugetlbfs", "pagesize=2M", |folder| {
        lives(&file(folder, 8 << 20), FileMemory::zeroed);
    });
}
