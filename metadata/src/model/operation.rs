//! One operation, in two halves: check and mark; then ask, and flip.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::{Answer, Attached, Model, NoProof, Oracle, Prepared, Refused, Spot, obstacle::index, to_set};
use crate::{AllocationId, FrameEvent, Intent, Occupancy, Pfn, Purpose, RunSet, Shareability, Withdrawal};

/// An operation whose frames are marked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenOperation {
    number: u64,
    id: AllocationId,
    intent: Intent,
    spots: Vec<Spot>,
    /// The runs that are asked about: what is not as wanted yet.
    runs: Vec<Vec<Pfn>>,
    /// The mappings when it began: one that is attached later can establish nothing on marked frames.
    mappings: Vec<Attached>,
    /// The one mapping that is asked, if not all are, what it was not going to be asked about then, and how often a frame had
    /// been replaced: one that came since was not asked about.
    only: Option<(String, RunSet, u64)>,
}

/// How an operation began.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Begun {
    /// The frames are marked.
    Open(OpenOperation),
    /// Everything is as wanted, and known to be.
    AlreadySo,
}

/// How an operation ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ended {
    /// A mapping refused in prepare: nothing has changed.
    Refused(Refused),
    /// A mapping panicked: everything that was marked is quarantined.
    Panicked,
    /// Every frame is in exactly one of the fields.
    Parted {
        /// As wanted.
        done: RunSet,
        /// Withdrawn; the mark that is told.
        lost: BTreeMap<Pfn, Withdrawal>,
        /// Released meanwhile, and sound.
        released: RunSet,
    },
}

pub(super) type Losses = BTreeMap<Pfn, NoProof>;

/// A mapping panicked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Panicked;

impl Model {
    /// Begins `share` or `unshare` of a range of bytes.
    pub fn begin(&mut self, id: AllocationId, range: &Range<u64>, intent: Intent) -> Result<Begun, Refused> {
        let spots = self.spots(id, range)?;
        self.begin_on(id, spots, intent, None)
    }

    /// What `share` or `unshare` would answer now.
    pub fn plan(&self, id: AllocationId, range: &Range<u64>, intent: Intent) -> Result<Begun, Refused> {
        self.clone().begin(id, range, intent)
    }

    /// Begins `detach`: what is live and sound is asked about, and no other mapping.
    pub fn begin_detach(&mut self, id: AllocationId, name: &str) -> Result<Begun, Refused> {
        let attached = self.allocations[&id].mappings.iter().any(|mapping| mapping.name == name && mapping.retired.is_none());
        attached.then_some(()).ok_or(Refused::NoSuchMapping)?;
        let spots = self.all_spots(id).into_iter();
        let sound = spots.filter(|(_, pfn)| self.is_live(*pfn, id) && self.frames[pfn].state.withdrawal().is_none());
        let sound = sound.collect();
        self.begin_on(id, sound, Intent::Detach, Some((name.to_owned(), self.unproven(id), self.allocations[&id].replaced)))
    }

    pub(super) fn begin_on(
        &mut self,
        id: AllocationId,
        spots: Vec<Spot>,
        intent: Intent,
        only: Option<(String, RunSet, u64)>,
    ) -> Result<Begun, Refused> {
        let purpose = if intent == Intent::Detach { Purpose::Use } else { Purpose::Change };
        self.obstacle(id, &spots, purpose)?;
        let asked: Vec<Spot> = spots.iter().copied().filter(|(_, pfn)| self.changes(*pfn, intent)).collect();
        if asked.is_empty() {
            return Ok(Begun::AlreadySo);
        }
        if spots.iter().any(|(_, pfn)| self.frames[pfn].guards > 0) {
            return Err(Refused::Busy);
        }
        self.begun += 1;
        for (_, pfn) in &spots {
            self.step(*pfn, FrameEvent::Begin(intent));
            self.frames.get_mut(pfn).expect("a frame of the pool").operation = Some(self.begun);
        }
        let runs = self.runs_of(id, &asked);
        let mappings = self.allocations[&id].mappings.clone();
        let operation = OpenOperation { number: self.begun, id, intent, spots, runs, mappings, only };
        self.open.insert(self.begun, operation.clone());
        Ok(Begun::Open(operation))
    }

    /// The second half: asks the oracle as the pool asks its mappings, and flips.
    ///
    /// An operation that was declared hung meanwhile asks nobody any more; its oracle must not panic in `invalidate`, since
    /// whether it came to that depends on when the sweep was.
    pub fn end(&mut self, operation: &OpenOperation, oracle: &dyn Oracle) -> Ended {
        let only = operation.only.as_ref().map(|(name, ..)| name.as_str());
        let all_runs = self.runs_of(operation.id, &operation.spots);
        let swept = self.is_swept(operation);
        match prepared(&operation.mappings, &all_runs, only, oracle) {
            Some((Prepared::Panics, _)) => return self.abandon(operation),
            Some((Prepared::Busy, _)) if !swept => return self.cancel(operation, Refused::Busy),
            Some((Prepared::Refused, name)) if !swept => return self.cancel(operation, Refused::Mapping { name }),
            _ => {}
        }
        let mut losses = Losses::new();
        let asked =
            operation.mappings.iter().filter(|mapping| only.is_none_or(|only| mapping.retired.is_none() && mapping.name == only));
        for mapping in asked.filter(|_| operation.intent != Intent::Resize && !swept) {
            if ask(&needed(&operation.runs, mapping), &mut losses, |pfn| oracle.invalidate(mapping.slot, pfn)).is_err() {
                return self.abandon(operation);
            }
        }
        let zeroes = operation.intent == Intent::Share && !self.allocations[&operation.id].keeps_contents && !swept;
        if zeroes && ask(&operation.runs, &mut losses, |pfn| oracle.scrub(pfn)).is_err() {
            return self.abandon(operation);
        }
        if let (true, Some((name, rest, replaced))) = (losses.is_empty() && !swept, &operation.only)
            && self.allocations[&operation.id].replaced == *replaced
        {
            self.retire(operation.id, name, rest);
        }
        self.flip(operation, &losses)
    }

    /// Whether the operation still has its mark on the frame: a sweep for hung ones may have taken it.
    fn marked_by(&self, pfn: Pfn, operation: &OpenOperation) -> bool {
        self.frames[&pfn].operation == Some(operation.number)
    }

    fn cancel(&mut self, operation: &OpenOperation, why: Refused) -> Ended {
        self.open.remove(&operation.number);
        for (_, pfn) in &operation.spots {
            if self.marked_by(*pfn, operation) {
                self.step(*pfn, FrameEvent::Cancel);
            }
        }
        Ended::Refused(why)
    }

    fn abandon(&mut self, operation: &OpenOperation) -> Ended {
        // What was as wanted before was not touched.
        let losses: Losses = operation.runs.iter().flatten().map(|pfn| (*pfn, NoProof::ForNow)).collect();
        let _everything_is_lost = self.flip(operation, &losses);
        Ended::Panicked
    }

    fn flip(&mut self, operation: &OpenOperation, losses: &Losses) -> Ended {
        self.open.remove(&operation.number);
        if self.converts(operation) {
            self.cut_around(operation.id, &operation.spots);
        }
        let (mut done, mut released, mut lost) = (Vec::new(), Vec::new(), BTreeMap::new());
        for (_, pfn) in &operation.spots {
            let before = self.frames[pfn].state;
            if !self.marked_by(*pfn, operation) {
                // Declared hung, and whatever came of that since.
                match before.withdrawal() {
                    Some(mark) if self.is_mine(*pfn, operation.id) => drop(lost.insert(*pfn, mark)),
                    None if self.is_live(*pfn, operation.id) => done.push(*pfn),
                    _ => released.push(*pfn),
                }
                continue;
            }
            match losses.get(pfn) {
                Some(NoProof::ForNow) => {
                    self.step(*pfn, FrameEvent::LoseForNow);
                    lost.insert(*pfn, before.withdrawal().unwrap_or(Withdrawal::Quarantined));
                }
                Some(NoProof::ForGood) => {
                    self.step(*pfn, FrameEvent::LoseForGood);
                    lost.insert(*pfn, before.withdrawal().unwrap_or(Withdrawal::Failed));
                }
                None => {
                    self.step(*pfn, FrameEvent::Prove);
                    match before.withdrawal() {
                        Some(mark) => drop(lost.insert(*pfn, mark)),
                        None if before.occupancy == Occupancy::Released => released.push(*pfn),
                        None => done.push(*pfn),
                    }
                }
            }
        }
        Ended::Parted { done: to_set(done), lost, released: to_set(released) }
    }

    /// Whether mappings have cut leaves for the operation, and it has not been declared hung.
    fn converts(&self, operation: &OpenOperation) -> bool {
        let marked = operation.spots.iter().any(|(_, pfn)| self.marked_by(*pfn, operation));
        marked && matches!(operation.intent, Intent::Share | Intent::Unshare)
    }

    /// A sweep declares every operation hung; returns the frames that are quarantined by it.
    pub fn quarantine_hung(&mut self) -> RunSet {
        let mut lost = Vec::new();
        for operation in self.open.clone().into_values() {
            if self.converts(&operation) {
                self.cut_around(operation.id, &operation.spots);
            }
            let changing: BTreeSet<Pfn> = operation.runs.iter().flatten().copied().collect();
            for (_, pfn) in operation
                .spots
                .iter()
                .filter(|(_, pfn)| self.frames[pfn].operation == Some(operation.number))
                .cloned()
                .collect::<Vec<_>>()
            {
                if changing.contains(&pfn) {
                    self.step(pfn, FrameEvent::LoseForNow);
                    lost.push(pfn);
                } else {
                    self.step(pfn, FrameEvent::Cancel);
                }
            }
        }
        to_set(lost)
    }

    /// Whether the operation was declared hung.
    #[must_use]
    pub fn is_swept(&self, operation: &OpenOperation) -> bool {
        !operation.spots.iter().any(|(_, pfn)| self.marked_by(*pfn, operation))
    }

    fn changes(&self, pfn: Pfn, intent: Intent) -> bool {
        match intent {
            Intent::Share => self.frames[&pfn].state.shareability != Shareability::Shared,
            Intent::Unshare => self.frames[&pfn].state.shareability != Shareability::Private,
            _ => true,
        }
    }

    /// Maximal runs that are contiguous in the pool and in one extent.
    fn runs_of(&self, id: AllocationId, spots: &[Spot]) -> Vec<Vec<Pfn>> {
        let places = &self.allocations[&id].places;
        let together = |one: &Spot, next: &Spot| {
            one.0 + 1 == next.0 && one.1.add(1) == next.1 && !places.get(index(next.0)).is_some_and(|place| place.begins)
        };
        spots.chunk_by(together).map(|run| run.iter().map(|(_, pfn)| *pfn).collect()).collect()
    }

    pub(super) fn all_spots(&self, id: AllocationId) -> Vec<Spot> {
        (0..).zip(&self.allocations[&id].places).map(|(at, place)| (at, place.pfn)).collect()
    }
}

/// The first answer to `prepare`, run by run and mapping by mapping, that is not ready, and whose it is.
pub(super) fn prepared(
    mappings: &[Attached],
    runs: &[Vec<Pfn>],
    only: Option<&str>,
    oracle: &dyn Oracle,
) -> Option<(Prepared, String)> {
    let wanted = |mapping: &&Attached| only.is_none_or(|only| mapping.retired.is_none() && mapping.name == only);
    runs.iter().find_map(|run| {
        let needed = mappings.iter().filter(wanted).filter(|mapping| run.iter().any(|pfn| mapping.is_needed(*pfn)));
        let mut answers = needed.map(|mapping| (oracle.prepare(mapping.slot), mapping.name.clone()));
        answers.find(|(answer, _)| *answer != Prepared::Ready)
    })
}

/// The parts of the runs that a mapping is asked about.
pub(super) fn needed(runs: &[Vec<Pfn>], mapping: &Attached) -> Vec<Vec<Pfn>> {
    runs.iter().map(|run| run.iter().copied().filter(|pfn| mapping.is_needed(*pfn)).collect()).collect()
}

/// Asks about every run, less what is lost already, frame by frame.
pub(super) fn ask(runs: &[Vec<Pfn>], losses: &mut Losses, answer: impl Fn(Pfn) -> Answer) -> Result<(), Panicked> {
    for run in runs {
        let survivors: Vec<Pfn> = run.iter().copied().filter(|pfn| !losses.contains_key(pfn)).collect();
        for part in survivors.chunk_by(|one, next| one.add(1) == *next) {
            ask_part(part, losses, &answer)?;
        }
    }
    Ok(())
}

fn ask_part(part: &[Pfn], losses: &mut Losses, answer: impl Fn(Pfn) -> Answer) -> Result<(), Panicked> {
    let mut asked_from = 0;
    for (nth, pfn) in part.iter().enumerate() {
        match answer(*pfn) {
            Answer::Proven => {}
            Answer::ProvenAgain => asked_from = nth,
            Answer::Panics => return Err(Panicked),
            Answer::Stuck(why) => {
                losses.insert(*pfn, why);
                asked_from = nth + 1;
            }
            Answer::Breach => {
                // Nothing of what that call was asked about is proven.
                losses.extend(part[asked_from..].iter().map(|pfn| (*pfn, NoProof::ForGood)));
                return Ok(());
            }
        }
    }
    Ok(())
}
