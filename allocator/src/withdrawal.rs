//! What is known about each withdrawn run: who lost it, when, why, and when to ask again.
//!
//! The planes of the GiB records say *which* frames are withdrawn; this registry says *why*. It is touched only when
//! something goes wrong, so one lock serves the pool. That lock is innermost: it is taken with a GiB's lock held, never the
//! other way round, so the two always agree.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use pageless_metadata::{AllocationId, HolderId, Intent, Pfn, PfnRange, RunSet, Withdrawal};

use crate::mapping::{Cause, Verdict};

/// A receipt for frames that an operation lost. Nothing turns it back into memory.
#[derive(PartialEq, Eq, Debug)]
pub struct Lost {
    pub(crate) frames: PfnRange,
    pub(crate) offset: u64,
    pub(crate) state: Withdrawal,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) holder: Option<HolderId>,
    pub(crate) cause: Cause,
    pub(crate) recorded: bool,
}

impl Lost {
    /// The frames.
    #[must_use]
    pub const fn frames(&self) -> PfnRange {
        self.frames
    }

    /// Where they were in the allocation, in bytes from its start.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Quarantined: may come back by proof. Failed or poisoned: will not.
    #[must_use]
    pub const fn state(&self) -> Withdrawal {
        self.state
    }

    /// When quarantined: how long to wait before the pool will ask again.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// When quarantined because somebody legitimately uses the frames: who.
    #[must_use]
    pub const fn holder(&self) -> Option<&HolderId> {
        self.holder.as_ref()
    }

    /// What the platform said.
    #[must_use]
    pub const fn cause(&self) -> &Cause {
        &self.cause
    }

    /// Whether the loss is recorded: in the pool's ledger, or, where the pool has none, in memory for as long as the process
    /// lives. What is not is quarantined in memory, and the pool tries again to record it.
    #[must_use]
    pub const fn recorded(&self) -> bool {
        self.recorded
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at offset {:#x} is {}: {}", self.frames, self.offset, self.state, self.cause)
    }
}

/// A withdrawn run, as the pool reports it to an operator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Withdrawn {
    /// The frames.
    pub frames: PfnRange,
    /// The mark on them. A frame with several marks is reported once for each.
    pub state: Withdrawal,
    /// What a later proof will complete, while quarantined.
    pub intent: Option<Intent>,
    /// Why.
    pub cause: Cause,
    /// The allocation that had them, if one did.
    pub allocation: Option<AllocationId>,
    /// The name of its owner.
    pub owner: Option<Arc<str>>,
    /// Where in the allocation the run began, in bytes.
    pub offset: u64,
    /// Who uses the frames, if the mapping named somebody.
    pub holder: Option<HolderId>,
    /// When the mark was set.
    pub since: SystemTime,
    /// How often the pool has asked again.
    pub attempts: u32,
}

/// One run in the registry.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) told: Withdrawn,
    /// When a retry makes sense.
    pub(crate) due: Instant,
    /// A retry is asking about it right now.
    pub(crate) asking: bool,
    /// It is in the ledger, or there is none.
    pub(crate) recorded: Recorded,
}

/// Whether an entry is in the ledger.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Recorded {
    /// It is, or there is none.
    Yes,
    /// Somebody is writing it right now.
    UnderWay,
    /// It is not.
    No,
}

impl Entry {
    /// The part of the entry that covers `frames`.
    pub(crate) fn clipped(&self, frames: PfnRange) -> Option<Self> {
        let part = self.told.frames.intersect(frames)?;
        let mut entry = self.clone();
        entry.told.offset += crate::outcome::bytes(part.start().get() - self.told.frames.start().get());
        entry.told.frames = part;
        Some(entry)
    }

    pub(crate) fn receipt(&self) -> Lost {
        let quarantined = self.told.state == Withdrawal::Quarantined;
        Lost {
            frames: self.told.frames,
            offset: self.told.offset,
            state: self.told.state,
            retry_after: quarantined.then(|| self.due.saturating_duration_since(Instant::now())),
            holder: self.told.holder.clone(),
            cause: self.told.cause.clone(),
            recorded: self.recorded == Recorded::Yes,
        }
    }
}

/// The registry. Quarantined and failed runs never overlap each other; poisoned runs may overlap both.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    unproven: BTreeMap<Pfn, Entry>,
    poisoned: BTreeMap<Pfn, Entry>,
    /// Frames of entries that are not in the ledger yet.
    unrecorded: RunSet,
}

impl Registry {
    fn of(&mut self, state: Withdrawal) -> &mut BTreeMap<Pfn, Entry> {
        if state == Withdrawal::Poisoned { &mut self.poisoned } else { &mut self.unproven }
    }

    /// Adds a run. What an entry of the same kind says about its frames is replaced.
    pub(crate) fn insert(&mut self, entry: Entry) {
        let frames = entry.told.frames;
        let map = self.of(entry.told.state);
        take(map, frames);
        let recorded = entry.recorded;
        map.insert(frames.start(), entry);
        if recorded != Recorded::Yes {
            self.unrecorded.insert(frames);
        }
    }

    /// Takes the marks of this one kind off `frames`.
    pub(crate) fn lift(&mut self, frames: PfnRange, state: Withdrawal) {
        for entry in take(self.of(state), frames) {
            if entry.told.state != state {
                // Quarantined and failed runs share a table; neither's end is the other's.
                self.insert(entry);
            }
        }
    }

    /// The parts of entries that cover `frames`: quarantined and failed first, then poisoned.
    pub(crate) fn covering(&self, frames: PfnRange) -> Vec<Entry> {
        [&self.unproven, &self.poisoned]
            .into_iter()
            .flat_map(|map| overlapping(map, frames))
            .filter_map(|e| e.clipped(frames))
            .collect()
    }

    /// Every entry.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.unproven.values().chain(self.poisoned.values())
    }

    /// The owner has given `frames` up: whatever their quarantine was for, a later proof can only free them.
    pub(crate) fn give_up(&mut self, frames: PfnRange) {
        for mut entry in take(&mut self.unproven, frames) {
            entry.told.intent = entry.told.intent.map(|_| Intent::Reclaim);
            self.unproven.insert(entry.told.frames.start(), entry);
        }
    }

    /// Takes the quarantined entries that `wanted` picks for asking: they are marked, so that nobody else asks meanwhile.
    pub(crate) fn pick(&mut self, wanted: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        let quarantined = self
            .unproven
            .values_mut()
            .filter(|entry| entry.told.state == Withdrawal::Quarantined && !entry.asking && entry.recorded == Recorded::Yes);
        let picked = quarantined.filter(|entry| wanted(entry)).map(|entry| {
            entry.asking = true;
            entry.clone()
        });
        picked.collect()
    }

    /// Nobody asks about the quarantined parts of `frames` any more; `change` notes what came of it.
    pub(crate) fn asked(&mut self, frames: PfnRange, change: impl Fn(&mut Entry)) {
        for mut entry in take(&mut self.unproven, frames) {
            if entry.told.state == Withdrawal::Quarantined {
                entry.asking = false;
                change(&mut entry);
            }
            self.unproven.insert(entry.told.frames.start(), entry);
        }
    }

    /// The frames of entries that are not in the ledger yet.
    pub(crate) const fn unrecorded(&self) -> &RunSet {
        &self.unrecorded
    }

    /// Takes the entries that overlap `within` (all, if it is none), are not in the ledger yet and nobody is writing, for
    /// writing them.
    pub(crate) fn claim(&mut self, within: Option<&RunSet>) -> Vec<Withdrawn> {
        let runs = within.map_or_else(|| self.unrecorded.clone(), |within| self.unrecorded.intersection(within));
        let mut claimed = Vec::new();
        for (run, poisoned) in (&runs).into_iter().flat_map(|run| [(run, false), (run, true)]) {
            let map = if poisoned { &mut self.poisoned } else { &mut self.unproven };
            let starts: Vec<Pfn> = overlapping(map, run).map(|entry| entry.told.frames.start()).collect();
            for start in starts {
                let Some(entry) = map.get_mut(&start) else { continue };
                if entry.recorded == Recorded::No {
                    entry.recorded = Recorded::UnderWay;
                    claimed.push(entry.told.clone());
                }
            }
        }
        claimed
    }

    /// Whether somebody is writing an entry that overlaps `frames`.
    pub(crate) fn is_under_way(&self, frames: &RunSet) -> bool {
        let runs = self.unrecorded.intersection(frames);
        (&runs).into_iter().flat_map(|run| self.covering(run)).any(|entry| entry.recorded == Recorded::UnderWay)
    }

    /// What was claimed as marks of this kind on `frames` has been written, or could not be.
    pub(crate) fn written(&mut self, frames: PfnRange, state: Withdrawal, recorded: Recorded) {
        let map = self.of(state);
        for mut entry in take(map, frames) {
            if entry.told.state == state && entry.recorded == Recorded::UnderWay {
                entry.recorded = recorded;
            }
            map.insert(entry.told.frames.start(), entry);
        }
        self.unrecorded.remove(frames);
        let left = self.covering(frames).into_iter().filter(|entry| entry.recorded != Recorded::Yes);
        let left: Vec<PfnRange> = left.map(|entry| entry.told.frames).collect();
        self.unrecorded.extend(left);
    }

    /// The frames with a mark of this kind.
    pub(crate) fn frames(&self, state: Withdrawal) -> RunSet {
        self.entries().filter(|entry| entry.told.state == state).map(|entry| entry.told.frames).collect()
    }
}

fn overlapping(map: &BTreeMap<Pfn, Entry>, frames: PfnRange) -> impl Iterator<Item = &Entry> {
    let before = map.range(..frames.start()).next_back().map(|(_, entry)| entry);
    let within = map.range(frames.start()..frames.end()).map(|(_, entry)| entry);
    before.into_iter().chain(within).filter(move |entry| entry.told.frames.overlaps(frames))
}

fn take(map: &mut BTreeMap<Pfn, Entry>, frames: PfnRange) -> Vec<Entry> {
    let found: Vec<Entry> = overlapping(map, frames).cloned().collect();
    let mut taken = Vec::with_capacity(found.len());
    for entry in found {
        map.remove(&entry.told.frames.start());
        for rest in entry.told.frames.subtract(frames).into_iter().flatten() {
            map.extend(entry.clipped(rest).map(|entry| (rest.start(), entry)));
        }
        taken.extend(entry.clipped(frames));
    }
    taken
}

/// When the pool asks again about quarantined frames, and how often.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RetryPolicy {
    /// How often an operation asks a mapping again before it gives up and quarantines.
    pub at_once: u32,
    /// The longest pause between those attempts, whatever the mapping asks for.
    pub pause: Duration,
    /// How often `reclaim` asks again about a quarantined run by itself. After that only `retry` does.
    pub later: u32,
    /// The shortest wait before it does; doubled after every attempt, up to 64 times this.
    pub later_after: Duration,
}

impl Default for RetryPolicy {
    /// Two more attempts at once, 100 µs apart at most (KVM retries a busy TDX call once); sixteen later ones, 10 ms apart
    /// at first.
    fn default() -> Self {
        Self { at_once: 2, pause: Duration::from_micros(100), later: 16, later_after: Duration::from_millis(10) }
    }
}

impl RetryPolicy {
    /// How long to wait before attempt number `attempts` + 1: never so long that nobody would ask again, whatever a mapping
    /// says.
    pub(crate) fn wait(&self, verdict: &Verdict, attempts: u32) -> Duration {
        const LONGEST: Duration = Duration::from_hours(24);
        let asked = if let Verdict::Retry { after } = verdict { *after } else { Duration::ZERO };
        asked.max(self.later_after.saturating_mul(1 << attempts.min(6))).min(LONGEST)
    }
}
