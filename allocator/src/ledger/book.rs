//! The rows in memory: what a ledger answers when it is opened, and what the tests compare it with.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use pageless_metadata::{AllocationId, HoldId, Pfn, PfnRange, RunSet, Withdrawal};

use super::entry::{AllocationRow, HoldRow, Landmark, MarkKind, MarkRow, PastMark};
use super::rows::Rows;

/// All rows of a ledger.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Book {
    /// The boot id that new rows are stamped with.
    pub boot: Arc<str>,
    /// Every allocation that has a frame.
    pub allocations: BTreeMap<AllocationId, AllocationRow>,
    /// Every hold.
    pub holds: BTreeMap<HoldId, HoldRow>,
    /// Quarantined and failed runs, by their first frame.
    pub unproven: BTreeMap<Pfn, MarkRow>,
    /// Poisoned runs, by their first frame.
    pub poisoned: BTreeMap<Pfn, MarkRow>,
    /// Marks that ended by proof.
    pub past: Vec<PastMark>,
    /// Events for all time.
    pub landmarks: Vec<Landmark>,
    /// No allocation had this number or a greater one.
    pub next_allocation: u64,
    /// The owners of all allocations with smaller numbers are dead: what they have counts as released.
    pub dead_below: u64,
    /// No hold had this number or a greater one.
    pub next_hold: u64,
}

impl Book {
    /// A book without rows.
    #[must_use]
    pub fn new(boot: &str) -> Self {
        Self { boot: boot.into(), next_allocation: 1, next_hold: 1, ..Self::default() }
    }

    /// The marks of both kinds.
    pub fn marks(&self) -> impl Iterator<Item = &MarkRow> {
        self.unproven.values().chain(self.poisoned.values())
    }

    /// The frames with a mark of this state.
    #[must_use]
    pub fn marked(&self, state: Withdrawal) -> RunSet {
        self.marks().filter(|mark| mark.told.state == state).map(|mark| mark.told.frames).collect()
    }

    /// The frames with any mark.
    #[must_use]
    pub fn withdrawn(&self) -> RunSet {
        self.marks().map(|mark| mark.told.frames).collect()
    }

    /// The frames that somebody has, or has given up and not been proven.
    #[must_use]
    pub fn owned(&self) -> RunSet {
        let mut owned = RunSet::new();
        for row in self.allocations.values() {
            owned.extend(&row.live);
            owned.extend(row.released.iter().map(|extent| extent.frames));
        }
        owned
    }

    /// What contradicts itself, in sentences; none when all is well. `frames` are the pool's.
    #[must_use]
    pub fn faults(&self, frames: &RunSet) -> Vec<String> {
        let mut faults = Vec::new();
        let mut runs: Vec<(PfnRange, AllocationId)> = Vec::new();
        for row in self.allocations.values() {
            let released = row.released.iter().map(|extent| extent.frames);
            runs.extend(row.live.into_iter().chain(released).map(|run| (run, row.id)));
        }
        runs.sort_unstable();
        faults.extend(runs.windows(2).filter(|pair| pair[0].0.overlaps(pair[1].0)).map(|pair| {
            format!("{} of {} and {} of {} overlap: frames have two owners", pair[0].0, pair[0].1, pair[1].0, pair[1].1)
        }));
        let outside = |run: PfnRange| !frames.contains_range(run) && !frames.gaps_in(run).is_empty();
        faults.extend(runs.iter().filter(|(run, _)| outside(*run)).map(|(run, id)| format!("{run} of {id} is not the pool's")));
        for (start, mark) in self.unproven.iter().chain(&self.poisoned) {
            if *start != mark.told.frames.start() {
                faults.push(format!("the mark on {} stands at {start}", mark.told.frames));
            }
            if outside(mark.told.frames) {
                faults.push(format!("the mark on {} is on frames that are not the pool's", mark.told.frames));
            }
        }
        for map in [&self.unproven, &self.poisoned] {
            let overlapping = map.values().zip(map.values().skip(1)).filter(|(a, b)| a.told.frames.overlaps(b.told.frames));
            faults.extend(overlapping.map(|(a, b)| format!("the marks on {} and {} overlap", a.told.frames, b.told.frames)));
        }
        faults.extend(
            self.unproven
                .values()
                .filter(|mark| mark.told.state == Withdrawal::Poisoned)
                .map(|mark| format!("{} is poisoned and stands among the unproven", mark.told.frames)),
        );
        faults
    }

    /// The memory is gone: nobody has, holds or lost any of it.
    pub fn forget_memory(&mut self) {
        self.allocations.clear();
        self.holds.clear();
        self.unproven.clear();
        self.poisoned.clear();
    }

    fn table(&mut self, kind: MarkKind) -> &mut BTreeMap<Pfn, MarkRow> {
        match kind {
            MarkKind::Unproven => &mut self.unproven,
            MarkKind::Poisoned => &mut self.poisoned,
        }
    }
}

impl Rows for Book {
    type Error = Infallible;

    fn owners_dead(&mut self, below: u64) -> Result<(), Infallible> {
        self.dead_below = self.dead_below.max(below);
        Ok(())
    }

    fn boot(&self) -> Arc<str> {
        Arc::clone(&self.boot)
    }

    fn allocation(&mut self, id: AllocationId) -> Result<Option<AllocationRow>, Infallible> {
        Ok(self.allocations.get(&id).cloned())
    }

    fn put_allocation(&mut self, row: &AllocationRow) -> Result<(), Infallible> {
        self.next_allocation = self.next_allocation.max(row.id.get() + 1);
        self.allocations.insert(row.id, row.clone());
        Ok(())
    }

    fn remove_allocation(&mut self, id: AllocationId) -> Result<(), Infallible> {
        self.next_allocation = self.next_allocation.max(id.get() + 1);
        self.allocations.remove(&id);
        Ok(())
    }

    fn put_hold(&mut self, row: &HoldRow) -> Result<(), Infallible> {
        self.next_hold = self.next_hold.max(row.id.0 + 1);
        self.holds.insert(row.id, row.clone());
        Ok(())
    }

    fn remove_hold(&mut self, id: HoldId) -> Result<(), Infallible> {
        self.next_hold = self.next_hold.max(id.0 + 1);
        self.holds.remove(&id);
        Ok(())
    }

    fn marks(&mut self, kind: MarkKind, frames: PfnRange) -> Result<Vec<MarkRow>, Infallible> {
        let map = self.table(kind);
        let before = map.range(..frames.start()).next_back().map(|(_, row)| row);
        let within = map.range(frames.start()..frames.end()).map(|(_, row)| row);
        Ok(before.into_iter().chain(within).filter(|row| row.told.frames.overlaps(frames)).cloned().collect())
    }

    fn put_mark(&mut self, row: &MarkRow) -> Result<(), Infallible> {
        self.table(MarkKind::of(row.told.state)).insert(row.told.frames.start(), row.clone());
        Ok(())
    }

    fn remove_mark(&mut self, kind: MarkKind, start: Pfn) -> Result<(), Infallible> {
        self.table(kind).remove(&start);
        Ok(())
    }

    fn add_past(&mut self, past: &PastMark) -> Result<(), Infallible> {
        self.past.push(past.clone());
        Ok(())
    }

    fn add_landmark(&mut self, landmark: &Landmark) -> Result<(), Infallible> {
        self.landmarks.push(landmark.clone());
        Ok(())
    }
}
