//! A virtual machine that keeps what it is told and fails where it is told to.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use nix::errno::Errno;
use pageless_kvm::{Slot, Vm};
use parking_lot::Mutex;

#[derive(Default)]
pub(crate) struct FakeVm {
    limit: u32,
    state: Mutex<State>,
}

#[derive(Default)]
pub(crate) struct State {
    /// Slot to guest-physical addresses, and the offset in its guest_memfd where it is bound.
    pub(crate) slots: BTreeMap<u32, (Range<u64>, Option<u64>)>,
    /// The attributes that were set: (address, bytes, attributes), in order.
    pub(crate) attributes: Vec<(u64, u64, u64)>,
    /// How many more slots may be made.
    pub(crate) slots_left: Option<usize>,
    /// What the next calls for attributes answer.
    pub(crate) attribute_errors: Vec<Errno>,
    pub(crate) cannot_remove: bool,
    pub(crate) does_not_follow: bool,
}

impl FakeVm {
    pub(crate) fn with_slots(limit: u32) -> Arc<Self> {
        Arc::new(Self { limit, ..Self::default() })
    }

    pub(crate) fn told(&self) -> parking_lot::MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl Vm for FakeVm {
    fn slot_limit(&self) -> u32 {
        self.limit
    }

    fn follows_host(&self) -> bool {
        !self.told().does_not_follow
    }

    fn set_slot(&self, slot: &Slot) -> Result<(), Errno> {
        let mut state = self.state.lock();
        match state.slots_left {
            Some(0) => return Err(Errno::EEXIST),
            Some(left) => state.slots_left = Some(left - 1),
            None => {}
        }
        let range = slot.gpa()..slot.gpa() + slot.bytes();
        let overlaps = state.slots.values().any(|(other, _)| other.start < range.end && range.start < other.end);
        assert!(!overlaps && !state.slots.contains_key(&slot.number()), "the table must not ask for this");
        state.slots.insert(slot.number(), (range, slot.bound().map(|bound| bound.offset)));
        Ok(())
    }

    fn remove_slot(&self, slot: &Slot) -> Result<(), Errno> {
        let mut state = self.state.lock();
        if state.cannot_remove {
            return Err(Errno::EIO);
        }
        state.slots.remove(&slot.number()).map(|_| ()).ok_or(Errno::EINVAL)
    }

    fn set_attributes(&self, gpa: u64, bytes: u64, attributes: u64) -> Result<(), Errno> {
        let mut state = self.state.lock();
        if let Some(errno) = state.attribute_errors.pop() {
            return Err(errno);
        }
        state.attributes.push((gpa, bytes, attributes));
        Ok(())
    }
}
