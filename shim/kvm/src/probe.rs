//! What this host's `/dev/kvm` offers. Asked, never assumed: two kernels of one version may answer differently.

use std::fmt;

use kvm_bindings::{
    KVM_CAP_EXIT_HYPERCALL, KVM_CAP_GUEST_MEMFD, KVM_CAP_MEMORY_ATTRIBUTES, KVM_CAP_MEMORY_FAULT_INFO, KVM_CAP_NR_MEMSLOTS,
    KVM_CAP_SYNC_MMU, KVM_CAP_USER_MEMORY2, KVM_CAP_VM_TYPES, KVM_MEMORY_ATTRIBUTE_PRIVATE, KVM_X86_DEFAULT_VM,
    KVM_X86_SEV_ES_VM, KVM_X86_SEV_VM, KVM_X86_SNP_VM, KVM_X86_SW_PROTECTED_VM, KVM_X86_TDX_VM,
};
use kvm_ioctls::{Kvm, VmFd};
use nix::errno::Errno;

use crate::in_place::CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES;
use crate::request::HYPERCALL_MAP_GPA_RANGE;
use crate::vm::errno;

/// `KVM_CAP_GUEST_MEMFD_FLAGS` (include/uapi/linux/kvm.h, Linux 6.18): the flags that `KVM_CREATE_GUEST_MEMFD` takes.
const CAP_GUEST_MEMFD_FLAGS: u64 = 244;

/// Why there is no KVM to ask. Whoever can do without says so and goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoKvm {
    /// `/dev/kvm` cannot be opened.
    #[error("/dev/kvm: {}", .0.desc())]
    Unopened(Errno),
    /// KVM makes no VM of this type.
    #[error("/dev/kvm: KVM_CREATE_VM of type {vm_type}: {}", .errno.desc())]
    NoVm {
        /// The type.
        vm_type: u32,
        /// What KVM said.
        errno: Errno,
    },
}

/// What KVM offers for VMs of one type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VmOffer {
    /// The type, as `KVM_CREATE_VM` takes it.
    pub vm_type: u32,
    /// How many memory slots (`KVM_CAP_NR_MEMSLOTS`).
    pub slots: u32,
    /// Whether KVM follows the host's page tables by MMU notifiers (`KVM_CAP_SYNC_MMU`): without it an unmapped view is no
    /// proof about the guest.
    pub follows_host: bool,
    /// Whether slots can be bound to a guest_memfd (`KVM_CAP_USER_MEMORY2` and `KVM_CAP_GUEST_MEMFD`).
    pub guest_memfd: bool,
    /// The flags that `KVM_CREATE_GUEST_MEMFD` takes: 1 `MMAP`, 2 `INIT_SHARED`. 0 before Linux 6.18.
    pub guest_memfd_flags: u64,
    /// Whether `KVM_SET_MEMORY_ATTRIBUTES` takes `PRIVATE`.
    pub attributes: bool,
    /// Whether `KVM_SET_MEMORY_ATTRIBUTES2` is there: in-place conversion, provisional.
    pub in_place: bool,
    /// Whether `KVM_HC_MAP_GPA_RANGE` can be made an exit (`KVM_CAP_EXIT_HYPERCALL`). It does not say whether the guest's
    /// instruction gets so far: an emulating KVM may never deliver it.
    pub hypercall_exit: bool,
    /// Whether exits for memory faults say where (`KVM_CAP_MEMORY_FAULT_INFO`). An emulating KVM says so and exits for MMIO.
    pub memory_fault_info: bool,
}

/// What this host's KVM offers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    /// For each type of VM that can be made, in the order of their numbers.
    pub vms: Vec<VmOffer>,
}

const TYPES: [(u32, &str); 6] = [
    (KVM_X86_DEFAULT_VM, "ordinary"),
    (KVM_X86_SW_PROTECTED_VM, "software-protected"),
    (KVM_X86_SEV_VM, "SEV"),
    (KVM_X86_SEV_ES_VM, "SEV-ES"),
    (KVM_X86_SNP_VM, "SEV-SNP"),
    (KVM_X86_TDX_VM, "TDX"),
];

/// Asks. Each type of VM that can be made is made for a moment.
pub fn probe() -> Result<Offer, NoKvm> {
    let kvm = Kvm::new().map_err(|error| NoKvm::Unopened(errno(error)))?;
    // A mask of types, or 0 before Linux 6.8: then there is the ordinary one.
    let mask = kvm.check_extension_raw(u64::from(KVM_CAP_VM_TYPES)) | 1 << KVM_X86_DEFAULT_VM;
    let offered = TYPES.iter().map(|(vm_type, _)| *vm_type).filter(|vm_type| mask >> vm_type & 1 == 1);
    let vms = offered.filter_map(|vm_type| Some(of(&kvm.create_vm_with_type(u64::from(vm_type)).ok()?, vm_type))).collect();
    Ok(Offer { vms })
}

/// Makes a VM of this type.
pub fn create_vm(kvm: &Kvm, vm_type: u32) -> Result<VmFd, NoKvm> {
    kvm.create_vm_with_type(u64::from(vm_type)).map_err(|error| NoKvm::NoVm { vm_type, errno: errno(error) })
}

/// What KVM answers for one VM.
#[must_use]
pub fn of(vm: &VmFd, vm_type: u32) -> VmOffer {
    let ask = |capability: u64| vm.check_extension_raw(capability).max(0).cast_unsigned();
    let cap = |capability: u32| ask(u64::from(capability));
    let guest_memfd = cap(KVM_CAP_USER_MEMORY2) > 0 && cap(KVM_CAP_GUEST_MEMFD) > 0;
    VmOffer {
        vm_type,
        slots: cap(KVM_CAP_NR_MEMSLOTS),
        follows_host: cap(KVM_CAP_SYNC_MMU) > 0,
        guest_memfd,
        guest_memfd_flags: if guest_memfd { u64::from(ask(CAP_GUEST_MEMFD_FLAGS)) } else { 0 },
        attributes: cap(KVM_CAP_MEMORY_ATTRIBUTES) & KVM_MEMORY_ATTRIBUTE_PRIVATE != 0,
        in_place: ask(CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES) > 0,
        hypercall_exit: cap(KVM_CAP_EXIT_HYPERCALL) >> HYPERCALL_MAP_GPA_RANGE & 1 == 1,
        memory_fault_info: cap(KVM_CAP_MEMORY_FAULT_INFO) > 0,
    }
}

impl Offer {
    /// What VMs of this type are offered, if they can be made.
    #[must_use]
    pub fn of_type(&self, vm_type: u32) -> Option<&VmOffer> {
        self.vms.iter().find(|vm| vm.vm_type == vm_type)
    }
}

impl fmt::Display for VmOffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = TYPES.iter().find(|(vm_type, _)| *vm_type == self.vm_type).map_or("unknown", |(_, name)| name);
        let yes = |yes: bool| if yes { "yes" } else { "no" };
        write!(f, "{name} VM: {} slots, follows the host's page tables: {}", self.slots, yes(self.follows_host))?;
        write!(f, ", guest_memfd: {} (flags {:#x})", yes(self.guest_memfd), self.guest_memfd_flags)?;
        write!(f, ", private by attributes: {}, in place: {}", yes(self.attributes), yes(self.in_place))?;
        write!(f, ", MAP_GPA_RANGE exits: {}", yes(self.hypercall_exit))?;
        write!(f, ", memory faults say where: {}", yes(self.memory_fault_info))
    }
}

impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.vms.iter().try_for_each(|vm| writeln!(f, "{vm}"))
    }
}
