//! The model's reclaim: ask again about what is quarantined, ask about what is released, free what is proven.

use std::collections::{BTreeMap, BTreeSet};

use super::operation::{Losses, ask, needed, prepared};
use super::{Answer, Attached, Model, NoProof, Oracle, Prepared, to_set};
use crate::{AllocationId, FrameEvent, Intent, Occupancy, Pfn, RunSet, Shareability, Withdrawal};

/// What released, sound frames wait for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Waiting {
    /// A holder.
    Holder,
    /// An operation, or a map guard.
    Operation,
    /// A mapping that refused to prepare.
    Mapping,
    /// The rest of their granule.
    Granule,
}

/// What a pass did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reclaimed {
    /// Free again.
    pub freed: RunSet,
    /// Proven for a live owner.
    pub recovered: RunSet,
    /// Withdrawn by this pass.
    pub lost: BTreeMap<Pfn, Withdrawal>,
    /// Released, sound, and what they may be said to wait for.
    pub waiting: BTreeMap<Pfn, BTreeSet<Waiting>>,
    /// Withdrawn from before, and still: what is released, and what this pass asked about.
    pub withdrawn: RunSet,
}

/// The frames that this pass has asked about and the mappings proved, and those it lost.
#[derive(Default)]
struct Asked {
    /// Released and sound before.
    marked: Vec<Pfn>,
    /// Quarantined before, of owners that are gone.
    recalled: Vec<Pfn>,
    losses: Losses,
}

impl Model {
    /// One pass. With `again`, everything quarantined is asked about again; the oracle must not panic or breach then, since
    /// what that costs depends on how the pool's records are cut.
    pub fn reclaim(&mut self, again: bool, oracle: &dyn Oracle) -> Reclaimed {
        let mut told = Reclaimed::default();
        let mut asked = Asked::default();
        let quarantined: Vec<Pfn> = self.marked(Withdrawal::Quarantined).into_iter().flat_map(|run| run.iter()).collect();
        for pfn in quarantined.into_iter().filter(|_| again) {
            self.recall(pfn, oracle, &mut asked, &mut told);
        }
        let owners: Vec<AllocationId> = self.allocations.keys().copied().collect();
        owners.into_iter().for_each(|id| self.ask_owner(id, oracle, &mut asked, &mut told));
        self.prove(oracle, &mut asked, &mut told);
        self.finish_pass(&asked, &mut told);
        told
    }

    /// The mappings that are asked about a frame: those attached, and those detached while it was unproven.
    fn wanted(&self, id: AllocationId, pfn: Pfn) -> impl Iterator<Item = &Attached> {
        self.allocations[&id].mappings.iter().filter(move |mapping| mapping.is_needed(pfn))
    }

    /// Asks about one quarantined frame. A conversion ends here; a reclaim needs the backing too.
    fn recall(&mut self, pfn: Pfn, oracle: &dyn Oracle, asked: &mut Asked, told: &mut Reclaimed) {
        let frame = &self.frames[&pfn];
        let (Some(id), Some(intent)) = (frame.tenant, frame.state.quarantined) else { return };
        if intent == Intent::Reclaim {
            asked.recalled.push(pfn);
            // A hold forbids reclaim.
            if !frame.holds.is_empty() {
                asked.losses.insert(pfn, NoProof::ForNow);
                return;
            }
        }
        if frame.state.poisoned {
            // Nothing to come back to: nobody is asked.
            asked.losses.insert(pfn, NoProof::ForNow);
            told.withdrawn.insert(crate::PfnRange::single(pfn));
            return;
        }
        let mut loss = self.wanted(id, pfn).find_map(|mapping| match oracle.prepare(mapping.slot) {
            Prepared::Ready => lost(oracle.invalidate(mapping.slot, pfn)),
            _ => Some(NoProof::ForNow),
        });
        if intent == Intent::Share && !self.allocations[&id].keeps_contents {
            loss = loss.or_else(|| lost(oracle.scrub(pfn)));
        }
        asked.losses.extend(loss.map(|loss| (pfn, loss)));
        if intent != Intent::Reclaim {
            self.end_recall(pfn, loss, told);
        }
    }

    fn end_recall(&mut self, pfn: Pfn, loss: Option<NoProof>, told: &mut Reclaimed) {
        match loss {
            None => {
                self.step(pfn, FrameEvent::ProveLater);
                told.recovered.insert(crate::PfnRange::single(pfn));
            }
            Some(NoProof::ForGood) => {
                self.step(pfn, FrameEvent::LoseForGood);
                told.lost.insert(pfn, Withdrawal::Failed);
            }
            Some(NoProof::ForNow) => told.withdrawn.insert(crate::PfnRange::single(pfn)),
        }
    }

    fn ask_owner(&mut self, id: AllocationId, oracle: &dyn Oracle, asked: &mut Asked, told: &mut Reclaimed) {
        let released = self.frames.iter().filter(|(_, f)| f.tenant == Some(id) && f.state.occupancy == Occupancy::Released);
        let released: Vec<Pfn> = released.map(|(pfn, _)| *pfn).collect();
        let mut marked = Vec::new();
        for pfn in released {
            let frame = &self.frames[&pfn];
            let (held, converting) = (!frame.holds.is_empty(), frame.state.converting.is_some());
            if frame.state.withdrawal().is_some() {
                told.withdrawn.insert(crate::PfnRange::single(pfn));
            } else if held || converting {
                let why = [(held, Waiting::Holder), (converting, Waiting::Operation)];
                told.waiting.insert(pfn, why.into_iter().filter(|(applies, _)| *applies).map(|(_, why)| why).collect());
            } else {
                marked.push(pfn);
            }
        }
        let wait = |why: Waiting| marked.iter().map(move |pfn| (*pfn, BTreeSet::from([why])));
        if marked.iter().any(|pfn| self.frames[pfn].guards > 0) {
            told.waiting.extend(wait(Waiting::Operation));
            return;
        }
        let lose_all = |losses: &mut Losses| {
            for pfn in &marked {
                losses.entry(*pfn).or_insert(NoProof::ForNow);
            }
        };
        let runs = self.released_runs(&marked);
        let mappings = self.allocations[&id].mappings.clone();
        match prepared(&mappings, &runs, None, oracle).map(|(answer, _)| answer) {
            None => {}
            Some(Prepared::Panics) => lose_all(&mut asked.losses),
            Some(_) => {
                told.waiting.extend(wait(Waiting::Mapping));
                return;
            }
        }
        marked.iter().for_each(|pfn| self.step(*pfn, FrameEvent::Begin(Intent::Reclaim)));
        let mut losses: Losses = marked.iter().filter_map(|pfn| Some((*pfn, *asked.losses.get(pfn)?))).collect();
        for mapping in &mappings {
            if ask(&needed(&runs, mapping), &mut losses, |pfn| oracle.invalidate(mapping.slot, pfn)).is_err() {
                lose_all(&mut losses);
                break;
            }
        }
        asked.losses.extend(losses);
        asked.marked.extend(marked);
    }

    /// Contiguous in the pool and in the guest.
    fn released_runs(&self, frames: &[Pfn]) -> Vec<Vec<Pfn>> {
        let joined = |one: &Pfn, next: &Pfn| one.add(1) == *next && self.frames[one].offset + 1 == self.frames[next].offset;
        frames.chunk_by(joined).map(<[Pfn]>::to_vec).collect()
    }

    fn prove(&self, oracle: &dyn Oracle, asked: &mut Asked, told: &mut Reclaimed) {
        let proven: BTreeSet<Pfn> =
            asked.marked.iter().chain(&asked.recalled).copied().filter(|pfn| !asked.losses.contains_key(pfn)).collect();
        let granules: BTreeSet<u64> = proven.iter().map(|pfn| pfn.get() / self.granule).collect();
        for granule in granules {
            let (from, to) = (Pfn::new(granule * self.granule), Pfn::new((granule + 1) * self.granule));
            let members: Vec<Pfn> = self.frames.range(from..to).map(|(pfn, _)| *pfn).collect();
            let ours = members.iter().filter(|pfn| proven.contains(pfn));
            let complete = members.iter().all(|pfn| proven.contains(pfn) || self.frames[pfn].state.assignable());
            if !complete {
                for pfn in ours {
                    asked.losses.insert(*pfn, NoProof::ForNow);
                    if self.frames[pfn].state.quarantined.is_none() {
                        told.waiting.insert(*pfn, BTreeSet::from([Waiting::Granule]));
                    }
                }
                continue;
            }
            let answers: Vec<NoProof> = members.iter().filter_map(|pfn| lost(oracle.prove(*pfn))).collect();
            let worst = answers.iter().copied().find(|loss| *loss == NoProof::ForGood).or(answers.first().copied());
            asked.losses.extend(worst.into_iter().flat_map(|worst| ours.clone().map(move |pfn| (*pfn, worst))));
        }
    }

    fn finish_pass(&mut self, asked: &Asked, told: &mut Reclaimed) {
        let mut freed = Vec::new();
        for pfn in &asked.marked {
            match asked.losses.get(pfn) {
                _ if told.waiting.contains_key(pfn) => self.step(*pfn, FrameEvent::Cancel),
                None => {
                    self.step(*pfn, FrameEvent::Prove);
                    freed.push(*pfn);
                }
                Some(NoProof::ForNow) => {
                    self.step(*pfn, FrameEvent::LoseForNow);
                    told.lost.insert(*pfn, Withdrawal::Quarantined);
                }
                Some(NoProof::ForGood) => {
                    self.step(*pfn, FrameEvent::LoseForGood);
                    told.lost.insert(*pfn, Withdrawal::Failed);
                }
            }
        }
        for pfn in &asked.recalled {
            match asked.losses.get(pfn) {
                None => {
                    self.step(*pfn, FrameEvent::ProveLater);
                    freed.push(*pfn);
                }
                Some(NoProof::ForNow) => continue,
                Some(NoProof::ForGood) => {
                    self.step(*pfn, FrameEvent::LoseForGood);
                    told.lost.insert(*pfn, Withdrawal::Failed);
                }
            }
            told.withdrawn.remove(crate::PfnRange::single(*pfn));
        }
        told.freed = to_set(freed);
    }

    /// Who may reach the frame behind an offset, whoever has it now.
    #[must_use]
    pub fn shareability(&self, pfn: Pfn) -> Shareability {
        self.frames[&pfn].state.shareability
    }
}

const fn lost(answer: Answer) -> Option<NoProof> {
    match answer {
        Answer::Proven | Answer::ProvenAgain => None,
        Answer::Stuck(why) => Some(why),
        Answer::Breach => Some(NoProof::ForGood),
        Answer::Panics => Some(NoProof::ForNow),
    }
}
