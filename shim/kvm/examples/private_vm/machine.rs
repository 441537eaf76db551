//! A software-protected VM, its memory, and a pool over that memory.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};
use kvm_bindings::{KVM_CAP_EXIT_HYPERCALL, KVM_MEMORY_ATTRIBUTE_PRIVATE, KVM_X86_SW_PROTECTED_VM, kvm_enable_cap};
use kvm_ioctls::{Kvm, VmFd};
use nix::errno::Errno;
use pageless::{Allocation, Extent, FRAME_BYTES, Mapping, Pool, Request};
use pageless_host::{GuestMemfd, HostBacking, HostMapping};
use pageless_kvm::{
    Answer, Binding, Guest, HYPERCALL_MAP_GPA_RANGE, Layout, Privacy, Slot, SlotTable, Stage2, Vm, create_vm, descriptor_of,
    offer_of,
};
use parking_lot::Mutex;

use crate::guest::{ABOVE, Entries, HOLE, WINDOW, WINDOW_BYTES, window};

/// What is attached to an allocation before the guest's second stage, by name.
pub(crate) type Devices = Vec<(String, Arc<dyn Mapping>)>;

pub(crate) struct Machine {
    pub(crate) kvm: Kvm,
    pub(crate) vm: Arc<Recorded>,
    pub(crate) pool: Pool,
    memory: GuestMemfd,
    slots: SlotTable,
}

impl Machine {
    /// A VM with `bytes` of memory behind its pool. No guest has any of it yet.
    pub(crate) fn new(bytes: u64) -> Result<Self> {
        let kvm = Kvm::new().context("/dev/kvm")?;
        let vm = create_vm(&kvm, KVM_X86_SW_PROTECTED_VM)
            .context("a kernel with CONFIG_KVM_SW_PROTECTED_VM is needed: `cargo e2e-private` builds and boots one")?;
        let offer = offer_of(&vm, KVM_X86_SW_PROTECTED_VM);
        eprintln!("{offer}");
        let mut exit = kvm_enable_cap { cap: KVM_CAP_EXIT_HYPERCALL, ..kvm_enable_cap::default() };
        exit.args[0] = 1 << HYPERCALL_MAP_GPA_RANGE;
        vm.enable_cap(&exit).context("KVM_CAP_EXIT_HYPERCALL")?;
        let memory = GuestMemfd::builder().bytes(bytes).build(descriptor_of(&vm))?;
        let pool = Pool::builder().backing(memory.clone()).build()?;
        let vm = Arc::new(Recorded { vm, changes: Mutex::default() });
        Ok(Self { kvm, slots: SlotTable::new(vm.clone()), vm, pool, memory })
    }

    /// A guest with `bytes` of memory, all of it private but the window, which the host has written.
    pub(crate) fn guest(
        &self,
        owner: &str,
        bytes: u64,
        devices: impl FnOnce(&Allocation) -> Result<Devices>,
    ) -> Result<(Guest, Entries)> {
        let ram = self.pool.allocate(Request::bytes(bytes).owner(owner))?;
        let devices = devices(&ram)?;
        let bound = |extent: &Extent| {
            let file = self.memory.private_side(extent.frames.start()).context("a frame without a guest_memfd")?;
            Ok(Binding { offset: extent.offset, bytes: extent.frames.bytes(), file })
        };
        let bindings: Vec<Binding> = ram.extents().iter().map(bound).collect::<Result<_>>()?;
        let [view, host] = [HostMapping::of(&self.memory, &ram)?, HostMapping::of(&self.memory, &ram)?].map(Arc::new);
        let layout = Layout::around(bytes, HOLE..ABOVE)?;
        // A software-protected guest cannot mean one kind of memory and touch the other, since the attributes are all there is.
        // The two differ while an attribute changes under its touch; this VMM then believes the touch, as one for TDX does.
        let stage2 = Stage2::bound(&self.slots, view, layout, &bindings, Privacy::Attributes { faults_convert: true })?;
        let guest = Guest::new(ram, devices, Arc::new(stage2), host, [])?.shared_beside(self.memory.clone());
        guest.map(0..bytes)?;

        let (answer, outcome) = guest.map_gpa_range(WINDOW, WINDOW_BYTES / FRAME_BYTES, 0);
        ensure!(answer == (Answer::Done { changed: true }), "the window was not shared: {outcome:?}");
        let (bytes, entries) = window()?;
        guest.host().write(guest.stage2().offsets(WINDOW, WINDOW_BYTES)?.start, &bytes)?;
        Ok((guest, entries))
    }

    /// The number that the file of the shared side holds for `offset` of an allocation, whatever the guest has there.
    pub(crate) fn shared_side(&self, ram: &Allocation, offset: u64) -> Result<u32> {
        let place = self.memory.segment(ram.frame(offset)?).ok_or_else(|| anyhow!("no file behind offset {offset:#x}"))?;
        let mut bytes = [0; 4];
        File::from(place.fd().try_clone_to_owned()?).read_exact_at(&mut bytes, place.offset())?;
        Ok(u32::from_le_bytes(bytes))
    }
}

/// One `KVM_SET_MEMORY_ATTRIBUTES` that KVM carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Change {
    /// Where, in bytes of guest-physical address.
    pub(crate) gpa: u64,
    /// To private, or to shared.
    pub(crate) to_private: bool,
}

/// The VM, and a record of every change of an attribute.
pub(crate) struct Recorded {
    pub(crate) vm: VmFd,
    changes: Mutex<Vec<Change>>,
}

impl Recorded {
    pub(crate) fn changes(&self) -> Vec<Change> {
        self.changes.lock().clone()
    }
}

impl Vm for Recorded {
    fn slot_limit(&self) -> u32 {
        self.vm.slot_limit()
    }

    fn follows_host(&self) -> bool {
        self.vm.follows_host()
    }

    fn set_slot(&self, slot: &Slot) -> Result<(), Errno> {
        self.vm.set_slot(slot)
    }

    fn remove_slot(&self, slot: &Slot) -> Result<(), Errno> {
        self.vm.remove_slot(slot)
    }

    fn set_attributes(&self, gpa: u64, bytes: u64, attributes: u64) -> Result<(), Errno> {
        self.vm.set_attributes(gpa, bytes, attributes)?;
        let to_private = attributes & u64::from(KVM_MEMORY_ATTRIBUTE_PRIVATE) != 0;
        self.changes.lock().push(Change { gpa, to_private });
        Ok(())
    }
}
