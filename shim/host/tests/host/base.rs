//! Commit, scrub and prove on 4 KiB pages, in one process.

use pageless::{Backing, FRAME_BYTES, Identity, Pfn, PfnRange, Verdict};
use pageless_host::{HostBacking, HostMemory, PageSize, ProofMethod, Zeroing, probe};

use crate::{Guest, builder, byte_at, map, map_all, part};

#[test]
fn frames_are_contiguous_from_the_base_and_their_numbers_are_synthetic() {
    let memory = builder(ProofMethod::Seal).bytes(6 << 20).build().unwrap();
    assert_eq!(memory.identity(), Identity::Synthetic);
    assert_eq!(memory.frames().bytes(), 6 << 20);
    assert_eq!(memory.nodes().len(), 1);
    assert_eq!(memory.nodes()[0].frames, memory.frames());
    assert_eq!(memory.granule(memory.frames().start()).bytes(), 2 << 20);
    assert_eq!(memory.proof().granule_frames, 512);
}

#[test]
fn the_granule_is_a_page_in_one_process_and_a_segment_under_a_seal() {
    let unmap = builder(ProofMethod::ProcessUnmap).bytes(4 << 20).build().unwrap();
    let pfn = unmap.frames().start().add(700);
    assert_eq!(unmap.granule(pfn), PfnRange::single(pfn));
    assert_eq!(unmap.proof().granule_frames, 1);
    let seal = builder(ProofMethod::Seal).bytes(4 << 20).segment_bytes(1 << 20).build().unwrap();
    assert_eq!(seal.granule(seal.frames().start().add(700)), part(&seal, 512, 256));
}

#[test]
fn nothing_is_open_before_the_first_commit_and_proving_nothing_succeeds() {
    let memory = builder(ProofMethod::Seal).bytes(4 << 20).build().unwrap();
    assert_eq!(crate::open_descriptors(part(&memory, 0, 512)), 0);
    assert!(memory.segment(memory.frames().start()).is_none());
    memory.prove_granules(memory.frames()).unwrap();
    memory.commit(part(&memory, 0, 1)).unwrap();
    assert_eq!(crate::open_descriptors(part(&memory, 0, 512)), 1);
    assert_eq!(crate::open_descriptors(part(&memory, 512, 512)), 0);
}

#[test]
fn a_frame_lies_at_its_offset_in_its_segment() {
    let memory = builder(ProofMethod::Seal).bytes(4 << 20).build().unwrap();
    let mapping = map_all(&memory);
    mapping.write((512 + 3) * FRAME_BYTES, b"here").unwrap();
    let handle = memory.segment(memory.frames().start().add(512 + 3)).unwrap();
    assert_eq!(handle.offset(), 3 * FRAME_BYTES);
    assert_eq!(handle.frames(), part(&memory, 515, 509));
    let mut found = [0; 4];
    nix::sys::uio::pread(handle.fd(), &mut found, handle.offset().try_into().unwrap()).unwrap();
    assert_eq!(&found, b"here");
}

#[test]
fn scrubbing_zeroes_its_frames_and_no_neighbour() {
    let memory = builder(ProofMethod::ProcessUnmap).bytes(4 << 20).build().unwrap();
    let mapping = map_all(&memory);
    for frame in [509, 510, 511, 512, 513, 514] {
        mapping.write(frame * FRAME_BYTES, &[7]).unwrap();
    }
    memory.zero(part(&memory, 510, 4)).unwrap();
    let bytes: Vec<u8> = [509, 510, 511, 512, 513, 514].iter().map(|frame| byte_at(&mapping, frame * FRAME_BYTES)).collect();
    assert_eq!(bytes, [7, 0, 0, 0, 0, 7]);
}

#[test]
fn a_proof_in_one_process_leaves_zeroes_for_the_next_owner() {
    let memory = builder(ProofMethod::ProcessUnmap).bytes(4 << 20).build().unwrap();
    let mapping = map_all(&memory);
    mapping.write(5 * FRAME_BYTES, b"secret").unwrap();
    let frame = part(&memory, 5, 1);
    mapping.unmap(frame).unwrap();
    memory.prove_granules(frame).unwrap();
    map(&mapping, frame).unwrap();
    assert_eq!(byte_at(&mapping, 5 * FRAME_BYTES), 0);
}

#[test]
fn without_zeroing_the_next_owner_reads_the_last_ones_bytes() {
    let memory = builder(ProofMethod::ProcessUnmap).bytes(4 << 20).zeroing(Zeroing::Off).build().unwrap();
    let mapping = map_all(&memory);
    mapping.write(5 * FRAME_BYTES, b"secret").unwrap();
    let frame = part(&memory, 5, 1);
    mapping.unmap(frame).unwrap();
    memory.zero(frame).unwrap();
    memory.prove_granules(frame).unwrap();
    map(&mapping, frame).unwrap();
    assert_eq!(byte_at(&mapping, 5 * FRAME_BYTES), b's');
}

#[test]
fn a_frame_that_another_mapping_of_this_process_still_has_is_not_proven() {
    let memory = builder(ProofMethod::ProcessUnmap).bytes(4 << 20).build().unwrap();
    let asked = map_all(&memory);
    let forgotten = Guest::of(&memory, [(0, part(&memory, 0, 16))]);
    map(&forgotten, part(&memory, 3, 2)).unwrap();
    asked.unmap(part(&memory, 0, 16)).unwrap();
    let stuck = memory.prove_granules(part(&memory, 0, 16)).unwrap_err();
    assert!(matches!(stuck.verdict, Verdict::Retry { .. }));
    assert!(stuck.cause.meaning.contains("2 frames"), "{stuck}");
    drop(forgotten);
    memory.prove_granules(part(&memory, 0, 16)).unwrap();
}

#[test]
fn a_proof_of_part_of_a_granule_is_refused() {
    let memory = builder(ProofMethod::Seal).bytes(4 << 20).build().unwrap();
    memory.commit(memory.frames()).unwrap();
    let stuck = memory.prove_granules(part(&memory, 0, 511)).unwrap_err();
    assert!(stuck.cause.meaning.contains("whole granules"), "{stuck}");
}

#[test]
fn memory_of_a_named_node_is_that_nodes() {
    let memory = builder(ProofMethod::Seal).node(0, 4 << 20).build().unwrap();
    let mapping = map_all(&memory);
    mapping.write(0, &[1]).unwrap();
    let maps = std::fs::read_to_string("/proc/self/numa_maps");
    let Ok(maps) = maps else {
        return pageless_hugepages::skip("memory_of_a_named_node_is_that_nodes", "this kernel has no numa_maps");
    };
    let name = format!("memfd:pageless:{}", part(&memory, 0, 512));
    let line = maps.lines().find(|line| line.contains(&name)).unwrap();
    assert!(line.contains("bind:0"), "{line}");
}

#[test]
fn commit_of_base_pages_takes_no_memory_until_it_is_touched() {
    let memory = builder(ProofMethod::Seal).bytes(64 << 20).build().unwrap();
    memory.commit(memory.frames()).unwrap();
    let handle = memory.segment(memory.frames().start()).unwrap();
    assert_eq!(nix::sys::stat::fstat(handle.fd()).unwrap().st_blocks, 0);
    memory.zero(memory.frames()).unwrap();
    assert_eq!(nix::sys::stat::fstat(handle.fd()).unwrap().st_blocks, 0);
}

#[test]
fn base_pages_are_always_on_offer() {
    let [_, _, base] = probe();
    assert_eq!((base.page, base.why_not), (PageSize::Base4K, None));
    assert!(HostMemory::builder().bytes(4096).base(Pfn::new(1)).build().is_ok());
}
