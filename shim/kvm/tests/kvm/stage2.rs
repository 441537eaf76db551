//! The second stage as a mapping, on a stand-in for KVM: what is mapped when, and what is asked of KVM in which order.

use std::sync::Arc;

use nix::errno::Errno;
use pageless::{Convert, Pool, Request, Shareability, Verdict};
use pageless_host::{HostBacking, HostMapping, HostMemory, PageSize, ProofMethod, Vacant};
use pageless_hugepages::{Borrowed, HUGE_2M};
use pageless_kvm::{Answer, Binding, Guest, Layout, Piece, Privacy, STAGE2, SlotTable, Stage2, Stage2Error};

use crate::fake::FakeVm;
use crate::{MIB, World, memory};

const PRIVATE: u64 = 8;

/// A guest with memory attributes, whose memory lies at 1 MiB and at 16 MiB.
fn with_attributes(vm: &Arc<FakeVm>) -> (Pool, HostMemory, Guest) {
    let memory = memory(2 * MIB);
    let pool = Pool::builder().backing(memory.clone()).build().unwrap();
    let ram = pool.allocate(Request::bytes(2 * MIB).owner("guest")).unwrap();
    let view = Arc::new(HostMapping::of(&memory, &ram).unwrap());
    let host = Arc::new(HostMapping::of_with_vacant(&memory, &ram, Vacant::Scratch).unwrap());
    let piece = |gpa, offset| Piece { gpa, offset, bytes: MIB };
    let layout = Layout::new([piece(MIB, 0), piece(16 * MIB, MIB)]).unwrap();
    let file = memory.segment(memory.frames().start()).unwrap();
    let binding = Binding { offset: 0, bytes: 2 * MIB, file };
    let privacy = Privacy::Attributes { faults_convert: false };
    let stage2 = Stage2::bound(&SlotTable::new(vm.clone()), view, layout, &[binding], privacy).unwrap();
    let guest = Guest::new(ram, [], Arc::new(stage2), host, []).unwrap();
    (pool, memory, guest)
}

fn convert(guest: &Guest, offsets: std::ops::Range<u64>, to: Shareability) -> Answer {
    guest.convert(&pageless_kvm::Request { offsets, to }).0
}

#[test]
fn an_ordinary_guest_reaches_private_and_shared_frames_and_the_host_only_shared_ones() {
    let world = World::on(FakeVm::with_slots(4), 2 * MIB);
    let (guest, mapped) = (&world.guest, |mapping: &HostMapping| {
        mapping.translations(world.memory.frames()).iter().map(|run| run.frames()).sum::<u64>()
    });
    guest.map(0..2 * MIB).unwrap();
    assert_eq!((mapped(guest.stage2().view()), mapped(guest.host())), (512, 0));
    assert_eq!(convert(guest, 0x3000..0x5000, Shareability::Shared), Answer::Done { changed: true });
    assert_eq!((mapped(guest.stage2().view()), mapped(guest.host())), (512, 2));
    guest.stage2().view().write(0x3000, b"to the host").unwrap();
    let mut seen = [0; 11];
    guest.host().read(0x3000, &mut seen).unwrap();
    assert_eq!(&seen, b"to the host");
    assert_eq!(convert(guest, 0..MIB, Shareability::Private), Answer::Done { changed: true });
    assert_eq!((mapped(guest.stage2().view()), mapped(guest.host())), (512, 0));
    world.end();
}

#[test]
fn attributes_become_private_only_under_a_guard_and_shared_before_anything_else_is_asked() {
    let vm = FakeVm::with_slots(4);
    let (pool, memory, guest) = with_attributes(&vm);
    guest.map(0..2 * MIB).unwrap();
    assert_eq!(vm.told().attributes.drain(..).collect::<Vec<_>>(), [(MIB, MIB, PRIVATE), (16 * MIB, MIB, PRIVATE)]);
    assert!(guest.stage2().view().translations(memory.frames()).is_empty(), "private frames are not in the view");
    // Over the edge of a piece: two addresses.
    assert_eq!(convert(&guest, MIB - 4096..MIB + 4096, Shareability::Shared), Answer::Done { changed: true });
    assert_eq!(vm.told().attributes.drain(..).collect::<Vec<_>>(), [(2 * MIB - 4096, 4096, 0), (16 * MIB, 4096, 0)]);
    assert_eq!(guest.stage2().view().translations(memory.frames()).iter().map(|run| run.frames()).sum::<u64>(), 2);
    assert_eq!(convert(&guest, MIB - 4096..MIB + 4096, Shareability::Private), Answer::Done { changed: true });
    let set = vm.told().attributes.drain(..).collect::<Vec<_>>();
    assert_eq!(set, [(2 * MIB - 4096, 4096, PRIVATE), (16 * MIB, 4096, PRIVATE)], "once, after the flip");
    assert!(guest.stage2().view().translations(memory.frames()).is_empty());
    drop(guest);
    assert_eq!(pool.reclaim().freed.frames(), 512);
    assert!(vm.told().attributes.iter().all(|(.., attributes)| *attributes == 0), "nothing stays private for the next owner");
}

#[test]
fn attributes_that_kvm_cannot_set_lose_the_frames_for_now_or_for_good() {
    for (errno, never) in [(Errno::ENOMEM, false), (Errno::EINVAL, true)] {
        let vm = FakeVm::with_slots(4);
        let (pool, _memory, guest) = with_attributes(&vm);
        vm.told().attribute_errors = vec![errno; 8];
        let (answer, outcome) = guest.convert(&pageless_kvm::Request { offsets: 0..8192, to: Shareability::Shared });
        let Err(Convert::Torn { done, lost }) = outcome else { panic!("{outcome:?}") };
        assert_eq!((answer, done.frames(), lost.len()), (Answer::Error(Errno::EIO), 0, 1));
        assert_eq!((lost[0].cause().step.as_ref(), lost[0].cause().status), ("KVM_SET_MEMORY_ATTRIBUTES", errno as u64));
        assert_eq!(lost[0].retry_after().is_none(), never, "{errno}");
        vm.told().attribute_errors.clear();
        let recovered = pool.retry(lost[0].frames()).recovered.frames();
        assert_eq!(recovered, if never { 0 } else { 2 });
    }
}

#[test]
fn frames_of_unknown_shareability_are_mapped_for_nobody_and_unguarded_ones_neither() {
    let world = World::on(FakeVm::with_slots(4), 2 * MIB);
    let guard = world.guest.ram().map_guard(STAGE2, 0..4096).unwrap();
    let (first, both) = (world.memory.frames().sub(0, 1).unwrap(), world.memory.frames().sub(0, 2).unwrap());
    let stage2 = world.guest.stage2();
    assert!(matches!(stage2.map(&guard, 0, first, Shareability::Unknown), Err(Stage2Error::Unknown { .. })));
    assert!(matches!(stage2.map(&guard, 0, both, Shareability::Private), Err(Stage2Error::View(_))));
    drop(guard);
    world.end();
}

#[test]
fn frames_of_a_bound_file_are_not_reclaimed_while_a_slot_binds_it() {
    let (vm, memory) = (FakeVm::with_slots(4), memory(2 * MIB));
    let pool = Pool::builder().backing(memory.clone()).build().unwrap();
    let ram = pool.allocate(Request::bytes(2 * MIB).owner("guest")).unwrap();
    let view = Arc::new(HostMapping::of(&memory, &ram).unwrap());
    let file = memory.segment(memory.frames().start()).unwrap();
    let layout = Layout::around(2 * MIB, 0..0).unwrap();
    let binding = Binding { offset: 0, bytes: 2 * MIB, file };
    let stage2 = Arc::new(Stage2::bound(&SlotTable::new(vm), view, layout, &[binding], Privacy::InPlace).unwrap());
    ram.attach(STAGE2, stage2.clone()).unwrap();
    assert!(ram.share(0..4096).is_ok(), "a conversion is the backing's to prove");
    drop(ram);
    let stuck = pool.reclaim();
    assert!(stuck.freed.is_empty() && stuck.lost[0].cause().meaning.contains("remove the slots"), "{stuck:?}");
    assert!(stuck.lost[0].retry_after().is_some(), "{:?}", Verdict::Never);
    stage2.remove_slots().unwrap();
    assert_eq!(pool.retry(memory.frames()).freed.frames(), 512);
}

/// Otherwise nobody could map the page any more: its parts would be of two kinds, and the guest would lose what is beside.
#[test]
fn a_part_of_a_huge_page_does_not_convert_also_where_the_page_is_not_mapped_yet() {
    let Some(_pages) = Borrowed::or_skip("a part of a huge page 2M", HUGE_2M, 2) else { return };
    let builder = HostMemory::builder().bytes(4 * MIB).page(PageSize::Huge2M).proof(ProofMethod::ProcessUnmap);
    let memory = builder.build().unwrap();
    let pool = Pool::builder().backing(memory.clone()).build().unwrap();
    let world = World::of(FakeVm::with_slots(4), pool, memory, 4 * MIB, [], []);
    for mapped in [false, true] {
        assert_eq!(world.guest.map_gpa_range(0x3000, 1, 0).0, Answer::Error(Errno::EOPNOTSUPP), "mapped: {mapped}");
        world.guest.fault(0x3000).unwrap();
    }
    world.guest.stage2().view().write(0x4000, b"beside").unwrap();
    assert_eq!(world.guest.map_gpa_range(2 * MIB, 512, 0).0, Answer::Done { changed: true });
    assert!(world.guest.host().is_mapped_at(2 * MIB, 2 * MIB));
    world.end();
}
