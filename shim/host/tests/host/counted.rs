//! Capacity against the kernel's own counters, and the watching of long commits.

use std::fs;
use std::sync::{Arc, Mutex};

use pageless::{Backing, FRAME_BYTES};
use pageless_host::{HostBacking, HostMemory, PageSize, Progress, ProofMethod};

use crate::{builder, map_all, part};
use pageless_hugepages::{Borrowed, HUGE_2M};

const PAGE: PageSize = PageSize::Huge2M;

/// The kernel's count of free pages, in bytes.
fn free() -> u64 {
    let file = PAGE.reservation_file().unwrap().with_file_name("free_hugepages");
    fs::read_to_string(file).unwrap().trim().parse::<u64>().unwrap() * PAGE.bytes()
}

#[test]
fn capacity_on_hugetlb_follows_the_kernels_counters_whoever_moves_them() {
    let Some(_pages) = Borrowed::alone_or_skip("capacity 2M", HUGE_2M, 4) else { return };
    let bytes = free();
    let memory = builder(ProofMethod::ProcessUnmap).page(PAGE).bytes(bytes).segment_bytes(PAGE.bytes()).build().unwrap();
    let capacity = memory.capacity();
    assert_eq!((capacity.bytes, capacity.committed, capacity.withdrawn, capacity.available), (bytes, Some(0), 0, bytes));
    memory.commit(part(&memory, 5, 1)).unwrap();
    assert_eq!(memory.capacity().committed, Some(PAGE.bytes()), "a page for a frame");
    assert_eq!(memory.capacity().available, free());
    let other = builder(ProofMethod::Seal).page(PAGE).bytes(PAGE.bytes()).build().unwrap();
    other.commit(other.frames()).unwrap();
    assert_eq!(free(), bytes - 2 * PAGE.bytes());
    assert_eq!(memory.capacity().available, free(), "somebody else took a page");
    memory.keep_shut(part(&memory, 5, 1));
    memory.keep_shut(part(&memory, 7, 1));
    assert_eq!(memory.capacity().withdrawn, PAGE.bytes(), "a page is shut as a whole, and once");
    memory.lift(memory.frames());
    memory.prove_granules(part(&memory, 0, 512)).unwrap();
    assert_eq!((memory.capacity().withdrawn, memory.capacity().committed), (0, Some(PAGE.bytes())), "kept for the next owner");
    drop(other);
    assert_eq!(memory.capacity().available, bytes - PAGE.bytes());
    assert!(memory.capacity().to_string().starts_with(&format!("{} MiB in all, 2 committed, 0 withdrawn", bytes >> 20)));
}

#[test]
fn capacity_of_a_node_is_no_more_than_the_node_has() {
    let Some(_pages) = Borrowed::alone_or_skip("capacity of a node 2M", HUGE_2M, 2) else { return };
    let node = "/sys/devices/system/node/node0/hugepages/hugepages-2048kB/free_hugepages";
    let Ok(text) = fs::read_to_string(node) else {
        return pageless_hugepages::skip("capacity of a node 2M", "this kernel counts no pages by node");
    };
    let on_node = text.trim().parse::<u64>().unwrap() * PAGE.bytes();
    let memory = builder(ProofMethod::Seal).page(PAGE).node(0, free()).build().unwrap();
    assert_eq!(memory.capacity().available, on_node.min(free()));
}

#[test]
fn capacity_of_4k_memory_counts_pages_that_were_touched() {
    let memory = builder(ProofMethod::ProcessUnmap).bytes(4 << 20).build().unwrap();
    let guest = map_all(&memory);
    assert_eq!(memory.capacity().committed, Some(0), "taken when touched");
    guest.write(0, &vec![7; 1 << 20]).unwrap();
    let capacity = memory.capacity();
    assert_eq!((capacity.bytes, capacity.committed, capacity.available), (4 << 20, Some(1 << 20), 3 << 20));
    memory.keep_shut(part(&memory, 3, 2));
    assert_eq!(memory.capacity().withdrawn, 2 * FRAME_BYTES);
}

/// What was told, and how much was committed at that moment.
type Told = (Progress, Option<u64>);

#[test]
fn a_long_commit_tells_how_far_it_has_come_and_may_be_asked_meanwhile() {
    let Some(_pages) = Borrowed::alone_or_skip("progress 2M", HUGE_2M, 3) else { return };
    let told: Arc<Mutex<Vec<Told>>> = Arc::default();
    let asked: Arc<Mutex<Option<HostMemory>>> = Arc::default();
    let (tell, ask) = (told.clone(), asked.clone());
    let watched = builder(ProofMethod::Seal).page(PAGE).bytes(3 * PAGE.bytes()).segment_bytes(2 * PAGE.bytes());
    let watched = watched.progress(move |progress| {
        let committed = ask.lock().unwrap().as_ref().and_then(|memory| memory.capacity().committed);
        tell.lock().unwrap().push((progress, committed));
    });
    let memory = watched.build().unwrap();
    *asked.lock().unwrap() = Some(memory.clone());
    memory.commit(part(&memory, 0, 1)).unwrap();
    memory.commit(memory.frames()).unwrap();
    memory.commit(memory.frames()).unwrap();
    asked.lock().unwrap().take();
    let at = |filled, wanted, committed| {
        let bytes = |pages| pages * PAGE.bytes();
        (Progress { filled: bytes(filled), wanted: bytes(wanted) }, Some(bytes(committed)))
    };
    // One page for one frame; then the two that are missing, over two segments; then none.
    assert_eq!(*told.lock().unwrap(), [at(1, 1, 1), at(1, 2, 2), at(2, 2, 3)]);
}
