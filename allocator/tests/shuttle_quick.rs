//! Conversions in a quiet GiB that is all one owner's, against whatever else may happen to it, in every order that shuttle's
//! schedulers can think of.
//!
//! `cargo test -p pageless --features shuttle --test shuttle_quick`
#![cfg(feature = "shuttle")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
mod interleaved;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use interleaved::{POLICY, act, at_once, explore_each_stop, settle};
use pageless::{
    Allocation, Cause, Convert, FRAME_BYTES, Mapping, MetadataOnly, Operation, Order, Pfn, PfnRange, Pool, Refusal, Refused,
    Request, Shareability, Stuck, Verdict,
};
use shuttle::sync::Mutex;
use shuttle::sync::atomic::{AtomicU64, Ordering};
use shuttle::thread;

/// The pool's first GiB is one owner's; the second has a few frames.
const GIB: u64 = Order::GIB1.frames();

fn run(start: u64, end: u64) -> PfnRange {
    PfnRange::new(Pfn::new(start), Pfn::new(end)).unwrap()
}

const fn pages(from: u64, to: u64) -> Range<u64> {
    from * FRAME_BYTES..to * FRAME_BYTES
}

/// A page table: the frames it maps, which are mapped under a map guard only.
#[derive(Default)]
struct Table {
    mapped: Mutex<BTreeSet<u64>>,
    /// The frame that gets stuck, for now; none is `u64::MAX`.
    stuck: AtomicU64,
}

impl Table {
    fn new() -> Arc<Self> {
        Arc::new(Self { mapped: Mutex::default(), stuck: AtomicU64::new(u64::MAX) })
    }

    fn reaches(&self, frames: PfnRange) -> bool {
        let mapped = self.mapped.lock().unwrap();
        mapped.range(frames.start().get()..frames.end().get()).next().is_some()
    }

    /// Maps the range through `ram`, if it may.
    fn fault(&self, ram: &Allocation, name: &str, range: Range<u64>) -> bool {
        let Ok(guard) = ram.map_guard(name, range) else { return false };
        thread::yield_now();
        let frames = guard.extents().iter().flat_map(|extent| extent.frames.iter().map(Pfn::get));
        self.mapped.lock().unwrap().extend(frames);
        true
    }
}

impl Mapping for Table {
    fn prepare(&self, _: &Operation) -> Result<(), Refusal> {
        thread::yield_now();
        Ok(())
    }

    fn invalidate(&self, _: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        thread::yield_now();
        let stuck = Pfn::new(self.stuck.load(Ordering::SeqCst).min(Pfn::LIMIT.get() - 1));
        if frames.contains(stuck) {
            let verdict = Verdict::Retry { after: Duration::ZERO };
            return Err(Stuck { at: PfnRange::single(stuck), verdict, cause: Cause::new("script", 1, "") });
        }
        self.mapped.lock().unwrap().retain(|pfn| !frames.contains(Pfn::new(*pfn)));
        Ok(())
    }
}

/// An owner of a GiB and `more` frames, which has converted before, with a page table named `ept`, and `free` frames.
fn world(more: u64, free: u64) -> (Pool, Arc<Allocation>, Arc<Table>) {
    let pool = Pool::builder().backing(MetadataOnly::new(run(0, GIB + more + free))).policy(POLICY).build().unwrap();
    let ram = pool.allocate(Request::bytes((GIB + more) * FRAME_BYTES).contiguous().owner("vm")).unwrap();
    let table = Table::new();
    ram.attach("ept", table.clone()).unwrap();
    ram.share(pages(8, 9)).unwrap();
    (pool, Arc::new(ram), table)
}

/// Loses a frame of the guest for now.
fn lose(ram: &Allocation, table: &Table, page: u64) {
    table.stuck.store(ram.frame(page * FRAME_BYTES).unwrap().get(), Ordering::SeqCst);
    ram.share(pages(page, page + 1)).unwrap_err();
    table.stuck.store(u64::MAX, Ordering::SeqCst);
}

#[test]
fn two_conversions_in_a_gib_are_both_done_or_one_is_busy() {
    explore_each_stop(|| {
        let (pool, ram, _) = world(0, 0);
        let overlapping = |to| act!([ram] assert!(matches!(ram.share(pages(9, to)), Ok(_) | Err(Convert::Busy { .. }))));
        at_once([overlapping(10), overlapping(12), act!([ram] assert!(ram.share(pages(512, 1024)).unwrap().changed()))]);
        settle(&pool);
        ram.share(pages(8, 12)).unwrap();
        assert_eq!(pool.stats().shared, 4 + 512);
    });
}

#[test]
fn a_frame_poisoned_at_any_moment_of_a_conversion_is_not_among_those_that_are_done() {
    for (from, to) in [(9, 10), (512, 1024), (600, 3000)] {
        explore_each_stop(move || {
            let (pool, ram, _) = world(0, 0);
            at_once([
                act!([ram, pool] match ram.share(pages(from, to)) {
                    Ok(shared) => assert_eq!(shared.frames().frames(), to - from),
                    Err(Convert::Torn { done, lost }) => {
                        assert!(!done.contains(Pfn::new(to - 1)));
                        assert_eq!((done.frames() + 1, lost.len()), (to - from, 1));
                    }
                    Err(Convert::Refused(Refused::Poisoned { .. })) => assert_eq!(pool.stats().shared, 1),
                    Err(other) => panic!("{other}"),
                }),
                act!([pool] pool.poison(run(to - 1, to), Cause::new("MCE", 1, ""))),
            ]);
            settle(&pool);
            assert_eq!(pool.stats().poisoned, 1);
            ram.share(pages(from, to)).unwrap_err();
        });
    }
}

#[test]
fn an_owner_that_dies_at_any_moment_of_a_conversion_gets_no_frame_twice() {
    explore_each_stop(|| {
        let (pool, ram, _) = world(0, 0);
        at_once([
            act!([ram] match ram.share(pages(9, 10)) {
                Ok(_) | Err(Convert::OwnerGone { .. } | Convert::Refused(_)) => {}
                Err(other) => panic!("{other}"),
            }),
            act!([pool] { assert_eq!(pool.owner_died("vm"), 1); drop(pool.reclaim()) }),
        ]);
        settle(&pool);
        drop(ram);
        pool.reclaim();
        assert_eq!(pool.stats().free, GIB);
        settle(&pool);
    });
}

/// The mapping's weak handle tells whether a list in a record still has it.
#[test]
fn no_list_is_left_behind_by_a_conversion_that_a_release_meets() {
    explore_each_stop(|| {
        let (pool, ram, table) = world(0, 0);
        let weak = Arc::downgrade(&table);
        drop(table);
        let other = ram.clone();
        at_once([
            Box::new(move || drop(ram.share(pages(9, 10)))),
            Box::new(move || {
                drop(other.release_range(pages(100, 101)));
                drop(other);
            }),
        ]);
        pool.reclaim();
        pool.reclaim();
        settle(&pool);
        assert_eq!(pool.stats().free, GIB);
        assert!(weak.upgrade().is_none());
    });
}

#[test]
fn whoever_is_attached_when_a_conversion_begins_is_asked() {
    explore_each_stop(|| {
        let (pool, ram, _) = world(0, 0);
        let late = Table::new();
        at_once([
            act!([ram, late] ram.attach("late", late).unwrap()),
            act!([ram, late] if late.fault(&ram, "late", pages(9, 10)) {
                assert!(ram.share(pages(9, 10)).unwrap().changed());
                assert!(!late.reaches(run(9, 10)), "mapped by one who was not asked");
            }),
        ]);
        settle(&pool);
    });
}

#[test]
fn a_mapping_is_detached_and_another_attached_and_each_is_asked_in_its_time() {
    explore_each_stop(|| {
        let (pool, ram, table) = world(0, 0);
        let (weak, next) = (Arc::downgrade(&table), Table::new());
        at_once([
            act!([ram, next] if ram.detach("ept").is_ok() {
                ram.attach("ept", next.clone()).unwrap();
                next.fault(&ram, "ept", pages(9, 11));
            }),
            act!([ram] drop(ram.share(pages(9, 10)))),
            act!([ram] drop(ram.share(pages(10, 11)))),
        ]);
        settle(&pool);
        drop(table);
        if ram.mappings().len() == 1 && weak.upgrade().is_some() {
            ram.detach("ept").unwrap();
        }
        ram.unshare(pages(9, 11)).ok();
        ram.share(pages(9, 11)).unwrap();
        assert!(weak.upgrade().is_none(), "a list in some record has it");
        assert!(!next.reaches(run(9, 11)));
    });
}

#[test]
fn nobody_maps_a_frame_between_its_proof_and_the_flip() {
    explore_each_stop(|| {
        let (pool, ram, table) = world(0, 0);
        at_once([
            act!([ram, table] if ram.share(pages(9, 10)).is_ok() {
                // Whoever maps it from now on finds it shared.
                assert_eq!(ram.shareability(9 * FRAME_BYTES), Ok(Shareability::Shared));
                table.mapped.lock().unwrap().clear();
            }),
            act!([ram, table] if let Ok(_guard) = ram.map_guard("ept", pages(9, 10)) {
                let before = ram.shareability(9 * FRAME_BYTES).unwrap();
                thread::yield_now();
                table.mapped.lock().unwrap().insert(9);
                assert_eq!(ram.shareability(9 * FRAME_BYTES).unwrap(), before, "changed under a guard");
            }),
        ]);
        settle(&pool);
    });
}

#[test]
fn a_conversion_and_a_replacement_in_its_gib_agree_on_the_frames() {
    explore_each_stop(|| {
        let (pool, ram, table) = world(0, 3);
        lose(&ram, &table, 20);
        at_once([
            act!([ram] { ram.replace(20 * FRAME_BYTES).unwrap(); }),
            act!([ram] assert!(ram.share(pages(9, 10)).unwrap().changed())),
            act!([ram] match ram.share(pages(20, 21)) {
                Ok(shared) => assert!(!shared.frames().contains(Pfn::new(20))),
                Err(Convert::Refused(Refused::Withdrawn { .. })) => {}
                Err(other) => panic!("{other}"),
            }),
        ]);
        settle(&pool);
        ram.share(pages(20, 21)).unwrap();
        assert_eq!(pool.stats().shared, 3);
    });
}

/// A frame is lost, replaced, proven, and then put in the place of another: all of the GiB is one owner's again.
#[test]
fn a_conversion_never_takes_a_frame_that_has_moved_to_another_offset() {
    explore_each_stop(|| {
        let (pool, ram, table) = world(1, 1);
        lose(&ram, &table, 20);
        at_once([
            act!([ram](0..4).for_each(|_| match ram.share(pages(20, 21)) {
                Ok(shared) => assert!(!shared.frames().contains(Pfn::new(20)), "that is behind another offset, or lost"),
                Err(Convert::Busy { .. } | Convert::Refused(Refused::Withdrawn { .. })) => {}
                Err(other) => panic!("{other}"),
            })),
            act!([pool, ram, table] {
                ram.replace(20 * FRAME_BYTES).unwrap();
                assert!(pool.retry(run(20, 21)).freed.contains(Pfn::new(20)));
                lose(&ram, &table, GIB);
                assert_eq!(ram.replace(GIB * FRAME_BYTES).unwrap().frame, Pfn::new(20));
            }),
        ]);
        settle(&pool);
        assert_eq!(ram.shareability(GIB * FRAME_BYTES), Ok(Shareability::Private), "nobody asked for that");
    });
}
