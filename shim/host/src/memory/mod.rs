//! [`HostMemory`]: frames that are offsets in memfds, and what the kernel can be made to prove about them.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pageless::{Backing, Identity, NodeFrames, Operation, Pfn, PfnRange, ProofScope, RunSet, Shortage, Stuck};
use parking_lot::Mutex;

use crate::progress::Watcher;
use crate::segment::SegmentFile;
use crate::{Capacity, HostBacking, HostMemoryBuilder, LocalMappings, PageSize, SegmentHandle, instance, keeper};

mod commit;
mod exchange;
mod proof;

/// How released frames are proven unreachable from outside the mappings.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ProofMethod {
    /// The kernel seals the segment's memfd against writing, which it does only when nobody maps it writable and nobody
    /// holds an extra reference to a page of it; then fresh pages take its place. For memory that other processes map.
    /// Proven, and lost, by the segment.
    #[default]
    Seal,
    /// The segment's memfd is truncated to nothing: whoever maps it, in any process, agreed or not, gets a SIGBUS at the next
    /// touch, and can never get a page back into it; then fresh pages take its place. For memory that must come back from a
    /// client that does not let go. Proven, and lost, by the segment.
    ///
    /// The price: a segment that can be truncated can be truncated by every holder of its descriptor. One client can so end
    /// another's access, and a [`HostMapping`](crate::HostMapping) of this process gets the SIGBUS as anybody does, which its
    /// copies do not survive. And it can give a withdrawn page back to the host while its mark stands. Hand such memory to
    /// clients that are trusted that far, and to one client each.
    Revoke,
    /// The memory has never left this process, so the mappings' own unmaps are the proof. Proven by the page.
    ProcessUnmap,
}

/// Whether the backing zeroes what it should.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Zeroing {
    /// Frames are zeroed when an operation says so and before they are free again.
    #[default]
    On,
    /// Nothing is zeroed: the next owner reads the last one's bytes. For one purpose only: to show that a check for stale
    /// bytes can fail. (A segment that [`ProofMethod::Seal`] replaces still comes back empty: its pages are new.)
    Off,
}

/// Memory of this host in segments of one memfd each. Frame numbers are synthetic: offsets in the segments, side by side.
///
/// A handle: clones name the same memory. When the last one goes, the segments are closed, except those with withdrawn
/// frames, which [`keeper`](crate::keeper) holds until the process ends.
#[derive(Clone, Debug)]
pub struct HostMemory {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    nodes: Vec<NodeFrames>,
    slots: Vec<Slot>,
    settings: Settings,
    mappings: LocalMappings,
    /// Frames zeroed so far, each once for each time.
    zeroed: AtomicU64,
    /// No other memory has this name, on no host and at no time: the files have none and end with this value or its process.
    name: String,
}

/// What the builder has laid out.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) nodes: Vec<NodeFrames>,
    pub(crate) slots: Vec<Slot>,
}

/// What the builder was told about all segments alike.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) page: PageSize,
    pub(crate) transparent: bool,
    pub(crate) proof: ProofMethod,
    pub(crate) zeroing: Zeroing,
    pub(crate) watcher: Option<Watcher>,
}

/// The place of one segment. Its file comes with the first commit, and goes and comes again with every sealed proof.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) frames: PfnRange,
    node: Option<u32>,
    state: Mutex<SlotState>,
}

#[derive(Debug, Default)]
struct SlotState {
    file: Option<Arc<SegmentFile>>,
    /// Frames that can be touched: all of them on 4 KiB pages, those of the pages taken on huge ones.
    filled: RunSet,
    /// Frames whose mark stands (I12): while there is one, the file is neither replaced nor closed, and its page stays.
    withdrawn: RunSet,
    /// A conversion's proof took the file away: the next use makes another.
    renew: bool,
    /// Sealed files whose pages were withdrawn when a conversion's proof came: they stay open until no mark stands.
    shut: Vec<Arc<SegmentFile>>,
}

impl Slot {
    pub(crate) fn new(frames: PfnRange, node: Option<u32>) -> Self {
        Self { frames, node, state: Mutex::default() }
    }
}

impl HostMemory {
    /// Starts to describe memory.
    pub fn builder() -> HostMemoryBuilder {
        HostMemoryBuilder::default()
    }

    pub(crate) fn new(layout: Layout, settings: Settings) -> Self {
        let Layout { nodes, slots } = layout;
        let (name, mappings, zeroed) = (instance::anonymous(), LocalMappings::default(), AtomicU64::new(0));
        Self { inner: Arc::new(Inner { nodes, slots, settings, mappings, zeroed, name }) }
    }

    /// How its released frames are proven.
    #[must_use]
    pub fn proof_method(&self) -> ProofMethod {
        self.inner.settings.proof
    }

    /// The frames withdrawn now, over all segments.
    #[must_use]
    pub fn withdrawn(&self) -> RunSet {
        let mut all = RunSet::new();
        for slot in &self.inner.slots {
            slot.state.lock().withdrawn.runs().iter().for_each(|run| all.insert(*run));
        }
        all
    }

    /// How many frames have been zeroed so far: each counts once for each time. One life of a frame, from one owner to the
    /// next, is one; a scrub before sharing is another. Frames without a page count too, as long as they might have one.
    #[must_use]
    pub fn zeroed(&self) -> u64 {
        self.inner.zeroed.load(Ordering::Relaxed)
    }

    fn slot(&self, pfn: Pfn) -> Option<&Slot> {
        let slots = &self.inner.slots;
        slots.get(slots.partition_point(|slot| slot.frames.end() <= pfn)).filter(|slot| slot.frames.contains(pfn))
    }

    /// Does `work` for the part of `frames` in each segment, in order, until one fails.
    fn by_slot<E>(&self, frames: PfnRange, mut work: impl FnMut(&Slot, PfnRange) -> Result<(), E>) -> Result<(), E> {
        let slots = &self.inner.slots;
        let first = slots.partition_point(|slot| slot.frames.end() <= frames.start());
        slots[first..]
            .iter()
            .map_while(|slot| Some((slot, slot.frames.intersect(frames)?)))
            .try_for_each(|(slot, run)| work(slot, run))
    }
}

impl Backing for HostMemory {
    fn identity(&self) -> Identity {
        Identity::Synthetic
    }

    /// A new name for each: the marks of memory that is gone end with it.
    fn instance(&self) -> Option<Cow<'static, str>> {
        Some(self.inner.name.clone().into())
    }

    fn nodes(&self) -> Vec<NodeFrames> {
        self.inner.nodes.clone()
    }

    fn proof(&self) -> ProofScope {
        self.scope()
    }

    fn granule(&self, pfn: Pfn) -> PfnRange {
        match (self.inner.settings.proof, self.slot(pfn)) {
            (ProofMethod::Seal | ProofMethod::Revoke, Some(slot)) => slot.frames,
            (ProofMethod::ProcessUnmap, Some(_)) => PfnRange::block(pfn, self.inner.settings.page.order()),
            (_, None) => PfnRange::single(pfn),
        }
    }

    /// Makes the segments of `frames`, and on huge pages takes the pages: 56 us for 2 MiB, 150 ms for 1 GiB, once.
    /// 4 KiB pages are taken when first touched.
    fn commit(&self, frames: PfnRange) -> Result<(), Shortage> {
        self.take(frames)
    }

    fn scrub(&self, _op: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        self.zero(frames)
    }

    fn prove(&self, _op: &Operation, granule: PfnRange) -> Result<(), Stuck> {
        self.prove_granules(granule)
    }

    fn keep_shut(&self, frames: PfnRange) {
        let Ok(()) = self.by_slot(frames, |slot, run| {
            slot.state.lock().withdrawn.insert(run);
            Ok::<_, std::convert::Infallible>(())
        });
    }

    fn lift(&self, frames: PfnRange) {
        let Ok(()) = self.by_slot(frames, |slot, run| {
            let mut state = slot.state.lock();
            state.withdrawn.remove(run);
            if state.withdrawn.is_empty() {
                state.shut.clear();
            }
            Ok::<_, std::convert::Infallible>(())
        });
    }
}

impl HostBacking for HostMemory {
    fn page(&self) -> PageSize {
        self.inner.settings.page
    }

    fn segment(&self, pfn: Pfn) -> Option<SegmentHandle> {
        let slot = self.slot(pfn)?;
        let state = slot.state.lock();
        let filled = state.filled.runs().iter().copied().find(|run| run.contains(pfn))?;
        let frames = PfnRange::new(pfn, filled.end()).ok()?;
        let file = state.file.clone()?;
        let offset = file.offset_of(pfn);
        Some(SegmentHandle::new(file, offset, frames))
    }

    fn local_mappings(&self) -> &LocalMappings {
        &self.inner.mappings
    }

    fn wants_transparent_huge_pages(&self) -> bool {
        self.inner.settings.transparent
    }

    /// Takes huge pages that somebody punched out of the file since the commit anew: without one a touch would be a SIGBUS.
    /// Pages that are there are only looked up. A segment that somebody has truncated is an error, too.
    fn populate(&self, frames: PfnRange) -> Result<(), Shortage> {
        self.renew(frames)?;
        self.refill(frames)
    }

    fn capacity(&self) -> Capacity {
        self.counted()
    }

    fn frames(&self) -> PfnRange {
        let whole = self.inner.slots.iter().map(|slot| slot.frames).reduce(PfnRange::hull);
        whole.unwrap_or(PfnRange::single(Pfn::new(0))) // the builder refuses memory without a segment
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for slot in &mut self.slots {
            let state = slot.state.get_mut();
            if !state.withdrawn.is_empty() {
                state.file.take().into_iter().chain(state.shut.drain(..)).for_each(|file| keeper::keep(file, slot.frames));
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_memory_has_a_name_of_its_own_and_keeps_it() {
        let memory = || HostMemory::builder().bytes(2 << 20).build().unwrap();
        let (one, other) = (memory(), memory());
        assert!(one.instance().is_some() && one.instance() == one.clone().instance());
        assert_ne!(one.instance(), other.instance());
    }
}
