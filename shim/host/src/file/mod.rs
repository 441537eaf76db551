//! [`FileMemory`]: frames that are offsets in one plain file, on whatever filesystem it lies.
//!
//! A file with a name outlives its process, which is what it is for: memory that is found again. It is also what makes it
//! different from a memfd. Whoever may open it can map it, so the lock here keeps honest owners apart and no others. It may
//! hold the bytes of an earlier owner when it is opened, so what is not known to be zeroes is zeroed when it is committed.
//! And its space is the filesystem's, which may be full: space is reserved at the commit, so that a full filesystem is a
//! [`Shortage`] there and never a SIGBUS at a touch.

use std::borrow::Cow;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::Flock;
use nix::sys::stat::fstat;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::sys::statvfs::fstatvfs;
use pageless::{Backing, FRAME_BYTES, Identity, NodeFrames, Operation, Pfn, PfnRange, ProofScope, RunSet, Shortage, Stuck};
use parking_lot::Mutex;

use crate::capacity::{bytes_shut, bytes_taken, host_available};
use crate::holes::{self, Refused};
use crate::page::HugePool;
use crate::{Capacity, HostBacking, LocalMappings, PageSize, SegmentHandle, keeper, stuck};

mod open;
mod zero;

pub use open::FileMemoryBuilder;
use zero::Space;

/// Memory in one file. Frame numbers are synthetic: offsets in the file. The granule is 4 KiB, or the huge page where the
/// file lies on hugetlbfs.
///
/// A handle: clones name the same memory. The file is locked (flock) until the last is gone. It is never deleted here.
#[derive(Clone, Debug)]
pub struct FileMemory {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: Arc<Locked>,
    /// The same for every opening of the same file.
    name: String,
    frames: PfnRange,
    page: PageSize,
    mappings: LocalMappings,
    /// Held through the system calls: the kernel does them one after another for one file anyway.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Frames that may hold bytes of an owner who has gone: zeroed before the next one gets them.
    stale: RunSet,
    /// Frames with space that was reserved here and not given back since.
    reserved: RunSet,
    /// Frames whose mark stands (I12): never punched and never zeroed.
    withdrawn: RunSet,
    /// Frames zeroed so far, each once for each time.
    zeroed: u64,
}

#[derive(Debug)]
struct Locked(Flock<File>);

impl AsFd for Locked {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl FileMemory {
    /// Starts to describe memory in the file at `path`.
    pub fn at(path: impl AsRef<Path>) -> FileMemoryBuilder {
        FileMemoryBuilder::at(path.as_ref())
    }

    /// Starts to describe memory in an open file, which need not have a path. It is opened anew, so that its lock is this
    /// memory's own.
    pub fn on(file: impl Into<OwnedFd>) -> FileMemoryBuilder {
        FileMemoryBuilder::on(file.into())
    }

    fn new(file: Flock<File>, name: String, frames: PfnRange, page: PageSize, stale: RunSet) -> Self {
        let state = State { stale, reserved: RunSet::new(), withdrawn: RunSet::new(), zeroed: 0 };
        let (file, mappings) = (Arc::new(Locked(file)), LocalMappings::default());
        Self { inner: Arc::new(Inner { file, name, frames, page, mappings, state: Mutex::new(state) }) }
    }

    /// The frames withdrawn now.
    #[must_use]
    pub fn withdrawn(&self) -> RunSet {
        self.inner.state.lock().withdrawn.clone()
    }

    /// How many frames have been zeroed so far: each counts once for each time. One life of a frame, from one owner to the
    /// next, is one.
    #[must_use]
    pub fn zeroed(&self) -> u64 {
        self.inner.state.lock().zeroed
    }

    fn offset_of(&self, pfn: Pfn) -> u64 {
        pfn.get().saturating_sub(self.inner.frames.start().get()) * FRAME_BYTES
    }

    /// Zeroes what lies in `frames` before the first withdrawn one, by `how`; that one is stuck then.
    fn zero(
        &self,
        state: &mut State,
        frames: PfnRange,
        how: impl Fn(&File, u64, u64) -> Result<Space, Refused>,
    ) -> Result<(), Stuck> {
        let (clear, marked) = stuck::before_mark(&state.withdrawn, frames);
        if let Some(run) = clear {
            let space = how(&self.inner.file.0, self.offset_of(run.start()), run.bytes());
            match space.map_err(|refused| stuck::refused(refused, run))? {
                Space::Reserved => state.reserved.insert(run),
                Space::GivenBack => state.reserved.remove(run),
                Space::Kept => {}
            }
            state.stale.remove(run);
            state.zeroed += run.frames();
        }
        marked.map_or(Ok(()), |marked| Err(stuck::withdrawn("zero", marked)))
    }

    /// Reserves space for those of `frames` that have none, in whole pages. Nothing that is there changes, except that zeroes
    /// are written over `zeroes`, which are known to read as zeroes, where the filesystem cannot be asked for space.
    fn reserve(&self, state: &mut State, frames: PfnRange, zeroes: Option<PfnRange>) -> Result<(), Shortage> {
        let (file, order) = (&self.inner.file.0, self.inner.page.order());
        let pages = PfnRange::new(frames.start().align_down(order), frames.end().align_up(order)).unwrap_or(frames);
        for gap in state.reserved.gaps_in(pages).runs() {
            let short = |refused| self.short(refused, *gap);
            let (offset, bytes) = (self.offset_of(gap.start()), gap.bytes());
            let known = zero::reserve(file, offset, bytes).map_err(short)?;
            if !known && zeroes.is_some_and(|zeroes| zeroes.contains_range(*gap)) {
                zero::write_zeroes(file, offset, bytes).map_err(short)?;
                state.zeroed += gap.frames();
            }
            state.reserved.insert(*gap);
        }
        Ok(())
    }

    fn short(&self, refused: Refused, frames: PfnRange) -> Shortage {
        let Refused { step, errno } = refused;
        let reason = match errno {
            Errno::ENOSPC => format!("{step}: the filesystem has {} bytes free for this user", self.filesystem_free()),
            Errno::EDQUOT => format!("{step}: the quota of this file's owner is used up"),
            _ => format!("{step}: {errno}"),
        };
        Shortage { frames, reason: reason.into() }
    }

    /// Bytes that the filesystem could still give to this user: no more than the host has memory where the filesystem is made
    /// of memory, and no more than it has huge pages on hugetlbfs.
    fn filesystem_free(&self) -> u64 {
        let page = self.inner.page;
        let Ok(about) = fstatvfs(&self.inner.file) else { return 0 };
        // A mount without a size counts no blocks at all: only memory is without a size.
        let without_size = about.blocks() == 0;
        let mount = if without_size { u64::MAX } else { about.blocks_available().saturating_mul(about.fragment_size()) };
        let of_memory = without_size || fstatfs(&self.inner.file).is_ok_and(|about| about.filesystem_type() == TMPFS_MAGIC);
        let host = match HugePool::read(page).filter(|_| page.is_huge()) {
            Some(pool) => pool.available().saturating_mul(page.bytes()),
            None if of_memory => host_available().unwrap_or(0),
            None => u64::MAX,
        };
        host.min(mount)
    }
}

impl Backing for FileMemory {
    fn identity(&self) -> Identity {
        Identity::Synthetic
    }

    /// The file: two openings of one are the same memory, so the marks of the first are the second's.
    fn instance(&self) -> Option<Cow<'static, str>> {
        Some(self.inner.name.clone().into())
    }

    fn nodes(&self) -> Vec<NodeFrames> {
        vec![NodeFrames { node: 0, frames: self.inner.frames }]
    }

    fn proof(&self) -> ProofScope {
        ProofScope {
            method: "no HostMapping of this process translates to the frames, looked at again; then their range is punched out \
                     of the file, or zeroed where the filesystem cannot punch"
                .into(),
            covers: "no HostMapping of this process translates to the frames; the next owner reads zeroes".into(),
            blind_to: "other processes that open the file, and whatever this one did with its descriptor by other means: they \
                       reach the next owner's bytes (the lock is advisory). Pins, where the filesystem keeps the page in place. \
                       The medium under a filesystem with storage, where deleted bytes may remain, and the kernel's choice of \
                       page there, which it may change at any time"
                .into(),
            granule_frames: self.inner.page.order().frames(),
        }
    }

    fn granule(&self, pfn: Pfn) -> PfnRange {
        if self.inner.frames.contains(pfn) { PfnRange::block(pfn, self.inner.page.order()) } else { PfnRange::single(pfn) }
    }

    /// Zeroes what an earlier owner left, which only a file that was there before has, and reserves space.
    fn commit(&self, frames: PfnRange) -> Result<(), Shortage> {
        let mut state = self.inner.state.lock();
        for stale in state.stale.clipped(frames).collect::<Vec<_>>() {
            let zeroed = self.zero(&mut state, stale, |file, at, bytes| zero::clear(file, at, bytes, self.inner.page));
            zeroed.map_err(|stuck| Shortage { frames: stuck.at, reason: stuck.cause.to_string().into() })?;
        }
        self.reserve(&mut state, frames, Some(frames))
    }

    fn scrub(&self, _op: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        let mut state = self.inner.state.lock();
        self.zero(&mut state, frames, |file, at, bytes| zero::clear(file, at, bytes, self.inner.page))
    }

    fn prove(&self, _op: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        self.inner.mappings.prove_none(frames)?;
        let mut state = self.inner.state.lock();
        self.zero(&mut state, frames, zero::discard)?;
        // A page that is part of a large folio which cannot be split is zeroed by a punch and stays.
        let given_back = !state.reserved.overlaps(frames);
        let is_hole = || holes::is_hole(&self.inner.file, self.offset_of(frames.start()), frames.bytes());
        if given_back && !self.inner.page.is_huge() && is_hole() == Ok(false) {
            return Err(stuck::unsplit(frames));
        }
        Ok(())
    }

    fn keep_shut(&self, frames: PfnRange) {
        self.inner.state.lock().withdrawn.insert(frames);
    }

    fn lift(&self, frames: PfnRange) {
        self.inner.state.lock().withdrawn.remove(frames);
    }
}

impl HostBacking for FileMemory {
    fn page(&self) -> PageSize {
        self.inner.page
    }

    /// The file is there from the start; [`populate`](HostBacking::populate) sees to its space.
    fn segment(&self, pfn: Pfn) -> Option<SegmentHandle> {
        let frames = PfnRange::new(pfn, self.inner.frames.end()).ok().filter(|_| self.inner.frames.contains(pfn))?;
        Some(SegmentHandle::new(self.inner.file.clone(), self.offset_of(pfn), frames))
    }

    fn local_mappings(&self) -> &LocalMappings {
        &self.inner.mappings
    }

    /// Reserves space for what has lost it: a hole that somebody else punched, or an end that somebody else cut off.
    fn populate(&self, frames: PfnRange) -> Result<(), Shortage> {
        let mut state = self.inner.state.lock();
        state.reserved.remove(frames);
        self.reserve(&mut state, frames, None)?;
        let end = self.offset_of(frames.end());
        match fstat(&self.inner.file) {
            Ok(about) if u64::try_from(about.st_size).is_ok_and(|size| size >= end) => Ok(()),
            Ok(about) => {
                let reason = format!("the file has been cut to {} bytes, and these frames end at {end}", about.st_size);
                Err(Shortage { frames, reason: reason.into() })
            }
            Err(errno) => Err(self.short(Refused { step: "fstat", errno }, frames)),
        }
    }

    fn capacity(&self) -> Capacity {
        let Inner { file, frames, page, state, .. } = &*self.inner;
        let committed = bytes_taken(file).ok().map(|taken| taken.min(frames.bytes()));
        let wanting = frames.bytes() - committed.unwrap_or(0);
        Capacity {
            bytes: frames.bytes(),
            committed,
            withdrawn: bytes_shut(&state.lock().withdrawn, *page),
            available: self.filesystem_free().min(wanting),
        }
    }

    fn frames(&self) -> PfnRange {
        self.inner.frames
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A file without a name goes with its last descriptor, and its withdrawn pages with it.
        let nameless = fstat(&self.file).map_or(true, |about| about.st_nlink == 0);
        if let Some(marked) = self.state.get_mut().withdrawn.runs().iter().copied().reduce(PfnRange::hull).filter(|_| nameless) {
            keeper::keep(self.file.clone(), marked);
        }
    }
}
