//! Memory slots: all or none, within the VM's limits, gone when dropped.

use std::sync::Arc;

use nix::errno::Errno;
use pageless::Backing;
use pageless_host::{HostBacking, HostMapping, Vacant};
use pageless_kvm::{Binding, Layout, Piece, SlotError, SlotTable};

use crate::fake::FakeVm;
use crate::{MIB, memory};

fn view(bytes: u64) -> Arc<HostMapping> {
    let memory = memory(bytes);
    Arc::new(HostMapping::new(&memory, [(0, memory.frames())]).unwrap())
}

fn pieces(count: u64) -> Layout {
    let piece = |nth| Piece { gpa: nth * 2 * MIB, offset: nth * MIB, bytes: MIB };
    Layout::new((0..count).map(piece)).unwrap()
}

#[test]
fn each_piece_is_one_slot_and_dropping_them_removes_them() {
    let vm = FakeVm::with_slots(8);
    let set = SlotTable::new(vm.clone()).add(&view(4 * MIB), &pieces(3), &[]).unwrap();
    let ranges: Vec<_> = vm.told().slots.values().map(|(range, _)| range.clone()).collect();
    assert_eq!(ranges, [0..MIB, 2 * MIB..3 * MIB, 4 * MIB..5 * MIB]);
    assert_eq!(set.slots().len(), 3);
    drop(set);
    assert!(vm.told().slots.is_empty());
}

#[test]
fn when_kvm_refuses_one_none_is_left_and_the_numbers_are_free_again() {
    let vm = FakeVm::with_slots(8);
    let table = SlotTable::new(vm.clone());
    vm.told().slots_left = Some(2);
    let refused = table.add(&view(4 * MIB), &pieces(3), &[]).unwrap_err();
    assert_eq!(refused, SlotError::Kvm { slot: 2, gpa: 4 * MIB, bytes: MIB, errno: Errno::EEXIST });
    assert!(vm.told().slots.is_empty(), "rolled back");
    vm.told().slots_left = None;
    assert_eq!(table.add(&view(4 * MIB), &pieces(3), &[]).unwrap().slots()[0].number(), 0);
}

#[test]
fn the_limit_and_overlaps_are_found_before_kvm_is_asked() {
    let vm = FakeVm::with_slots(4);
    let table = SlotTable::new(vm.clone());
    let first = table.add(&view(4 * MIB), &pieces(3), &[]).unwrap();
    let elsewhere =
        |count: u64| Layout::new((0..count).map(|nth| Piece { gpa: (64 + 2 * nth) * MIB, offset: nth * MIB, bytes: MIB }));
    let many = table.add(&view(4 * MIB), &elsewhere(2).unwrap(), &[]).unwrap_err();
    assert_eq!(many, SlotError::TooMany { wanted: 2, left: 1, limit: 4 });
    let overlap = table.add(&view(4 * MIB), &pieces(1), &[]).unwrap_err();
    assert_eq!(overlap, SlotError::Overlap { range: 0..MIB, slot: 0 });
    let beyond = table.add(&view(MIB), &pieces(2), &[]).unwrap_err();
    assert_eq!(beyond, SlotError::BeyondView { wanted: 2 * MIB, bytes: MIB });
    let plugged = table.add(&view(4 * MIB), &elsewhere(1).unwrap(), &[]).unwrap();
    drop(first);
    assert_eq!(vm.told().slots.len(), 1, "unplugging one leaves the other");
    drop(plugged);
}

#[test]
fn bound_slots_are_cut_where_the_file_jumps_and_joined_where_it_does_not() {
    let (vm, memory) = (FakeVm::with_slots(8), memory(4 * MIB));
    memory.commit(memory.frames()).unwrap();
    let quarter = MIB / 4;
    let bind = |offset: u64, frame: u64| Binding {
        offset,
        bytes: quarter,
        file: memory.segment(memory.frames().start().add(frame * quarter / 4096)).unwrap(),
    };
    // In the file: quarters 4, 5, then 1. The second is given in two parts.
    let bindings = [bind(2 * quarter, 1), bind(0, 4), bind(quarter, 5)];
    let layout = Layout::new([Piece { gpa: MIB, offset: 0, bytes: 3 * quarter }]).unwrap();
    let set = SlotTable::new(vm.clone()).add(&view(4 * MIB), &layout, &bindings).unwrap();
    let slots: Vec<_> = vm.told().slots.values().cloned().collect();
    assert_eq!(slots, [(MIB..MIB + 2 * quarter, Some(MIB)), (MIB + 2 * quarter..MIB + 3 * quarter, Some(quarter))]);
    drop(set);
    let unbound = SlotTable::new(vm).add(&view(4 * MIB), &layout, &bindings[1..]).unwrap_err();
    assert_eq!(unbound, SlotError::Unbound { offset: 2 * quarter });
}

#[test]
fn addresses_of_a_slot_that_kvm_keeps_stay_reserved() {
    let vm = FakeVm::with_slots(8);
    let view = view(4 * MIB);
    let weak = Arc::downgrade(&view);
    let set = SlotTable::new(vm.clone()).add(&view, &pieces(1), &[]).unwrap();
    vm.told().cannot_remove = true;
    drop((set, view));
    assert!(weak.upgrade().is_some(), "the guest may still write there");
}

#[test]
fn what_would_be_no_proof_about_the_guest_is_refused() {
    let vm = FakeVm::with_slots(8);
    let (table, memory) = (SlotTable::new(vm.clone()), memory(MIB));
    let extents = [(0, memory.frames())];
    let scratch = Arc::new(HostMapping::with_vacant(&memory, extents, Vacant::Scratch).unwrap());
    assert_eq!(table.add(&scratch, &pieces(1), &[]).unwrap_err(), SlotError::ScratchView);
    vm.told().does_not_follow = true;
    assert_eq!(table.add(&view(MIB), &pieces(1), &[]).unwrap_err(), SlotError::DoesNotFollow);
    assert!(vm.told().slots.is_empty());
}
