//! Taking a segment away from everybody who maps it, at once: the file is truncated to nothing, and can never grow again.
//!
//! A segment that can be revoked is sealed `F_SEAL_GROW|F_SEAL_SEAL` before its descriptor is handed out, and not against
//! shrinking. The kernel unmaps a truncated file everywhere before it answers, in page tables, second stages and private
//! copies alike (`unmap_mapping_range`, mm/memory.c): a touch is a SIGBUS from then on. Nobody can prevent that with a seal
//! of their own (`F_SEAL_SEAL`), nor get a page back into the file (`F_SEAL_GROW`).
//!
//! The price is in [`ProofMethod::Revoke`](crate::ProofMethod::Revoke): whoever has the descriptor can do the same.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::SealFlag;
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;
use pageless::ProofScope;

use crate::segment::{Refused, SegmentFile};

/// What a segment's file is sealed against before anybody else can have its descriptor.
pub(crate) fn seals(revocable: bool) -> (SealFlag, &'static str) {
    if revocable {
        (SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL, "F_ADD_SEALS(F_SEAL_GROW|F_SEAL_SEAL)")
    } else {
        (SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK, "F_ADD_SEALS(F_SEAL_GROW|F_SEAL_SHRINK)")
    }
}

/// What a proof by revocation covers. `granule_frames` is the longest segment.
pub(crate) fn scope(granule_frames: u64) -> ProofScope {
    ProofScope {
        method:
            "ftruncate(0) of the segment's memfd, which is sealed against growing and against other seals; then a fresh memfd \
                 in its place"
                .into(),
        covers:
            "no process and no guest of this kernel translates to the segment any more, whether it agreed or not: a touch is \
                 a SIGBUS; the next owner gets other pages, zeroed by the kernel"
                .into(),
        blind_to: "a pin (splice, io_uring, VFIO) keeps an old page, and with it capacity, until it drains: it is not reused \
                   before. That a holder of the descriptor can truncate it, too, and so end everybody's access, and return a \
                   withdrawn page to the host. Tables that the host kernel does not count (TDX S-EPT)"
            .into(),
        granule_frames,
    }
}

impl SegmentFile {
    /// Ends every translation to the file, and gives its pages back to the host; those that are pinned, when the pins drain.
    pub(crate) fn revoke(&self) -> Result<(), Refused> {
        ftruncate(self.as_fd(), 0).map_err(|errno| Refused { step: "ftruncate(0)", errno })
    }

    /// Whether the file is as long as it was made: whoever has a copy of its descriptor may have truncated it.
    pub(crate) fn check_whole(&self) -> Result<(), Refused> {
        if !self.is_revocable() {
            return Ok(());
        }
        let file = fstat(self.as_fd()).map_err(|errno| Refused { step: "fstat", errno })?;
        let whole = u64::try_from(file.st_size).is_ok_and(|bytes| bytes == self.frames().bytes());
        if whole {
            Ok(())
        } else {
            Err(Refused { step: "a holder of the descriptor has truncated the segment", errno: Errno::EPERM })
        }
    }
}
