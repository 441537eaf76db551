//! A small pool on a redb ledger, and a mapping that gets stuck where a test says.
#![allow(dead_code, reason = "every test binary uses another part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

pub(crate) mod life;
pub(crate) mod recording;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pageless::ledger::{Book, Ledger};
use pageless::{
    Allocation, Cause, FRAME_BYTES, Mapping, MetadataOnly, Operation, Pfn, PfnRange, Policy, Pool, Refusal, Request, RetryPolicy,
    RunSet, Stuck, Verdict, Withdrawal,
};

pub(crate) const NOT_NOW: Verdict = Verdict::Retry { after: Duration::ZERO };

const IMPATIENT: Policy = Policy {
    retry: RetryPolicy { at_once: 0, pause: Duration::ZERO, later: 16, later_after: Duration::ZERO },
    guard_drain: Duration::from_millis(1),
    busy_after: Duration::from_micros(50),
};

pub(crate) fn run(start: u64, end: u64) -> PfnRange {
    PfnRange::new(Pfn::new(start), Pfn::new(end)).unwrap()
}

pub(crate) fn set<const N: usize>(runs: [(u64, u64); N]) -> RunSet {
    runs.into_iter().map(|(start, end)| run(start, end)).collect()
}

pub(crate) const fn pages(from: u64, to: u64) -> Range<u64> {
    from * FRAME_BYTES..to * FRAME_BYTES
}

/// A pool of frames `0..frames`.
pub(crate) fn pool_on(ledger: Arc<dyn Ledger>, frames: u64) -> Pool {
    Pool::builder().backing(MetadataOnly::new(run(0, frames))).policy(IMPATIENT).ledger(ledger).build().unwrap()
}

/// The frames of all marks of a book, by their kind.
pub(crate) fn marks(book: &Book) -> [RunSet; 3] {
    [Withdrawal::Quarantined, Withdrawal::Failed, Withdrawal::Poisoned].map(|state| book.marked(state))
}

/// Gets stuck where it is told.
#[derive(Default)]
pub(crate) struct Sticky(Mutex<BTreeMap<Pfn, Verdict>>);

impl Sticky {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn sticks(&self, frame: u64, verdict: Verdict) {
        self.0.lock().unwrap().insert(Pfn::new(frame), verdict);
    }

    pub(crate) fn heals(&self) {
        self.0.lock().unwrap().clear();
    }
}

impl Mapping for Sticky {
    fn prepare(&self, _op: &Operation) -> Result<(), Refusal> {
        Ok(())
    }

    fn invalidate(&self, _op: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        let stuck = self.0.lock().unwrap();
        match stuck.range(frames.start()..frames.end()).next() {
            Some((pfn, verdict)) => {
                let cause = Cause::new("TDH.MEM.PAGE.REMOVE", 0x8000_0200, "busy");
                Err(Stuck { at: PfnRange::single(*pfn), verdict: verdict.clone(), cause })
            }
            None => Ok(()),
        }
    }
}

/// An allocation of the first 32 frames, of which frame 3 fails and frame 9 is quarantined; and frame 40 is poisoned.
pub(crate) fn marked(pool: &Pool) -> (Allocation, Arc<Sticky>) {
    let ram = pool.allocate(Request::bytes(32 * FRAME_BYTES).contiguous().owner("vm-42")).unwrap();
    let ept = Sticky::new();
    ram.attach("ept", ept.clone()).unwrap();
    ept.sticks(3, Verdict::Never);
    ept.sticks(9, NOT_NOW);
    assert!(ram.share(pages(0, 32)).is_err());
    pool.poison(run(40, 41), Cause::new("MCE", 0xb, "uncorrectable"));
    (ram, ept)
}
