//! [`PhysicalWindow`]: physical memory that the kernel does not manage, where a frame number is the frame's own.
//!
//! A host boots with part of its memory set aside (`memmap=512M$1G`), and /dev/mem maps it. The kernel has no `struct page`
//! for such memory. Its mapping is VM_PFNMAP: no page of it can be pinned (GUP answers EFAULT), nobody counts references, and
//! nothing follows it to another process. So this process's own unmap proves all there is to prove about this process, at
//! 4 KiB. Others who may open the device, and those who were given a part of it, are attached as mappings
//! ([`pageless::Mapping`]); nothing here sees them.
//!
//! devdax (/dev/dax0.0) is such memory under a driver, mapped by its alignment (4 KiB, 2 MiB or 1 GiB). It does have struct
//! pages, so it can be pinned, and the [proof](pageless::ProofScope) says that it does not see that.
//!
//! **Zeroing**: nobody else would do it, so a frame is written with zeroes once before each reuse: at its proof, or at its
//! first commit where this window has not had it before. A withdrawn frame is never written, read or mapped again.
//!
//! **Poison**: on memory outside the kernel's page map a machine check signals nobody ("memory outside kernel control"), so
//! [`Pool::poison`](pageless::Pool::poison) must be told by whoever reads the kernel's log, EDAC or rasdaemon.
//!
//! **Before Linux 6.16** x86 tracks the cache attributes of such mappings by whole mappings. It writes a line to its log
//! ("x86/PAT: freeing invalid memtype") for each part that is unmapped out of the middle of a larger one, so a guest that
//! converts single frames can fill the log. Nothing is wrong with the memory; booting with `nopat` ends it.

mod builder;
mod dax;
mod error;
mod iomem;
#[allow(unsafe_code)] // maps frames for as long as zeroing them takes
mod wipe;

use std::borrow::Cow;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use pageless::{
    Backing, Cause, FRAME_BYTES, Identity, NodeFrames, Operation, Order, Pfn, PfnRange, ProofScope, RunSet, Shortage, Stuck,
    Verdict,
};
use parking_lot::{Mutex, RwLock};

use crate::capacity::bytes_shut;
use crate::stuck::{self, RETRY_AFTER};
use crate::{Capacity, HostBacking, LocalMappings, PageSize, SegmentHandle, Zeroing};

pub use builder::WindowBuilder;
pub use error::WindowError;

/// A range of physical addresses as a pool's memory. Frame numbers are physical.
///
/// A handle: clones name the same window. While one lives, or a descriptor or mapping made from one, no second window has
/// part of the range.
#[derive(Clone, Debug)]
pub struct PhysicalWindow {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    device: Device,
    node: NodeFrames,
    zeroing: Zeroing,
    mappings: LocalMappings,
    instance: Option<String>,
    /// Frames whose mark stands (I12). Held for reading while frames are zeroed, so that none is written once it is marked.
    withdrawn: RwLock<RunSet>,
    /// Frames that this window has not zeroed since it was built, or that came back by reset or replacement.
    unknown: Mutex<RunSet>,
    zeroed: AtomicU64,
}

/// What the window is reached through.
#[derive(Debug)]
struct Device {
    file: Arc<File>,
    kind: DeviceKind,
    path: PathBuf,
    page: PageSize,
    /// Where the window begins in the device, in bytes.
    offset: u64,
}

/// The two devices that show physical memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum DeviceKind {
    DevMem,
    DevDax,
}

impl PhysicalWindow {
    /// `bytes` bytes from the physical address `start` on, through /dev/mem. Both are multiples of 4 KiB, and best of 128 MiB.
    pub fn devmem(start: u64, bytes: u64) -> WindowBuilder {
        WindowBuilder::devmem(start, bytes)
    }

    /// A devdax device, such as /dev/dax0.0: all of it, unless [`WindowBuilder::part`] says which part.
    pub fn devdax(device: impl Into<PathBuf>) -> WindowBuilder {
        WindowBuilder::devdax(device.into())
    }

    fn new(device: Device, node: NodeFrames, zeroing: Zeroing, instance: Option<String>) -> Self {
        let inner = Inner {
            device,
            node,
            zeroing,
            mappings: LocalMappings::default(),
            instance,
            withdrawn: RwLock::default(),
            unknown: Mutex::new(RunSet::from_iter([node.frames])),
            zeroed: AtomicU64::new(0),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The device, for whoever opens it by name, as QEMU does (`mem-path=`). Offsets in it are those of
    /// [`SegmentHandle::offset`].
    #[must_use]
    pub fn device(&self) -> &Path {
        &self.inner.device.path
    }

    /// Whether the kernel keeps a `struct page` for each frame: on devdax it does.
    #[must_use]
    pub fn has_struct_pages(&self) -> bool {
        self.inner.device.kind == DeviceKind::DevDax
    }

    /// The frames withdrawn now.
    #[must_use]
    pub fn withdrawn(&self) -> RunSet {
        self.inner.withdrawn.read().clone()
    }

    /// How many frames this window has written with zeroes since it was built; one that was zeroed twice counts twice.
    #[must_use]
    pub fn zeroed_frames(&self) -> u64 {
        self.inner.zeroed.load(Ordering::Relaxed)
    }

    /// Where `pfn`, one of the window's, lies in the device, in bytes.
    fn offset_of(&self, pfn: Pfn) -> u64 {
        let into = pfn.get().saturating_sub(self.inner.node.frames.start().get());
        self.inner.device.offset + into * FRAME_BYTES
    }

    /// Writes zeroes to `frames`, 2 MiB or a page at a time. On [`Stuck`] everything before it is zeroed.
    fn zero(&self, frames: PfnRange) -> Result<(), Stuck> {
        if self.inner.zeroing == Zeroing::Off {
            return Ok(());
        }
        for piece in frames.pieces(self.inner.device.page.order().max(Order::MIB2)) {
            let withdrawn = self.inner.withdrawn.read();
            let (clear, marked) = stuck::before_mark(&withdrawn, piece);
            clear.map_or(Ok(()), |clear| self.wipe(clear))?;
            if let Some(marked) = marked {
                return Err(stuck::withdrawn("zero", marked));
            }
        }
        Ok(())
    }

    /// Writes zeroes to `frames`, none of which is withdrawn.
    fn wipe(&self, frames: PfnRange) -> Result<(), Stuck> {
        let device = &self.inner.device;
        let wiped = wipe::zero(&*device.file, self.offset_of(frames.start()), frames.bytes(), device.page.bytes());
        wiped.map_err(|errno| {
            // No room or no memory for one more mapping passes; a kernel that forbids the mapping goes on doing so.
            let passes = matches!(errno, Errno::ENOMEM | Errno::EAGAIN);
            let verdict = if passes { Verdict::Retry { after: RETRY_AFTER } } else { Verdict::Never };
            Stuck { at: frames, verdict, cause: Cause::new("mmap, to zero", errno as u64, errno.desc()) }
        })?;
        self.inner.zeroed.fetch_add(frames.frames(), Ordering::Relaxed);
        Ok(())
    }

    /// The first page of `frames` that this process still maps, found by halves.
    fn first_mapped(&self, frames: PfnRange) -> Option<PfnRange> {
        let order = self.inner.device.page.order();
        let mut run = frames;
        if self.inner.mappings.translated(run) == 0 {
            return None;
        }
        while run.frames() > order.frames() {
            let middle = run.start().add(run.frames() / 2).align_up(order).get() - run.start().get();
            let (Some(first), Some(rest)) = run.split_at(middle.min(run.frames() - 1)) else { break };
            run = if self.inner.mappings.translated(first) > 0 { first } else { rest };
        }
        Some(run)
    }
}

impl Backing for PhysicalWindow {
    fn identity(&self) -> Identity {
        Identity::Physical
    }

    /// The machine, by its board: the same frames are the same memory after a restart of the process or the host, so marks stay.
    fn instance(&self) -> Option<Cow<'static, str>> {
        self.inner.instance.clone().map(Cow::Owned)
    }

    fn nodes(&self) -> Vec<NodeFrames> {
        vec![self.inner.node]
    }

    fn proof(&self) -> ProofScope {
        let (covers, blind_to) = match self.inner.device.kind {
            DeviceKind::DevMem => (
                "no HostMapping of this process translates to the frames, and nobody holds a page of them by reference: the \
                 mapping is VM_PFNMAP and there is no struct page to pin. The next owner reads zeroes",
                "mappings of /dev/mem that are no HostMapping: other processes' that opened it, as root may, children's that were \
                 given the range, and this process's own by other means; what VFIO or an IOMMU still translates, a type1 container for instance; tables that the host kernel does not count (TDX S-EPT): each \
                 is attached as a mapping, or not seen. Machine checks, which signal nobody here",
            ),
            DeviceKind::DevDax => (
                "no HostMapping of this process translates to the frames. The next owner reads zeroes",
                "pins: devdax memory has struct pages, so vmsplice, io_uring, VFIO and RDMA can hold a page after every unmap. \
                 Mappings of the device that are no HostMapping: other processes', children's that were given it, and this process's \
                 own by other means; what an IOMMU still translates; tables \
                 that the host kernel does not count (TDX S-EPT): each is attached as a mapping, or not seen",
            ),
        };
        ProofScope {
            method: "this process's own mappings' unmaps, looked at again; then the frames are zeroed by the processor".into(),
            covers: covers.into(),
            blind_to: blind_to.into(),
            granule_frames: self.inner.device.page.order().frames(),
        }
    }

    fn granule(&self, pfn: Pfn) -> PfnRange {
        PfnRange::block(pfn, self.inner.device.page.order())
    }

    /// Zeroes what this window has never zeroed: nobody knows what it held before. Everything else is zero since its proof.
    fn commit(&self, frames: PfnRange) -> Result<(), Shortage> {
        let unknown: Vec<PfnRange> = self.inner.unknown.lock().clipped(frames).collect();
        for run in unknown {
            self.zero(run).map_err(|stuck| Shortage { frames: stuck.at, reason: stuck.cause.to_string().into() })?;
            self.inner.unknown.lock().remove(run);
        }
        Ok(())
    }

    fn scrub(&self, _op: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        self.zero(frames)
    }

    /// Looks that no mapping of this process translates to the frames, and zeroes them.
    fn prove(&self, _op: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        let mapped = self.first_mapped(frames);
        let clear = mapped.map_or(Some(frames), |mapped| PfnRange::new(frames.start(), mapped.start()).ok());
        if let Some(clear) = clear {
            self.zero(clear)?;
            self.inner.unknown.lock().remove(clear);
        }
        match mapped {
            None => Ok(()),
            Some(at) => {
                let meaning = "still mapped by a HostMapping of this process";
                let cause = Cause::new("unmap", Errno::EBUSY as u64, meaning);
                Err(Stuck { at, verdict: Verdict::Retry { after: RETRY_AFTER }, cause })
            }
        }
    }

    fn keep_shut(&self, frames: PfnRange) {
        self.inner.withdrawn.write().insert(frames);
    }

    /// What comes back without a proof has not been zeroed, so it is when it is next committed.
    fn lift(&self, frames: PfnRange) {
        self.inner.unknown.lock().insert(frames);
        self.inner.withdrawn.write().remove(frames);
    }
}

impl HostBacking for PhysicalWindow {
    fn page(&self) -> PageSize {
        self.inner.device.page
    }

    /// The device, and the frame's physical address or, on devdax, its offset in the device. Nothing for a withdrawn frame.
    fn segment(&self, pfn: Pfn) -> Option<SegmentHandle> {
        let frames = PfnRange::new(pfn, self.inner.node.frames.end()).ok()?.intersect(self.inner.node.frames)?;
        let sound = match self.inner.withdrawn.read().clipped(frames).next() {
            Some(marked) => PfnRange::new(pfn, marked.start()).ok()?,
            None => frames,
        };
        (sound.start() == pfn).then(|| SegmentHandle::new(self.inner.device.file.clone(), self.offset_of(pfn), sound))
    }

    fn local_mappings(&self) -> &LocalMappings {
        &self.inner.mappings
    }

    /// All of it was set aside when the host booted, and no more can be had.
    fn capacity(&self) -> Capacity {
        let bytes = self.inner.node.frames.bytes();
        Capacity {
            bytes,
            committed: Some(bytes),
            withdrawn: bytes_shut(&self.inner.withdrawn.read(), self.inner.device.page),
            available: 0,
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let withdrawn = self.withdrawn.get_mut();
        if !withdrawn.is_empty() {
            let at = builder::addresses(withdrawn.runs()[0]).start;
            tracing::error!(
                frames = withdrawn.frames(),
                first = format_args!("{at:#x}"),
                "physical window dropped with withdrawn frames; only a ledger remembers them"
            );
        }
    }
}
