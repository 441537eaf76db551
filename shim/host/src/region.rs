//! A reservation of this process's addresses, into which runs of files are really mapped and from which they are really
//! unmapped.
//!
//! Frames are counted from the start of the region here (*region frames*), in the same types as the pool's.
//! **Invariant**: `mapped` names exactly the region frames behind which a file's pages are mapped readable and writable; it
//! changes only under the write lock, and every access to the memory happens under the read lock. So an access never meets an
//! unmapped byte, and an unmap waits for the accesses under way.
//!
//! Where nothing is mapped the addresses are inaccessible, or private scratch pages that belong to nobody ([`Vacant`]).
//!
//! Unmapping a run needs a call to `mmap`, which a process with vm.max_map_count mappings is refused. So a region keeps
//! *ballast*, three mappings of nothing, and drops it when it must unmap; without ballast it maps nothing more.

use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::raw::c_void;
use std::ptr::{self, NonNull};

use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, mprotect, munmap};
use pageless::{FRAME_BYTES, Pfn, PfnRange, RunSet};
use parking_lot::RwLock;

use crate::{SegmentHandle, Vacant};

/// Bytes copied under one hold of the lock: an unmap waits for at most this much.
const COPY_AT_ONCE: usize = 1 << 20;

#[derive(Debug)]
pub(crate) struct Region {
    /// First byte, aligned as asked.
    base: NonNull<c_void>,
    bytes: usize,
    reserved: NonNull<c_void>,
    reserved_bytes: usize,
    vacant: Vacant,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    mapped: RunSet,
    ballast: Option<Ballast>,
}

// SAFETY: the pointers name address space, not Rust values; every access through them is under the lock.
unsafe impl Send for Region {}
// SAFETY: as above; concurrent copies touch raw memory that no Rust reference names.
unsafe impl Sync for Region {}

/// The first byte that was not mapped, and how many bytes were copied before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Gap {
    pub(crate) offset: u64,
    pub(crate) done: usize,
}

impl Region {
    /// Reserves `bytes` bytes of addresses, aligned to `align` (a power of two). Nothing is mapped.
    pub(crate) fn reserve(bytes: u64, align: u64, vacant: Vacant) -> Result<Self, Errno> {
        let size = |bytes: u64| usize::try_from(bytes).map_err(|_| Errno::ENOMEM);
        let (bytes, align) = (size(bytes)?, size(align)?);
        let wanted = bytes.checked_add(align).and_then(NonZeroUsize::new).ok_or(Errno::ENOMEM)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let reserved = unsafe { mmap_anonymous(None, wanted, rights(vacant), MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE) }?;
        let skip = reserved.as_ptr().align_offset(align);
        // SAFETY: skip < align, and the reservation is bytes + align long.
        let base = unsafe { reserved.byte_add(skip) };
        let mut region = Self {
            base,
            bytes,
            reserved,
            reserved_bytes: wanted.get(),
            vacant,
            state: RwLock::new(State { mapped: RunSet::new(), ballast: None }),
        };
        region.state.get_mut().ballast = Some(Ballast::load()?);
        Ok(region)
    }

    /// Length in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// Maps `at` to the segment's bytes from the handle's offset on, where it is not mapped already, with `advice` about it.
    pub(crate) fn map(&self, at: PfnRange, segment: &SegmentHandle, advice: &[MmapAdvise]) -> Result<(), Errno> {
        if at.frames() > segment.frames().frames() {
            return Err(Errno::EINVAL);
        }
        let mut state = self.state.write();
        if state.ballast.is_none() {
            state.ballast = Some(Ballast::load()?);
        }
        for gap in state.mapped.gaps_in(at).runs() {
            let (address, length) = self.place(*gap)?;
            let into = (gap.start().get() - at.start().get()) * FRAME_BYTES;
            let offset = segment.offset().checked_add(into).and_then(|offset| i64::try_from(offset).ok()).ok_or(Errno::EFBIG)?;
            let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
            // SAFETY: `place` has checked that the addresses lie in this region's own reservation, where MAP_FIXED replaces only
            // what this region put there; the write lock keeps every access out meanwhile.
            let start = unsafe {
                mmap(Some(address), length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags, segment.fd(), offset)
            }?;
            // Before anything else can fail: what is mapped is in the books.
            state.mapped.insert(*gap);
            // A child that fork made would keep a mapping that this process cannot undo, so it gets none.
            let mut all = [MmapAdvise::MADV_DONTFORK].iter().chain(advice);
            // SAFETY: the very addresses just mapped. `map`'s callers give advice about page sizes only, which changes no contents.
            if let Err(errno) = all.try_for_each(|advice| unsafe { madvise(start, length.get(), *advice) }) {
                self.cover(*gap)?;
                state.mapped.remove(*gap);
                return Err(errno);
            }
        }
        Ok(())
    }

    /// Unmaps what is mapped of `at`, after the accesses under way. When it returns the kernel has flushed the translations.
    pub(crate) fn unmap(&self, at: PfnRange) -> Result<(), Errno> {
        let mut state = self.state.write();
        let Some(hull) = state.mapped.clipped(at).reduce(PfnRange::hull) else { return Ok(()) };
        match self.cover(hull) {
            Err(Errno::ENOMEM) if state.ballast.take().is_some() => self.cover(hull)?,
            other => other?,
        }
        state.mapped.remove(hull);
        Ok(())
    }

    /// Puts vacant addresses in the place of whatever is mapped at `at`. Called under the write lock.
    fn cover(&self, at: PfnRange) -> Result<(), Errno> {
        let (address, length) = self.place(at)?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE | MapFlags::MAP_FIXED;
        // SAFETY: the addresses lie in this region's own reservation, and nothing of this crate accesses them while the write
        // lock is held. Whoever kept a pointer meets scratch pages, or a fault where there are none.
        unsafe { mmap_anonymous(Some(address), length, rights(self.vacant), flags) }.map(|_| ())
    }

    /// The parts of `at` that are mapped now.
    pub(crate) fn mapped_in(&self, at: PfnRange) -> Vec<PfnRange> {
        self.state.read().mapped.clipped(at).collect()
    }

    /// Whether all of `at` is mapped now.
    pub(crate) fn has_all(&self, at: PfnRange) -> bool {
        self.state.read().mapped.clipped(at).eq([at])
    }

    pub(crate) fn vacant(&self) -> Vacant {
        self.vacant
    }

    /// Copies from the region's bytes at `offset`. The caller has checked that the request lies within the region.
    pub(crate) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Gap> {
        let to = buffer.as_mut_ptr();
        self.access(offset, buffer.len(), |from, done, count| {
            // SAFETY: `access` gives `count` mapped bytes at `from` under the lock, and done + count <= buffer.len(). The memory
            // may change while it is read, as any guest's may: the bytes are copied raw and never borrowed.
            unsafe { ptr::copy_nonoverlapping(from, to.add(done), count) }
        })
    }

    /// Copies to the region's bytes at `offset`. The caller has checked that the request lies within the region.
    pub(crate) fn write(&self, offset: u64, buffer: &[u8]) -> Result<(), Gap> {
        let from = buffer.as_ptr();
        self.access(offset, buffer.len(), |to, done, count| {
            // SAFETY: `access` gives `count` mapped, writable bytes at `to` under the lock, and done + count <= buffer.len().
            unsafe { ptr::copy_nonoverlapping(from.add(done), to, count) }
        })
    }

    /// Puts the pages behind `bytes` bytes at `offset` into a pipe by reference. Answers how many bytes went in.
    pub(crate) fn splice_into(&self, pipe: BorrowedFd<'_>, offset: u64, bytes: usize) -> Result<Result<usize, Errno>, Gap> {
        let mut spliced = Ok(0);
        let whole = self.access_at_once(offset, bytes, |address, count| {
            let piece = libc::iovec { iov_base: address.cast(), iov_len: count };
            // SAFETY: the one iovec names `count` mapped bytes, which the kernel only references; nothing of Rust's is touched.
            let result = unsafe { libc::vmsplice(pipe.as_raw_fd(), &raw const piece, 1, libc::SPLICE_F_NONBLOCK) };
            spliced = Errno::result(result).map(isize::unsigned_abs);
        });
        match whole {
            count if count == bytes => Ok(spliced),
            count => Err(Gap { offset: offset + count as u64, done: 0 }),
        }
    }

    /// Gives `work` one mapped piece after another: (address, bytes done before, bytes).
    fn access(&self, offset: u64, bytes: usize, mut work: impl FnMut(*mut u8, usize, usize)) -> Result<(), Gap> {
        let mut done = 0;
        while done < bytes {
            let at = offset + done as u64;
            let count = self.access_at_once(at, (bytes - done).min(COPY_AT_ONCE), |address, count| work(address, done, count));
            if count == 0 {
                return Err(Gap { offset: at, done });
            }
            done += count;
        }
        Ok(())
    }

    /// Gives `work` the mapped bytes at `offset`, at most `most`, under one hold of the lock. Answers how many there were.
    fn access_at_once(&self, offset: u64, most: usize, work: impl FnOnce(*mut u8, usize)) -> usize {
        let state = self.state.read();
        let mapped = &state.mapped;
        let first = Pfn::new(offset / FRAME_BYTES);
        let Some(run) = mapped.runs().get(mapped.runs().partition_point(|run| run.end() <= first)) else { return 0 };
        if !run.contains(first) {
            return 0;
        }
        let left = run.end().get() * FRAME_BYTES - offset;
        let count = usize::try_from(left).map_or(most, |left| left.min(most));
        let (Ok(start), true) = (usize::try_from(offset), count > 0) else { return 0 };
        // SAFETY: the offset lies in a mapped run, and those lie within the region.
        work(unsafe { self.base.cast::<u8>().as_ptr().add(start) }, count);
        count
    }

    /// Address and length of region frames; EINVAL unless they lie within the region.
    fn place(&self, at: PfnRange) -> Result<(NonZeroUsize, NonZeroUsize), Errno> {
        let bytes = |frames: u64| usize::try_from(frames * FRAME_BYTES).map_err(|_| Errno::EINVAL);
        let (start, length) = (bytes(at.start().get())?, bytes(at.frames())?);
        if start.checked_add(length).is_none_or(|end| end > self.bytes) {
            return Err(Errno::EINVAL);
        }
        Ok((self.base.addr().checked_add(start).ok_or(Errno::EINVAL)?, NonZeroUsize::new(length).ok_or(Errno::EINVAL)?))
    }

    /// The address of the first byte.
    pub(crate) fn address(&self) -> usize {
        self.base.addr().get()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the reservation is this region's own, and nobody can access it any more: `self` is borrowed exclusively.
        if let Err(errno) = unsafe { munmap(self.reserved, self.reserved_bytes) } {
            tracing::error!(%errno, bytes = self.reserved_bytes, "could not unmap a region");
        }
    }
}

/// The rights to addresses where nothing is mapped.
const fn rights(vacant: Vacant) -> ProtFlags {
    match vacant {
        Vacant::Inaccessible => ProtFlags::PROT_NONE,
        Vacant::Scratch => ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE),
    }
}

/// Mappings kept so that they can be given up: three, since neighbours with different rights stay apart.
#[derive(Debug)]
struct Ballast(NonNull<c_void>);

impl Ballast {
    /// 4 KiB: the builder refuses hosts with other base pages.
    const PAGE: usize = 4096;
    const BYTES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(3 * Self::PAGE - 1);

    fn load() -> Result<Self, Errno> {
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let ballast = Self(unsafe { mmap_anonymous(None, Self::BYTES, ProtFlags::PROT_NONE, flags) }?);
        // SAFETY: the middle page of the three just mapped, which nothing uses.
        unsafe { mprotect(ballast.0.byte_add(Self::PAGE), Self::PAGE, ProtFlags::PROT_READ) }?;
        Ok(ballast)
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        // SAFETY: the three pages are this ballast's own and nothing uses them.
        if let Err(errno) = unsafe { munmap(self.0, Self::BYTES.get()) } {
            tracing::error!(%errno, "could not drop a region's ballast");
        }
    }
}
