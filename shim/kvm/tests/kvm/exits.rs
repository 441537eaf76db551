//! Exits of a vCPU carried out, made up here: what a KVM with attributes and memory faults would hand over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use kvm_ioctls::{HypercallExit, VcpuExit};
use nix::errno::Errno;
use pageless::{Cause, FRAME_BYTES, Mapping, Operation, PfnRange, Pool, Refusal, Request, Shareability, Stuck};
use pageless_host::{HostBacking, HostMapping, Vacant};
use pageless_kvm::{Answer, Binding, Guest, HYPERCALL_MAP_GPA_RANGE, Handled, Layout, Missing, Privacy, SlotTable, Stage2};

use crate::fake::FakeVm;
use crate::{MIB, World, memory};

const PRIVATE: u64 = 8;

/// A guest on a VM whose memory faults say how the guest meant the memory.
fn confidential(vm: &Arc<FakeVm>) -> Guest {
    let memory = memory(MIB);
    let pool = Pool::builder().backing(memory.clone()).build().unwrap();
    let ram = pool.allocate(Request::bytes(MIB).owner("guest")).unwrap();
    let view = Arc::new(HostMapping::of(&memory, &ram).unwrap());
    let host = Arc::new(HostMapping::of_with_vacant(&memory, &ram, Vacant::Scratch).unwrap());
    let binding = Binding { offset: 0, bytes: MIB, file: memory.segment(memory.frames().start()).unwrap() };
    let (layout, privacy) = (Layout::around(MIB, 0..0).unwrap(), Privacy::Attributes { faults_convert: true });
    let stage2 = Stage2::bound(&SlotTable::new(vm.clone()), view, layout, &[binding], privacy).unwrap();
    Guest::new(ram, [], Arc::new(stage2), host, []).unwrap()
}

fn hypercall(guest: &Guest, nr: u64, args: [u64; 3]) -> (Handled, u64) {
    let mut ret = 0x5555;
    let [gpa, pages, attributes] = args;
    let call = HypercallExit { nr, args: [gpa, pages, attributes, 0, 0, 0], ret: &mut ret, longmode: 0 };
    let handled = guest.handle(&mut VcpuExit::Hypercall(call));
    (handled, ret)
}

#[test]
fn a_hypercall_is_answered_in_its_own_exit_and_others_are_left_alone() {
    let world = World::on(FakeVm::with_slots(4), MIB);
    let (handled, ret) = hypercall(&world.guest, HYPERCALL_MAP_GPA_RANGE, [0, 2, 0]);
    assert!(
        matches!(handled, Handled::Converted { answer: Answer::Done { changed: true }, outcome: Some(Ok(_)) }),
        "{handled:?}"
    );
    assert_eq!(ret, 0);
    assert!(world.guest.is(Shareability::Shared, 0x1fff) && world.guest.is(Shareability::Private, 0x2000));
    let (handled, ret) = hypercall(&world.guest, HYPERCALL_MAP_GPA_RANGE, [1, 2, 0]);
    assert!(matches!(handled, Handled::Converted { answer: Answer::Error(Errno::EINVAL), outcome: None }), "{handled:?}");
    assert_eq!(ret.cast_signed(), -22);
    let (handled, ret) = hypercall(&world.guest, 9, [0, 2, 16]);
    assert!(matches!(handled, Handled::NotMemory) && ret == 0x5555, "{handled:?}");
    world.end();
}

fn fault(guest: &Guest, flags: u64, gpa: u64) -> Handled {
    guest.handle(&mut VcpuExit::MemoryFault { flags, gpa, size: FRAME_BYTES })
}

#[test]
fn a_fault_of_the_other_kind_converts_and_one_of_the_same_kind_maps() {
    let vm = FakeVm::with_slots(4);
    let guest = confidential(&vm);
    // Private, and meant so: the attribute is set, nothing converts.
    assert!(matches!(fault(&guest, PRIVATE, 0x3000), Handled::Resume));
    assert_eq!(vm.told().attributes.drain(..).collect::<Vec<_>>(), [(0x3000, FRAME_BYTES, PRIVATE)]);
    // Meant as shared: converted, and mapped in both views.
    let handled = fault(&guest, 0, 0x3000);
    assert!(matches!(handled, Handled::Converted { answer: Answer::Done { changed: true }, .. }), "{handled:?}");
    assert!(guest.is(Shareability::Shared, 0x3000));
    assert!(guest.stage2().view().is_mapped_at(0x3000, FRAME_BYTES) && guest.host().is_mapped_at(0x3000, FRAME_BYTES));
    assert_eq!(vm.told().attributes.drain(..).collect::<Vec<_>>(), [(0x3000, FRAME_BYTES, 0)]);
    // And back.
    assert!(matches!(fault(&guest, PRIVATE, 0x3000), Handled::Converted { .. }));
    assert!(guest.is(Shareability::Private, 0x3000) && !guest.host().is_mapped_at(0x3000, 1));
}

/// A fault has no register for an error: a vCPU that is run again comes back with it for ever.
#[test]
fn a_fault_of_the_other_kind_that_cannot_convert_is_told_to_the_vmm() {
    let guest = confidential(&FakeVm::with_slots(4));
    let hold = guest.ram().hold(0x3000..0x4000, "nic-0").unwrap();
    let Handled::Lost { gpa, error } = fault(&guest, 0, 0x3000) else { panic!("not told") };
    assert!(gpa == 0x3000 && error.is_transient(), "{error}");
    drop(hold);
    assert!(matches!(fault(&guest, 0, 0x3000), Handled::Converted { answer: Answer::Done { changed: true }, .. }));
    guest.ram().release_range(0x5000..0x6000).unwrap();
    let Handled::Lost { error, .. } = fault(&guest, 0, 0x5000) else { panic!("not told") };
    assert!(error.refused().is_some(), "{error}");
}

#[test]
fn where_faults_say_nothing_a_touch_of_private_memory_converts_nothing() {
    let world = World::on(FakeVm::with_slots(4), MIB);
    assert!(matches!(fault(&world.guest, 0, 0x3000), Handled::Resume));
    assert!(world.guest.is(Shareability::Private, 0x3000));
    assert!(world.guest.stage2().view().is_mapped_at(0x3000, FRAME_BYTES) && !world.guest.host().is_mapped_at(0x3000, 1));
    world.end();
}

#[test]
fn faults_with_unknown_flags_or_outside_of_memory_change_nothing() {
    let vm = FakeVm::with_slots(4);
    let guest = confidential(&vm);
    for flags in [1, 4, 1 << 40, PRIVATE | 1] {
        let handled = fault(&guest, flags, 0x3000);
        assert!(matches!(handled, Handled::Converted { answer: Answer::Error(Errno::EINVAL), outcome: None }), "{handled:?}");
    }
    assert!(matches!(fault(&guest, 0, MIB), Handled::NotMemory));
    assert!(matches!(fault(&guest, 0, !0xfff), Handled::NotMemory | Handled::Converted { outcome: None, .. }));
    let mut byte = [7];
    let access = guest.handle(&mut VcpuExit::MmioRead(MIB, &mut byte));
    assert!(matches!(access, Handled::NotMemory) && byte == [7], "a device of the VMM's own");
    assert!(vm.told().attributes.is_empty() && guest.is(Shareability::Private, 0x3000));
}

/// What is lost is lost for a touch, too: the VMM is told and decides.
#[test]
fn a_touch_of_lost_memory_is_told_to_the_vmm() {
    let world = World::on(FakeVm::with_slots(4), MIB);
    world.pool.poison(world.memory.frames().sub(3, 1).unwrap(), pageless::Cause::new("mce", 1, ""));
    let Handled::Lost { gpa, error } = fault(&world.guest, 0, 0x3000) else { panic!("not told") };
    assert!(gpa == 0x3000 && error.refused().is_some(), "{error}");
    let handled = world.guest.handle(&mut VcpuExit::MmioWrite(0x3008, &[1]));
    assert!(matches!(handled, Handled::Lost { gpa: 0x3008, .. }), "{handled:?}");
}

#[test]
fn when_kvm_does_not_say_what_was_missing_all_that_the_guest_may_have_is_mapped() {
    let world = World::on(FakeVm::with_slots(4), 4 * MIB);
    let view = world.guest.stage2().view();
    world.guest.map(MIB..2 * MIB).unwrap();
    let lost = world.guest.ram().frame(3 * MIB).unwrap();
    world.pool.poison(PfnRange::single(lost), Cause::new("machine check", 0, ""));
    let missing = world.guest.map_missing();
    assert_eq!(missing, Missing { mapped: 3 * MIB - FRAME_BYTES, busy: None }, "all but what was mapped and what is lost");
    for offset in (0..4 * MIB).step_by(4096) {
        assert_eq!(view.is_mapped_at(offset, FRAME_BYTES), offset != 3 * MIB, "offset {offset:#x}");
    }
    assert_eq!(world.guest.map_missing(), Missing::default(), "and nothing is missing any more");
}

#[test]
fn what_converts_is_missing_for_now_and_private_memory_of_a_file_never() {
    let held = Arc::new(Slow::default());
    let world = World::with(FakeVm::with_slots(4), MIB, [("device".to_owned(), held.clone() as Arc<dyn Mapping>)], []);
    world.guest.map(0..MIB).unwrap();
    std::thread::scope(|scope| {
        let share = scope.spawn(|| world.guest.ram().share(0..8192).unwrap());
        while !held.began.load(SeqCst) {
            std::thread::yield_now();
        }
        world.guest.stage2().view().unmap(world.memory.frames()).unwrap();
        let missing = world.guest.map_missing();
        assert!(missing.busy.is_some() && missing.mapped == MIB - 8192, "{missing:?}");
        held.go_on.store(true, SeqCst);
        share.join().unwrap();
    });
    let confidential = confidential(&FakeVm::with_slots(4));
    assert_eq!(confidential.map_missing(), Missing::default(), "all of it is private");
}

/// A device whose invalidation takes until it is told to go on.
#[derive(Default)]
struct Slow {
    began: AtomicBool,
    go_on: AtomicBool,
}

impl Mapping for Slow {
    fn prepare(&self, _op: &Operation) -> Result<(), Refusal> {
        Ok(())
    }

    fn invalidate(&self, _op: &Operation, _frames: PfnRange) -> Result<(), Stuck> {
        self.began.store(true, SeqCst);
        while !self.go_on.load(SeqCst) {
            std::thread::yield_now();
        }
        Ok(())
    }
}
