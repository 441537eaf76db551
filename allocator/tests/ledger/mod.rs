//! A ledger in memory that fails when a test says so, and the comparison of a pool with its book.
#![allow(dead_code, reason = "every test binary uses another part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use pageless::ledger::{Book, Entry, Kept, Ledger, LedgerError, PoolFacts};
use pageless::metadata::Occupancy;
use pageless::{MetadataOnly, Pool, RunSet, Withdrawal};

use crate::scripted::{IMPATIENT, run};

/// A ledger that can be told to fail; what is submitted meanwhile waits in order.
pub(crate) struct Flaky {
    kept: Arc<Kept>,
    failing: AtomicBool,
    /// A failing commit is written after all, as one that timed out may be.
    lands: AtomicBool,
    waiting: Mutex<Vec<Entry>>,
}

impl Flaky {
    pub(crate) fn new() -> Arc<Self> {
        Self::over(Kept::new())
    }

    pub(crate) fn over(kept: Arc<Kept>) -> Arc<Self> {
        Arc::new(Self { kept, failing: AtomicBool::new(false), lands: AtomicBool::new(false), waiting: Mutex::default() })
    }

    /// From now on commits fail; `lands` says whether they are written all the same.
    pub(crate) fn fails(&self, lands: bool) {
        self.lands.store(lands, Ordering::SeqCst);
        self.failing.store(true, Ordering::SeqCst);
    }

    pub(crate) fn heals(&self) {
        self.failing.store(false, Ordering::SeqCst);
    }

    pub(crate) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::SeqCst)
    }

    /// What a crash now would leave.
    pub(crate) fn book(&self) -> Book {
        self.kept.book()
    }
}

impl Ledger for Flaky {
    fn place(&self) -> String {
        "a test".to_owned()
    }

    fn open(&self, pool: &PoolFacts) -> Result<Book, LedgerError> {
        self.kept.open(pool)
    }

    fn commit(&self, entries: Vec<Entry>) -> Result<(), LedgerError> {
        let mut waiting = self.waiting.lock().unwrap();
        if !self.failing.load(Ordering::SeqCst) {
            self.kept.submit(std::mem::take(&mut waiting));
            return self.kept.commit(entries);
        }
        if self.lands.load(Ordering::SeqCst) {
            self.kept.submit(std::mem::take(&mut waiting));
            self.kept.submit(entries);
        }
        Err(LedgerError::Io { place: self.place(), why: "the script says so".to_owned() })
    }

    fn submit(&self, entries: Vec<Entry>) {
        self.waiting.lock().unwrap().extend(entries);
    }

    fn close(&self) {
        // A crash: what waits is lost.
        self.waiting.lock().unwrap().clear();
        self.kept.close();
    }
}

/// An impatient pool of frames `0..frames` that writes through `ledger`.
pub(crate) fn pool_with(ledger: &Arc<Flaky>, frames: u64) -> Pool {
    let ledger: Arc<dyn Ledger> = ledger.clone();
    Pool::builder().backing(MetadataOnly::new(run(0, frames))).policy(IMPATIENT).ledger(ledger).build().unwrap()
}

/// What the pool and the book must agree on: who has which frames, released or not, and which marks stand.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Facts {
    live: BTreeMap<u64, RunSet>,
    released: BTreeMap<u64, RunSet>,
    marked: Vec<RunSet>,
}

const MARKS: [Withdrawal; 3] = [Withdrawal::Quarantined, Withdrawal::Failed, Withdrawal::Poisoned];

pub(crate) fn facts_of_pool(pool: &Pool) -> Facts {
    let mut facts = Facts::default();
    for stretch in pool.stretches() {
        let Some(id) = stretch.allocation else { continue };
        let released = stretch.state.occupancy == Occupancy::Released;
        let map = if released { &mut facts.released } else { &mut facts.live };
        map.entry(id.get()).or_default().insert(stretch.frames);
    }
    let withdrawn = pool.withdrawn();
    let marked = |state| withdrawn.iter().filter(|run| run.state == state).map(|run| run.frames).collect();
    facts.marked = MARKS.into_iter().map(marked).collect();
    facts
}

pub(crate) fn facts_of_book(book: &Book) -> Facts {
    let mut facts = Facts::default();
    for row in book.allocations.values() {
        let released: RunSet = row.released.iter().map(|extent| extent.frames).collect();
        // What a dead owner has counts as released.
        if row.id.get() < book.dead_below {
            facts.released.entry(row.id.get()).or_default().extend(&row.live);
        } else if !row.live.is_empty() {
            facts.live.insert(row.id.get(), row.live.clone());
        }
        if !released.is_empty() {
            facts.released.entry(row.id.get()).or_default().extend(&released);
        }
    }
    facts.marked = MARKS.into_iter().map(|state| book.marked(state)).collect();
    facts
}

/// The same with every live frame released: how a pool finds it after a crash.
pub(crate) fn after_a_crash(mut facts: Facts) -> Facts {
    for (id, live) in std::mem::take(&mut facts.live) {
        facts.released.entry(id).or_default().extend(&live);
    }
    facts
}

impl Facts {
    /// The frames that bear a mark.
    pub(crate) fn marked_frames(&self) -> RunSet {
        self.marked.iter().fold(RunSet::new(), |all, marked| all.union(marked))
    }
}
