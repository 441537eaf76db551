//! `HostMapping` over this process's real page tables.

use std::sync::atomic::{AtomicBool, Ordering};

use pageless::{Backing, FRAME_BYTES, Mapping, Order, PfnRange, Refusal};
use pageless_host::{HostBacking, HostMapping, HostMemory, MapError, ProofMethod, pin::KernelPin};

use crate::{Guest, builder, byte_at, bytes_the_kernel_maps, map, map_all, part};

fn memory(bytes: u64) -> HostMemory {
    let memory = builder(ProofMethod::ProcessUnmap).bytes(bytes).build().unwrap();
    memory.commit(memory.frames()).unwrap();
    memory
}

#[test]
fn extents_are_laid_out_by_guest_offset_and_join_across_segments() {
    let memory = memory(8 << 20);
    let extents = [(0, part(&memory, 1024, 512)), (2 << 20, part(&memory, 0, 512)), (4 << 20, part(&memory, 512, 512))];
    let mapping = Guest::of(&memory, extents);
    assert_eq!(mapping.bytes(), 6 << 20);
    map(&mapping, part(&memory, 0, 1536)).unwrap();
    let pattern: Vec<u8> = (0..6 << 20).map(|at: u32| (at / 4096 % 251) as u8).collect();
    mapping.write(0, &pattern).unwrap();
    let mut found = vec![0; pattern.len()];
    mapping.read(0, &mut found).unwrap();
    assert!(found == pattern);
    // Frame 0 lies at guest offset 2 MiB.
    let handle = memory.segment(memory.frames().start()).unwrap();
    let mut byte = [0];
    nix::sys::uio::pread(handle.fd(), &mut byte, 0).unwrap();
    assert_eq!(byte[0], (512 % 251) as u8);
}

#[test]
fn what_is_not_mapped_cannot_be_read_written_or_pinned_and_the_kernel_agrees() {
    let memory = memory(4 << 20);
    let mapping = Guest::of(&memory, [(0, memory.frames())]);
    assert_eq!(bytes_the_kernel_maps(&mapping), 0);
    assert_eq!(mapping.read(0, &mut [0]), Err(MapError::Unmapped { offset: 0, done: 0 }));
    map(&mapping, part(&memory, 2, 3)).unwrap();
    assert_eq!(bytes_the_kernel_maps(&mapping), 3 * FRAME_BYTES);
    assert_eq!(mapping.translations(memory.frames()), [part(&memory, 2, 3)]);
    assert!(mapping.is_mapped(part(&memory, 4, 1).start()) && !mapping.is_mapped(part(&memory, 5, 1).start()));
    let mut buffer = vec![9; 5 * 4096];
    let past = mapping.read(3 * FRAME_BYTES, &mut buffer);
    assert_eq!(past, Err(MapError::Unmapped { offset: 5 * FRAME_BYTES, done: 2 * 4096 }));
    assert!(buffer[..2 * 4096].iter().all(|byte| *byte == 0) && buffer[2 * 4096] == 9);
    assert_eq!(mapping.write(FRAME_BYTES, &[1]), Err(MapError::Unmapped { offset: FRAME_BYTES, done: 0 }));
    assert!(matches!(mapping.read(4 << 20, &mut [0]), Err(MapError::Outside { .. })));
    assert!(matches!(mapping.read(u64::MAX, &mut [0]), Err(MapError::Outside { .. })));
    assert!(matches!(KernelPin::vmsplice(&mapping, 4 * FRAME_BYTES, 8192), Err(MapError::Unmapped { .. })));
}

#[test]
fn an_unmapped_run_is_gone_from_the_page_tables_and_its_neighbours_are_not() {
    let memory = memory(4 << 20);
    let mapping = map_all(&memory);
    mapping.write(0, &vec![7; 4 << 20]).unwrap();
    mapping.unmap(part(&memory, 510, 4)).unwrap();
    assert_eq!(bytes_the_kernel_maps(&mapping), (4 << 20) - 4 * FRAME_BYTES);
    assert_eq!(mapping.translations(memory.frames()), [part(&memory, 0, 510), part(&memory, 514, 510)]);
    assert_eq!(byte_at(&mapping, 509 * FRAME_BYTES), 7);
    assert!(mapping.read(510 * FRAME_BYTES, &mut [0]).is_err());
    mapping.unmap(part(&memory, 510, 4)).unwrap();
    map(&mapping, part(&memory, 0, 1024)).unwrap();
    assert_eq!(byte_at(&mapping, 510 * FRAME_BYTES), 7, "unmapping keeps the contents");
}

#[test]
fn mapped_runs_are_not_copied_into_children_and_still_merge() {
    let memory = memory(4 << 20);
    let mapping = Guest::of(&memory, [(0, memory.frames())]);
    for frame in 0..64 {
        map(&mapping, part(&memory, frame, 1)).unwrap();
    }
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let name = format!("memfd:pageless:{}", part(&memory, 0, 512));
    let areas: Vec<_> = smaps.split_inclusive("VmFlags:").zip(smaps.split("VmFlags:").skip(1)).collect();
    let ours: Vec<_> = areas.iter().filter(|(area, _)| area.contains(&name)).collect();
    assert_eq!(ours.len(), 1, "64 adjacent frames are one mapping");
    assert!(ours[0].1.lines().next().unwrap().contains(" dc "), "dc: not copied on fork");
}

#[test]
fn a_dropped_mapping_leaves_nothing_mapped() {
    let memory = memory(2 << 20);
    let mapping = map_all(&memory);
    let name = format!("memfd:pageless:{}", memory.frames());
    let maps = || std::fs::read_to_string("/proc/self/maps").unwrap();
    assert!(maps().contains(&name));
    drop(mapping);
    assert!(!maps().contains(&name));
}

#[test]
fn copies_never_fault_while_their_frames_come_and_go() {
    let memory = memory(4 << 20);
    let mapping = map_all(&memory);
    let enough = AtomicBool::new(false);
    let hole = part(&memory, 300, 24);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = vec![0; 2 << 20];
            let (mut whole, mut cut) = (0, 0);
            while whole < 20 || cut < 20 {
                match mapping.read(0, &mut buffer) {
                    Ok(()) => whole += 1,
                    Err(MapError::Unmapped { offset, .. }) => {
                        assert!((300..324).contains(&(offset / FRAME_BYTES)), "{offset:#x}");
                        cut += 1;
                    }
                    Err(other) => panic!("{other}"),
                }
            }
            enough.store(true, Ordering::Relaxed);
        });
        while !enough.load(Ordering::Relaxed) {
            mapping.unmap(hole).unwrap();
            std::thread::yield_now();
            map(&mapping, hole).unwrap();
            std::thread::yield_now();
        }
    });
}

#[test]
fn wrong_extents_and_foreign_frames_are_refused_by_name() {
    let (memory, other) = (memory(4 << 20), memory(4 << 20));
    assert_eq!(HostMapping::new(&memory, []).unwrap_err(), MapError::Empty);
    let overlap = HostMapping::new(&memory, [(0, part(&memory, 0, 2)), (4096, part(&memory, 8, 2))]);
    assert!(matches!(overlap, Err(MapError::Overlap { .. })));
    let twice = HostMapping::new(&memory, [(0, part(&memory, 0, 2)), (8192, part(&memory, 1, 2))]);
    assert!(matches!(twice, Err(MapError::Overlap { .. })));
    assert!(matches!(HostMapping::new(&memory, [(1, memory.frames())]), Err(MapError::Unaligned { offset: 1, .. })));
    assert!(matches!(HostMapping::new(&memory, [(0, other.frames())]), Err(MapError::Foreign { .. })));
    assert!(matches!(HostMapping::new(&memory, [(u64::MAX - 4095, memory.frames())]), Err(MapError::NoAddresses { .. })));
    let mapping = Guest::of(&memory, [(0, part(&memory, 0, 8))]);
    assert!(matches!(map(&mapping, part(&memory, 7, 2)), Err(MapError::Foreign { .. })));
    let empty = builder(ProofMethod::Seal).bytes(4 << 20).build().unwrap();
    let mapping = Guest::uncommitted(&empty);
    assert!(matches!(map(&mapping, empty.frames()), Err(MapError::NotCommitted { .. })));
}

#[test]
fn a_block_is_promoted_only_when_it_is_mapped_in_one_piece() {
    let memory = memory(8 << 20);
    let mapping = map_all(&memory);
    let block = PfnRange::block(memory.frames().start(), Order::MIB2);
    assert_eq!(mapping.promote(block), Ok(()));
    mapping.unmap(part(&memory, 17, 1)).unwrap();
    assert!(matches!(mapping.promote(block), Err(Refusal::Other(_))));
    assert!(matches!(mapping.promote(part(&memory, 0, 3)), Err(Refusal::Other(_))));
    let crooked = Guest::of(&memory, [(4096, memory.frames())]);
    map(&crooked, memory.frames()).unwrap();
    assert!(matches!(crooked.promote(block), Err(Refusal::Other(_))));
}

#[test]
fn a_pin_that_no_pipe_can_hold_is_refused_and_leaves_nothing_pinned() {
    let memory = builder(ProofMethod::Seal).bytes(64 << 20).segment_bytes(64 << 20).build().unwrap();
    let mapping = map_all(&memory);
    let pin = KernelPin::vmsplice(&mapping, 0, 48 << 20);
    let Err(MapError::ShortPin { pinned, asked }) = pin else { panic!("{pin:?}") };
    assert!(pinned < asked && asked == 48 << 20);
    mapping.unmap(memory.frames()).unwrap();
    memory.prove_granules(memory.frames()).unwrap();
}
