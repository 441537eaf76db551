//! What this crate asks of a virtual machine: slots and memory attributes. The real one is [`kvm_ioctls::VmFd`]; tests have
//! others, which fail where they are told to.
//!
//! The two ioctls that name addresses of this process are `unsafe` in kvm-ioctls, since a wrong address lets the guest write
//! anywhere. A [`Slot`] cannot be wrong: it is made of a [`HostMapping`]'s own reservation and keeps it alive.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use kvm_bindings::{KVM_MEM_GUEST_MEMFD, kvm_memory_attributes, kvm_userspace_memory_region, kvm_userspace_memory_region2};
use kvm_ioctls::{Cap, VmFd};
use nix::errno::Errno;
use nix::libc;
use pageless_host::{HostMapping, SegmentHandle};

use crate::in_place::{ARGUMENT_BYTES, InPlaceFile, SET_MEMORY_ATTRIBUTES2};

/// A run of guest memory as one KVM memory slot.
#[derive(Clone, Debug)]
pub struct Slot {
    pub(crate) number: u32,
    pub(crate) gpa: u64,
    pub(crate) bytes: u64,
    /// Where it begins in the view, in bytes; the slot lies wholly in the view.
    pub(crate) offset: u64,
    pub(crate) view: Arc<HostMapping>,
    pub(crate) bound: Option<Bound>,
}

/// Where a slot's memory lies in a guest_memfd.
#[derive(Clone, Debug)]
pub struct Bound {
    /// The file. The handle keeps it open.
    pub file: SegmentHandle,
    /// Where the slot begins in the file, in bytes.
    pub offset: u64,
}

impl Slot {
    /// Its number in the VM.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Where the guest sees it, in bytes of guest-physical address.
    #[must_use]
    pub fn gpa(&self) -> u64 {
        self.gpa
    }

    /// Its length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The guest_memfd behind it, if it is bound to one.
    #[must_use]
    pub fn bound(&self) -> Option<&Bound> {
        self.bound.as_ref()
    }

    /// The address of its first byte in this process.
    fn address(&self) -> u64 {
        self.view.address() as u64 + self.offset
    }

    fn flags(&self) -> u32 {
        if self.bound.is_some() { KVM_MEM_GUEST_MEMFD } else { 0 }
    }
}

/// A virtual machine, as far as its memory goes.
pub trait Vm: Send + Sync {
    /// How many slots it can have: `KVM_CAP_NR_MEMSLOTS`.
    fn slot_limit(&self) -> u32;

    /// Whether its stage 2 follows the host's page tables by MMU notifiers (`KVM_CAP_SYNC_MMU`).
    fn follows_host(&self) -> bool;

    /// Makes the slot, with `KVM_SET_USER_MEMORY_REGION`, or its second version where it is bound to a guest_memfd.
    fn set_slot(&self, slot: &Slot) -> Result<(), Errno>;

    /// Removes the slot. When it returns, the guest reaches nothing through it: KVM has emptied the stage 2 behind it.
    fn remove_slot(&self, slot: &Slot) -> Result<(), Errno>;

    /// `KVM_SET_MEMORY_ATTRIBUTES` of `bytes` bytes at guest-physical `gpa`. When it returns, KVM has taken out of the stage 2
    /// what had the other attributes.
    fn set_attributes(&self, gpa: u64, bytes: u64, attributes: u64) -> Result<(), Errno>;
}

/// The VM's descriptor, borrowed: kvm-ioctls gives only its number.
#[must_use]
pub fn descriptor_of(vm: &VmFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor stays open as long as `vm`, which is borrowed for as long.
    unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) }
}

pub(crate) fn errno(error: kvm_ioctls::Error) -> Errno {
    Errno::from_raw(error.errno())
}

impl Vm for VmFd {
    fn slot_limit(&self) -> u32 {
        u32::try_from(self.check_extension_int(Cap::NrMemslots)).unwrap_or(0)
    }

    fn follows_host(&self) -> bool {
        self.check_extension(Cap::SyncMmu)
    }

    fn set_slot(&self, slot: &Slot) -> Result<(), Errno> {
        set(self, slot, slot.bytes)
    }

    fn remove_slot(&self, slot: &Slot) -> Result<(), Errno> {
        set(self, slot, 0)
    }

    fn set_attributes(&self, gpa: u64, bytes: u64, attributes: u64) -> Result<(), Errno> {
        let attributes = kvm_memory_attributes { address: gpa, size: bytes, attributes, flags: 0 };
        self.set_memory_attributes(attributes).map_err(errno)
    }
}

impl InPlaceFile for SegmentHandle {
    fn set_attributes(&self, argument: &mut [u8; ARGUMENT_BYTES]) -> Result<(), Errno> {
        let number = libc::c_ulong::from(SET_MEMORY_ATTRIBUTES2);
        // SAFETY: the number says that the kernel reads and writes ARGUMENT_BYTES bytes, and `argument` has as many.
        let result = unsafe { libc::ioctl(self.fd().as_raw_fd(), number, argument.as_mut_ptr()) };
        Errno::result(result).map(|_| ())
    }
}

fn set(vm: &VmFd, slot: &Slot, bytes: u64) -> Result<(), Errno> {
    let Some(bound) = &slot.bound else {
        let region = kvm_userspace_memory_region {
            slot: slot.number,
            flags: slot.flags(),
            guest_phys_addr: slot.gpa,
            memory_size: bytes,
            userspace_addr: slot.address(),
        };
        // SAFETY: the addresses are the view's own reservation, which lives as long as the slot (`Slot::view`, and `SlotSet`
        // gives the view away for good where a slot cannot be removed). No Rust reference names them.
        return unsafe { vm.set_user_memory_region(region) }.map_err(errno);
    };
    let region = kvm_userspace_memory_region2 {
        slot: slot.number,
        flags: slot.flags(),
        guest_phys_addr: slot.gpa,
        memory_size: bytes,
        userspace_addr: slot.address(),
        guest_memfd_offset: bound.offset,
        guest_memfd: u32::try_from(bound.file.fd().as_raw_fd()).map_err(|_| Errno::EBADF)?,
        ..kvm_userspace_memory_region2::default()
    };
    // SAFETY: as above; the descriptor is open as long as its handle, and the kernel refuses one that is no guest_memfd of
    // this VM.
    unsafe { vm.set_user_memory_region2(region) }.map_err(errno)
}
