//! An allocation as `vm-memory` sees guest memory, so that rust-vmm's devices use it unchanged.
//!
//! [`RamRegion`] is a [`GuestMemoryRegion`] over the host's own mapping; a [`GuestRegionCollection`] of them is a
//! [`GuestMemoryBackend`](vm_memory::GuestMemoryBackend). What is not mapped there at this moment (private, converting,
//! withdrawn) is an error of vm-memory's. A slice that was made before an invalidation and is used after it meets scratch
//! pages ([`Vacant::Scratch`]): a late write goes into a void and never into a frame.
//!
//! A slice may become stale in one more way: the frames go and come back, shared again, and the late access meets the new
//! contents. That is what a device of a real machine would do, too.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use pageless_host::{HostMapping, Vacant};
use vm_memory::bitmap::BS;
use vm_memory::guest_memory::Result;
use vm_memory::{
    AtomicAccess, Bytes, GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestRegionCollection, GuestUsize,
    MemoryRegionAddress, ReadVolatile, VolatileSlice, WriteVolatile,
};

use crate::layout::{Layout, Piece};

/// All memory of a guest, as rust-vmm's devices take it. It can be put in a `GuestMemoryAtomic` and exchanged on hot-plug.
pub type GuestRam = GuestRegionCollection<RamRegion>;

/// Why an allocation is no guest memory of vm-memory's.
#[derive(Debug, thiserror::Error)]
pub enum GuestRamError {
    /// A late access would be a fault.
    #[error("the mapping is inaccessible where no frame is mapped, so a late access would fault; make it with Vacant::Scratch")]
    NoScratch,
    /// The layout reaches beyond the mapping.
    #[error("the layout needs {wanted:#x} bytes of the mapping, which has {bytes:#x}")]
    BeyondMapping {
        /// Bytes that the layout needs.
        wanted: u64,
        /// Bytes that the mapping has.
        bytes: u64,
    },
    /// vm-memory refused the regions.
    #[error(transparent)]
    Regions(#[from] vm_memory::GuestRegionCollectionError),
}

/// The memory of a guest: one region for each piece of the layout, over the host's view of its allocation.
pub fn guest_ram(host: &Arc<HostMapping>, layout: &Layout) -> std::result::Result<GuestRam, GuestRamError> {
    if host.vacant() != Vacant::Scratch {
        return Err(GuestRamError::NoScratch);
    }
    if layout.end_offset() > host.bytes() {
        return Err(GuestRamError::BeyondMapping { wanted: layout.end_offset(), bytes: host.bytes() });
    }
    let region = |piece: &Piece| RamRegion { host: Arc::clone(host), piece: *piece };
    Ok(GuestRam::from_regions(layout.pieces().iter().map(region).collect())?)
}

/// One piece of a guest's memory. Made by [`guest_ram`].
#[derive(Clone, Debug)]
pub struct RamRegion {
    host: Arc<HostMapping>,
    /// Lies wholly in the mapping, which is scratch where no frame is mapped.
    piece: Piece,
}

impl RamRegion {
    /// The address of `count` bytes, if they are this region's and all mapped now.
    fn mapped(&self, at: MemoryRegionAddress, count: usize) -> Result<*mut u8> {
        let inside = at.0.checked_add(count as u64).is_some_and(|end| end <= self.piece.bytes);
        if !inside {
            return Err(GuestMemoryError::InvalidBackendAddress);
        }
        let offset = self.piece.offset + at.0;
        if count > 0 && !self.host.is_mapped_at(offset, count as u64) {
            return Err(GuestMemoryError::HostAddressNotAvailable);
        }
        let into = usize::try_from(offset).map_err(|_| GuestMemoryError::InvalidBackendAddress)?;
        Ok(std::ptr::with_exposed_provenance_mut(self.host.address() + into))
    }
}

impl GuestMemoryRegion for RamRegion {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.piece.bytes
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.piece.gpa)
    }

    fn bitmap(&self) -> BS<'_, Self::B> {}

    /// Where nothing is mapped now there is no address to give. Whoever keeps one is as late as with a slice.
    fn get_host_address(&self, at: MemoryRegionAddress) -> Result<*mut u8> {
        self.mapped(at, 1)
    }

    fn get_slice(&self, at: MemoryRegionAddress, count: usize) -> Result<VolatileSlice<'_, BS<'_, Self::B>>> {
        let address = self.mapped(at, count)?;
        // SAFETY: the bytes lie in the mapping's own reservation, which lives as long as `self.host` and so as the slice. They
        // are readable and writable for all of that time: mapped now, and scratch when they are not any more.
        Ok(unsafe { VolatileSlice::new(address, count) })
    }
}

/// Each access asks for exactly its own bytes: the rest of the region may be private.
impl Bytes<MemoryRegionAddress> for RamRegion {
    type E = GuestMemoryError;

    fn write(&self, bytes: &[u8], at: MemoryRegionAddress) -> Result<usize> {
        Ok(self.get_slice(at, bytes.len())?.write(bytes, 0)?)
    }

    fn read(&self, bytes: &mut [u8], at: MemoryRegionAddress) -> Result<usize> {
        Ok(self.get_slice(at, bytes.len())?.read(bytes, 0)?)
    }

    fn write_slice(&self, bytes: &[u8], at: MemoryRegionAddress) -> Result<()> {
        Ok(self.get_slice(at, bytes.len())?.write_slice(bytes, 0)?)
    }

    fn read_slice(&self, bytes: &mut [u8], at: MemoryRegionAddress) -> Result<()> {
        Ok(self.get_slice(at, bytes.len())?.read_slice(bytes, 0)?)
    }

    fn read_volatile_from<F: ReadVolatile>(&self, at: MemoryRegionAddress, from: &mut F, count: usize) -> Result<usize> {
        Ok(self.get_slice(at, count)?.read_volatile_from(0, from, count)?)
    }

    fn read_exact_volatile_from<F: ReadVolatile>(&self, at: MemoryRegionAddress, from: &mut F, count: usize) -> Result<()> {
        Ok(self.get_slice(at, count)?.read_exact_volatile_from(0, from, count)?)
    }

    fn write_volatile_to<F: WriteVolatile>(&self, at: MemoryRegionAddress, to: &mut F, count: usize) -> Result<usize> {
        Ok(self.get_slice(at, count)?.write_volatile_to(0, to, count)?)
    }

    fn write_all_volatile_to<F: WriteVolatile>(&self, at: MemoryRegionAddress, to: &mut F, count: usize) -> Result<()> {
        Ok(self.get_slice(at, count)?.write_all_volatile_to(0, to, count)?)
    }

    fn store<T: AtomicAccess>(&self, value: T, at: MemoryRegionAddress, order: Ordering) -> Result<()> {
        Ok(self.get_slice(at, size_of::<T>())?.store(value, 0, order)?)
    }

    fn load<T: AtomicAccess>(&self, at: MemoryRegionAddress, order: Ordering) -> Result<T> {
        Ok(self.get_slice(at, size_of::<T>())?.load(0, order)?)
    }
}
