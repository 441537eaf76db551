//! What an entry does to the rows, whatever keeps them: a map in memory, or tables in a file.

use std::sync::Arc;
use std::time::SystemTime;

use pageless_metadata::{AllocationId, HoldId, Intent, Pfn, PfnRange, RunSet, Withdrawal};

use super::entry::{AllocationRow, Entry, HoldRow, Landmark, LandmarkKind, MarkKind, MarkRow, PastMark};
use crate::extents::{Extent, put_in_place};
use crate::withdrawal::Withdrawn;

/// Rows that can be changed. Each call is one step of one transaction; a failed one fails the transaction.
pub trait Rows {
    /// Why a step failed.
    type Error;

    /// The owners of all allocations below this number are dead.
    fn owners_dead(&mut self, below: u64) -> Result<(), Self::Error>;
    /// The boot id to stamp new rows with.
    fn boot(&self) -> Arc<str>;
    /// The allocation of this number.
    fn allocation(&mut self, id: AllocationId) -> Result<Option<AllocationRow>, Self::Error>;
    /// Adds or replaces an allocation. Numbers that were used once are never given out again.
    fn put_allocation(&mut self, row: &AllocationRow) -> Result<(), Self::Error>;
    /// Removes an allocation, if it is there.
    fn remove_allocation(&mut self, id: AllocationId) -> Result<(), Self::Error>;
    /// Adds or replaces a hold.
    fn put_hold(&mut self, row: &HoldRow) -> Result<(), Self::Error>;
    /// Removes a hold, if it is there.
    fn remove_hold(&mut self, id: HoldId) -> Result<(), Self::Error>;
    /// The marks of a kind that overlap `frames`, ascending, whole.
    fn marks(&mut self, kind: MarkKind, frames: PfnRange) -> Result<Vec<MarkRow>, Self::Error>;
    /// Adds a mark, or replaces the one that starts at the same frame.
    fn put_mark(&mut self, row: &MarkRow) -> Result<(), Self::Error>;
    /// Removes the mark of a kind that starts at `start`, if it is there.
    fn remove_mark(&mut self, kind: MarkKind, start: Pfn) -> Result<(), Self::Error>;
    /// Adds to the history of marks that ended by proof.
    fn add_past(&mut self, past: &PastMark) -> Result<(), Self::Error>;
    /// Adds to the history of events for all time.
    fn add_landmark(&mut self, landmark: &Landmark) -> Result<(), Self::Error>;

    /// Does what the entry says. Doing it twice does no more than once.
    fn apply(&mut self, entry: &Entry) -> Result<(), Self::Error>
    where
        Self: Sized,
    {
        match entry {
            Entry::Allocated(row) => self.put_allocation(row),
            Entry::OwnersDead { below } => self.owners_dead(*below),
            Entry::Undone { allocation } => self.remove_allocation(*allocation),
            Entry::Replaced { allocation, offset, lost, by } => self.edit(*allocation, |row| replace(row, *offset, *lost, *by)),
            Entry::Released { allocation, frames } => release(self, *allocation, frames),
            Entry::Reclaimed { allocation, frames } => reclaim(self, *allocation, frames),
            Entry::Withdrawn(told) => withdraw(self, told),
            Entry::Proven { frames, freed } => prove(self, *frames, *freed),
            Entry::Retried { frames, attempts, cause } => change_marks(self, MarkKind::Unproven, *frames, |row| {
                if row.told.state == Withdrawal::Quarantined {
                    row.told.attempts = *attempts;
                    row.told.cause = cause.clone();
                }
                true
            }),
            Entry::Held(row) => self.put_hold(row),
            Entry::Unheld { hold } => self.remove_hold(*hold),
            Entry::Attached { allocation, mapping } => self.edit(*allocation, |row| {
                if !row.mappings.contains(mapping) {
                    row.mappings.push(Arc::clone(mapping));
                }
            }),
            Entry::Detached { allocation, mapping } => self.edit(*allocation, |row| row.mappings.retain(|name| name != mapping)),
            Entry::PlatformReset { frames, evidence } => {
                lift(self, Withdrawal::Failed, frames)?;
                let kind = LandmarkKind::PlatformReset { frames: frames.clone(), evidence: Arc::clone(evidence) };
                self.landmark(kind)
            }
            Entry::HardwareReplaced { frames, evidence } => {
                lift(self, Withdrawal::Poisoned, frames)?;
                let kind = LandmarkKind::HardwareReplaced { frames: frames.clone(), evidence: Arc::clone(evidence) };
                self.landmark(kind)
            }
        }
    }

    /// Adds an event of now.
    fn landmark(&mut self, kind: LandmarkKind) -> Result<(), Self::Error> {
        let landmark = Landmark { at: SystemTime::now(), boot: self.boot(), kind };
        self.add_landmark(&landmark)
    }

    /// Changes an allocation, if it is there; one without a frame is removed.
    fn edit(&mut self, id: AllocationId, edit: impl FnOnce(&mut AllocationRow)) -> Result<(), Self::Error>
    where
        Self: Sized,
    {
        let Some(mut row) = self.allocation(id)? else { return Ok(()) };
        edit(&mut row);
        if row.live.is_empty() && row.released.is_empty() { self.remove_allocation(id) } else { self.put_allocation(&row) }
    }
}

fn replace(row: &mut AllocationRow, offset: u64, lost: Pfn, by: Pfn) {
    let lost = PfnRange::single(lost);
    if row.live.contains_range(lost) {
        row.live.remove(lost);
        add_released(&mut row.released, Extent { offset, frames: lost });
    }
    row.live.insert(PfnRange::single(by));
    put_in_place(&mut row.extents, offset, by);
}

fn release<R: Rows>(rows: &mut R, id: AllocationId, frames: &RunSet) -> Result<(), R::Error> {
    let mut given_up = RunSet::new();
    rows.edit(id, |row| {
        given_up = frames.intersection(&row.live);
        for run in &given_up {
            row.live.remove(run);
            for part in row.extents.iter().filter_map(|extent| extent.clipped(run)).collect::<Vec<_>>() {
                add_released(&mut row.released, part);
            }
        }
    })?;
    // Nobody wants the conversion any more: a later proof can only free the frames.
    for run in &given_up {
        change_marks(rows, MarkKind::Unproven, run, |mark| {
            mark.told.intent = mark.told.intent.map(|_| Intent::Reclaim);
            true
        })?;
    }
    Ok(())
}

fn reclaim<R: Rows>(rows: &mut R, id: AllocationId, frames: &RunSet) -> Result<(), R::Error> {
    let mut proven = frames.clone();
    for run in frames {
        for mark in rows.marks(MarkKind::Unproven, run)? {
            proven.remove(mark.told.frames);
        }
    }
    vacate(rows, id, &proven)
}

/// The allocation has `frames` no more.
fn vacate<R: Rows>(rows: &mut R, id: AllocationId, frames: &RunSet) -> Result<(), R::Error> {
    rows.edit(id, |row| {
        frames.into_iter().for_each(|run| row.live.remove(run));
        row.released = row.released.iter().flat_map(|extent| without(*extent, frames)).collect();
    })
}

fn without(extent: Extent, frames: &RunSet) -> Vec<Extent> {
    frames.gaps_in(extent.frames).into_iter().filter_map(|part| extent.clipped(part)).collect()
}

fn withdraw<R: Rows>(rows: &mut R, told: &Withdrawn) -> Result<(), R::Error> {
    let kind = MarkKind::of(told.state);
    change_marks(rows, kind, told.frames, |_| false)?;
    let mut row = MarkRow { told: told.clone(), boot: rows.boot() };
    if let (Some(_), Some(id)) = (row.told.intent, told.allocation)
        && let Some(owner) = rows.allocation(id)?
        && !owner.live.overlaps(told.frames)
    {
        row.told.intent = Some(Intent::Reclaim);
    }
    rows.put_mark(&row)
}

fn prove<R: Rows>(rows: &mut R, frames: PfnRange, freed: bool) -> Result<(), R::Error> {
    let mut ended = Vec::new();
    change_marks(rows, MarkKind::Unproven, frames, |mark| {
        let quarantined = mark.told.state == Withdrawal::Quarantined;
        if quarantined {
            ended.push(mark.clone());
        }
        !quarantined
    })?;
    for mark in ended {
        if let (true, Some(id)) = (freed, mark.told.allocation) {
            vacate(rows, id, &mark.told.frames.into())?;
        }
        rows.add_past(&PastMark { mark, until: SystemTime::now() })?;
    }
    Ok(())
}

fn lift<R: Rows>(rows: &mut R, state: Withdrawal, frames: &RunSet) -> Result<(), R::Error> {
    for run in frames {
        change_marks(rows, MarkKind::of(state), run, |mark| mark.told.state != state)?;
    }
    Ok(())
}

/// Lets `keep` change the parts of marks that lie in `frames`, and say whether they stay. What reaches beyond is as before.
fn change_marks<R: Rows>(
    rows: &mut R,
    kind: MarkKind,
    frames: PfnRange,
    mut keep: impl FnMut(&mut MarkRow) -> bool,
) -> Result<(), R::Error> {
    for whole in rows.marks(kind, frames)? {
        rows.remove_mark(kind, whole.told.frames.start())?;
        for rest in whole.told.frames.subtract(frames).into_iter().flatten() {
            put_part(rows, &whole, rest)?;
        }
        if let Some(mut part) = whole.told.frames.intersect(frames).map(|part| clipped(&whole, part))
            && keep(&mut part)
        {
            rows.put_mark(&part)?;
        }
    }
    Ok(())
}

fn put_part<R: Rows>(rows: &mut R, whole: &MarkRow, part: PfnRange) -> Result<(), R::Error> {
    rows.put_mark(&clipped(whole, part))
}

fn clipped(whole: &MarkRow, part: PfnRange) -> MarkRow {
    let mut row = whole.clone();
    row.told.offset += crate::outcome::bytes(part.start().get() - whole.told.frames.start().get());
    row.told.frames = part;
    row
}

fn add_released(released: &mut Vec<Extent>, extent: Extent) {
    let at = released.partition_point(|other| other.frames < extent.frames);
    released.insert(at, extent);
}
