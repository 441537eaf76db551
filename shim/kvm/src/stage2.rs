//! [`Stage2`]: the guest's second stage as a mapping of its allocation.
//!
//! For an ordinary VM KVM's stage 2 follows the host addresses that its memory slots point at. So the guest has addresses of
//! its own in this process, the *view*, which nobody else touches. A frame is mapped there under a map guard; unmapping it
//! runs KVM's MMU notifier, which takes it out of the stage 2 and flushes before `mmap` returns. That return is the proof. A
//! vCPU that touches the place afterwards exits to the VMM.
//!
//! Where the VM has memory attributes (`KVM_X86_SW_PROTECTED_VM`, TDX, SNP) the view holds the shared side alone, the private
//! side comes from a guest_memfd bound to the slots, and `KVM_SET_MEMORY_ATTRIBUTES` says which of the two the guest sees.
//!
//! What its `Ok` does not cover: a TDX S-EPT entry that the module would not drop (the kernel ends that VM and tells nobody),
//! and, where slots are bound to a guest_memfd *without* attributes, the guest's own way to the page, which does not go
//! through the view: see [`Privacy::InPlace`].

use std::sync::Arc;

use kvm_bindings::KVM_MEMORY_ATTRIBUTE_PRIVATE;
use nix::errno::Errno;
use pageless::{Cause, FRAME_BYTES, Intent, MapGuard, Mapping, Operation, Pfn, PfnRange, Refusal, Shareability, Stuck, Verdict};
use pageless_host::{HostMapping, MapError};
use parking_lot::Mutex;

use crate::layout::{Layout, NotMemory};
use crate::slots::{Binding, SlotError, SlotSet, SlotTable};

/// When to ask KVM again after it was out of memory.
const RETRY_AFTER: std::time::Duration = std::time::Duration::from_millis(10);

/// How KVM tells private memory from shared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Privacy {
    /// It does not: private and shared frames alike are mapped in the view, and the guest reaches nothing else.
    #[default]
    None,
    /// By memory attributes: shared frames are mapped in the view, private ones come from the guest_memfd.
    Attributes {
        /// Whether a memory fault says how the guest meant the memory, as on TDX and SNP, where a bit of the address tells
        /// private from shared: then a fault of the other kind is a request to convert. On a software-protected VM the
        /// attributes alone decide, so a fault says nothing of the kind.
        faults_convert: bool,
    },
    /// The slots are bound to a guest_memfd that is also mapped in the view. Some kernels fill the stage 2 from the file and
    /// not through the view, so unmapping the view proves nothing about the guest: what does is the backing, which punches
    /// the page before a share and before it is free again. A guest could then take a fresh page of the same frame, so
    /// frames are not reclaimed while a slot is bound: [`Stage2::remove_slots`] first.
    InPlace,
}

/// Why a translation was not made.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Stage2Error {
    /// The view refused.
    #[error(transparent)]
    View(#[from] MapError),
    /// The frames are neither private nor shared, so nobody may reach them.
    #[error("{frames} are of unknown shareability")]
    Unknown {
        /// The frames.
        frames: PfnRange,
    },
    /// KVM refused the attributes.
    #[error("KVM_SET_MEMORY_ATTRIBUTES for {bytes:#x} bytes at guest-physical {gpa:#x} failed")]
    Attributes {
        /// Where they begin.
        gpa: u64,
        /// How many bytes.
        bytes: u64,
        /// What KVM said.
        #[source]
        errno: Errno,
    },
}

/// The guest's second stage, with the memory slots behind it. Dropping it removes the slots.
#[derive(Debug)]
pub struct Stage2 {
    table: SlotTable,
    /// Dropped before the view: the guest must lose its slots before the addresses go.
    slots: Mutex<SlotSet>,
    view: Arc<HostMapping>,
    layout: Layout,
    privacy: Privacy,
}

impl Stage2 {
    /// Makes the slots of `layout`, which point at `view`. Nothing is mapped yet. `view` is a [`HostMapping`] of the
    /// allocation that nobody else reads, writes or maps into, inaccessible where no frame is mapped.
    pub fn new(table: &SlotTable, view: Arc<HostMapping>, layout: Layout) -> Result<Self, SlotError> {
        Self::bound(table, view, layout, &[], Privacy::None)
    }

    /// The same, with each slot bound to a guest_memfd: `bindings` cover every offset of the layout.
    pub fn bound(
        table: &SlotTable,
        view: Arc<HostMapping>,
        layout: Layout,
        bindings: &[Binding],
        privacy: Privacy,
    ) -> Result<Self, SlotError> {
        let slots = Mutex::new(table.add(&view, &layout, bindings)?);
        Ok(Self { table: table.clone(), slots, view, layout, privacy })
    }

    /// Where the guest sees the allocation.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The guest's addresses in this process.
    #[must_use]
    pub fn view(&self) -> &Arc<HostMapping> {
        &self.view
    }

    /// How KVM tells private memory from shared.
    #[must_use]
    pub fn privacy(&self) -> Privacy {
        self.privacy
    }

    /// How many slots there are now.
    #[must_use]
    pub fn slot_count(&self) -> usize {
        self.slots.lock().slots().len()
    }

    /// Takes the memory away from the guest as a whole, as a hot-unplug or the end of the VM does.
    pub fn remove_slots(&self) -> Result<(), Errno> {
        self.slots.lock().remove()
    }

    /// Lets the guest reach `frames` at `offset` of the allocation, which `guard` permits and which are all of this
    /// shareability.
    pub fn map(
        &self,
        guard: &MapGuard<'_>,
        offset: u64,
        frames: PfnRange,
        shareability: Shareability,
    ) -> Result<(), Stage2Error> {
        if !guard.covers(frames) {
            return Err(MapError::NotGuarded { frames }.into());
        }
        match (self.privacy, shareability) {
            (_, Shareability::Unknown) => Err(Stage2Error::Unknown { frames }),
            (Privacy::Attributes { .. }, Shareability::Private) => {
                self.set_attributes(offset, frames, u64::from(KVM_MEMORY_ATTRIBUTE_PRIVATE))
            }
            _ => Ok(self.view.map(guard, frames)?),
        }
    }

    /// The offsets behind an access of the guest's, or an error that says that it was not to memory.
    pub fn offsets(&self, gpa: u64, bytes: u64) -> Result<std::ops::Range<u64>, NotMemory> {
        self.layout.offsets(gpa, bytes)
    }

    fn set_attributes(&self, offset: u64, frames: PfnRange, attributes: u64) -> Result<(), Stage2Error> {
        for range in self.layout.addresses(offset..offset + frames.bytes()) {
            let (gpa, bytes) = (range.start, range.end - range.start);
            let set = self.table.vm().set_attributes(gpa, bytes, attributes);
            set.map_err(|errno| Stage2Error::Attributes { gpa, bytes, errno })?;
        }
        Ok(())
    }

    /// Whether a slot still binds the frames' file.
    fn is_bound(&self, offset: u64, frames: PfnRange) -> bool {
        let slots = self.slots.lock();
        let end = offset + frames.bytes();
        slots.slots().iter().any(|slot| slot.bound().is_some() && slot.offset < end && offset < slot.offset + slot.bytes)
    }
}

/// Where `frames`, a run of the operation's, begin in the allocation.
pub(crate) fn offset_of(op: &Operation, at: Pfn) -> u64 {
    op.guest_offset + at.get().saturating_sub(op.frames.start().get()) * FRAME_BYTES
}

impl Mapping for Stage2 {
    /// Refuses to convert a part of a huge page, mapped or not: it is mapped whole, so what is beside the part would never be
    /// mapped for the guest again.
    fn prepare(&self, op: &Operation) -> Result<(), Refusal> {
        let page = self.view.page();
        let whole = [op.frames.start(), op.frames.end()].into_iter().all(|edge| edge.is_aligned(page.order()));
        if matches!(op.intent, Intent::Share | Intent::Unshare) && !whole {
            let why = format!("{} are not whole pages of {page}, and the guest has those whole or not at all", op.frames);
            return Err(Refusal::Other(why.into()));
        }
        self.view.prepare(op)
    }

    /// Unmaps the view, and where there are attributes takes `PRIVATE` away: the first empties the stage 2 of what came through
    /// the view, the second of what came from the guest_memfd. So a guest that touches the frames while they convert exits,
    /// whichever side it means; [`map`](Self::map) gives it the new one under a guard.
    fn invalidate(&self, op: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        self.view.invalidate(op, frames)?;
        let offset = offset_of(op, frames.start());
        match (self.privacy, op.intent) {
            (Privacy::None, _) => Ok(()),
            (Privacy::InPlace, Intent::Reclaim | Intent::Detach) if self.is_bound(offset, frames) => {
                let meaning = "a slot still binds the guest_memfd, so the guest could take a fresh page: remove the slots first";
                Err(stuck(frames, "KVM_SET_USER_MEMORY_REGION2", Errno::EBUSY, meaning))
            }
            (Privacy::InPlace, _) => Ok(()),
            // Shared frames have no attribute to lose.
            (Privacy::Attributes { .. }, Intent::Unshare | Intent::Resize) => Ok(()),
            (Privacy::Attributes { .. }, _) => self.set_attributes(offset, frames, 0).map_err(|error| {
                let Stage2Error::Attributes { errno, .. } = error else { return stuck(frames, "attributes", Errno::EINVAL, "") };
                stuck(frames, "KVM_SET_MEMORY_ATTRIBUTES", errno, errno.desc())
            }),
        }
    }

    fn promote(&self, block: PfnRange) -> Result<(), Refusal> {
        if matches!(self.privacy, Privacy::Attributes { .. }) { Err(Refusal::Unsupported) } else { self.view.promote(block) }
    }
}

/// KVM answers ENOMEM before it changes anything and EINTR where a signal came; anything else it will answer again.
fn stuck(at: PfnRange, step: &'static str, errno: Errno, meaning: &'static str) -> Stuck {
    let passes = matches!(errno, Errno::ENOMEM | Errno::EINTR | Errno::EAGAIN | Errno::EBUSY);
    let verdict = if passes { Verdict::Retry { after: RETRY_AFTER } } else { Verdict::Never };
    Stuck { at, verdict, cause: Cause::new(step, errno as u64, meaning) }
}
