//! Memory slots: the runs of a layout, given to KVM all together or not at all, and taken back.
//!
//! A [`SlotTable`] belongs to one VM and numbers its slots; a [`SlotSet`] is what one allocation has of them, and removes them
//! when dropped. Hot-plug is a second set of the same table.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use nix::errno::Errno;
use pageless_host::{HostMapping, SegmentHandle, Vacant};
use parking_lot::Mutex;

use crate::layout::Layout;
use crate::vm::{Bound, Slot, Vm};

/// A run of an allocation behind a guest_memfd.
#[derive(Clone, Debug)]
pub struct Binding {
    /// Where the run begins in the allocation, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// The guest_memfd, and where the run begins in it.
    pub file: SegmentHandle,
}

/// Why there are no such slots. None of them exists.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SlotError {
    /// The VM has not so many slots left.
    #[error("{wanted} slots wanted, but the VM has {left} of its {limit} left (KVM_CAP_NR_MEMSLOTS)")]
    TooMany {
        /// How many were wanted.
        wanted: usize,
        /// How many are left.
        left: usize,
        /// How many the VM can have.
        limit: u32,
    },
    /// A slot of this VM has some of the addresses.
    #[error("guest-physical {:#x}..{:#x} overlaps slot {slot}", .range.start, .range.end)]
    Overlap {
        /// The guest-physical addresses that were wanted.
        range: Range<u64>,
        /// The slot that has some of them.
        slot: u32,
    },
    /// The layout reaches beyond the mapping whose addresses the slots would point at.
    #[error("the layout needs {wanted:#x} bytes of the guest's view, which has {bytes:#x}")]
    BeyondView {
        /// Bytes that the layout needs.
        wanted: u64,
        /// Bytes that the view has.
        bytes: u64,
    },
    /// This KVM does not follow the host's page tables, so unmapping the view would prove nothing about the guest.
    #[error("this KVM does not follow the host's page tables (KVM_CAP_SYNC_MMU), so an unmap is no proof about its guests")]
    DoesNotFollow,
    /// The view has scratch pages where no frame is mapped: the guest would get those instead of an exit.
    #[error("the guest's view must be inaccessible where no frame is mapped; make it without Vacant::Scratch")]
    ScratchView,
    /// A part of the layout has no guest_memfd behind it, though the rest has.
    #[error("no guest_memfd is bound to offset {offset:#x}")]
    Unbound {
        /// The first such byte of the allocation.
        offset: u64,
    },
    /// KVM refused a slot.
    #[error("KVM refused slot {slot} of {bytes:#x} bytes at guest-physical {gpa:#x}")]
    Kvm {
        /// The slot.
        slot: u32,
        /// Where it would have begun.
        gpa: u64,
        /// Its length in bytes.
        bytes: u64,
        /// What KVM said.
        #[source]
        errno: Errno,
    },
}

/// The slots of one VM. Clones are the same table.
#[derive(Clone)]
pub struct SlotTable {
    inner: Arc<Table>,
}

struct Table {
    vm: Arc<dyn Vm>,
    limit: u32,
    taken: Mutex<BTreeMap<u32, Range<u64>>>,
}

impl SlotTable {
    /// The table of a VM that has no slots yet.
    #[must_use]
    pub fn new(vm: Arc<dyn Vm>) -> Self {
        let limit = vm.slot_limit();
        Self { inner: Arc::new(Table { vm, limit, taken: Mutex::default() }) }
    }

    /// The VM.
    #[must_use]
    pub fn vm(&self) -> &Arc<dyn Vm> {
        &self.inner.vm
    }

    /// Makes the slots of a layout: they point at the addresses of `view`, offset by offset, and where there are `bindings`
    /// each is bound to its guest_memfd. Everything is checked first; if KVM refuses one, those before it are removed again.
    pub fn add(&self, view: &Arc<HostMapping>, layout: &Layout, bindings: &[Binding]) -> Result<SlotSet, SlotError> {
        if layout.end_offset() > view.bytes() {
            return Err(SlotError::BeyondView { wanted: layout.end_offset(), bytes: view.bytes() });
        }
        if view.vacant() != Vacant::Inaccessible {
            return Err(SlotError::ScratchView);
        }
        if !self.inner.vm.follows_host() {
            return Err(SlotError::DoesNotFollow);
        }
        let cuts = cut(layout, bindings)?;
        let Table { vm, limit, taken } = &*self.inner;
        let mut taken = taken.lock();
        let left = (*limit as usize).saturating_sub(taken.len());
        if cuts.len() > left {
            return Err(SlotError::TooMany { wanted: cuts.len(), left, limit: *limit });
        }
        for range in cuts.iter().map(Cut::range) {
            if let Some((slot, _)) = taken.iter().find(|(_, other)| other.start < range.end && range.start < other.end) {
                return Err(SlotError::Overlap { range, slot: *slot });
            }
        }
        let free: Vec<u32> = (0..*limit).filter(|number| !taken.contains_key(number)).take(cuts.len()).collect();
        let mut set = SlotSet { table: self.clone(), slots: Vec::with_capacity(cuts.len()) };
        for (number, cut) in free.into_iter().zip(cuts) {
            let Cut { gpa, offset, bytes, bound } = cut;
            let slot = Slot { number, gpa, bytes, offset, view: Arc::clone(view), bound };
            if let Err(errno) = vm.set_slot(&slot) {
                drop(taken); // the set's own drop takes it, to remove those that were made
                return Err(SlotError::Kvm { slot: number, gpa, bytes, errno });
            }
            taken.insert(number, gpa..gpa + bytes);
            set.slots.push(slot);
        }
        Ok(set)
    }
}

impl fmt::Debug for SlotTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotTable").field("limit", &self.inner.limit).field("taken", &self.inner.taken.lock()).finish()
    }
}

/// The slots of one allocation. Dropping it removes them.
#[derive(Debug)]
pub struct SlotSet {
    table: SlotTable,
    slots: Vec<Slot>,
}

impl SlotSet {
    /// The slots.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Removes them all; when it returns without an error, the guest reaches nothing through them. On an error the slots from
    /// the one that KVM would not remove on are still there.
    pub fn remove(&mut self) -> Result<(), Errno> {
        while let Some(slot) = self.slots.last() {
            self.table.inner.vm.remove_slot(slot)?;
            self.table.inner.taken.lock().remove(&slot.number);
            self.slots.pop();
        }
        Ok(())
    }
}

impl Drop for SlotSet {
    fn drop(&mut self) {
        if let Err(errno) = self.remove() {
            tracing::error!(%errno, slots = self.slots.len(), "KVM keeps memory slots; their addresses stay reserved for good");
            // The guest may still write there: nobody else may get the addresses.
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}

/// A slot to be: one run of addresses, of offsets, and of its file where it is bound.
#[derive(Clone, Debug)]
struct Cut {
    gpa: u64,
    offset: u64,
    bytes: u64,
    bound: Option<Bound>,
}

impl Cut {
    fn range(&self) -> Range<u64> {
        self.gpa..self.gpa + self.bytes
    }
}

/// The pieces of the layout, cut where the files behind them change. Runs that follow each other in one file are one.
fn cut(layout: &Layout, bindings: &[Binding]) -> Result<Vec<Cut>, SlotError> {
    let whole = layout.pieces().iter();
    if bindings.is_empty() {
        return Ok(whole.map(|piece| Cut { gpa: piece.gpa, offset: piece.offset, bytes: piece.bytes, bound: None }).collect());
    }
    let runs = joined(bindings);
    let mut cuts = Vec::new();
    for piece in whole {
        let (mut at, end) = (piece.offset, piece.offset + piece.bytes);
        while at < end {
            let covers = |run: &&Run| (run.offset..run.offset + run.bytes).contains(&at);
            let run = runs.iter().find(covers).ok_or(SlotError::Unbound { offset: at })?;
            let to = end.min(run.offset + run.bytes);
            let bound = Some(run.file_at(at));
            cuts.push(Cut { gpa: piece.gpa + (at - piece.offset), offset: at, bytes: to - at, bound });
            at = to;
        }
    }
    Ok(cuts)
}

/// Bindings that follow each other both in the allocation and in one file, as one.
struct Run {
    offset: u64,
    bytes: u64,
    first: Binding,
}

impl Run {
    fn file_at(&self, offset: u64) -> Bound {
        Bound { file: self.first.file.clone(), offset: self.first.file.offset() + (offset - self.offset) }
    }
}

fn joined(bindings: &[Binding]) -> Vec<Run> {
    let mut sorted: Vec<&Binding> = bindings.iter().collect();
    sorted.sort_unstable_by_key(|binding| binding.offset);
    let mut runs: Vec<Run> = Vec::new();
    for next in sorted {
        match runs.last_mut() {
            Some(last)
                if last.offset + last.bytes == next.offset
                    && last.first.file.offset() + last.bytes == next.file.offset()
                    && last.first.file.fd().as_raw_fd() == next.file.fd().as_raw_fd() =>
            {
                last.bytes += next.bytes;
            }
            _ => runs.push(Run { offset: next.offset, bytes: next.bytes, first: next.clone() }),
        }
    }
    runs
}
