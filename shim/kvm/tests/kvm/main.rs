//! KVM beside pageless: against a stand-in where something must fail, and against the real `/dev/kvm` where there is one.
//!
//! A test that lacks something writes a line that begins `skipped: ` straight to stderr, past libtest's capture, so that a
//! run can count them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_possible_truncation)]

mod answers;
mod devices;
mod exits;
mod fake;
mod real;
mod requests;
mod slots;
mod small_vmm;
mod stage2;
mod vm_memory_traits;

use std::sync::Arc;

use pageless::{Mapping, Pool, Request};
use pageless_host::{HostMapping, HostMemory, ProofMethod, Vacant};
use pageless_hugepages::skip;
use pageless_kvm::{Guest, Layout, SlotTable, Stage2, Vm};

const MIB: u64 = 1 << 20;

/// Memory of this process, proven by the page.
fn memory(bytes: u64) -> HostMemory {
    HostMemory::builder().bytes(bytes).proof(ProofMethod::ProcessUnmap).build().unwrap()
}

/// A pool, and a guest who has all of it on `vm`, laid out from guest-physical 0 on.
struct World {
    pool: Pool,
    memory: HostMemory,
    guest: Guest,
}

impl World {
    fn on(vm: Arc<dyn Vm>, bytes: u64) -> Self {
        Self::with(vm, bytes, [], [])
    }

    fn with(
        vm: Arc<dyn Vm>,
        bytes: u64,
        devices: impl IntoIterator<Item = (String, Arc<dyn Mapping>)>,
        last: impl IntoIterator<Item = (String, Arc<dyn Mapping>)>,
    ) -> Self {
        let memory = memory(bytes);
        let pool = Pool::builder().backing(memory.clone()).build().unwrap();
        Self::of(vm, pool, memory, bytes, devices, last)
    }

    /// A guest who has `bytes` bytes of a pool.
    fn of(
        vm: Arc<dyn Vm>,
        pool: Pool,
        memory: HostMemory,
        bytes: u64,
        devices: impl IntoIterator<Item = (String, Arc<dyn Mapping>)>,
        last: impl IntoIterator<Item = (String, Arc<dyn Mapping>)>,
    ) -> Self {
        let ram = pool.allocate(Request::bytes(bytes).owner("guest")).unwrap();
        let view = Arc::new(HostMapping::of(&memory, &ram).unwrap());
        let host = Arc::new(HostMapping::of_with_vacant(&memory, &ram, Vacant::Scratch).unwrap());
        let layout = Layout::around(bytes, 0..0).unwrap();
        let stage2 = Arc::new(Stage2::new(&SlotTable::new(vm), view, layout).unwrap());
        let guest = Guest::new(ram, devices, stage2, host, last).unwrap();
        Self { pool, memory, guest }
    }

    /// Gives everything back and checks that nothing is missing.
    fn end(self) {
        let Self { pool, guest, memory: _memory } = self;
        drop(guest);
        let reclaimed = pool.reclaim();
        let stats = pool.stats();
        assert_eq!(stats.free, stats.frames, "{reclaimed:?}");
        assert!(pool.verify().faults.is_empty());
    }
}
