//! Taking pages for frames, and counting them.

use std::collections::BTreeMap;
use std::sync::Arc;

use nix::errno::Errno;
use pageless::{PfnRange, Shortage};

use super::{HostMemory, ProofMethod, Slot, SlotState};
use crate::capacity::{bytes_shut, bytes_taken, host_available};
use crate::holes::Refused;
use crate::page::HugePool;
use crate::segment::SegmentFile;
use crate::{Capacity, Progress};

impl HostMemory {
    /// Makes the segments of `frames`, and on huge pages takes the pages that are missing, one after another.
    pub(super) fn take(&self, frames: PfnRange) -> Result<(), Shortage> {
        let mut progress = Progress { filled: 0, wanted: 0 };
        self.by_slot(frames, |slot, run| {
            progress.wanted += self.missing(slot, run).iter().map(|gap| gap.bytes()).sum::<u64>();
            Ok(())
        })?;
        self.by_slot(frames, |slot, run| self.take_in(slot, run, &mut progress))
    }

    /// The whole huge pages of `run` that the segment has not, or all of it where there is no file yet.
    fn missing(&self, slot: &Slot, run: PfnRange) -> Vec<PfnRange> {
        let order = self.inner.settings.page.order();
        let Ok(pages) = PfnRange::new(run.start().align_down(order), run.end().align_up(order)) else { return Vec::new() };
        slot.state.lock().filled.gaps_in(pages).runs().to_vec()
    }

    fn take_in(&self, slot: &Slot, run: PfnRange, progress: &mut Progress) -> Result<(), Shortage> {
        let short = |refused: Refused| Shortage { frames: run, reason: self.why_short(refused).into() };
        if !self.inner.settings.page.is_huge() {
            return self.file(slot, &mut slot.state.lock()).map(|_| ()).map_err(short);
        }
        self.refill_in(slot, run)?;
        for gap in self.missing(slot, run) {
            for page in gap.pieces(self.inner.settings.page.order()) {
                let mut state = slot.state.lock();
                self.file(slot, &mut state).and_then(|file| file.fill(page)).map_err(short)?;
                state.filled.insert(page);
                drop(state); // whoever watches may ask this memory about its capacity
                progress.filled += page.bytes();
                if let Some(watcher) = &self.inner.settings.watcher {
                    watcher.0(*progress);
                }
            }
        }
        Ok(())
    }

    /// The segment's file, made now where there is none.
    fn file(&self, slot: &Slot, state: &mut SlotState) -> Result<Arc<SegmentFile>, Refused> {
        if let Some(file) = &state.file {
            file.check_whole()?;
            return Ok(Arc::clone(file));
        }
        let page = self.inner.settings.page;
        let revocable = self.inner.settings.proof == ProofMethod::Revoke;
        let file = Arc::new(SegmentFile::create(slot.frames, page, slot.node, revocable)?);
        state.file = Some(Arc::clone(&file));
        if !page.is_huge() {
            state.filled.insert(slot.frames);
        }
        Ok(file)
    }

    /// Takes huge pages that somebody punched out of the file since the commit anew, and looks whether it is as long as it was.
    pub(super) fn refill(&self, frames: PfnRange) -> Result<(), Shortage> {
        if !self.inner.settings.page.is_huge() && self.inner.settings.proof != ProofMethod::Revoke {
            return Ok(());
        }
        self.by_slot(frames, |slot, run| self.refill_in(slot, run))
    }

    /// Pages that are there are only looked up: one call for all of them.
    fn refill_in(&self, slot: &Slot, run: PfnRange) -> Result<(), Shortage> {
        let state = slot.state.lock();
        let Some(file) = &state.file else { return Ok(()) };
        let short = |refused| Shortage { frames: run, reason: self.why_short(refused).into() };
        file.check_whole().map_err(short)?;
        if !self.inner.settings.page.is_huge() {
            return Ok(());
        }
        state.filled.clipped(run).try_for_each(|part| file.fill(part).map_err(short))
    }

    fn why_short(&self, refused: Refused) -> String {
        let Refused { step, errno } = refused;
        let page = self.inner.settings.page;
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

    /// What the kernel counts now: blocks of the files, pages of the pools.
    pub(super) fn counted(&self) -> Capacity {
        let page = self.inner.settings.page;
        let (mut bytes, mut committed) = (0, 0);
        let mut wanting: BTreeMap<Option<u32>, u64> = BTreeMap::new();
        for slot in &self.inner.slots {
            let file = slot.state.lock().file.clone();
            let taken = file.and_then(|file| bytes_taken(&*file).ok()).unwrap_or(0).min(slot.frames.bytes());
            bytes += slot.frames.bytes();
            committed += taken;
            *wanting.entry(slot.node).or_default() += slot.frames.bytes() - taken;
        }
        let (host, on_node): (u64, &dyn Fn(u32) -> u64) = match HugePool::read(page) {
            Some(pool) => (pool.available() * page.bytes(), &|node| page.free_on(node).unwrap_or(0) * page.bytes()),
            None => (host_available().unwrap_or(0), &|_| u64::MAX),
        };
        let could = |(node, bytes): (Option<u32>, u64)| node.map_or(bytes, |node| bytes.min(on_node(node)));
        let available = wanting.into_iter().map(could).sum::<u64>().min(host);
        Capacity { bytes, committed: Some(committed), withdrawn: bytes_shut(&self.withdrawn(), page), available }
    }
}
