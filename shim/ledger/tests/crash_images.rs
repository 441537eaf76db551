//! Every write and sync of long random runs is recorded; whatever a crash at any moment leaves of it is opened again and held
//! against what had been told by then: nothing is forgotten, nothing is free and withdrawn, nothing has two owners.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod cast;

use std::sync::Arc;

use cast::life::{Life, Told};
use cast::recording::{Happened, Log, Recording, Unsynced, image};
use cast::{Sticky, marks, pool_on};
use pageless::{Mapping, RunSet};
use pageless_ledger::{Disk, MemoryDisk, Options, RedbLedger, inspect_bytes};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const FRAMES: u64 = 96;
const SEEDS: u64 = 50;
const STEPS: usize = 60;
/// Random crash points for each seed, besides every boundary of its last three commits.
const POINTS: usize = 60;

fn ledger_on(disk: Arc<dyn Disk>) -> Arc<RedbLedger> {
    Arc::new(RedbLedger::on("an image", disk, Options::default()).unwrap())
}

/// A ledger that no pool has opened.
fn fresh() -> Vec<u8> {
    let disk = Arc::new(MemoryDisk::default());
    drop(RedbLedger::on("fresh", disk.clone(), Options::default()).unwrap());
    disk.bytes()
}

/// A random run on a recording disk.
fn lived(seed: u64, before: Vec<u8>) -> Vec<Happened<Told>> {
    let log = Log::new();
    let ledger = ledger_on(Arc::new(Recording::over(before, Arc::clone(&log))));
    let mut life = Life::new(ledger, FRAMES, seed);
    log.tell(life.told());
    for _ in 0..STEPS {
        life.step();
        log.tell(life.told());
    }
    log.all()
}

/// What was told before `at` and after it: the event that the crash cuts off lies between.
fn known(log: &[Happened<Told>], at: usize) -> Told {
    let told = |happened: &Happened<Told>| if let Happened::Told(told) = happened { Some(told.clone()) } else { None };
    let before = log[..at].iter().rev().find_map(told);
    let after = log[at..].iter().find_map(told);
    match (before, after) {
        (Some(before), Some(after)) => before.and(&after),
        (Some(before), None) => before,
        (None, _) => Told::default(),
    }
}

/// Opens an image and holds it against what was told; returns what recovery wrote.
fn check(bytes: &[u8], known: &Told, what: &str) -> Vec<Happened<Told>> {
    let found = inspect_bytes("an image", bytes.to_vec()).unwrap_or_else(|error| panic!("{what}: {error}"));
    for (kind, known) in known.marks.iter().enumerate() {
        // A quarantined run may have failed, or got poisoned, in the event that was cut off; it may not be unmarked.
        let forgotten = known.difference(&marks(&found.book)[kind]).difference(&marks(&found.book)[1]);
        assert!(forgotten.is_empty(), "{what}: the marks on {forgotten} are forgotten");
    }
    for (id, frames) in &known.owned {
        let row = found.book.allocations.get(&pageless::AllocationId::new(*id));
        let has: RunSet =
            row.map_or_else(RunSet::new, |row| row.released.iter().map(|extent| extent.frames).chain(&row.live).collect());
        let lost = frames.difference(&has);
        assert!(lost.is_empty(), "{what}: alloc:{id} lost {lost}");
    }
    let log = Log::new();
    let pool = pool_on(ledger_on(Arc::new(Recording::over(bytes.to_vec(), Arc::clone(&log)))), FRAMES);
    let verified = pool.verify();
    assert!(verified.is_sound(), "{what}: {:?}", verified.faults);
    let withdrawn = pool.reopened().unwrap().withdrawn;
    assert!(withdrawn.into_iter().flat_map(pageless::PfnRange::iter).all(|pfn| !pool.is_free(pfn)), "{what}: free and withdrawn");
    // And what can be proven comes back.
    let mapping: Arc<dyn Mapping> = Sticky::new();
    pool.answer_for("ept", &mapping);
    pool.holder_done("dma");
    pool.retry(cast::run(0, FRAMES));
    assert_eq!(pool.stats().quarantined, 0, "{what}");
    log.all()
}

#[test]
fn whatever_a_crash_leaves_nothing_that_was_told_is_forgotten() {
    let before = fresh();
    let (mut images, mut cut_off) = (0, 0);
    for seed in 0..SEEDS {
        let mut dice = StdRng::seed_from_u64(seed);
        let log = lived(seed, before.clone());
        let syncs: Vec<usize> = (0..log.len()).filter(|at| matches!(log[*at], Happened::Sync)).collect();
        // A commit has two syncs.
        let last = syncs.len().checked_sub(6).map_or(0, |at| syncs[at]);
        let boundaries = (last..=log.len()).flat_map(|at| [(at, Unsynced::None), (at, Unsynced::All), (at, Unsynced::Torn)]);
        let points: Vec<(usize, Unsynced)> =
            (0..POINTS).map(|_| (dice.random_range(0..=log.len()), Unsynced::Torn)).chain(boundaries).collect();
        for (at, unsynced) in points {
            let bytes = image(&before, &log, at, unsynced, &mut dice);
            let known = known(&log, at);
            let what = format!("seed {seed}, crash at {at} of {}, {unsynced:?}", log.len());
            let recovery = check(&bytes, &known, &what);
            images += 1;
            // A crash in the middle of the recovery, and another in the recovery from that.
            if images % 5 == 0 {
                let second_at = dice.random_range(0..=recovery.len());
                let second = image(&bytes, &recovery, second_at, Unsynced::Torn, &mut dice);
                // By its proofs the first reopening may have ended quarantines and freed frames.
                let kept = Told { marks: [RunSet::new(), known.marks[1].clone(), known.marks[2].clone()], ..Told::default() };
                let again = check(&second, &kept, &format!("{what}, then at {second_at} of the recovery"));
                let third_at = dice.random_range(0..=again.len());
                let third = image(&second, &again, third_at, Unsynced::Torn, &mut dice);
                check(&third, &kept, &format!("{what}, then at {second_at}, then at {third_at}"));
                (images, cut_off) = (images + 2, cut_off + 2);
            }
        }
    }
    println!("{images} images, {cut_off} of them of recoveries");
    assert!(images >= 5000, "{images} images");
}
