//! [`HostMemory`]: frames that are offsets in memfds, and what the kernel can be made to prove about them.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use pageless::{Backing, Cause, Identity, NodeFrames, Operation, Pfn, PfnRange, ProofScope, RunSet, Shortage, Stuck, Verdict};
use parking_lot::Mutex;

use crate::holes::Refused;
use crate::page::HugePool;
use crate::segment::SegmentFile;
use crate::stuck::{self, RETRY_AFTER};
use crate::{HostBacking, HostMemoryBuilder, LocalMappings, PageSize, SegmentHandle, instance, keeper};

/// The kernel answers at once for a writable mapping and rescans for about 160 ms for a pin (host.md); an answer that took
/// longer than this came from the rescans, or from a very busy host: it decides the wording of a cause and nothing else.
const RESCANNED: Duration = Duration::from_millis(75);
const SEAL: &str = "F_ADD_SEALS(F_SEAL_WRITE)";

/// How released frames are proven unreachable from outside the mappings.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ProofMethod {
    /// The kernel seals the segment's memfd against writing, which it does only when nobody maps it writable and nobody
    /// holds an extra reference to a page of it; then fresh pages take its place. For memory that other processes map.
    /// Proven, and lost, by the segment.
    #[default]
    Seal,
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
    page: PageSize,
    proof: ProofMethod,
    zeroing: Zeroing,
    mappings: LocalMappings,
    /// No other memory has this name, on no host and at no time: the files have none and end with this value or its process.
    name: String,
}

/// What the builder has laid out.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) nodes: Vec<NodeFrames>,
    pub(crate) slots: Vec<Slot>,
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
    /// A conversion's proof has put an empty place where the file was: the next use makes another.
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

    pub(crate) fn new(layout: Layout, page: PageSize, proof: ProofMethod, zeroing: Zeroing) -> Self {
        let Layout { nodes, slots } = layout;
        let name = instance::anonymous();
        Self { inner: Arc::new(Inner { nodes, slots, page, proof, zeroing, mappings: LocalMappings::default(), name }) }
    }

    /// How its released frames are proven.
    #[must_use]
    pub fn proof_method(&self) -> ProofMethod {
        self.inner.proof
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

    /// Zeroes `frames`: what [`Backing::scrub`] does. The pages of a withdrawn frame are left alone and the frame is stuck.
    ///
    /// 4 KiB pages are punched out of the file: the next touch gets fresh zeroes, and nothing is taken for pages that were
    /// never touched. Huge pages are zeroed in place by the kernel.
    pub fn zero(&self, frames: PfnRange) -> Result<(), Stuck> {
        if self.inner.zeroing == Zeroing::Off {
            return Ok(());
        }
        self.by_slot(frames, |slot, run| {
            let state = slot.state.lock();
            if let Some(marked) = state.withdrawn.clipped(run).next() {
                return Err(stuck::withdrawn("zero", marked));
            }
            let Some(file) = &state.file else { return Ok(()) };
            if !self.inner.page.is_huge() {
                return file.punch(run).map_err(|refused| stuck::refused(refused, run));
            }
            state
                .filled
                .clipped(run)
                .try_for_each(|part| file.zero_in_place(part).map_err(|refused| stuck::refused(refused, part)))
        })
    }

    /// Proves `granules`, one or several whole ones, as [`Backing::prove`] does. A granule with a withdrawn frame is refused:
    /// its mark must be lifted first.
    pub fn prove_granules(&self, granules: PfnRange) -> Result<(), Stuck> {
        let last = Pfn::new(granules.end().get() - 1);
        let whole = self.granule(granules.start()).hull(self.granule(last));
        if whole != granules {
            let cause = Cause::new("prove", Errno::EINVAL as u64, format!("not whole granules: those are {whole}"));
            return Err(Stuck { at: granules, verdict: Verdict::Retry { after: RETRY_AFTER }, cause });
        }
        self.by_slot(granules, |slot, run| {
            let mut state = slot.state.lock();
            if let Some(marked) = state.withdrawn.clipped(run).next() {
                let mut stuck = stuck::withdrawn("prove", marked);
                stuck.at = self.granule(marked.start());
                return Err(stuck);
            }
            match self.inner.proof {
                ProofMethod::Seal => self.prove_by_seal(slot, &mut state),
                ProofMethod::ProcessUnmap => self.prove_by_unmap(&mut state, run),
            }
        })
    }

    /// Proves by a seal that nobody maps or pins `segments`, whole ones whose contents are not wanted any more, and puts fresh
    /// memory in their place. Unlike [`Self::prove_granules`] it may be asked while marks stand: the old file then stays open
    /// until they are lifted, and the fresh one comes with the next use.
    pub(crate) fn exchange_segments(&self, segments: PfnRange) -> Result<(), Stuck> {
        self.by_slot(segments, |slot, run| {
            if run != slot.frames {
                let meaning = format!("the kernel proves only whole segments, here {}", slot.frames);
                let cause = Cause::new(SEAL, Errno::EINVAL as u64, meaning);
                return Err(Stuck { at: run, verdict: Verdict::Retry { after: RETRY_AFTER }, cause });
            }
            let mut state = slot.state.lock();
            let old = state.file.clone();
            self.prove_by_seal(slot, &mut state)?;
            state.renew |= old.is_some();
            if !state.withdrawn.is_empty() {
                state.shut.extend(old);
                return Ok(());
            }
            drop(old); // its pages go back first: there may be no others
            if let Err(shortage) = self.commit_locked(slot, &mut state, run) {
                tracing::debug!(%shortage, "no fresh memory yet; asked for again at the next use");
            }
            Ok(())
        })
    }

    fn prove_by_seal(&self, slot: &Slot, state: &mut SlotState) -> Result<(), Stuck> {
        let Some(file) = &state.file else { return Ok(()) };
        let began = Instant::now();
        if let Err(errno) = file.seal_write() {
            let meaning = self.why_not_sealed(errno, slot.frames, began.elapsed());
            // A seal that the kernel only put off is asked for again; one that it forbids can never be had for this file.
            let verdict = if errno == Errno::EBUSY { Verdict::Retry { after: RETRY_AFTER } } else { Verdict::Never };
            return Err(Stuck { at: slot.frames, verdict, cause: Cause::new(SEAL, errno as u64, meaning) });
        }
        // The sealed file goes; the next commit makes a fresh one, so the next owner gets pages that nobody has seen.
        (state.file, state.filled, state.renew) = (None, RunSet::new(), false);
        Ok(())
    }

    fn why_not_sealed(&self, errno: Errno, segment: PfnRange, took: Duration) -> String {
        let ours = self.inner.mappings.translated(segment);
        match errno {
            Errno::EBUSY if ours > 0 => format!("mapped writable: {ours} frames of it by this process's own HostMapping"),
            Errno::EBUSY if took < RESCANNED => {
                "mapped writable by somebody other than this crate (another process, or this one by its own means)".to_owned()
            }
            Errno::EBUSY => format!(
                "not mapped writable, but a page has an extra reference (a pin: splice, io_uring, a device); \
                 the kernel rescanned for {} ms and does not tell which page",
                took.as_millis()
            ),
            Errno::EPERM => "a holder of the descriptor has added F_SEAL_SEAL: this file can never be proven".to_owned(),
            other => other.desc().to_owned(),
        }
    }

    fn prove_by_unmap(&self, state: &mut SlotState, run: PfnRange) -> Result<(), Stuck> {
        self.inner.mappings.prove_none(run)?;
        let Some(file) = state.file.clone().filter(|_| self.inner.zeroing == Zeroing::On) else { return Ok(()) };
        // Punched rather than overwritten: whoever still holds a reference keeps the old page, and the next owner gets another.
        let refused = |refused| stuck::refused(refused, run);
        if !self.inner.page.is_huge() {
            file.punch(run).map_err(refused)?;
            return if file.is_hole(run).map_err(refused)? { Ok(()) } else { Err(stuck::unsplit(run)) };
        }
        for filled in state.filled.clipped(run).collect::<Vec<_>>() {
            for page in filled.pieces(self.inner.page.order()) {
                file.punch(page).map_err(refused)?;
                state.filled.remove(page);
                // Taken back at once, so that the page stays this memory's. If somebody was faster, the next commit says so.
                if file.fill(page).is_ok() {
                    state.filled.insert(page);
                }
            }
        }
        Ok(())
    }

    fn commit_slot(&self, slot: &Slot, run: PfnRange) -> Result<(), Shortage> {
        self.commit_locked(slot, &mut slot.state.lock(), run)
    }

    fn commit_locked(&self, slot: &Slot, state: &mut SlotState, run: PfnRange) -> Result<(), Shortage> {
        let short = |refused: Refused| Shortage { frames: run, reason: self.why_short(refused).into() };
        let file = match &state.file {
            Some(file) => Arc::clone(file),
            None => {
                let file = Arc::new(SegmentFile::create(slot.frames, self.inner.page, slot.node).map_err(short)?);
                state.file = Some(Arc::clone(&file));
                if !self.inner.page.is_huge() {
                    state.filled.insert(slot.frames);
                }
                file
            }
        };
        let order = self.inner.page.order();
        let Ok(pages) = PfnRange::new(run.start().align_down(order), run.end().align_up(order)) else { return Ok(()) };
        for gap in state.filled.gaps_in(pages).runs() {
            for page in gap.pieces(order) {
                file.fill(page).map_err(short)?;
                state.filled.insert(page);
            }
        }
        Ok(())
    }

    fn why_short(&self, refused: Refused) -> String {
        let Refused { step, errno } = refused;
        let page = self.inner.page;
        match (errno, HugePool::read(page), page.reservation_file()) {
            (Errno::ENOSPC, Some(pool), Some(file)) => format!(
                "{step}: the host has {} {page} pages free, {} of them promised to others; as root, raise {}",
                pool.free,
                pool.reserved,
                file.display()
            ),
            (Errno::EMFILE | Errno::ENFILE, ..) => {
                format!("{step}: no descriptor left ({errno}); raise RLIMIT_NOFILE or choose larger segments")
            }
            _ => format!("{step}: {errno}"),
        }
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
        let largest = self.inner.slots.iter().map(|slot| slot.frames.frames()).max().unwrap_or(1);
        match self.inner.proof {
            ProofMethod::Seal => ProofScope {
                method: "F_ADD_SEALS(F_SEAL_WRITE) on the segment's memfd, then a fresh memfd in its place".into(),
                covers:
                    "at that instant no process maps the segment writable and nobody holds an extra reference (pin) to a page \
                         of it; the next owner gets other pages, zeroed by the kernel"
                        .into(),
                blind_to: "private mappings, mappings through a descriptor that was opened read-only, and splices made after the \
                           seal: they keep reading the old pages, never the new. Which page is pinned. Tables that the host kernel \
                           does not count (TDX S-EPT)"
                    .into(),
                granule_frames: largest,
            },
            ProofMethod::ProcessUnmap => ProofScope {
                method: "the memory never left this process: its own mappings' unmaps, looked at again; then the page is taken out of \
                         its file"
                    .into(),
                covers: "no HostMapping of this process translates to the frames; the next owner gets other pages, zeroed by the \
                         kernel, so a pin taken before reaches the old page only"
                    .into(),
                blind_to: "whatever this process did with a segment's descriptor by other means, and children that inherited one: \
                           their mappings follow the file to its new page. That a pin (vmsplice, io_uring, VFIO) keeps the old \
                           page from the host"
                    .into(),
                granule_frames: self.inner.page.order().frames(),
            },
        }
    }

    fn granule(&self, pfn: Pfn) -> PfnRange {
        match (self.inner.proof, self.slot(pfn)) {
            (ProofMethod::Seal, Some(slot)) => slot.frames,
            (ProofMethod::ProcessUnmap, Some(_)) => PfnRange::block(pfn, self.inner.page.order()),
            (_, None) => PfnRange::single(pfn),
        }
    }

    /// Makes the segments of `frames`, and on huge pages takes the pages: 56 us for 2 MiB, 150 ms for 1 GiB, once.
    /// 4 KiB pages are taken when first touched.
    fn commit(&self, frames: PfnRange) -> Result<(), Shortage> {
        self.by_slot(frames, |slot, run| self.commit_slot(slot, run))
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
        self.inner.page
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

    /// Takes huge pages that somebody punched out of the file since the commit anew: without one a touch would be a SIGBUS.
    /// Pages that are there are only looked up.
    fn populate(&self, frames: PfnRange) -> Result<(), Shortage> {
        self.by_slot(frames, |slot, run| {
            let mut state = slot.state.lock();
            if state.renew && state.file.is_none() {
                return self.commit_locked(slot, &mut state, run);
            }
            if !self.inner.page.is_huge() {
                return Ok(());
            }
            let Some(file) = &state.file else { return Ok(()) };
            let short = |refused| Shortage { frames: run, reason: self.why_short(refused).into() };
            state.filled.clipped(run).try_for_each(|part| file.fill(part).map_err(short))
        })
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
