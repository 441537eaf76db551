//! One segment: a memfd, and the frames that are offsets in it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use pageless::{FRAME_BYTES, Pfn, PfnRange};

use crate::holes::{self, Refused};
use crate::{PageSize, numa, revoke};

/// `MFD_NOEXEC_SEAL` (Linux 6.3, include/uapi/linux/memfd.h): the file can never be made executable.
const MFD_NOEXEC_SEAL: MFdFlags = MFdFlags::from_bits_retain(8);

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
        let filling = || holes::fill(self, self.offset_of(frames.start()), frames.bytes());
        match self.node {
            Some(node) => numa::with_node(node, filling).map_err(Refused::at("set_mempolicy"))?,
            None => filling(),
        }
    }

    /// Gives the pages of `frames` back to the kernel: see [`holes::punch`]. `frames` are whole pages.
    pub(crate) fn punch(&self, frames: PfnRange) -> Result<(), Refused> {
        holes::punch(self, self.offset_of(frames.start()), frames.bytes())
    }

    /// Whether the file has no page left behind `frames`, after a punch: see [`holes::is_hole`].
    pub(crate) fn is_hole(&self, frames: PfnRange) -> Result<bool, Refused> {
        holes::is_hole(self, self.offset_of(frames.start()), frames.bytes())
    }

    /// Zeroes `frames` within their huge pages and keeps the pages: see [`holes::zero_huge`].
    pub(crate) fn zero_in_place(&self, frames: PfnRange) -> Result<(), Refused> {
        holes::zero_huge(self, self.offset_of(frames.start()), frames.bytes(), self.page.bytes())
    }

    /// Forbids writing for ever. Succeeds only when no writable shared mapping and no extra page reference exists now.
    pub(crate) fn seal_write(&self) -> Result<(), Errno> {
        fcntl(&self.fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).map(|_| ())
    }
}
