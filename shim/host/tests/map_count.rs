//! The process's limit on mappings (vm.max_map_count), reached for real. Alone in its process, since it starves everyone.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::Write;
use std::sync::Arc;

use pageless::{FRAME_BYTES, Pool, Request};
use pageless_host::{HostBacking, HostMapping, HostMemory, MapError, ProofMethod};

#[test]
fn scattered_runs_beyond_the_limit_are_refused_by_name_and_can_all_be_unmapped() {
    let frames = 70_000_u64;
    let limit: u64 = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
    if limit > frames - 1000 {
        let line = format!("\nskipped: map_count: vm.max_map_count is {limit}, too many to reach here\n");
        let _ = std::io::stderr().write_all(line.as_bytes());
        return;
    }
    let memory = HostMemory::builder().bytes(frames * FRAME_BYTES).proof(ProofMethod::ProcessUnmap).build().unwrap();
    let pool = Pool::builder().backing(memory.clone()).build().unwrap();
    let ram = pool.allocate(Request::bytes(memory.frames().bytes()).owner("scattered")).unwrap();
    // Back to front, so that no two neighbours in the guest are neighbours in the file.
    let frame = |at: u64| memory.frames().sub(frames - 1 - at, 1).unwrap();
    let mapping = Arc::new(HostMapping::new(&memory, (0..frames).map(|at| (at * FRAME_BYTES, frame(at)))).unwrap());
    ram.attach("host", mapping.clone()).unwrap();
    let guard = ram.map_guard("host", 0..memory.frames().bytes()).unwrap();
    let mut mapped = 0;
    let refused = loop {
        match mapping.map(&guard, frame(mapped)) {
            Ok(()) => mapped += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, MapError::NoRoom { frames: frame(mapped), limit });
    assert!(mapped > limit - 1000, "{mapped}");
    mapping.write(0, &[7]).unwrap();
    let began = std::time::Instant::now();
    mapping.unmap(memory.frames()).unwrap();
    println!("{mapped} single frames unmapped in {:?}", began.elapsed());
    assert!(mapping.translations(memory.frames()).is_empty());
    mapping.map(&guard, frame(mapped)).unwrap();
}
