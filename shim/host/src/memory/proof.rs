//! Zeroing and proving: what the kernel can be made to say about a segment.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use pageless::{Backing, Cause, Pfn, PfnRange, ProofScope, RunSet, Stuck, Verdict};

use super::{HostMemory, ProofMethod, Slot, SlotState, Zeroing};
use crate::revoke;
use crate::stuck::{self, RETRY_AFTER};

/// The kernel answers at once for a writable mapping and rescans for about 160 ms for a pin; an answer that took
/// longer than this came from the rescans, or from a very busy host: it decides the wording of a cause and nothing else.
const RESCANNED: Duration = Duration::from_millis(75);
pub(super) const SEAL: &str = "F_ADD_SEALS(F_SEAL_WRITE)";

impl HostMemory {
    /// What a proof covers here, for people.
    pub(super) fn scope(&self) -> ProofScope {
        let largest = self.inner.slots.iter().map(|slot| slot.frames.frames()).max().unwrap_or(1);
        match self.inner.settings.proof {
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
                granule_frames: self.inner.settings.page.order().frames(),
            },
        }
    }

    /// Zeroes `frames`: what [`Backing::scrub`] does. The pages of a withdrawn frame are left alone and the frame is stuck.
    ///
    /// 4 KiB pages are punched out of the file: the next touch gets fresh zeroes, and nothing is taken for pages that were
    /// never touched. Huge pages are zeroed in place by the kernel.
    pub fn zero(&self, frames: PfnRange) -> Result<(), Stuck> {
        if self.inner.settings.zeroing == Zeroing::Off {
            return Ok(());
        }
        self.by_slot(frames, |slot, run| {
            let state = slot.state.lock();
            let (clear, marked) = stuck::before_mark(&state.withdrawn, run);
            if let Some(clear) = clear {
                self.zero_unmarked(&state, clear)?;
            }
            marked.map_or(Ok(()), |marked| Err(stuck::withdrawn("zero", marked)))
        })
    }

    fn zero_unmarked(&self, state: &SlotState, run: PfnRange) -> Result<(), Stuck> {
        let Some(file) = &state.file else { return Ok(()) };
        for part in state.filled.clipped(run) {
            let zeroed = if self.inner.settings.page.is_huge() { file.zero_in_place(part) } else { file.punch(part) };
            zeroed.map_err(|refused| stuck::refused(refused, part))?;
            self.count_zeroed(part);
        }
        Ok(())
    }

    fn count_zeroed(&self, frames: PfnRange) {
        self.inner.zeroed.fetch_add(frames.frames(), Ordering::Relaxed);
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
            let (_, marked) = stuck::before_mark(&state.withdrawn, run);
            let marked = marked.map(|marked| self.granule(marked.start()));
            let clear = marked.map_or(Some(run), |marked| PfnRange::new(run.start(), marked.start()).ok());
            if let Some(clear) = clear {
                match self.inner.settings.proof {
                    ProofMethod::Seal => self.prove_by_seal(slot, &mut state)?,
                    ProofMethod::Revoke => self.prove_by_revocation(slot, &mut state)?,
                    ProofMethod::ProcessUnmap => self.prove_by_unmap(&mut state, clear)?,
                }
            }
            marked.map_or(Ok(()), |marked| Err(stuck::withdrawn("prove", marked)))
        })
    }

    pub(super) fn prove_by_seal(&self, slot: &Slot, state: &mut SlotState) -> Result<(), Stuck> {
        let Some(file) = &state.file else { return Ok(()) };
        let began = Instant::now();
        if let Err(errno) = file.seal_write() {
            let meaning = self.why_not_sealed(errno, slot.frames, began.elapsed());
            // A seal that the kernel only put off is asked for again; one that it forbids can never be had for this file.
            let verdict = if errno == Errno::EBUSY { Verdict::Retry { after: RETRY_AFTER } } else { Verdict::Never };
            return Err(Stuck { at: slot.frames, verdict, cause: Cause::new(SEAL, errno as u64, meaning) });
        }
        self.drop_file(slot, state);
        Ok(())
    }

    fn prove_by_revocation(&self, slot: &Slot, state: &mut SlotState) -> Result<(), Stuck> {
        self.inner.mappings.prove_none(slot.frames)?; // else the next copy of this process would be a SIGBUS
        let Some(file) = &state.file else { return Ok(()) };
        file.revoke().map_err(|refused| stuck::refused(refused, slot.frames))?;
        self.drop_file(slot, state);
        Ok(())
    }

    /// A proven file goes; the next commit makes a fresh one, so the next owner gets pages that nobody has seen.
    fn drop_file(&self, slot: &Slot, state: &mut SlotState) {
        self.count_zeroed(slot.frames);
        (state.file, state.filled, state.renew) = (None, RunSet::new(), false);
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
        let Some(file) = state.file.clone().filter(|_| self.inner.settings.zeroing == Zeroing::On) else { return Ok(()) };
        // Punched rather than overwritten: whoever still holds a reference keeps the old page, and the next owner gets another.
        let refused = |refused| stuck::refused(refused, run);
        if !self.inner.settings.page.is_huge() {
            file.punch(run).map_err(refused)?;
            self.count_zeroed(run);
            return if file.is_hole(run).map_err(refused)? { Ok(()) } else { Err(stuck::unsplit(run)) };
        }
        for filled in state.filled.clipped(run).collect::<Vec<_>>() {
            for page in filled.pieces(self.inner.settings.page.order()) {
                file.punch(page).map_err(refused)?;
                state.filled.remove(page);
                self.count_zeroed(page);
                // Taken back at once, so that the page stays this memory's. If somebody was faster, the next commit says so.
                if file.fill(page).is_ok() {
                    state.filled.insert(page);
                }
            }
        }
        Ok(())
    }
}
