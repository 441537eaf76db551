//! I12: a withdrawn page is never punched, replaced or closed while its mark stands.

use std::os::fd::AsRawFd;

use pageless::{Backing, FRAME_BYTES};
use pageless_host::{HostBacking, ProofMethod, keeper};

use crate::{builder, byte_at, map_all, open_descriptors, part};

#[test]
fn a_segment_with_a_withdrawn_frame_is_not_replaced_until_the_mark_is_lifted() {
    let memory = builder(ProofMethod::Seal).bytes(4 << 20).build().unwrap();
    let mapping = map_all(&memory);
    let marked = part(&memory, 3, 1);
    memory.keep_shut(marked);
    mapping.unmap(memory.frames()).unwrap();
    let before = memory.segment(marked.start()).unwrap().fd().as_raw_fd();
    let stuck = memory.prove_granules(memory.frames()).unwrap_err();
    assert_eq!(stuck.at, part(&memory, 0, 512));
    assert!(stuck.cause.meaning.contains("withdrawn"), "{stuck}");
    assert_eq!(memory.segment(marked.start()).unwrap().fd().as_raw_fd(), before);
    // Not even sealed: the other frames of the segment are still somebody's.
    assert_eq!(nix::sys::uio::pwrite(memory.segment(marked.start()).unwrap().fd(), b"x", 0), Ok(1));
    memory.lift(marked);
    memory.prove_granules(memory.frames()).unwrap();
    assert!(memory.segment(marked.start()).is_none());
}

#[test]
fn a_withdrawn_page_is_neither_scrubbed_nor_punched() {
    let memory = builder(ProofMethod::ProcessUnmap).bytes(4 << 20).build().unwrap();
    let mapping = map_all(&memory);
    let write = || [595, 600, 605].iter().for_each(|frame| mapping.write(frame * FRAME_BYTES, &[7]).unwrap());
    let read = || [595, 600, 605].map(|frame| byte_at(&mapping, frame * FRAME_BYTES));
    let marked = part(&memory, 600, 1);
    memory.keep_shut(marked);
    assert_eq!(memory.withdrawn().runs(), [marked]);
    // A stuck run says that what lies before it is done, and that what lies behind is not touched.
    write();
    assert_eq!(memory.zero(part(&memory, 590, 20)).unwrap_err().at, marked);
    assert_eq!(read(), [0, 7, 7]);
    write();
    mapping.unmap(memory.frames()).unwrap();
    assert_eq!(memory.prove_granules(part(&memory, 590, 20)).unwrap_err().at, marked);
    crate::map(&mapping, memory.frames()).unwrap();
    assert_eq!(read(), [0, 7, 7]);
    mapping.unmap(memory.frames()).unwrap();
    // Its neighbours lose nothing: the granule is one frame.
    memory.prove_granules(part(&memory, 590, 10)).unwrap();
    memory.prove_granules(part(&memory, 601, 10)).unwrap();
    crate::map(&mapping, marked).unwrap();
    assert_eq!(byte_at(&mapping, 600 * FRAME_BYTES), 7);
    memory.lift(marked);
    assert!(memory.withdrawn().is_empty());
}

#[test]
fn dropped_memory_leaves_its_withdrawn_segments_open_and_closes_the_others() {
    let memory = builder(ProofMethod::Seal).bytes(6 << 20).build().unwrap();
    let mapping = map_all(&memory);
    let segments = [0, 512, 1024].map(|at| part(&memory, at, 512));
    memory.keep_shut(part(&memory, 700, 2));
    assert_eq!(segments.map(open_descriptors), [1, 1, 1]);
    let held = keeper::held();
    drop(memory);
    assert_eq!(segments.map(open_descriptors), [1, 1, 1], "the mapping still names the memory");
    drop(mapping);
    assert_eq!(segments.map(open_descriptors), [0, 1, 0]);
    assert_eq!(keeper::held(), held + 1);
}

#[test]
fn dropped_memory_without_marks_is_closed() {
    let memory = builder(ProofMethod::Seal).bytes(2 << 20).build().unwrap();
    let (segment, mapping) = (memory.frames(), map_all(&memory));
    memory.keep_shut(part(&memory, 7, 1));
    memory.lift(part(&memory, 7, 1));
    drop((memory, mapping));
    assert_eq!(open_descriptors(segment), 0);
}
