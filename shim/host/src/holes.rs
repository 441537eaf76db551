//! Taking pages of a file and giving them back: the system calls that every backing here is made of. Offsets and lengths are
//! bytes of the file.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};

/// A step that the kernel refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Refused {
    pub(crate) step: &'static str,
    pub(crate) errno: Errno,
}

impl Refused {
    pub(crate) fn at(step: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self { step, errno }
    }
}

pub(crate) const PUNCH: &str = "fallocate(FALLOC_FL_PUNCH_HOLE)";

/// Takes pages for all of it now, zeroed where they are new.
pub(crate) fn fill(file: impl AsFd, offset: u64, bytes: u64) -> Result<(), Refused> {
    uninterrupted(file, FallocateFlags::empty(), offset, bytes).map_err(Refused::at("fallocate"))
}

/// Gives the pages back to the kernel: whole ones, or the zeroed part of a huge one. The next touch gets fresh zeroes from
/// other pages; whoever still holds a reference to an old page keeps the old page.
pub(crate) fn punch(file: impl AsFd, offset: u64, bytes: u64) -> Result<(), Refused> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    uninterrupted(file, flags, offset, bytes).map_err(Refused::at(PUNCH))
}

/// Zeroes the range where it lies and keeps its space: filesystems with storage can, memory ones cannot.
pub(crate) fn zero_range(file: impl AsFd, offset: u64, bytes: u64) -> Result<(), Refused> {
    let flags = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    uninterrupted(file, flags, offset, bytes).map_err(Refused::at("fallocate(FALLOC_FL_ZERO_RANGE)"))
}

/// Zeroes the range within its huge pages of `page` bytes and keeps the pages: a punched part of a huge page is zeroed in
/// place (hugetlbfs_zero_partial_page, Linux 5.18), so a page is punched in halves. No mapping is needed, so no touch can
/// fault.
pub(crate) fn zero_huge(file: impl AsFd, offset: u64, bytes: u64, page: u64) -> Result<(), Refused> {
    let (half, end) = (page / 2, offset.saturating_add(bytes));
    let mut at = offset;
    while at < end {
        let piece = (half - at % half).min(end - at);
        punch(&file, at, piece)?;
        at += piece;
    }
    Ok(())
}

/// Whether the file has no page there. A page that is part of a large folio which the kernel could not split, as while any
/// page of it is pinned, is zeroed by a punch and stays.
pub(crate) fn is_hole(file: impl AsFd, offset: u64, bytes: u64) -> Result<bool, Refused> {
    let start = i64::try_from(offset).map_err(|_| Refused { step: "lseek", errno: Errno::EFBIG })?;
    match lseek(file, start, Whence::SeekData) {
        Err(Errno::ENXIO) => Ok(true), // no data from here to the end
        Err(errno) => Err(Refused { step: "lseek(SEEK_DATA)", errno }),
        Ok(data) => Ok(u64::try_from(data).is_ok_and(|data| data >= offset.saturating_add(bytes))),
    }
}

fn uninterrupted(file: impl AsFd, flags: FallocateFlags, offset: u64, bytes: u64) -> Result<(), Errno> {
    let number = |number: u64| i64::try_from(number).map_err(|_| Errno::EFBIG);
    let (offset, bytes) = (number(offset)?, number(bytes)?);
    loop {
        match fallocate(&file, flags, offset, bytes) {
            Err(Errno::EINTR) => {} // a signal between two pages; what is done stays done
            other => return other,
        }
    }
}
