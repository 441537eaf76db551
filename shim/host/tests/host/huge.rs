//! The same on hugetlb pages of 2 MiB and 1 GiB, where the host has some or lets root reserve some.

use std::time::Instant;

use pageless::Mapping;
use pageless::{Backing, FRAME_BYTES, Order, Verdict};
use pageless_host::{HostBacking, HostMemory, MapError, PageSize, ProofMethod, pin::KernelPin};
use pageless_hugepages::{Borrowed, HUGE_1G, HUGE_2M};

use crate::{Guest, builder, byte_at, bytes_the_kernel_maps, map, part};

fn memory(page: PageSize, pages: u64, proof: ProofMethod) -> HostMemory {
    builder(proof).page(page).bytes(pages * page.bytes()).segment_bytes(page.bytes()).build().unwrap()
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let result = work();
    println!("{what}: {:?}", began.elapsed());
    result
}

fn seal_proof(page: PageSize) {
    let memory = memory(page, 1, ProofMethod::Seal);
    timed("commit", || memory.commit(memory.frames()).unwrap());
    let mapping = Guest::of(&memory, [(0, memory.frames())]);
    map(&mapping, memory.frames()).unwrap();
    assert_eq!(bytes_the_kernel_maps(&mapping), page.bytes());
    assert_eq!(mapping.promote(memory.frames()), Ok(()));
    mapping.write(page.bytes() - 6, b"secret").unwrap();
    let stuck = timed("seal while mapped", || memory.prove_granules(memory.frames()).unwrap_err());
    assert!(stuck.cause.meaning.contains("HostMapping"), "{stuck}");
    let pin = KernelPin::vmsplice(&mapping, page.bytes() - 6, 6).unwrap();
    mapping.unmap(memory.frames()).unwrap();
    let stuck = timed("seal while pinned", || memory.prove_granules(memory.frames()).unwrap_err());
    assert!(stuck.cause.meaning.contains("pin"), "{stuck}");
    assert_eq!(pin.drain().unwrap(), b"secret");
    timed("seal", || memory.prove_granules(memory.frames()).unwrap());
    memory.commit(memory.frames()).unwrap();
    map(&mapping, memory.frames()).unwrap();
    assert_eq!(byte_at(&mapping, page.bytes() - 6), 0);
}

#[test]
fn a_2m_segment_is_proven_by_a_seal_and_comes_back_empty() {
    let Some(_pages) = Borrowed::or_skip("seal 2M", HUGE_2M, 2) else { return };
    seal_proof(PageSize::Huge2M);
}

#[test]
fn a_1g_segment_is_proven_by_a_seal_and_comes_back_empty() {
    let Some(_pages) = Borrowed::or_skip("seal 1G", HUGE_1G, 1) else { return };
    seal_proof(PageSize::Huge1G);
}

fn unmap_proof(page: PageSize) {
    let memory = memory(page, 2, ProofMethod::ProcessUnmap);
    let frames = page.order().frames();
    assert_eq!(memory.granule(memory.frames().start().add(frames + 7)), part(&memory, frames, frames));
    memory.commit(memory.frames()).unwrap();
    let mapping = Guest::of(&memory, [(0, memory.frames())]);
    map(&mapping, memory.frames()).unwrap();
    mapping.write(0, b"secret").unwrap();
    mapping.write(page.bytes(), b"other").unwrap();
    mapping.unmap(part(&memory, 0, frames)).unwrap();
    timed("prove by unmap", || memory.prove_granules(part(&memory, 0, frames)).unwrap());
    memory.commit(part(&memory, 0, 1)).unwrap();
    map(&mapping, part(&memory, 0, frames)).unwrap();
    assert_eq!((byte_at(&mapping, 0), byte_at(&mapping, page.bytes())), (0, b'o'));
}

#[test]
fn a_2m_page_is_proven_by_its_unmap_and_comes_back_empty() {
    let Some(_pages) = Borrowed::or_skip("unmap 2M", HUGE_2M, 2) else { return };
    unmap_proof(PageSize::Huge2M);
}

#[test]
fn a_1g_page_is_proven_by_its_unmap_and_comes_back_empty() {
    let Some(_pages) = Borrowed::or_skip("unmap 1G", HUGE_1G, 2) else { return };
    unmap_proof(PageSize::Huge1G);
}

#[test]
fn part_of_a_huge_page_is_scrubbed_in_place_and_so_is_a_whole_one() {
    let Some(_pages) = Borrowed::or_skip("scrub 2M", HUGE_2M, 2) else { return };
    let memory = memory(PageSize::Huge2M, 2, ProofMethod::ProcessUnmap);
    memory.commit(memory.frames()).unwrap();
    let mapping = Guest::of(&memory, [(0, memory.frames())]);
    map(&mapping, memory.frames()).unwrap();
    mapping.write(0, &vec![7; 4 << 20]).unwrap();
    let pin = KernelPin::vmsplice(&mapping, 512 * FRAME_BYTES, 1).unwrap();
    memory.zero(part(&memory, 255, 3)).unwrap();
    let bytes: Vec<u8> = [254, 255, 256, 257, 258].iter().map(|frame| byte_at(&mapping, frame * FRAME_BYTES)).collect();
    assert_eq!(bytes, [7, 0, 0, 0, 7]);
    memory.zero(part(&memory, 512, 512)).unwrap();
    let mut page = vec![1; 2 << 20];
    mapping.read(2 << 20, &mut page).unwrap();
    assert!(page.iter().all(|byte| *byte == 0));
    assert_eq!(pin.drain().unwrap(), [0], "the same page, zeroed: the pin sees it");
    assert_eq!(byte_at(&mapping, 511 * FRAME_BYTES), 7);
}

#[test]
fn a_mapped_huge_page_is_not_cut() {
    let Some(_pages) = Borrowed::or_skip("cut 2M", HUGE_2M, 2) else { return };
    let memory = memory(PageSize::Huge2M, 2, ProofMethod::ProcessUnmap);
    memory.commit(memory.frames()).unwrap();
    let mapping = Guest::of(&memory, [(0, memory.frames())]);
    assert!(matches!(map(&mapping, part(&memory, 0, 511)), Err(MapError::Unaligned { .. })));
    map(&mapping, memory.frames()).unwrap();
    let stuck = mapping.unmap(part(&memory, 0, 700)).unwrap_err();
    assert_eq!(stuck.verdict, Verdict::Never);
    assert!(stuck.cause.meaning.contains("cannot be split"), "{stuck}");
    assert_eq!(mapping.translations(memory.frames()), [memory.frames()], "nothing was touched");
    mapping.unmap(part(&memory, 0, Order::MIB2.frames())).unwrap();
    mapping.unmap(part(&memory, 17, 3)).unwrap(); // nothing of it is mapped any more
}

#[test]
fn huge_pages_that_run_out_are_a_shortage_and_never_a_fault() {
    let Some(_pages) = Borrowed::alone_or_skip("shortage 2M", HUGE_2M, 2) else { return };
    let free = pageless_host::probe()[1].bytes / PageSize::Huge2M.bytes();
    let first = memory(PageSize::Huge2M, free, ProofMethod::ProcessUnmap);
    let second = memory(PageSize::Huge2M, 1, ProofMethod::ProcessUnmap);
    first.commit(first.frames()).unwrap();
    let short = second.commit(part(&second, 5, 1)).unwrap_err();
    assert!(short.reason.contains("0 2M pages free") && short.reason.contains("nr_hugepages"), "{short}");
    let mapping = Guest::uncommitted(&second);
    assert!(matches!(map(&mapping, second.frames()), Err(MapError::NotCommitted { .. })));
    drop(first);
    second.commit(part(&second, 5, 1)).unwrap();
    map(&mapping, second.frames()).unwrap();
    mapping.write(0, &[1]).unwrap();
}

#[test]
fn memory_of_a_named_node_is_taken_from_it_and_the_threads_policy_comes_back() {
    let Some(_pages) = Borrowed::or_skip("node 2M", HUGE_2M, 1) else { return };
    let memory = builder(ProofMethod::Seal).page(PageSize::Huge2M).node(0, 2 << 20).build().unwrap();
    memory.commit(memory.frames()).unwrap();
    memory.prove_granules(memory.frames()).unwrap();
    memory.commit(memory.frames()).unwrap();
}
