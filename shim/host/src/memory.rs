//! [`HostMemory`]: frames that are offsets in memfds, and what the kernel can be made to prove about them.

use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use pageless::{Backing, Cause, Identity, NodeFrames, Operation, Pfn, PfnRange, ProofScope, RunSet, Shortage, Stuck, Verdict};
use parking_lot::Mutex;

use crate::page::HugePool;
use crate::segment::{Refused, SegmentFile};
use crate::{HostBacking, HostMemoryBuilder, LocalMappings, PageSize, SegmentHandle, keeper, revoke};

/// When to ask again for a proof that a mapping or a pin prevented.
const RETRY_AFTER: Duration = Duration::from_millis(300);
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
        let [high, low] = [RandomState::new(), RandomState::new()].map(|random| random.hash_one(std::process::id()));
        let name = format!("anonymous memory {high:016x}{low:016x}");
        Self { inner: Arc::new(Inner { nodes, slots, page, proof, zeroing, mappings: LocalMappings::default(), name }) }
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
                return Err(marked_stuck("zero", marked));
            }
            let Some(file) = &state.file else { return Ok(()) };
            if !self.inner.page.is_huge() {
                return file.punch(run).map_err(|refused| refused_stuck(refused, run));
            }
            state
                .filled
                .clipped(run)
                .try_for_each(|part| file.zero_in_place(part).map_err(|refused| refused_stuck(refused, part)))
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
                let mut stuck = marked_stuck("prove", marked);
                stuck.at = self.granule(marked.start());
                return Err(stuck);
            }
            match self.inner.proof {
                ProofMethod::Seal => self.prove_by_seal(slot, &mut state),
                ProofMethod::Revoke => self.prove_by_revocation(slot, &mut state),
                ProofMethod::ProcessUnmap => self.prove_by_unmap(&mut state, run),
            }
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
        *state = SlotState { withdrawn: std::mem::take(&mut state.withdrawn), ..SlotState::default() };
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

    fn prove_by_revocation(&self, slot: &Slot, state: &mut SlotState) -> Result<(), Stuck> {
        self.check_unmapped(slot.frames)?; // else the next copy of this process would be a SIGBUS
        let Some(file) = &state.file else { return Ok(()) };
        file.revoke().map_err(|refused| refused_stuck(refused, slot.frames))?;
        *state = SlotState { withdrawn: std::mem::take(&mut state.withdrawn), ..SlotState::default() };
        Ok(())
    }

    fn check_unmapped(&self, run: PfnRange) -> Result<(), Stuck> {
        let mapped = self.inner.mappings.translated(run);
        if mapped == 0 {
            return Ok(());
        }
        let meaning = format!("{mapped} frames are still mapped by a HostMapping of this process");
        let cause = Cause::new("unmap", Errno::EBUSY as u64, meaning);
        Err(Stuck { at: run, verdict: Verdict::Retry { after: RETRY_AFTER }, cause })
    }

    fn prove_by_unmap(&self, state: &mut SlotState, run: PfnRange) -> Result<(), Stuck> {
        self.check_unmapped(run)?;
        let Some(file) = state.file.clone().filter(|_| self.inner.zeroing == Zeroing::On) else { return Ok(()) };
        // Punched rather than overwritten: whoever still holds a reference keeps the old page, and the next owner gets another.
        let refused = |refused| refused_stuck(refused, run);
        if !self.inner.page.is_huge() {
            file.punch(run).map_err(refused)?;
            return if file.is_hole(run).map_err(refused)? { Ok(()) } else { Err(unsplit_stuck(run)) };
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
        let mut state = slot.state.lock();
        let short = |refused: Refused| Shortage { frames: run, reason: self.why_short(refused).into() };
        let file = match &state.file {
            Some(file) => {
                file.check_whole().map_err(short)?;
                Arc::clone(file)
            }
            None => {
                let file = Arc::new(
                    SegmentFile::create(slot.frames, self.inner.page, slot.node, self.inner.proof == ProofMethod::Revoke)
                        .map_err(short)?,
                );
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

fn refused_stuck(refused: Refused, at: PfnRange) -> Stuck {
    // Zeroing fails for lack of memory to split a large page, or because somebody sealed the file.
    let verdict = if refused.errno == Errno::EPERM { Verdict::Never } else { Verdict::Retry { after: RETRY_AFTER } };
    Stuck { at, verdict, cause: Cause::new(refused.step, refused.errno as u64, refused.errno.desc()) }
}

fn unsplit_stuck(at: PfnRange) -> Stuck {
    let meaning = "zeroed, but a page stays in its file: it is part of a large folio that the kernel cannot split, as while any \
                   page of it is pinned (splice, io_uring, a device)";
    let cause = Cause::new("fallocate(FALLOC_FL_PUNCH_HOLE)", Errno::EBUSY as u64, meaning);
    Stuck { at, verdict: Verdict::Retry { after: RETRY_AFTER }, cause }
}

fn marked_stuck(step: &'static str, at: PfnRange) -> Stuck {
    let meaning = "withdrawn: its page is kept shut until the mark is lifted";
    Stuck { at, verdict: Verdict::Retry { after: RETRY_AFTER }, cause: Cause::new(step, 0, meaning) }
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
            ProofMethod::Revoke => revoke::scope(largest),
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
            (ProofMethod::Seal | ProofMethod::Revoke, Some(slot)) => slot.frames,
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
            slot.state.lock().withdrawn.remove(run);
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
        if !self.inner.page.is_huge() && self.inner.proof != ProofMethod::Revoke {
            return Ok(());
        }
        self.by_slot(frames, |slot, run| {
            let state = slot.state.lock();
            let Some(file) = &state.file else { return Ok(()) };
            let short = |refused| Shortage { frames: run, reason: self.why_short(refused).into() };
            file.check_whole().map_err(short)?;
            if !self.inner.page.is_huge() {
                return Ok(());
            }
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
            if let Some(file) = state.file.take().filter(|_| !state.withdrawn.is_empty()) {
                keeper::keep(file);
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
