//! The backing under a real pool: proofs by the granule, quarantine and its end, withdrawn pages kept shut, lost frames replaced.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pageless::{
    Allocation, Backing, Cause, Convert, FRAME_BYTES, Mapping, Operation, PfnRange, Pool, Reclaimed, Refusal, Request, Stuck,
    Verdict, WaitingFor, Withdrawal,
};
use pageless_host::{HostBacking, HostMapping, HostMemory, MapError, ProofMethod, pin::KernelPin};

use crate::{builder, byte_at, part};

const MIB: u64 = 1 << 20;

/// Segments of 2 MiB.
fn pool(bytes: u64, proof: ProofMethod) -> (HostMemory, Pool) {
    let memory = builder(proof).bytes(bytes).segment_bytes(2 * MIB).build().unwrap();
    let pool = Pool::builder().backing(memory.clone()).build().unwrap();
    (memory, pool)
}

/// An owner whose memory is mapped and written all over.
fn owner(pool: &Pool, memory: &HostMemory, name: &str, bytes: u64) -> (Allocation, Arc<HostMapping>) {
    let ram = pool.allocate(Request::bytes(bytes).owner(name)).unwrap();
    let host = Arc::new(HostMapping::of(memory, &ram).unwrap());
    ram.attach("host", host.clone()).unwrap();
    let guard = ram.map_guard("host", 0..bytes).unwrap();
    guard.extents().iter().for_each(|run| host.map(&guard, run.frames).unwrap());
    drop(guard);
    host.write(0, &vec![7; usize::try_from(bytes).unwrap()]).unwrap();
    (ram, host)
}

fn frames_of(lost: &Reclaimed) -> Vec<PfnRange> {
    lost.lost.iter().map(pageless::Lost::frames).collect()
}

/// Gets stuck at one frame while it is told to.
struct Sticky {
    at: PfnRange,
    verdict: Verdict,
    stuck: AtomicBool,
}

impl Sticky {
    fn at(at: PfnRange, verdict: Verdict) -> Arc<Self> {
        Arc::new(Self { at, verdict, stuck: AtomicBool::new(true) })
    }
}

impl Mapping for Sticky {
    fn prepare(&self, _: &Operation) -> Result<(), Refusal> {
        Ok(())
    }

    fn invalidate(&self, _: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        match frames.intersect(self.at).filter(|_| self.stuck.load(Ordering::Relaxed)) {
            Some(at) => Err(Stuck { at, verdict: self.verdict.clone(), cause: Cause::new("TEST", 1, "stuck") }),
            None => Ok(()),
        }
    }
}

const SOON: Verdict = Verdict::Retry { after: Duration::ZERO };

#[test]
fn a_pinned_segment_is_quarantined_as_a_whole_and_comes_back_when_the_pin_drains() {
    let (memory, pool) = pool(6 * MIB, ProofMethod::Seal);
    let (ram, host) = owner(&pool, &memory, "vm-a", 6 * MIB);
    let pin = KernelPin::vmsplice(&host, 700 * FRAME_BYTES, 4096).unwrap();
    drop((ram, host));
    let pass = pool.reclaim();
    let segment = part(&memory, 512, 512);
    assert_eq!(frames_of(&pass), [segment]);
    assert_eq!(pass.lost[0].state(), Withdrawal::Quarantined);
    assert!(pass.lost[0].cause().to_string().contains("backing: F_ADD_SEALS(F_SEAL_WRITE) gave 0x10"), "{}", pass.lost[0]);
    assert_eq!(pass.freed.frames(), 1024);
    assert_eq!(memory.withdrawn().runs(), [segment], "kept shut");
    // Everything else can be had, and it not.
    let rest = pool.allocate(Request::bytes(4 * MIB).owner("vm-b")).unwrap();
    assert!(pool.allocate(Request::bytes(4096).owner("vm-b")).is_err());
    assert!(rest.extents().iter().all(|extent| !extent.frames.overlaps(segment)));
    // Asked again too early: the same answer, and the page stays shut.
    let early = pool.retry(segment);
    assert_eq!((early.withdrawn.runs(), early.freed.frames()), (&[segment][..], 0));
    assert_eq!(memory.withdrawn().runs(), [segment]);
    assert_eq!(pin.drain().unwrap(), [7; 4096]);
    assert_eq!(pool.retry(segment).freed.runs(), [segment]);
    assert!(memory.withdrawn().is_empty() && pool.withdrawn().is_empty());
    let (ram, host) = owner(&pool, &memory, "vm-c", 2 * MIB);
    assert_eq!(ram.extents()[0].frames, segment);
    drop((ram, host));
    assert!(pool.verify().is_sound(), "{:?}", pool.verify().faults);
}

#[test]
fn a_frame_that_a_forgotten_mapping_translates_is_quarantined_alone_and_comes_back_when_that_is_gone() {
    let (memory, pool) = pool(4 * MIB, ProofMethod::ProcessUnmap);
    let (ram, host) = owner(&pool, &memory, "vm-a", 4 * MIB);
    // Never attached, so nobody asks it: only the backing's own look finds it.
    let forgotten = HostMapping::of(&memory, &ram).unwrap();
    let guard = ram.map_guard("host", 0..4 * MIB).unwrap();
    forgotten.map(&guard, part(&memory, 5, 1)).unwrap();
    drop(guard);
    drop(ram);
    let pass = pool.reclaim();
    let lost: pageless::RunSet = frames_of(&pass).into_iter().collect();
    assert!(lost.contains(part(&memory, 5, 1).start()), "{lost}");
    assert_eq!(pass.freed.frames() + lost.frames(), 1024);
    assert_eq!(memory.withdrawn(), lost);
    assert_eq!(byte_at_of(&host), None, "its own mapping is gone");
    drop(forgotten);
    let freed: u64 = lost.runs().iter().map(|run| pool.retry(*run).freed.frames()).sum();
    assert_eq!(freed, lost.frames());
    assert_eq!(pool.stats().free, 1024);
    assert!(memory.withdrawn().is_empty());
    let (ram, host) = owner(&pool, &memory, "vm-b", 4 * MIB);
    assert_eq!(byte_at(&crate::Guest { mapping: host, ram }, 5 * FRAME_BYTES), 7);
}

fn byte_at_of(host: &HostMapping) -> Option<u8> {
    let mut byte = [0];
    host.read(5 * FRAME_BYTES, &mut byte).ok().map(|()| byte[0])
}

#[test]
fn a_segment_of_two_owners_is_proven_when_both_have_gone() {
    let (memory, pool) = pool(2 * MIB, ProofMethod::Seal);
    let first = owner(&pool, &memory, "vm-a", MIB);
    let second = owner(&pool, &memory, "vm-b", MIB / 2);
    drop(first);
    let pass = pool.reclaim();
    assert_eq!(pass.freed.frames(), 0);
    assert!(matches!(pass.waiting[..], [ref one] if one.why == WaitingFor::Granule { granule: memory.frames() }), "{pass:?}");
    assert_eq!(pool.stats().free, 128, "the last quarter was free all the time");
    let held = second.0.hold(0..4096, "vhost").unwrap();
    drop(second);
    let pass = pool.reclaim();
    assert!(pass.waiting.iter().any(|one| matches!(&one.why, WaitingFor::Holder(who) if who.name() == "vhost")), "{pass:?}");
    assert_eq!(pass.waiting.iter().map(|one| one.frames.frames()).sum::<u64>(), 384);
    drop(held);
    assert_eq!(pool.reclaim().freed.frames(), 384);
    assert_eq!(pool.stats().free, 512);
    assert!(pool.verify().is_sound(), "{:?}", pool.verify().faults);
}

#[test]
fn a_failed_frame_costs_its_segment_and_no_other() {
    let (memory, pool) = pool(4 * MIB, ProofMethod::Seal);
    let (ram, host) = owner(&pool, &memory, "vm-a", 4 * MIB);
    let bad = part(&memory, 9, 1);
    ram.attach("s-ept", Sticky::at(bad, Verdict::Never)).unwrap();
    drop((ram, host));
    for pass in 0..3 {
        let told = pool.reclaim();
        assert_eq!(told.waiting.iter().map(|one| one.frames.frames()).sum::<u64>(), 511, "{pass}: {told:?}");
        assert!(told.waiting.iter().all(|one| one.why == WaitingFor::Granule { granule: part(&memory, 0, 512) }));
        assert_eq!((told.freed.frames(), told.lost.len()), if pass == 0 { (512, 1) } else { (0, 0) });
    }
    assert!(pool.retry(bad).freed.is_empty());
    assert_eq!(pool.withdrawn()[0].state, Withdrawal::Failed);
    assert_eq!(memory.withdrawn().runs(), [bad]);
    assert_eq!(pool.stats().free, 512);
    assert!(pool.verify().is_sound(), "{:?}", pool.verify().faults);
}

#[test]
fn a_failed_frame_of_one_process_costs_one_frame() {
    let (memory, pool) = pool(4 * MIB, ProofMethod::ProcessUnmap);
    let (ram, host) = owner(&pool, &memory, "vm-a", 4 * MIB);
    let bad = part(&memory, 9, 1);
    ram.attach("s-ept", Sticky::at(bad, Verdict::Never)).unwrap();
    drop((ram, host));
    assert_eq!(frames_of(&pool.reclaim()), [bad]);
    assert_eq!((pool.stats().free, pool.stats().failed), (1023, 1));
}

#[test]
fn a_conversion_that_was_stuck_is_completed_by_a_later_proof_and_scrubbed() {
    for proof in [ProofMethod::ProcessUnmap, ProofMethod::Seal] {
        let (memory, pool) = pool(4 * MIB, proof);
        let (ram, host) = owner(&pool, &memory, "vm-a", 4 * MIB);
        let stuck = part(&memory, 3, 2);
        let sticky = Sticky::at(stuck, SOON);
        ram.attach("s-ept", sticky.clone()).unwrap();
        let Err(Convert::Torn { done, lost }) = ram.share(0..MIB) else { panic!("not torn") };
        assert_eq!((done.frames(), lost[0].frames()), (254, stuck));
        assert_eq!(memory.withdrawn().runs(), [stuck]);
        let pass = pool.retry(stuck);
        assert_eq!((pass.recovered.frames(), pass.withdrawn.runs()), (0, &[stuck][..]), "still stuck, and said so");
        sticky.stuck.store(false, Ordering::Relaxed);
        let pass = pool.retry(stuck);
        assert_eq!(pass.recovered.runs(), [stuck], "{proof:?}: {pass:?}");
        assert!(memory.withdrawn().is_empty());
        assert_eq!(ram.share(0..MIB).map(|shared| shared.changed()), Ok(false));
        let guard = ram.map_guard("host", 0..MIB).unwrap();
        host.map(&guard, part(&memory, 0, 256)).unwrap();
        drop(guard);
        let mut bytes = vec![1; usize::try_from(MIB).unwrap()];
        host.read(0, &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0), "the host reads zeroes, not what the guest wrote");
        assert!(pool.verify().is_sound(), "{:?}", pool.verify().faults);
    }
}

#[test]
fn a_frame_poisoned_while_it_was_quarantined_never_comes_back_and_stays_shut() {
    for proof in [ProofMethod::ProcessUnmap, ProofMethod::Seal] {
        let (memory, pool) = pool(2 * MIB, proof);
        let (ram, host) = owner(&pool, &memory, "vm-a", 2 * MIB);
        let stuck = part(&memory, 3, 2);
        let sticky = Sticky::at(stuck, SOON);
        ram.attach("s-ept", sticky.clone()).unwrap();
        drop((ram, host));
        pool.reclaim();
        let bad = part(&memory, 4, 1);
        pool.poison(bad, Cause::new("machine check", 0, ""));
        sticky.stuck.store(false, Ordering::Relaxed);
        pool.retry(stuck);
        let (free, shut) = if proof == ProofMethod::Seal { (0, stuck) } else { (511, bad) };
        assert_eq!(pool.stats().free, free, "{proof:?}");
        assert_eq!(memory.withdrawn().runs(), [shut], "{proof:?}");
        assert!(pool.verify().is_sound(), "{:?}", pool.verify().faults);
    }
}

#[test]
fn waiting_for_a_neighbour_does_not_use_up_the_attempts_of_a_quarantined_frame() {
    let (memory, pool) = pool(2 * MIB, ProofMethod::Seal);
    let (gone, _host) = owner(&pool, &memory, "vm-a", MIB);
    let neighbour = owner(&pool, &memory, "vm-b", MIB);
    let stuck = part(&memory, 3, 1);
    let sticky = Sticky::at(stuck, SOON);
    gone.attach("s-ept", sticky.clone()).unwrap();
    drop(gone);
    assert_eq!(frames_of(&pool.reclaim()), [stuck]);
    sticky.stuck.store(false, Ordering::Relaxed);
    for _ in 0..40 {
        assert_eq!(pool.retry(stuck).withdrawn.runs(), [stuck]);
    }
    assert_eq!(pool.withdrawn()[0].attempts, 0, "nobody could be asked");
    assert_eq!(memory.withdrawn().runs(), [stuck]);
    drop(neighbour);
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(pool.reclaim().freed.frames(), 512);
}

#[test]
fn a_lost_frame_is_replaced_under_a_live_guest() {
    let (memory, pool) = pool(4 * MIB, ProofMethod::ProcessUnmap);
    let (ram, host) = owner(&pool, &memory, "vm-a", 2 * MIB);
    let (lost, offset) = (part(&memory, 9, 1), 9 * FRAME_BYTES);
    ram.attach("s-ept", Sticky::at(lost, Verdict::Never)).unwrap();
    assert!(matches!(ram.share(offset..offset + 4096), Err(Convert::Torn { .. })));
    let replaced = ram.replace(offset).unwrap();
    assert_eq!(replaced.lost, lost.start());
    host.replaced(offset, replaced.frame).unwrap();
    assert!(host.translations(lost).is_empty(), "nothing translates to the lost frame any more");
    assert!(matches!(host.read(offset, &mut [0]), Err(MapError::Unmapped { .. })));
    let guard = ram.map_guard("host", 0..2 * MIB).unwrap();
    guard.extents().iter().for_each(|run| host.map(&guard, run.frames).unwrap());
    assert_eq!(guard.extents().len(), 3);
    drop(guard);
    let mut bytes = [1; 3 * 4096];
    host.read(offset - FRAME_BYTES, &mut bytes).unwrap();
    assert!(bytes[..4096].iter().chain(&bytes[8192..]).all(|byte| *byte == 7), "its neighbours are as they were");
    assert!(bytes[4096..8192].iter().all(|byte| *byte == 0), "the new frame is empty");
    host.write(offset, b"again").unwrap();
    // Wrong arguments, each by its name.
    let other = part(&memory, 1000, 1).start();
    assert!(matches!(host.replaced(offset, replaced.frame), Err(MapError::Overlap { .. })));
    assert!(matches!(host.replaced(1, other), Err(MapError::Unaligned { .. })));
    assert!(matches!(host.replaced(2 * MIB, other), Err(MapError::Outside { .. })));
    assert!(matches!(host.replaced(0, memory.frames().end()), Err(MapError::Foreign { .. })));
    drop((ram, host));
    let pass = pool.reclaim();
    assert_eq!((pass.freed.frames(), pass.withdrawn.runs()), (512, &[lost][..]));
    assert_eq!(memory.granule(lost.start()), lost);
}

#[test]
fn a_frame_that_was_given_up_replaces_a_lost_one_of_the_same_guest() {
    let (memory, pool) = pool(2 * MIB, ProofMethod::ProcessUnmap);
    let (ram, host) = owner(&pool, &memory, "vm-a", 2 * MIB);
    let (lost, offset, given_up) = (part(&memory, 9, 1), 9 * FRAME_BYTES, 20 * FRAME_BYTES);
    ram.attach("s-ept", Sticky::at(lost, Verdict::Never)).unwrap();
    assert!(matches!(ram.share(offset..offset + 4096), Err(Convert::Torn { .. })));
    ram.release_range(given_up..given_up + 4096).unwrap();
    assert_eq!(pool.reclaim().freed.frames(), 1);
    let replaced = ram.replace(offset).unwrap();
    assert_eq!(replaced.frame, part(&memory, 20, 1).start());
    host.replaced(offset, replaced.frame).unwrap();
    let guard = ram.map_guard("host", offset..offset + 4096).unwrap();
    host.map(&guard, PfnRange::single(replaced.frame)).unwrap();
    drop(guard);
    assert!(!host.is_mapped_at(given_up, 1) && host.is_mapped_at(offset, 4096));
    // A frame that is mapped at its place has not been given up.
    assert!(matches!(host.replaced(offset, part(&memory, 30, 1).start()), Err(MapError::Overlap { .. })));
    drop(ram);
    pool.reclaim();
    assert!(host.translations(memory.frames()).is_empty() && pool.verify().is_sound());
}

#[test]
fn asking_about_a_part_of_a_quarantined_segment_asks_about_all_of_it() {
    let memory = builder(ProofMethod::Seal).bytes(2 << 30).segment_bytes(2 << 30).build().unwrap();
    let pool = Pool::builder().backing(memory.clone()).build().unwrap();
    let ram = pool.allocate(Request::bytes(2 << 30).owner("vm-a")).unwrap();
    let host = Arc::new(HostMapping::of(&memory, &ram).unwrap());
    ram.attach("host", host.clone()).unwrap();
    let guard = ram.map_guard("host", 0..2 << 30).unwrap();
    host.map(&guard, part(&memory, 5, 1)).unwrap();
    drop(guard);
    let pin = KernelPin::vmsplice(&host, 5 * FRAME_BYTES, 4096).unwrap();
    drop((ram, host));
    // A segment of 2 GiB, and so two runs in the registry.
    assert_eq!(frames_of(&pool.reclaim()).len(), 2);
    drop(pin);
    assert_eq!(pool.retry(part(&memory, 0, 1)).freed.runs(), [memory.frames()]);
}
