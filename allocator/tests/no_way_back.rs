//! I11: no translation is established on a converting or withdrawn frame.
//!
//! A page table of one bit per frame. Two threads fault frames in through map guards, as vCPUs do, while two others convert
//! a million times. Whenever the table has proven a run, a second mapping looks whether anything was mapped behind its back
//! until the flip.
//!
//! Kept by `map_guard` in guard.rs, which refuses what converts or is withdrawn, and by `drained` in pool.rs, which waits for
//! the guards that are out before anybody is asked.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod scripted;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pageless::{
    Allocation, Blocked, Cause, Convert, FRAME_BYTES, Mapping, MetadataOnly, Operation, PfnRange, Policy, Pool, Refusal, Refused,
    Request, Stuck, Verdict,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use scripted::{IMPATIENT, run};

const FRAMES: u64 = 512;
const CONVERSIONS: u64 = 1_000_000;
/// Every so many invalidations one is lost for good.
const LOSSES: u64 = 50_000;

/// Which frames can be reached.
struct Table(Vec<AtomicBool>);

impl Table {
    fn bits(&self, frames: PfnRange) -> &[AtomicBool] {
        let at = |pfn: pageless::Pfn| usize::try_from(pfn.get()).unwrap();
        &self.0[at(frames.start())..at(frames.end())]
    }

    fn reaches(&self, frames: PfnRange) -> bool {
        self.bits(frames).iter().any(|bit| bit.load(Ordering::SeqCst))
    }
}

impl Mapping for Table {
    fn prepare(&self, _: &Operation) -> Result<(), Refusal> {
        Ok(())
    }

    fn invalidate(&self, _: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        self.bits(frames).iter().for_each(|bit| bit.store(false, Ordering::SeqCst));
        Ok(())
    }
}

/// Asked after the table: whatever it finds was mapped after the proof and before the flip.
struct Watch {
    table: Arc<Table>,
    asked: AtomicU64,
}

impl Mapping for Watch {
    fn prepare(&self, _: &Operation) -> Result<(), Refusal> {
        Ok(())
    }

    fn invalidate(&self, op: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        let turn = self.asked.fetch_add(1, Ordering::Relaxed);
        // Now and then for longer, so that threads that were preempted between guard and table get their chance.
        for _ in 0..if turn.is_multiple_of(1000) { 2000 } else { 4 } {
            assert!(!self.table.reaches(frames), "{frames} was mapped in the middle of {}", op.intent);
            std::hint::spin_loop();
        }
        if turn % LOSSES == LOSSES - 1 {
            return Err(Stuck { at: frames, verdict: Verdict::Never, cause: Cause::new("watch", turn, "the script says so") });
        }
        Ok(())
    }
}

/// Converts frames of one half, back and forth.
fn convert(ram: &Allocation, first: u64, conversions: u64, left: &AtomicU64) {
    let mut dice = SmallRng::seed_from_u64(first);
    let mut done = 0;
    while done < conversions {
        let start = first + dice.random_range(0..FRAMES / 2);
        let range = start * FRAME_BYTES..(start + 1) * FRAME_BYTES;
        // Unless it was there already, this is one conversion.
        match if dice.random() { ram.share(range) } else { ram.unshare(range) } {
            Ok(converted) => done += u64::from(converted.changed()),
            Err(Convert::Busy { .. } | Convert::Torn { .. } | Convert::Refused(Refused::Withdrawn { .. })) => {}
            Err(other) => panic!("{other}"),
        }
    }
    left.fetch_sub(1, Ordering::SeqCst);
}

/// Maps frames through guards until nobody converts any more; returns how many.
fn fault(ram: &Allocation, table: &Table, seed: u64, left: &AtomicU64) -> u64 {
    let mut dice = SmallRng::seed_from_u64(seed);
    let mut faults = 0;
    while left.load(Ordering::SeqCst) > 0 {
        let start = dice.random_range(0..FRAMES);
        let end = (start + dice.random_range(1..4)).min(FRAMES);
        match ram.map_guard("ept", start * FRAME_BYTES..end * FRAME_BYTES) {
            Ok(guard) => {
                // Some faults take their time: that is when a conversion must wait.
                if dice.random_ratio(1, 8) {
                    (0..dice.random_range(0..1000)).for_each(|_| std::hint::spin_loop());
                }
                let bits = guard.extents().iter().flat_map(|extent| table.bits(extent.frames));
                bits.for_each(|bit| bit.store(true, Ordering::SeqCst));
                faults += 1;
            }
            Err(Blocked::Busy { .. } | Blocked::Refused(Refused::Withdrawn { .. })) => {}
            Err(other) => panic!("{other}"),
        }
    }
    faults
}

#[test]
fn nobody_maps_a_frame_in_the_middle_of_a_million_conversions() {
    let policy = Policy { guard_drain: std::time::Duration::from_millis(20), ..IMPATIENT };
    let pool = Pool::builder().backing(MetadataOnly::new(run(0, FRAMES))).policy(policy).build().unwrap();
    let ram = pool.allocate(Request::bytes(FRAMES * FRAME_BYTES).contiguous().owner("vm")).unwrap();
    let table = Arc::new(Table((0..FRAMES).map(|_| AtomicBool::new(false)).collect()));
    ram.attach("ept", table.clone()).unwrap();
    ram.attach("watch", Arc::new(Watch { table: table.clone(), asked: AtomicU64::new(0) })).unwrap();
    let left = AtomicU64::new(2);
    let faults: u64 = std::thread::scope(|threads| {
        let faulting = [7, 8].map(|seed| {
            threads.spawn({
                let (ram, table, left) = (&ram, &table, &left);
                move || fault(ram, table, seed, left)
            })
        });
        let converting = [0, FRAMES / 2].map(|first| {
            threads.spawn({
                let (ram, left) = (&ram, &left);
                move || convert(ram, first, CONVERSIONS / 2, left)
            })
        });
        // Whoever panics must not leave the others waiting for ever.
        let ended = converting.map(std::thread::ScopedJoinHandle::join);
        left.store(0, Ordering::SeqCst);
        ended.into_iter().for_each(|end| end.unwrap());
        faulting.map(|thread| thread.join().unwrap()).into_iter().sum()
    });
    assert!(faults > CONVERSIONS / 100, "only {faults} faults met {CONVERSIONS} conversions");
    let withdrawn = pool.withdrawn();
    assert!(withdrawn.len() >= 10, "{withdrawn:?}");
    for lost in withdrawn {
        assert!(!table.reaches(lost.frames), "{} was mapped after it had been withdrawn", lost.frames);
    }
    assert!(pool.verify().is_sound());
}
