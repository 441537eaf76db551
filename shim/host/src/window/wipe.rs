//! Zeroing physical frames through a mapping that lives as long as that takes.
//!
//! A window's pages have no file that could be punched and nobody else who would zero them, so this processor writes them.
//! The mapping is this function's own and gone before it returns.

use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::raw::c_void;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};

/// A mapping of a device, whole pages of it, undone when dropped.
#[derive(Debug)]
struct Mapped {
    address: NonNull<c_void>,
    bytes: NonZeroUsize,
}

impl Mapped {
    fn new(device: impl AsFd, offset: u64, bytes: u64, rights: ProtFlags) -> Result<Self, Errno> {
        let bytes = usize::try_from(bytes).ok().and_then(NonZeroUsize::new).ok_or(Errno::EINVAL)?;
        let offset = i64::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let address = unsafe { mmap(None, bytes, rights, MapFlags::MAP_SHARED, device, offset) }?;
        let mapped = Self { address, bytes };
        // SAFETY: the very addresses just mapped; the advice changes what fork copies and no contents.
        unsafe { madvise(address, bytes.get(), MmapAdvise::MADV_DONTFORK) }?;
        Ok(mapped)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the addresses are this value's own, and nothing of Rust's points into them.
        if let Err(errno) = unsafe { munmap(self.address, self.bytes.get()) } {
            tracing::error!(%errno, bytes = self.bytes, "could not unmap what was mapped to be zeroed");
        }
    }
}

/// Zeroes `bytes` bytes at `offset` of the device, in bytes. Whole pages of `unit` bytes around them are mapped meanwhile.
pub(super) fn zero(device: impl AsFd, offset: u64, bytes: u64, unit: u64) -> Result<(), Errno> {
    let start = offset - offset % unit;
    let end = offset.checked_add(bytes).and_then(|end| end.checked_next_multiple_of(unit)).ok_or(Errno::EOVERFLOW)?;
    let mapped = Mapped::new(device, start, end - start, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
    let skip = usize::try_from(offset - start).map_err(|_| Errno::EOVERFLOW)?;
    let count = usize::try_from(bytes).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: skip + count lies within the mapping, since it reaches from `start` to `end` or beyond. Nobody else is given these
    // bytes: every mapping of them has been proven undone, and no Rust reference names them.
    unsafe { mapped.address.cast::<u8>().add(skip).write_bytes(0, count) };
    Ok(())
}

/// Whether the kernel maps this page of the device at all. Touches nothing of it.
pub(super) fn try_map(device: impl AsFd, offset: u64, unit: u64) -> Result<(), Errno> {
    Mapped::new(device, offset, unit, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE).map(drop)
}
