//! One segment: a memfd, and the frames that are offsets in it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Whence, ftruncate, lseek};
use pageless::{FRAME_BYTES, Pfn, PfnRange};

use crate::{PageSize, numa, revoke};

/// `MFD_NOEXEC_SEAL` (Linux 6.3, include/uapi/linux/memfd.h): the file can never be made executable.
const MFD_NOEXEC_SEAL: MFdFlags = MFdFlags::from_bits_retain(8);

/// A step that the kernel refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Refused {
    pub(crate) step: &'static str,
    pub(crate) errno: Errno,
}

impl Refused {
    fn at(step: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self { step, errno }
    }
}

/// The memfd of one segment. Its length never changes: it is sealed against growing and shrinking when it is made, so no
/// copy of the descriptor can turn an access of this process into a SIGBUS by truncating it. Unless it is revocable: see
/// [`revoke`].
#[derive(Debug)]
pub(crate) struct SegmentFile {
    fd: OwnedFd,
    frames: PfnRange,
    page: PageSize,
    node: Option<u32>,
    revocable: bool,
}

impl AsFd for SegmentFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl SegmentFile {
    /// An empty file as long as `frames`. No page is taken yet.
    pub(crate) fn create(frames: PfnRange, page: PageSize, node: Option<u32>, revocable: bool) -> Result<Self, Refused> {
        let name = format!("pageless:{frames}");
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING | page.memfd_flags();
        let fd = match memfd_create(name.as_str(), flags | MFD_NOEXEC_SEAL) {
            Err(Errno::EINVAL) => memfd_create(name.as_str(), flags), // a kernel before 6.3
            other => other,
        }
        .map_err(Refused::at("memfd_create"))?;
        let length = i64::try_from(frames.bytes()).map_err(|_| Refused { step: "ftruncate", errno: Errno::EFBIG })?;
        ftruncate(&fd, length).map_err(Refused::at("ftruncate"))?;
        let (seals, step) = revoke::seals(revocable);
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).map_err(Refused::at(step))?;
        let file = Self { fd, frames, page, node, revocable };
        if let Some(node) = node
            && !page.is_huge()
        {
            numa::bind_file(&file, node).map_err(Refused::at("mbind"))?;
        }
        Ok(file)
    }

    /// The frames of the whole file.
    pub(crate) fn frames(&self) -> PfnRange {
        self.frames
    }

    /// Whether the file may be truncated.
    pub(crate) fn is_revocable(&self) -> bool {
        self.revocable
    }

    /// Where `pfn` lies in the file, in bytes.
    pub(crate) fn offset_of(&self, pfn: Pfn) -> u64 {
        pfn.get().saturating_sub(self.frames.start().get()) * FRAME_BYTES
    }

    /// Takes pages for `frames` now, zeroed where they are new. On a huge page this is what makes a later touch safe.
    pub(crate) fn fill(&self, frames: PfnRange) -> Result<(), Refused> {
        let filling = || self.fallocate(FallocateFlags::empty(), frames).map_err(Refused::at("fallocate"));
        match self.node {
            Some(node) => numa::with_node(node, filling).map_err(Refused::at("set_mempolicy"))?,
            None => filling(),
        }
    }

    /// Gives the pages of `frames` back to the kernel. The next touch gets fresh zeroes from other pages; whoever still holds
    /// a reference to an old page keeps the old page. `frames` are whole pages.
    pub(crate) fn punch(&self, frames: PfnRange) -> Result<(), Refused> {
        self.fallocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE, frames)
            .map_err(Refused::at("fallocate(FALLOC_FL_PUNCH_HOLE)"))
    }

    /// Whether the file has no page left behind `frames`, after a punch. A page that is part of a large folio which the kernel
    /// could not split, as while any page of it is pinned, is zeroed and stays.
    pub(crate) fn is_hole(&self, frames: PfnRange) -> Result<bool, Refused> {
        let offset = i64::try_from(self.offset_of(frames.start())).map_err(|_| Refused { step: "lseek", errno: Errno::EFBIG })?;
        match lseek(&self.fd, offset, Whence::SeekData) {
            Err(Errno::ENXIO) => Ok(true), // no data from here to the end
            Err(errno) => Err(Refused { step: "lseek(SEEK_DATA)", errno }),
            Ok(data) => Ok(u64::try_from(data).is_ok_and(|data| data >= self.offset_of(frames.end()))),
        }
    }

    /// Zeroes `frames` within their huge pages and keeps the pages: a punched part of a huge page is zeroed in place
    /// (hugetlbfs_zero_partial_page, Linux 5.18), so a page is punched in halves. No mapping is needed, so no touch can fault.
    pub(crate) fn zero_in_place(&self, frames: PfnRange) -> Result<(), Refused> {
        let half = self.page.order().frames() / 2;
        let mut rest = Some(frames);
        while let Some(run) = rest {
            let to_half = half - (run.start().get() & (half - 1));
            let (piece, after) = run.split_at(to_half);
            if let Some(piece) = piece {
                self.punch(piece)?;
            }
            rest = after;
        }
        Ok(())
    }

    /// Forbids writing for ever. Succeeds only when no writable shared mapping and no extra page reference exists now.
    pub(crate) fn seal_write(&self) -> Result<(), Errno> {
        fcntl(&self.fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).map(|_| ())
    }

    fn fallocate(&self, flags: FallocateFlags, frames: PfnRange) -> Result<(), Errno> {
        let offset = i64::try_from(self.offset_of(frames.start())).map_err(|_| Errno::EFBIG)?;
        let length = i64::try_from(frames.bytes()).map_err(|_| Errno::EFBIG)?;
        loop {
            match fallocate(&self.fd, flags, offset, length) {
                Err(Errno::EINTR) => {} // a signal between two huge pages; what is filled stays filled
                other => return other,
            }
        }
    }
}
