//! [`GuestMemfd`]: the memory of one KVM virtual machine, in a file that KVM itself fills.
//!
//! A guest_memfd holds pages that a guest reaches without any mapping of user space: `KVM_SET_USER_MEMORY_REGION2` binds it to
//! a slot by descriptor and offset. Each frame has a *private side*, which only the guest may reach, and a *shared side* for
//! this process and its devices. Where KVM lets the file be mapped, both are the same page ([`SharedSide::InPlace`]);
//! elsewhere the shared side is a memfd of the same length ([`SharedSide::Beside`]), as conventional VMMs do it, and KVM's
//! memory attributes say which of the two files the guest sees.
//!
//! Facts of the kernel (Linux 6.18, virt/kvm/guest_memfd.c) that shape this file: the file belongs to its VM and keeps it
//! alive. It cannot be reopened through /proc (ENXIO), so a VMM that takes paths cannot use it. It takes no seals and cannot
//! be truncated (EINVAL), so nobody else's descriptor ends it, and nobody's can be revoked. `st_blocks` is always 0 and there
//! is no SEEK_DATA: which frames have a page cannot be asked.

use std::borrow::Cow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pageless::{
    Backing, FRAME_BYTES, Identity, Intent, NodeFrames, Operation, Pfn, PfnRange, ProofScope, RunSet, Shortage, Stuck,
};
use parking_lot::Mutex;

use crate::capacity::{bytes_shut, host_available};
use crate::holes::{self, Refused};
use crate::segment::SegmentFile;
use crate::{Capacity, HostBacking, HostError, LocalMappings, PageSize, SegmentHandle, instance, keeper, stuck};

#[allow(unsafe_code)] // two ioctls of KVM's without a safe wrapper
mod kvm;
mod support;

pub use support::{GuestMemfdSupport, SharedSide};

/// Builds a [`GuestMemfd`]. Only [`bytes`](Self::bytes) is needed.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct GuestMemfdBuilder {
    bytes: u64,
    base: Option<Pfn>,
    shared_side: Option<SharedSide>,
}

impl GuestMemfdBuilder {
    /// How much memory, in bytes: a multiple of 4 KiB.
    pub fn bytes(mut self, bytes: u64) -> Self {
        self.bytes = bytes;
        self
    }

    /// The number of the first frame. 0 unless told.
    pub fn base(mut self, base: Pfn) -> Self {
        self.base = Some(base);
        self
    }

    /// Where the shared side lies. In place where KVM offers it and beside elsewhere, unless told.
    pub fn shared_side(mut self, shared_side: SharedSide) -> Self {
        self.shared_side = Some(shared_side);
        self
    }

    /// Makes the file for `vm`, the descriptor of a KVM virtual machine, after asking what KVM offers. No page is taken.
    pub fn build(self, vm: impl AsFd) -> Result<GuestMemfd, HostError> {
        let (bytes, page) = (self.bytes, PageSize::Base4K);
        if bytes == 0 {
            return Err(HostError::Empty);
        }
        if !bytes.is_multiple_of(FRAME_BYTES) {
            return Err(HostError::Unaligned { what: "bytes", value: bytes, unit: FRAME_BYTES, unit_name: "bytes", page });
        }
        let frames = PfnRange::from_len(self.base.unwrap_or(Pfn::new(0)), bytes / FRAME_BYTES)?;
        let support = GuestMemfdSupport::of(&vm)?;
        let best = support.shared_side();
        let shared_side = self.shared_side.or(best).unwrap_or(SharedSide::Beside);
        if best.is_none() || (best, shared_side) == (Some(SharedSide::Beside), SharedSide::InPlace) {
            return Err(HostError::NoGuestMemfd { asked: shared_side, support });
        }
        let flags = if shared_side == SharedSide::InPlace { kvm::FLAG_MMAP | kvm::FLAG_INIT_SHARED } else { 0 };
        let step = "KVM_CREATE_GUEST_MEMFD";
        let fd = kvm::create_guest_memfd(vm.as_fd(), bytes, flags).map_err(support::no_vm(step))?;
        let os = |Refused { step, errno }| HostError::Os { step, errno };
        let beside = match shared_side {
            SharedSide::InPlace => None,
            SharedSide::Beside => Some(Arc::new(SegmentFile::create(frames, page, None, false).map_err(os)?)),
        };
        tracing::debug!(bytes, %shared_side, %support, "guest_memfd made");
        Ok(GuestMemfd::new(PrivateFile { fd, frames }, beside))
    }
}

/// Memory of one virtual machine. Frame numbers are synthetic: offsets in its files. The granule is 4 KiB.
///
/// Pages are taken when first touched, by the guest or through a mapping, and zeroed by the kernel then. A handle: clones
/// name the same memory. While a withdrawn frame is in it, its files stay open until the process ends
/// ([`keeper`](crate::keeper)), and with them the VM.
#[derive(Clone, Debug)]
pub struct GuestMemfd {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    private: Arc<PrivateFile>,
    /// The shared side, where it does not lie in the same file.
    beside: Option<Arc<SegmentFile>>,
    mappings: LocalMappings,
    /// Frames whose mark stands (I12): neither of their pages is punched. Held while others are, so that a mark that is set
    /// meanwhile comes before or after and never between.
    withdrawn: Mutex<RunSet>,
    /// Frames zeroed so far, each once for each time.
    zeroed: AtomicU64,
    /// Files that end with this value or its process.
    name: String,
}

/// The guest_memfd itself.
#[derive(Debug)]
struct PrivateFile {
    fd: OwnedFd,
    frames: PfnRange,
}

impl AsFd for PrivateFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl PrivateFile {
    fn offset_of(&self, pfn: Pfn) -> u64 {
        pfn.get().saturating_sub(self.frames.start().get()) * FRAME_BYTES
    }

    fn punch(&self, frames: PfnRange) -> Result<(), Refused> {
        holes::punch(self, self.offset_of(frames.start()), frames.bytes())
    }
}

/// Which pages of a frame go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sides {
    Private,
    Shared,
    Both,
}

impl GuestMemfd {
    /// Starts to describe memory.
    pub fn builder() -> GuestMemfdBuilder {
        GuestMemfdBuilder::default()
    }

    fn new(private: PrivateFile, beside: Option<Arc<SegmentFile>>) -> Self {
        Self {
            inner: Arc::new(Inner {
                private: Arc::new(private),
                beside,
                mappings: LocalMappings::default(),
                withdrawn: Mutex::default(),
                zeroed: AtomicU64::new(0),
                name: instance::anonymous(),
            }),
        }
    }

    /// Where the shared side of its frames lies.
    #[must_use]
    pub fn shared_side(&self) -> SharedSide {
        if self.inner.beside.is_some() { SharedSide::Beside } else { SharedSide::InPlace }
    }

    /// The guest_memfd behind `pfn`, and where the frame lies in it: `guest_memfd` and `guest_memfd_offset` of
    /// `struct kvm_userspace_memory_region2`. Nothing for frames of other memory.
    #[must_use]
    pub fn private_side(&self, pfn: Pfn) -> Option<SegmentHandle> {
        let private = &self.inner.private;
        let frames = PfnRange::new(pfn, private.frames.end()).ok().filter(|_| private.frames.contains(pfn))?;
        Some(SegmentHandle::new(private.clone(), private.offset_of(pfn), frames))
    }

    /// The frames withdrawn now.
    #[must_use]
    pub fn withdrawn(&self) -> RunSet {
        self.inner.withdrawn.lock().clone()
    }

    /// How many frames have been zeroed so far, by taking their pages away: each counts once for each time, whichever its
    /// pages were. One life of a frame, from one owner to the next, is one; a scrub before sharing is another.
    #[must_use]
    pub fn zeroed(&self) -> u64 {
        self.inner.zeroed.load(Ordering::Relaxed)
    }

    /// Gives the pages of the shared side of `frames` back, after they have become private. In place there is nothing to
    /// give back, since the page is the guest's now, and it keeps its contents. Beside, the memfd's pages go.
    ///
    /// A pool zeroes before it shares and not before it unshares, so whoever carries out the guest's request calls this;
    /// otherwise the frames cost twice their memory until they are reclaimed.
    pub fn drop_shared_side(&self, frames: PfnRange) -> Result<(), Stuck> {
        self.punch(Sides::Shared, frames)
    }

    /// Punches the pages of `frames` out of their files: those of `sides`, where they lie apart. A withdrawn frame stops it.
    fn punch(&self, sides: Sides, frames: PfnRange) -> Result<(), Stuck> {
        let withdrawn = self.inner.withdrawn.lock();
        let Some(frames) = self.inner.private.frames.intersect(frames) else { return Ok(()) };
        let (clear, marked) = stuck::before_mark(&withdrawn, frames);
        if let Some(clear) = clear {
            self.punch_unmarked(sides, clear)?;
            let zeroed = if sides == Sides::Shared { 0 } else { clear.frames() };
            self.inner.zeroed.fetch_add(zeroed, Ordering::Relaxed);
        }
        marked.map_or(Ok(()), |marked| Err(stuck::withdrawn("punch", marked)))
    }

    fn punch_unmarked(&self, sides: Sides, frames: PfnRange) -> Result<(), Stuck> {
        let Inner { private, beside, .. } = &*self.inner;
        let refused = |refused| stuck::refused(refused, frames);
        let Some(beside) = beside else {
            return if sides == Sides::Shared { Ok(()) } else { private.punch(frames).map_err(refused) };
        };
        if sides != Sides::Shared {
            private.punch(frames).map_err(refused)?;
        }
        if sides != Sides::Private {
            beside.punch(frames).map_err(refused)?;
            if !beside.is_hole(frames).map_err(refused)? {
                return Err(stuck::unsplit(frames));
            }
        }
        Ok(())
    }
}

impl Backing for GuestMemfd {
    fn identity(&self) -> Identity {
        Identity::Synthetic
    }

    fn instance(&self) -> Option<Cow<'static, str>> {
        Some(self.inner.name.clone().into())
    }

    fn nodes(&self) -> Vec<NodeFrames> {
        vec![NodeFrames { node: 0, frames: self.inner.private.frames }]
    }

    fn proof(&self) -> ProofScope {
        let method = match self.shared_side() {
            SharedSide::InPlace => {
                "no HostMapping of this process translates to the frames, looked at again; then the page is punched out of \
                                    the guest_memfd"
            }
            SharedSide::Beside => {
                "no HostMapping of this process translates to the frames, looked at again; then the page is punched out of the \
                                   guest_memfd and of the memfd beside it"
            }
        };
        ProofScope {
            method: method.into(),
            covers:
                "the kernel has taken the old page out of every KVM stage 2 and every user mapping that reached it; the next \
                     owner gets another page, zeroed by the kernel"
                    .into(),
            blind_to: "slots that are still bound and mappings by other means: they follow the file to its new page, so each \
                       must be a mapping of the allocation. An entry of a TDX S-EPT that its module would not drop: the \
                       kernel ends that VM and tells nobody. Pins of a page that was mapped: they keep the old page from \
                       the host"
                .into(),
            granule_frames: 1,
        }
    }

    /// Nothing to make: the files are there from the start, and KVM takes a page when it is first touched.
    fn commit(&self, _frames: PfnRange) -> Result<(), Shortage> {
        Ok(())
    }

    /// Before a share the private page goes, so that nothing private leaks; before an unshare the shared one. In place they
    /// are one page, which goes before a share.
    fn scrub(&self, op: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        self.punch(
            match op.intent {
                Intent::Share => Sides::Private,
                Intent::Unshare => Sides::Shared,
                Intent::Reclaim | Intent::Detach | Intent::Resize => Sides::Both,
            },
            frames,
        )
    }

    fn prove(&self, _op: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        self.inner.mappings.prove_none(frames)?;
        self.punch(Sides::Both, frames)
    }

    fn keep_shut(&self, frames: PfnRange) {
        self.inner.withdrawn.lock().insert(frames);
    }

    fn lift(&self, frames: PfnRange) {
        self.inner.withdrawn.lock().remove(frames);
    }
}

impl HostBacking for GuestMemfd {
    fn page(&self) -> PageSize {
        PageSize::Base4K
    }

    /// The shared side: what this process may map. Beside a private frame it is empty, and a touch would take a second page.
    fn segment(&self, pfn: Pfn) -> Option<SegmentHandle> {
        let Some(beside) = &self.inner.beside else { return self.private_side(pfn) };
        let frames = PfnRange::new(pfn, beside.frames().end()).ok().filter(|_| beside.frames().contains(pfn))?;
        Some(SegmentHandle::new(beside.clone(), beside.offset_of(pfn), frames))
    }

    fn local_mappings(&self) -> &LocalMappings {
        &self.inner.mappings
    }

    /// The kernel does not tell how many pages a guest_memfd has.
    fn capacity(&self) -> Capacity {
        let bytes = self.inner.private.frames.bytes();
        Capacity {
            bytes,
            committed: None,
            withdrawn: bytes_shut(&self.inner.withdrawn.lock(), PageSize::Base4K),
            available: host_available().map_or(0, |available| available.min(bytes)),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(frames) = self.withdrawn.get_mut().runs().iter().copied().reduce(PfnRange::hull) {
            keeper::keep(self.private.clone(), frames);
            self.beside.iter().for_each(|beside| keeper::keep(beside.clone(), frames));
        }
    }
}
