//! Three ways to make a range of a file read as zeroes, since no filesystem knows all of them.

use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;

use crate::PageSize;
use crate::holes::{self, Refused};

/// Bytes written at once where zeroes must be written.
const CHUNK: usize = 1 << 20;

/// The space behind a range that was zeroed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Space {
    /// The whole range has some.
    Reserved,
    /// The filesystem has it back.
    GivenBack,
    /// Whatever had some has it still.
    Kept,
}

/// Zeroes the range and gives its space back where the filesystem can do that: a hole, else a range marked as zeroes, else
/// zeroes written. On huge pages the range is whole pages.
pub(super) fn discard(file: &File, offset: u64, bytes: u64) -> Result<Space, Refused> {
    if supported(holes::punch(file, offset, bytes))? {
        return Ok(Space::GivenBack);
    }
    if !supported(holes::zero_range(file, offset, bytes))? {
        write_zeroes(file, offset, bytes)?;
    }
    Ok(Space::Reserved)
}

/// Zeroes the range and keeps its space where the filesystem can do that; where it can only punch, space is taken again at
/// once, if there still is some. `page` is that of the file.
pub(super) fn clear(file: &File, offset: u64, bytes: u64, page: PageSize) -> Result<Space, Refused> {
    if page.is_huge() {
        return holes::zero_huge(file, offset, bytes, page.bytes()).map(|()| Space::Kept);
    }
    if supported(holes::zero_range(file, offset, bytes))? {
        return Ok(Space::Reserved);
    }
    match discard(file, offset, bytes)? {
        Space::GivenBack if reserve(file, offset, bytes) == Ok(true) => Ok(Space::Reserved),
        space => Ok(space),
    }
}

/// Makes sure that the filesystem has space for the range, so that touching it cannot fault for lack of any; what the range
/// holds stays. Answers false where the filesystem cannot be asked.
pub(super) fn reserve(file: &File, offset: u64, bytes: u64) -> Result<bool, Refused> {
    supported(holes::fill(file, offset, bytes))
}

/// Whether the filesystem knows the operation; every other refusal stays one.
fn supported(done: Result<(), Refused>) -> Result<bool, Refused> {
    match done {
        Err(Refused { errno: Errno::EOPNOTSUPP, .. }) => Ok(false),
        other => other.map(|()| true),
    }
}

/// Writes zeroes, which takes space as well.
pub(super) fn write_zeroes(file: &File, offset: u64, bytes: u64) -> Result<(), Refused> {
    let zeroes = vec![0; CHUNK];
    let mut done = 0;
    while done < bytes {
        let piece = usize::try_from(bytes - done).map_or(CHUNK, |left| left.min(CHUNK));
        let written = file.write_all_at(&zeroes[..piece], offset + done);
        let errno = |error: std::io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        written.map_err(|error| Refused { step: "pwrite", errno: errno(error) })?;
        done += piece as u64;
    }
    Ok(())
}
