//! Real kernel pins: references to pages that outlive every mapping, to show what a proof sees and what it does not.
//!
//! A device's DMA buffer, a registered io_uring buffer and a splice all hold pages by reference. The splice needs no device
//! and no privilege, so it is the one made here.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;
use pageless::FRAME_BYTES;

use crate::{HostMapping, MapError};

/// Pages held by reference in a pipe, until drained or dropped.
#[derive(Debug)]
pub struct KernelPin {
    reader: OwnedFd,
    bytes: usize,
}

impl KernelPin {
    /// Pins the pages behind `bytes` bytes at `offset`, in bytes from the start of the mapping's allocation, by `vmsplice` into
    /// a pipe. The bytes must be mapped in one piece of guest offsets now; whatever happens to the mapping afterwards, the
    /// pages stay referenced. An unprivileged user can pin about a MiB at a time (/proc/sys/fs/pipe-max-size).
    pub fn vmsplice(mapping: &HostMapping, offset: u64, bytes: usize) -> Result<Self, MapError> {
        mapping.check_inside(offset, bytes)?;
        if bytes == 0 {
            return Err(MapError::Empty);
        }
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| MapError::Os { step: "pipe2", errno })?;
        // One slot of the pipe for each page touched; if the pipe cannot grow that far, the pin comes out short below.
        let slots = (offset % FRAME_BYTES + bytes as u64).div_ceil(FRAME_BYTES);
        if let Ok(size) = i32::try_from(slots.saturating_mul(FRAME_BYTES).max(1 << 16)) {
            let _grown: Result<_, Errno> = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(size));
        }
        let spliced = mapping.region().splice_into(writer.as_fd(), offset, bytes);
        let spliced = spliced.map_err(|gap| MapError::Unmapped { offset: gap.offset, done: gap.done })?;
        match spliced.map_err(|errno| MapError::Os { step: "vmsplice", errno })? {
            pinned if pinned == bytes => Ok(Self { reader, bytes }),
            pinned => Err(MapError::ShortPin { pinned, asked: bytes }),
        }
    }

    /// How many bytes are pinned.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Reads the bytes out of the pinned pages, as they are now, and lets the pages go.
    pub fn drain(self) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(self.bytes);
        File::from(self.reader).take(self.bytes as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}
