//! The two ioctls of a KVM virtual machine that making a guest_memfd takes. Numbers and layouts are those of
//! include/uapi/linux/kvm.h.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;

/// `KVM_CAP_GUEST_MEMFD` (Linux 6.8): this VM can have guest_memfds.
pub(super) const CAP_GUEST_MEMFD: libc::c_int = 234;
/// `KVM_CAP_GUEST_MEMFD_FLAGS` (Linux 6.18): the flags that this VM's guest_memfds can have, as a mask.
pub(super) const CAP_GUEST_MEMFD_FLAGS: libc::c_int = 244;
/// `GUEST_MEMFD_FLAG_MMAP`: user space can map the file.
pub(super) const FLAG_MMAP: u64 = 1;
/// `GUEST_MEMFD_FLAG_INIT_SHARED`: the file begins as shared memory. Without it a touch of a mapping is a SIGBUS.
pub(super) const FLAG_INIT_SHARED: u64 = 2;

const KVMIO: u8 = 0xAE;

/// `struct kvm_create_guest_memfd`: 64 bytes.
#[repr(C)]
#[derive(Default)]
struct CreateGuestMemfd {
    size: u64,
    flags: u64,
    reserved: [u64; 6],
}

nix::ioctl_write_int_bad!(kvm_check_extension, nix::request_code_none!(KVMIO, 0x03));
nix::ioctl_readwrite!(kvm_create_guest_memfd, KVMIO, 0xd4, CreateGuestMemfd);

/// `KVM_CHECK_EXTENSION`: what the VM answers for `capability`, 0 where its kernel does not know it.
pub(super) fn check_extension(vm: BorrowedFd<'_>, capability: libc::c_int) -> Result<u64, Errno> {
    // SAFETY: the ioctl takes a number and touches no memory of this process; a descriptor of something else refuses it.
    let answer = unsafe { kvm_check_extension(vm.as_raw_fd(), capability) }?;
    u64::try_from(answer).map_err(|_| Errno::EINVAL)
}

/// `KVM_CREATE_GUEST_MEMFD`: a new file of `bytes` bytes without a page.
pub(super) fn create_guest_memfd(vm: BorrowedFd<'_>, bytes: u64, flags: u64) -> Result<OwnedFd, Errno> {
    let mut asked = CreateGuestMemfd { size: bytes, flags, ..CreateGuestMemfd::default() };
    // SAFETY: the kernel reads and writes the 64 bytes of the structure that the number announces, and it lives long enough.
    let fd = unsafe { kvm_create_guest_memfd(vm.as_fd().as_raw_fd(), &raw mut asked) }?;
    // SAFETY: the kernel has just installed this descriptor for the caller, and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
