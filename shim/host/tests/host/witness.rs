//! A conversion to private that looks for pins, and addresses that never fault.

use std::sync::Arc;

use nix::errno::Errno;
use pageless::{
    Allocation, Cause, Convert, FRAME_BYTES, MapGuard, Mapping, Operation, PfnRange, Pool, Refusal, Refused, Request, Stuck,
    Withdrawal,
};
use pageless_host::{HostBacking, HostMapping, HostMemory, PageSize, ProofMethod, SealWitness, Vacant, keeper, pin::KernelPin};

use pageless_hugepages::{Borrowed, HUGE_2M};
use parking_lot::Mutex;

use crate::{builder, open_descriptors};

const MIB2: u64 = 2 << 20;

struct Host {
    pool: Pool,
    memory: HostMemory,
    ram: Allocation,
    host: Arc<HostMapping>,
}

/// An owner of three segments, all shared, with a mapping and a witness.
fn shared(page: PageSize) -> Host {
    let memory = builder(ProofMethod::Seal).bytes(3 * MIB2).page(page).segment_bytes(MIB2).build().unwrap();
    let pool = Pool::builder().backing(memory.clone()).build().unwrap();
    let ram = pool.allocate(Request::bytes(3 * MIB2).owner("guest")).unwrap();
    let host = Arc::new(HostMapping::of_with_vacant(&memory, &ram, Vacant::Scratch).unwrap());
    ram.attach("host", host.clone()).unwrap();
    ram.attach("pins", SealWitness::of(&memory).unwrap()).unwrap();
    ram.share(0..3 * MIB2).unwrap();
    let host = Host { pool, memory, ram, host };
    host.map(0..3 * MIB2);
    host
}

impl Host {
    fn map(&self, range: std::ops::Range<u64>) {
        let guard: MapGuard<'_> = self.ram.map_guard("host", range).unwrap();
        guard.extents().iter().for_each(|run| self.host.map(&guard, run.frames).unwrap());
    }

    /// Ends with everything free again.
    fn end(self) {
        drop((self.ram, self.host));
        self.pool.reclaim();
        let stats = self.pool.stats();
        assert_eq!(stats.free, stats.frames);
    }
}

fn a_pin_keeps_shared_memory_from_becoming_private_until_it_drains(page: PageSize) {
    let world = shared(page);
    world.host.write(MIB2 + 8, b"secret").unwrap();
    let pin = KernelPin::vmsplice(&world.host, MIB2 + 8, 6).unwrap();
    let Err(Convert::Torn { done, lost }) = world.ram.unshare(0..3 * MIB2) else { panic!("the pin was not seen") };
    assert_eq!((done.frames(), lost.len(), lost[0].state()), (1024, 1, Withdrawal::Quarantined));
    assert_eq!((lost[0].offset(), lost[0].frames().bytes()), (MIB2, MIB2), "one segment of three");
    assert_eq!((lost[0].cause().mapping.as_ref(), lost[0].cause().status), ("pins", Errno::EBUSY as u64));
    // Asked again while it is pinned: still no.
    assert!(world.pool.retry(lost[0].frames()).recovered.is_empty());
    assert_eq!(pin.drain().unwrap(), b"secret", "the old page, untouched");
    assert_eq!(world.pool.retry(lost[0].frames()).recovered.frames(), 512);
    // Private now, and other pages, which can be used.
    world.map(0..3 * MIB2);
    let mut seen = [9; 6];
    world.host.read(MIB2 + 8, &mut seen).unwrap();
    assert_eq!(seen, [0; 6]);
    world.ram.share(0..3 * MIB2).unwrap();
    world.ram.unshare(0..3 * MIB2).unwrap();
    world.end();
}

#[test]
fn a_pin_keeps_shared_memory_from_becoming_private_until_it_drains_4k() {
    a_pin_keeps_shared_memory_from_becoming_private_until_it_drains(PageSize::Base4K);
}

#[test]
fn a_pin_keeps_shared_memory_from_becoming_private_until_it_drains_2m() {
    let Some(_pages) = Borrowed::or_skip("a pin at an unshare 2M", HUGE_2M, 4) else { return };
    a_pin_keeps_shared_memory_from_becoming_private_until_it_drains(PageSize::Huge2M);
}

#[test]
fn a_conversion_of_less_than_a_segment_is_refused_and_nothing_changes() {
    let world = shared(PageSize::Base4K);
    world.host.write(0, b"kept").unwrap();
    let refused = world.ram.unshare(0..FRAME_BYTES).unwrap_err();
    assert!(matches!(&refused, Convert::Refused(Refused::Mapping { mapping, .. }) if mapping == "pins"), "{refused}");
    let mut seen = [0; 4];
    world.host.read(0, &mut seen).unwrap();
    assert_eq!(&seen, b"kept");
    world.end();
}

/// The witness would be asked for the shared part alone, and could never prove it.
#[test]
fn a_segment_that_is_shared_in_part_is_refused_and_nothing_of_it_is_lost() {
    let world = shared(PageSize::Base4K);
    world.ram.unshare(0..2 * MIB2).unwrap();
    world.ram.share(0..FRAME_BYTES).unwrap();
    for range in [0..MIB2, 0..3 * MIB2] {
        let refused = world.ram.unshare(range).unwrap_err();
        assert!(matches!(&refused, Convert::Refused(Refused::Mapping { mapping, .. }) if mapping == "pins"), "{refused}");
    }
    assert!(world.pool.withdrawn().is_empty());
    world.ram.unshare(MIB2..3 * MIB2).unwrap();
    world.ram.share(0..MIB2).unwrap();
    world.ram.unshare(0..MIB2).unwrap();
    world.end();
}

#[test]
fn memory_that_is_not_sealed_has_no_witness_and_memory_that_keeps_contents_refuses_it() {
    let memory = builder(ProofMethod::ProcessUnmap).bytes(MIB2).build().unwrap();
    assert!(SealWitness::of(&memory).is_none());
    let memory = builder(ProofMethod::Seal).bytes(MIB2).segment_bytes(MIB2).build().unwrap();
    let pool = Pool::builder().backing(memory.clone()).build().unwrap();
    let ram = pool.allocate(Request::bytes(MIB2).owner("pkvm").keep_contents()).unwrap();
    ram.attach("pins", SealWitness::of(&memory).unwrap()).unwrap();
    ram.share(0..MIB2).unwrap();
    assert!(matches!(ram.unshare(0..MIB2), Err(Convert::Refused(Refused::Mapping { .. }))));
}

/// While a mark stands, the sealed file of a withdrawn page is not closed (I12): not by the proof, only by the lift.
#[test]
fn a_page_that_was_poisoned_while_it_was_quarantined_stays_in_its_file() {
    let world = shared(PageSize::Base4K);
    let pin = KernelPin::vmsplice(&world.host, 0, 6).unwrap();
    assert!(matches!(world.ram.unshare(0..MIB2), Err(Convert::Torn { .. })));
    drop(pin);
    let poisoned = world.memory.frames().sub(3, 1).unwrap();
    assert_eq!(world.pool.poison(poisoned, Cause::new("mce", 1, "")).frames(), 1);
    // The poisoned frame is not asked about, so the segment cannot be proven as a whole.
    let retried = world.pool.retry(world.memory.frames().sub(0, 512).unwrap());
    assert!(retried.recovered.is_empty(), "{retried:?}");
    let before = keeper::held();
    drop((world.ram, world.host));
    world.pool.reclaim();
    drop((world.pool, world.memory));
    assert!(keeper::held() > before, "the file outlives its memory");
}

/// Attached after the witness: a machine check comes just when the seal has been had.
struct Poisons {
    pool: Pool,
    frame: Mutex<Option<PfnRange>>,
}

impl Mapping for Poisons {
    fn prepare(&self, _: &Operation) -> Result<(), Refusal> {
        Ok(())
    }

    fn invalidate(&self, _: &Operation, _: PfnRange) -> Result<(), Stuck> {
        if let Some(frame) = self.frame.lock().take() {
            self.pool.poison(frame, Cause::new("mce", 1, ""));
        }
        Ok(())
    }
}

#[test]
fn a_page_that_is_poisoned_after_the_seal_stays_in_its_sealed_file() {
    let world = shared(PageSize::Base4K);
    let poisons = Arc::new(Poisons { pool: world.pool.clone(), frame: Mutex::default() });
    world.ram.attach("late", poisons.clone()).unwrap();
    let (first, frame) = (world.memory.frames().sub(0, 512).unwrap(), world.memory.frames().sub(3, 1).unwrap());
    let pin = KernelPin::vmsplice(&world.host, 0, 6).unwrap();
    assert!(matches!(world.ram.unshare(0..MIB2), Err(Convert::Torn { .. })));
    drop(pin);
    assert_eq!(open_descriptors(first), 1);
    *poisons.frame.lock() = Some(frame);
    assert_eq!(world.pool.retry(first).recovered.frames(), 511);
    assert_eq!(open_descriptors(first), 1, "the sealed file holds the poisoned page");
    world.map(0..3 * FRAME_BYTES);
    assert_eq!(open_descriptors(first), 2, "the others have a fresh one");
}

#[test]
fn scratch_addresses_take_late_writes_and_the_frame_does_not_see_them() {
    let world = shared(PageSize::Base4K);
    world.host.write(0, b"shared").unwrap();
    assert!(world.host.is_mapped_at(0, 4096) && !world.host.is_mapped_at(0, 0));
    world.ram.unshare(0..MIB2).unwrap();
    assert!(!world.host.is_mapped_at(0, 1) && !world.host.is_mapped_at(MIB2 - 1, 2) && world.host.is_mapped_at(MIB2, 1));
    assert!(world.host.read(0, &mut [0; 6]).is_err(), "the mapping's own accesses are errors all the same");
    let address = world.host.address() as *mut u8;
    // SAFETY: the address is the mapping's own reservation, readable and writable as long as it lives.
    unsafe {
        assert_eq!(address.read_volatile(), 0, "not the frame's byte");
        address.write_volatile(7);
        assert_eq!(address.read_volatile(), 7);
    }
    assert!(!world.host.is_mapped_at(u64::MAX, 2));
    world.ram.share(0..MIB2).unwrap();
    world.map(0..MIB2);
    let mut seen = [9; 6];
    world.host.read(0, &mut seen).unwrap();
    assert_eq!(seen, [0; 6], "the late write is gone with the scratch page");
    world.end();
}
