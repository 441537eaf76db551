//! A random life of a pool, step by step, and what its owners and operators were told by then.

use std::collections::BTreeMap;
use std::sync::Arc;

use pageless::ledger::Ledger;
use pageless::{Allocation, Cause, FRAME_BYTES, Hold, Pool, Request, RunSet, Verdict, Withdrawal};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{NOT_NOW, Sticky, pages, pool_on, run};

/// What has been told, and so must not be forgotten.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Told {
    /// Frames with a mark that was told as recorded: quarantined, failed, poisoned.
    pub(crate) marks: [RunSet; 3],
    /// Frames that an allocation has, or has given up and that are not proven.
    pub(crate) owned: BTreeMap<u64, RunSet>,
    /// Frames that are held.
    pub(crate) holds: usize,
}

pub(crate) struct Life {
    pub(crate) pool: Pool,
    dice: StdRng,
    frames: u64,
    owned: Vec<(Allocation, Arc<Sticky>)>,
    holds: Vec<Hold>,
}

impl Life {
    pub(crate) fn new(ledger: Arc<dyn Ledger>, frames: u64, seed: u64) -> Self {
        let pool = pool_on(ledger, frames);
        Self { pool, dice: StdRng::seed_from_u64(seed), frames, owned: Vec::new(), holds: Vec::new() }
    }

    pub(crate) fn step(&mut self) {
        let what = self.dice.random_range(0..100);
        let at = self.dice.random_range(0..self.frames);
        if !self.owned.is_empty() {
            let who = self.dice.random_range(0..self.owned.len());
            self.owners_step(who, what, at);
        }
        match what {
            68..=79 => self.allocate(),
            80..=86 => drop(self.pool.reclaim()),
            87..=90 => drop(self.pool.retry(run(0, self.frames))),
            91..=92 => drop(self.pool.poison(run(at, at + 1), Cause::new("MCE", 1, "uncorrectable"))),
            93..=99 if !self.holds.is_empty() => drop(self.holds.pop()),
            _ => {}
        }
    }

    fn owners_step(&mut self, who: usize, what: u32, at: u64) {
        let (ram, ept) = &self.owned[who];
        let frames = ram.bytes() / FRAME_BYTES;
        let from = self.dice.random_range(0..frames);
        let range = pages(from, self.dice.random_range(from + 1..=frames));
        match what {
            0..=14 => drop(ram.share(range)),
            15..=29 => drop(ram.unshare(range)),
            30..=37 => ept.sticks(at, if self.dice.random() { NOT_NOW } else { Verdict::Never }),
            38..=42 => ept.heals(),
            43..=50 => drop(ram.release_range(range)),
            51..=55 => self.holds.extend(ram.hold(range, "dma").ok()),
            56..=59 => drop(ram.replace(from * FRAME_BYTES)),
            60..=63 => drop(self.owned.swap_remove(who).0.release()),
            64..=67 => drop(self.owned.swap_remove(who)),
            _ => {}
        }
    }

    fn allocate(&mut self) {
        let frames = self.dice.random_range(1..self.frames / 6);
        if let Ok(ram) = self.pool.allocate(Request::bytes(frames * FRAME_BYTES).owner("vm")) {
            let ept = Sticky::new();
            if ram.attach("ept", ept.clone()).is_ok() {
                self.owned.push((ram, ept));
            }
        }
    }

    pub(crate) fn told(&self) -> Told {
        let mut told = Told { holds: self.holds.len(), ..Told::default() };
        for stretch in self.pool.stretches() {
            if let Some(id) = stretch.allocation {
                told.owned.entry(id.get()).or_default().insert(stretch.frames);
            }
        }
        let (withdrawn, unrecorded) = (self.pool.withdrawn(), self.pool.unrecorded());
        told.marks = [Withdrawal::Quarantined, Withdrawal::Failed, Withdrawal::Poisoned].map(|state| {
            let marked: RunSet = withdrawn.iter().filter(|run| run.state == state).map(|run| run.frames).collect();
            marked.difference(&unrecorded)
        });
        told
    }
}

impl Told {
    /// What had been told before an event and still stands after it: whatever came of the event, this must be found again.
    pub(crate) fn and(&self, after: &Self) -> Self {
        let both = |a: &RunSet, b: &RunSet| a.intersection(b);
        let owned = self.owned.iter().filter_map(|(id, frames)| Some((*id, both(frames, after.owned.get(id)?))));
        Self { marks: [0, 1, 2].map(|kind| both(&self.marks[kind], &after.marks[kind])), owned: owned.collect(), holds: 0 }
    }
}
