//! In-place conversion of a guest_memfd: `KVM_SET_MEMORY_ATTRIBUTES2`, **provisional**.
//!
//! The ioctl is from the eighth version of a series that is not merged (guest_memfd in-place conversion, June 2026). Every
//! number of it stands in this file, and none of it has ever run against a kernel: the encoding, the meaning of each errno and
//! of `error_offset` are tested against a stand-in. [`probe`](fn@crate::probe) asks for the capability; without it nothing
//! here is used.
//!
//! What the kernel does, in its order: lock; all in that state already: 0; reserve memory; take the range out of every user
//! page table; look at the references of each page; convert. So EAGAIN has emptied the page tables and converted nothing, and
//! names the first page that somebody refers to. The mapping then converts what lies before that page by a call of its own,
//! so that exactly one frame is stuck.

use std::fmt;
use std::time::Duration;

use nix::errno::Errno;
use pageless::{Cause, FRAME_BYTES, Intent, Mapping, Operation, Pfn, PfnRange, Refusal, Stuck, Verdict};

/// The capability that says the kernel has the ioctl. Provisional.
pub const CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES: u64 = 250;
/// `KVM_MEMORY_ATTRIBUTE_PRIVATE` (include/uapi/linux/kvm.h, Linux 6.8).
pub const ATTRIBUTE_PRIVATE: u64 = 1 << 3;
/// `_IOWR(0xAE, 0xd2, 128 bytes)`, on the guest_memfd. Provisional. `_IOWR` is direction 3 in bits 30 and 31, the size in
/// bits 16 to 29, the type in bits 8 to 15 and the number below (include/uapi/asm-generic/ioctl.h).
pub const SET_MEMORY_ATTRIBUTES2: u32 = (3 << 30) | (128 << 16) | (0xae << 8) | 0xd2;
/// Length of the argument in bytes.
pub const ARGUMENT_BYTES: usize = 128;

const STEP: &str = "KVM_SET_MEMORY_ATTRIBUTES2";
const RETRY_AFTER: Duration = Duration::from_millis(10);

/// The ioctl's argument. Little-endian `u64`s: offset, size, attributes, flags (0), error_offset (out), eleven reserved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SetAttributes {
    /// Where the range begins in the guest_memfd, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// [`ATTRIBUTE_PRIVATE`], or 0 for shared.
    pub attributes: u64,
    /// Where the kernel could not go on, in bytes of the file. Set by ENOMEM (the start) and EAGAIN (the first page that is
    /// referred to); EINVAL, EFAULT and ENOTTY leave it alone.
    pub error_offset: u64,
}

impl SetAttributes {
    /// As the kernel reads it.
    #[must_use]
    pub fn to_bytes(self) -> [u8; ARGUMENT_BYTES] {
        let mut bytes = [0; ARGUMENT_BYTES];
        let words = [self.offset, self.bytes, self.attributes, 0, self.error_offset];
        for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// As the kernel wrote it.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; ARGUMENT_BYTES]) -> Self {
        let word = |nth: usize| bytes.as_chunks().0.get(nth).copied().map_or(0, u64::from_le_bytes);
        Self { offset: word(0), bytes: word(1), attributes: word(2), error_offset: word(4) }
    }
}

/// A guest_memfd that takes the ioctl. The real one is a handle of its descriptor ([`SegmentHandle`](pageless_host::SegmentHandle),
/// as [`GuestMemfd::private_side`](pageless_host::GuestMemfd::private_side) gives it); tests have others.
pub trait InPlaceFile: Send + Sync {
    /// `ioctl(fd, SET_MEMORY_ATTRIBUTES2, argument)`, which writes into the argument on some errors.
    fn set_attributes(&self, argument: &mut [u8; ARGUMENT_BYTES]) -> Result<(), Errno>;
}

/// A guest_memfd's own shareability as a mapping: attached beside the second stage, it converts the file in place.
pub struct InPlace<F> {
    file: F,
    frames: PfnRange,
}

impl<F: InPlaceFile> InPlace<F> {
    /// `frames` lie side by side in `file`, the first at its start.
    pub fn new(file: F, frames: PfnRange) -> Self {
        Self { file, frames }
    }

    fn offset_of(&self, pfn: Pfn) -> u64 {
        pfn.get().saturating_sub(self.frames.start().get()) * FRAME_BYTES
    }

    fn set(&self, frames: PfnRange, attributes: u64) -> Result<(), (Errno, SetAttributes)> {
        let offset = self.offset_of(frames.start());
        let mut bytes = SetAttributes { offset, bytes: frames.bytes(), attributes, error_offset: 0 }.to_bytes();
        self.file.set_attributes(&mut bytes).map_err(|errno| (errno, SetAttributes::from_bytes(&bytes)))
    }

    /// Converts `frames`, or says which frame it stopped at; what lies before that one has been converted.
    fn convert(&self, frames: PfnRange, attributes: u64) -> Result<(), Stuck> {
        let mut part = frames;
        let mut first: Option<Stuck> = None;
        loop {
            let stuck = match self.set(part, attributes) {
                Ok(()) => return first.map_or(Ok(()), Err),
                Err((errno, said)) => self.stuck(part, errno, said.error_offset),
            };
            let before = PfnRange::new(part.start(), stuck.at.start());
            first = Some(stuck);
            match before {
                // Only EAGAIN names a frame inside: the ones before it have been looked at and not converted.
                Ok(before) => part = before,
                Err(_) => return first.map_or(Ok(()), Err),
            }
        }
    }

    fn stuck(&self, frames: PfnRange, errno: Errno, error_offset: u64) -> Stuck {
        let at = Pfn::new(self.frames.start().get().saturating_add(error_offset / FRAME_BYTES));
        let (at, verdict, meaning) = match errno {
            Errno::EAGAIN if frames.contains(at) => {
                let meaning = "somebody refers to the page: a mapping that has not gone, a transient reference, or a pin; the \
                               kernel does not say which";
                (PfnRange::single(at), Verdict::Retry { after: RETRY_AFTER }, meaning)
            }
            Errno::EAGAIN => (frames, Verdict::Retry { after: RETRY_AFTER }, "error_offset lies outside of what was asked for"),
            Errno::ENOMEM => (frames, Verdict::Retry { after: RETRY_AFTER }, "no memory for the attributes; nothing has changed"),
            Errno::EHWPOISON => (frames, Verdict::Never, "the hardware reported an error in the memory"),
            Errno::ENOTTY => (frames, Verdict::Never, "this kernel has no in-place conversion"),
            other => (frames, Verdict::Never, other.desc()),
        };
        Stuck { at, verdict, cause: Cause::new(STEP, errno as u64, meaning) }
    }
}

impl<F> fmt::Debug for InPlace<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InPlace").field("frames", &self.frames).finish_non_exhaustive()
    }
}

impl<F: InPlaceFile> Mapping for InPlace<F> {
    /// Frames that are not the file's are refused here, before anything has changed.
    fn prepare(&self, op: &Operation) -> Result<(), Refusal> {
        if self.frames.contains_range(op.frames) {
            Ok(())
        } else {
            Err(Refusal::Other(format!("{} are not all of this guest_memfd's {}", op.frames, self.frames).into()))
        }
    }

    /// Converts the file. The attributes outlive a punched hole, so frames that are reclaimed are made shared: the state in
    /// which the next owner's file begins, and the one change that the kernel never refuses for a reference.
    fn invalidate(&self, op: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        match op.intent {
            Intent::Unshare => self.convert(frames, ATTRIBUTE_PRIVATE),
            Intent::Share | Intent::Reclaim => self.convert(frames, 0),
            Intent::Detach | Intent::Resize => Ok(()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use parking_lot::Mutex;

    use super::*;

    /// Converts as the kernel does: all or nothing, and the first page that is referred to is named.
    #[derive(Default)]
    struct Kernel {
        pinned: BTreeSet<u64>,
        private: Mutex<BTreeSet<u64>>,
        fails: Option<Errno>,
    }

    impl InPlaceFile for &Kernel {
        fn set_attributes(&self, argument: &mut [u8; ARGUMENT_BYTES]) -> Result<(), Errno> {
            let mut asked = SetAttributes::from_bytes(argument);
            let pages = asked.offset / FRAME_BYTES..(asked.offset + asked.bytes) / FRAME_BYTES;
            if let Some(errno) = self.fails {
                asked.error_offset = if errno == Errno::ENOMEM { asked.offset } else { 0 };
                *argument = asked.to_bytes();
                return Err(errno);
            }
            let to_private = asked.attributes == ATTRIBUTE_PRIVATE;
            if to_private && let Some(page) = pages.clone().find(|page| self.pinned.contains(page)) {
                asked.error_offset = page * FRAME_BYTES;
                *argument = asked.to_bytes();
                return Err(Errno::EAGAIN);
            }
            for page in pages {
                if to_private {
                    self.private.lock().insert(page)
                } else {
                    self.private.lock().remove(&page)
                };
            }
            Ok(())
        }
    }

    fn frames(start: u64, count: u64) -> PfnRange {
        PfnRange::from_len(Pfn::new(start), count).unwrap()
    }

    #[test]
    fn the_argument_is_laid_out_as_the_kernel_reads_it() {
        let bytes = SetAttributes { offset: 0x1000, bytes: 0x2000, attributes: 8, error_offset: 0x77 }.to_bytes();
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!([word(0), word(8), word(16), word(24), word(32)], [0x1000, 0x2000, 8, 0, 0x77]);
        assert!(bytes[40..].iter().all(|byte| *byte == 0), "flags and reserved are zero");
        assert_eq!(SET_MEMORY_ATTRIBUTES2, 0xc080_aed2);
    }

    #[test]
    fn a_page_that_is_referred_to_is_stuck_alone_and_those_before_it_are_converted() {
        let kernel = Kernel { pinned: BTreeSet::from([5, 7]), ..Kernel::default() };
        let mapping = InPlace::new(&kernel, frames(100, 16));
        let stuck = mapping.convert(frames(102, 10), ATTRIBUTE_PRIVATE).unwrap_err();
        assert_eq!((stuck.at, stuck.cause.status), (frames(105, 1), Errno::EAGAIN as u64));
        assert!(matches!(stuck.verdict, Verdict::Retry { .. }));
        assert_eq!(*kernel.private.lock(), BTreeSet::from([2, 3, 4]), "what lies after it is untouched");
        assert_eq!(mapping.convert(frames(102, 10), 0), Ok(()), "to shared the kernel never refuses");
        assert!(kernel.private.lock().is_empty());
    }

    #[test]
    fn each_errno_has_its_verdict() {
        let verdict = |errno| {
            let kernel = Kernel { fails: Some(errno), ..Kernel::default() };
            let stuck = InPlace::new(&kernel, frames(0, 16)).convert(frames(4, 4), ATTRIBUTE_PRIVATE).unwrap_err();
            (stuck.at, stuck.verdict == Verdict::Never)
        };
        assert_eq!(verdict(Errno::ENOMEM), (frames(4, 4), false));
        for errno in [Errno::EHWPOISON, Errno::EINVAL, Errno::EFAULT, Errno::ENOTTY] {
            assert_eq!(verdict(errno), (frames(4, 4), true), "{errno}");
        }
        // EAGAIN with an offset that was not asked for is believed for nothing.
        assert_eq!(verdict(Errno::EAGAIN), (frames(4, 4), false));
    }
}
