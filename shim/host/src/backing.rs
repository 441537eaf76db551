//! [`HostBacking`]: memory of this host that processes can map, behind one contract.
//!
//! [`pageless::Backing`] says which frames exist and what can be proven about them; that is all a pool needs. Whoever wants
//! to *reach* the bytes needs three things more: a descriptor and an offset for each frame, the size of the pages behind
//! them, and a place where this process's own mappings are known, so that a proof can look at them.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Weak};

use pageless::{Backing, Pfn, PfnRange, Shortage, Stuck};
use parking_lot::Mutex;

use crate::mapping::Translations;
use crate::{Capacity, PageSize, stuck};

/// Memory with descriptors. Implement it for memory of your own and [`HostMapping`](crate::HostMapping) maps it.
pub trait HostBacking: Backing + fmt::Debug {
    /// The size of the pages behind the frames: frames are mapped and unmapped by whole pages.
    fn page(&self) -> PageSize;

    /// The descriptor behind `pfn` and where the frame lies in it; nothing while no memory is committed there, or while the
    /// frame has a page that this process must not map.
    fn segment(&self, pfn: Pfn) -> Option<SegmentHandle>;

    /// This process's own mappings of the memory. The backing keeps the list and looks at it before it proves anything.
    fn local_mappings(&self) -> &LocalMappings;

    /// Makes sure that touching `frames` cannot fault, just before they are mapped: pages that were there at the commit may
    /// have vanished since. Frames that need nothing cost nothing.
    fn populate(&self, frames: PfnRange) -> Result<(), Shortage> {
        let _ = frames;
        Ok(())
    }

    /// How much memory there is and how much could still be had, asked of the host now.
    fn capacity(&self) -> Capacity;

    /// Whether mappings should ask the kernel for transparent huge pages.
    fn wants_transparent_huge_pages(&self) -> bool {
        false
    }

    /// All frames: from the first of the first node to the last of the last.
    fn frames(&self) -> PfnRange {
        let whole = self.nodes().into_iter().map(|node| node.frames).reduce(PfnRange::hull);
        whole.unwrap_or(PfnRange::single(Pfn::new(0))) // a pool refuses a backing without frames
    }
}

impl<B: HostBacking + ?Sized> HostBacking for Arc<B> {
    fn page(&self) -> PageSize {
        (**self).page()
    }

    fn segment(&self, pfn: Pfn) -> Option<SegmentHandle> {
        (**self).segment(pfn)
    }

    fn local_mappings(&self) -> &LocalMappings {
        (**self).local_mappings()
    }

    fn populate(&self, frames: PfnRange) -> Result<(), Shortage> {
        (**self).populate(frames)
    }

    fn capacity(&self) -> Capacity {
        (**self).capacity()
    }

    fn wants_transparent_huge_pages(&self) -> bool {
        (**self).wants_transparent_huge_pages()
    }

    fn frames(&self) -> PfnRange {
        (**self).frames()
    }
}

/// The mappings that this process has of one memory. Embed one in a [`HostBacking`]; mappings enter themselves.
#[derive(Debug, Default)]
pub struct LocalMappings(Mutex<Vec<Weak<Translations>>>);

impl LocalMappings {
    /// How many of `frames` are translated now, counted once for each mapping that does.
    #[must_use]
    pub fn translated(&self, frames: PfnRange) -> u64 {
        let mappings: Vec<_> = self.0.lock().iter().filter_map(Weak::upgrade).collect();
        mappings.iter().flat_map(|mapping| mapping.of(frames)).map(PfnRange::frames).sum()
    }

    /// Proves that no mapping of this process translates to `frames`. On [`Stuck`] nothing has changed.
    pub fn prove_none(&self, frames: PfnRange) -> Result<(), Stuck> {
        match self.translated(frames) {
            0 => Ok(()),
            mapped => Err(stuck::mapped(mapped, frames)),
        }
    }

    pub(crate) fn enter(&self, translations: &Arc<Translations>) {
        let mut mappings = self.0.lock();
        mappings.retain(|mapping| mapping.strong_count() > 0);
        mappings.push(Arc::downgrade(translations));
    }
}

/// A descriptor as it is now, and where one frame lies in it.
///
/// The handle keeps the file open: when a proof replaces the memory behind the frames, the handle still names the old file,
/// whose pages go back to the host only when the last handle and every other copy of the descriptor is gone. Whoever maps
/// the file must be attached to the allocation as a [`Mapping`](pageless::Mapping): pageless sees only those. Never punch
/// through the descriptor: on huge pages the next touch may be a SIGBUS.
#[derive(Clone)]
pub struct SegmentHandle {
    file: Arc<dyn AsFd + Send + Sync>,
    offset: u64,
    frames: PfnRange,
}

impl SegmentHandle {
    /// `frames` lie side by side in `file`, the first at `offset` bytes.
    #[must_use]
    pub fn new(file: Arc<dyn AsFd + Send + Sync>, offset: u64, frames: PfnRange) -> Self {
        Self { file, offset, frames }
    }

    /// The descriptor.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Where the frame lies in the file, in bytes. In a physical window: the physical address.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The frames from the one asked for to the end of what is committed in one piece: they lie side by side in the file.
    #[must_use]
    pub fn frames(&self) -> PfnRange {
        self.frames
    }
}

impl fmt::Debug for SegmentHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SegmentHandle")
            .field("fd", &self.fd())
            .field("offset", &self.offset)
            .field("frames", &self.frames)
            .finish()
    }
}
