//! Verbs that meet on one range, in every order that shuttle's schedulers can think of: nobody waits for ever, no frame is
//! in two places, and the books agree in the end.
//!
//! `cargo test -p pageless --features shuttle --test shuttle_pool`
#![cfg(feature = "shuttle")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]
#![allow(clippy::cast_possible_truncation, reason = "eight frames")]

mod interleaved;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use interleaved::{POLICY, act, at_once, explore, settle};
use pageless::{
    Allocation, Blocked, Cause, Convert, FRAME_BYTES, Mapping, MetadataOnly, Operation, Order, Pfn, PfnRange, Pool, Refusal,
    Request, RunSet, Stuck, Verdict,
};
use shuttle::rand::Rng;
use shuttle::sync::atomic::{AtomicBool, Ordering};
use shuttle::thread;

/// The pool straddles the border of two GiBs, so that most operations need the locks of both.
const FIRST: u64 = Order::GIB1.frames() - 4;
const FRAMES: u64 = 8;

fn run(start: u64, end: u64) -> PfnRange {
    PfnRange::new(Pfn::new(FIRST + start), Pfn::new(FIRST + end)).unwrap()
}

const fn pages(from: u64, to: u64) -> Range<u64> {
    from * FRAME_BYTES..to * FRAME_BYTES
}

/// A page table: one bit per frame, set under a map guard only.
#[derive(Default)]
struct Table {
    mapped: [AtomicBool; FRAMES as usize],
    /// Frames that get stuck, counted from the first.
    stuck: Option<(u64, Verdict)>,
    stuck_once: AtomicBool,
    /// Asked after the real one: finds whatever was mapped behind its back.
    watches: Option<Arc<Table>>,
}

impl Table {
    fn map(&self, frames: impl IntoIterator<Item = Pfn>) {
        for pfn in frames {
            thread::yield_now();
            self.mapped[(pfn.get() - FIRST) as usize].store(true, Ordering::SeqCst);
        }
    }

    fn reaches(&self, frames: PfnRange) -> bool {
        frames.iter().any(|pfn| self.mapped[(pfn.get() - FIRST) as usize].load(Ordering::SeqCst))
    }
}

impl Mapping for Table {
    fn prepare(&self, _: &Operation) -> Result<(), Refusal> {
        thread::yield_now();
        Ok(())
    }

    fn invalidate(&self, _: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        thread::yield_now();
        if let Some(watched) = &self.watches {
            assert!(!watched.reaches(frames), "{frames} was mapped after it had been proven unreachable");
        }
        if let Some((at, verdict)) = &self.stuck
            && frames.contains(Pfn::new(FIRST + at))
            && !self.stuck_once.swap(true, Ordering::SeqCst)
        {
            let at = PfnRange::single(Pfn::new(FIRST + at));
            return Err(Stuck { at, verdict: verdict.clone(), cause: Cause::new("script", 1, "") });
        }
        frames.iter().for_each(|pfn| self.mapped[(pfn.get() - FIRST) as usize].store(false, Ordering::SeqCst));
        Ok(())
    }
}

fn pool() -> Pool {
    Pool::builder().backing(MetadataOnly::new(run(0, FRAMES))).policy(POLICY).build().unwrap()
}

fn owner(pool: &Pool, name: &str, frames: u64) -> Arc<Allocation> {
    Arc::new(pool.allocate(Request::bytes(frames * FRAME_BYTES).owner(name)).unwrap())
}

/// A pool whose one owner has all frames, with a page table named `ept`.
fn world() -> (Pool, Arc<Allocation>, Arc<Table>) {
    let pool = pool();
    let ram = owner(&pool, "vm", FRAMES);
    let table = Arc::new(Table::default());
    ram.attach("ept", table.clone()).unwrap();
    (pool, ram, table)
}

#[test]
fn overlapping_shares_are_done_or_busy_and_nothing_between() {
    explore(|| {
        let (pool, ram, _) = world();
        at_once([
            act!([ram] assert!(matches!(ram.share(pages(0, 6)), Ok(_) | Err(Convert::Busy { .. })))),
            act!([ram] assert!(matches!(ram.share(pages(2, 8)), Ok(_) | Err(Convert::Busy { .. })))),
            act!([ram] assert!(matches!(ram.unshare(pages(3, 5)), Ok(_) | Err(Convert::Busy { .. })))),
        ]);
        settle(&pool);
        assert!(ram.share(pages(0, 8)).is_ok());
        assert_eq!(pool.stats().shared, 8);
    });
}

#[test]
fn an_owner_may_die_at_any_moment_of_a_share_and_everything_comes_back() {
    explore(|| {
        let (pool, ram, _) = world();
        at_once([
            act!([ram] drop(ram.share(pages(1, 7)))),
            act!([pool] assert_eq!(pool.owner_died("vm"), 1)),
            act!([pool] drop(pool.reclaim())),
        ]);
        settle(&pool);
        drop(ram);
        pool.reclaim();
        assert_eq!(pool.stats().free, FRAMES);
    });
}

#[test]
fn the_last_handle_may_be_dropped_by_whoever_finishes_last() {
    explore(|| {
        let (pool, ram, _) = world();
        let other = ram.clone();
        at_once([
            Box::new(move || drop(ram.share(pages(1, 7)))),
            Box::new(move || drop(other)),
            act!([pool] drop(pool.reclaim())),
        ]);
        settle(&pool);
        pool.reclaim();
        assert_eq!(pool.stats().free, FRAMES);
    });
}

#[test]
fn nobody_maps_a_frame_between_its_proof_and_the_flip() {
    explore(|| {
        let (pool, ram, table) = world();
        ram.attach("watch", Arc::new(Table { watches: Some(table.clone()), ..Table::default() })).unwrap();
        let fault = |from, to| {
            let (ram, table) = (ram.clone(), table.clone());
            Box::new(move || {
                if let Ok(guard) = ram.map_guard("ept", pages(from, to)) {
                    guard.extents().iter().for_each(|extent| table.map(extent.frames.iter()));
                }
            })
        };
        at_once([act!([ram] drop(ram.share(pages(1, 7)))), fault(3, 5), fault(0, 8)]);
        settle(&pool);
    });
}

#[test]
fn nobody_maps_through_a_mapping_that_was_detached() {
    explore(|| {
        let (pool, ram, table) = world();
        let result = Arc::new(AtomicBool::new(false));
        at_once([
            act!([ram, result] if ram.detach("ept").is_ok() { result.store(true, Ordering::SeqCst) }),
            act!([ram, table] if let Ok(guard) = ram.map_guard("ept", pages(2, 6)) {
                guard.extents().iter().for_each(|extent| table.map(extent.frames.iter()));
            }),
            act!([ram] drop(ram.share(pages(4, 8)))),
        ]);
        settle(&pool);
        if result.load(Ordering::SeqCst) {
            assert!(!table.reaches(run(0, FRAMES)), "reachable through a mapping that nobody will ask again");
        }
    });
}

#[test]
fn a_detach_never_takes_off_another_mapping_that_got_its_name() {
    explore(|| {
        let (pool, ram, _) = world();
        let second = Arc::new(Table::default());
        at_once([
            act!([ram] drop(ram.detach("ept"))),
            act!([ram, second] if ram.detach("ept").is_ok()
                && ram.attach("ept", second.clone()).is_ok()
                && let Ok(guard) = ram.map_guard("ept", pages(0, 2))
            {
                guard.extents().iter().for_each(|extent| second.map(extent.frames.iter()));
            }),
        ]);
        settle(&pool);
        if second.reaches(run(0, FRAMES)) {
            assert_eq!(ram.mappings().len(), 1, "mapped, and nobody will ask");
        }
    });
}

#[test]
fn a_frame_poisoned_while_it_is_allocated_is_never_handed_out_as_sound() {
    explore(|| {
        let pool = pool();
        let strike = run(2, 4);
        at_once([
            act!([pool] drop(pool.poison(strike, Cause::new("MCE", 1, "")))),
            act!([pool] if let Ok(ram) = pool.allocate(Request::bytes(4 * FRAME_BYTES).owner("a")) {
                let _owns_it_from_before = ram.share(pages(0, 4));
            }),
            act!([pool] drop(pool.allocate(Request::bytes(4 * FRAME_BYTES).owner("b")))),
        ]);
        settle(&pool);
        pool.reclaim();
        settle(&pool);
        assert_eq!(pool.stats().poisoned, 2);
        assert!(strike.iter().all(|pfn| !pool.is_free(pfn)));
        let rest = pool.allocate(Request::bytes(6 * FRAME_BYTES).owner("c")).unwrap();
        assert!(rest.extents().iter().all(|extent| !extent.frames.overlaps(strike)));
    });
}

#[test]
fn what_is_held_is_not_reclaimed_however_the_two_meet() {
    explore(|| {
        let (pool, ram, _) = world();
        at_once([
            act!([pool, ram] if let Ok(hold) = ram.hold(pages(2, 4), "nic") {
                thread::yield_now();
                assert!(run(2, 4).iter().all(|pfn| !pool.is_free(pfn)), "freed under a hold");
                drop(hold);
            }),
            act!([pool] { pool.owner_died("vm"); drop(pool.reclaim()) }),
            act!([pool] drop(pool.reclaim())),
        ]);
        settle(&pool);
        pool.reclaim();
        assert_eq!(pool.stats().free, FRAMES);
    });
}

/// A world of 6 frames for the owner and 2 free ones, in which frame 1 is lost.
fn wounded() -> (Pool, Arc<Allocation>) {
    let pool = pool();
    let ram = owner(&pool, "vm", 6);
    ram.attach("ept", Arc::new(Table { stuck: Some((1, Verdict::Retry { after: Duration::ZERO })), ..Table::default() }))
        .unwrap();
    ram.share(pages(0, 4)).unwrap_err();
    (pool, ram)
}

#[test]
fn a_replacement_and_a_share_of_the_same_range_agree_on_the_frames() {
    explore(|| {
        let (pool, ram) = wounded();
        at_once([
            act!([ram] { ram.replace(FRAME_BYTES).unwrap(); }),
            act!([ram] match ram.share(pages(0, 6)) {
                Ok(_) | Err(Convert::Busy { .. } | Convert::Refused(pageless::Refused::Withdrawn { .. })) => {}
                Err(other) => panic!("{other}"),
            }),
            act!([pool] assert!(pool.verify().is_sound(), "{:?}", pool.verify().faults)),
        ]);
        settle(&pool);
        assert!(ram.share(pages(0, 6)).is_ok());
    });
}

#[test]
fn a_replacement_under_a_dying_owner_leaves_no_frame_behind() {
    explore(|| {
        let (pool, ram) = wounded();
        at_once([
            act!([ram] drop(ram.replace(FRAME_BYTES))),
            act!([pool] assert_eq!(pool.owner_died("vm"), 1)),
            act!([pool] drop(pool.retry(run(0, FRAMES)))),
        ]);
        settle(&pool);
        drop(ram);
        pool.retry(run(0, FRAMES));
        assert_eq!(pool.stats().free, FRAMES, "{:?}", pool.stretches());
    });
}

#[test]
fn an_owner_that_released_a_part_before_is_remembered_until_its_last_frame_is_free() {
    explore(|| {
        let (pool, ram, _) = world();
        ram.release_range(pages(0, 2)).unwrap();
        at_once([
            act!([pool] drop(pool.reclaim())),
            act!([pool] {
                // The end of a pass is far from its beginning.
                (0..shuttle::rand::thread_rng().gen_range(0..80)).for_each(|_| thread::yield_now());
                assert_eq!(pool.owner_died("vm"), 1)
            }),
        ]);
        settle(&pool);
        drop(ram);
        pool.reclaim();
        assert_eq!(pool.stats().free, FRAMES);
    });
}

#[test]
fn operations_in_opposite_guest_order_never_wait_for_each_other_in_a_circle() {
    explore(|| {
        let (pool, ram) = wounded();
        // Frame 1 gives way to one of the upper GiB, so the guest meets the GiBs in the order lower, upper, lower, upper.
        ram.replace(FRAME_BYTES).unwrap();
        at_once([
            act!([ram] drop(ram.share(pages(0, 6)))),
            act!([ram] drop(ram.hold(pages(1, 3), "nic"))),
            act!([pool] assert!(pool.verify().is_sound())),
            act!([ram] drop(ram.share(pages(1, 3)))),
        ]);
        settle(&pool);
    });
}

#[test]
fn the_books_agree_at_every_moment_of_allocating_and_freeing() {
    explore(|| {
        let pool = pool();
        let cycle = |name: &'static str, frames| {
            act!([pool] {
                if let Ok(ram) = pool.allocate(Request::bytes(frames * FRAME_BYTES).owner(name)) {
                    drop(ram);
                }
                drop(pool.reclaim())
            })
        };
        at_once([cycle("a", 5), cycle("b", 3), act!([pool] assert!(pool.verify().is_sound(), "{:?}", pool.verify().faults))]);
        settle(&pool);
        pool.reclaim();
        assert_eq!(pool.stats().free, FRAMES);
    });
}

#[test]
fn a_sweep_for_hung_operations_leaves_every_frame_in_one_field_of_the_answer() {
    explore(|| {
        let (pool, ram, _) = world();
        at_once([
            act!([ram] {
                let answered = match ram.share(pages(0, 8)) {
                    Ok(shared) => shared.frames().clone(),
                    Err(Convert::Torn { mut done, lost }) => {
                        let gone: RunSet = lost.iter().map(pageless::Lost::frames).collect();
                        assert!(done.intersection(&gone).is_empty());
                        done.extend(&gone);
                        done
                    }
                    Err(other) => panic!("{other}"),
                };
                assert_eq!(answered, RunSet::from(run(0, 8)))
            }),
            act!([pool] { pool.quarantine_hung(Duration::ZERO); drop(pool.quarantine_hung(Duration::ZERO)) }),
            act!([pool] drop(pool.retry(run(0, 8)))),
        ]);
        settle(&pool);
        pool.retry(run(0, 8));
        assert_eq!(pool.stats().shared, 8);
    });
}

#[test]
fn a_quarantine_of_a_dying_owner_comes_back_by_proof_once() {
    explore(|| {
        let (pool, ram) = wounded();
        at_once([
            act!([pool] drop(pool.retry(run(0, FRAMES)))),
            act!([pool] drop(pool.reclaim())),
            act!([pool] assert_eq!(pool.owner_died("vm"), 1)),
        ]);
        settle(&pool);
        drop(ram);
        pool.retry(run(0, FRAMES));
        assert_eq!(pool.stats().free, FRAMES);
    });
}

#[test]
fn a_frame_whose_memory_is_replaced_while_it_is_handed_out_has_one_owner() {
    explore(|| {
        let pool = pool();
        let take = |name: &'static str| {
            act!([pool] if let Ok(ram) = pool.allocate(Request::bytes(3 * FRAME_BYTES).owner(name)) {
                std::mem::forget(ram);
            })
        };
        at_once([
            take("a"),
            act!([pool] { pool.poison(run(0, 2), Cause::new("MCE", 1, "")); drop(pool.hardware_replaced(run(0, 2), "invoice")) }),
            take("b"),
        ]);
        settle(&pool);
    });
}

#[test]
fn a_request_that_cannot_be_met_takes_nothing_from_those_that_can() {
    explore(|| {
        let node = |node, start, end| pageless::NodeFrames { node, frames: run(start, end) };
        let pool = Pool::builder().backing(MetadataOnly::with_nodes([node(0, 0, 4), node(1, 4, 8)])).build().unwrap();
        at_once([
            act!([pool] assert!(pool.allocate(Request::bytes(9 * FRAME_BYTES).owner("greedy")).is_err())),
            act!([pool] assert!(pool.allocate(Request::bytes(FRAME_BYTES).owner("modest")).is_ok())),
        ]);
        settle(&pool);
    });
}

#[test]
fn a_hold_and_a_share_never_both_have_a_frame() {
    explore(|| {
        let (pool, ram, _) = world();
        at_once([
            act!([pool, ram] if let Ok(_hold) = ram.hold(pages(3, 5), "nic") {
                assert_eq!(pool.explain(Pfn::new(FIRST + 4)).unwrap().state.converting, None);
            }),
            act!([ram] assert!(matches!(ram.share(pages(0, 8)), Ok(_) | Err(Convert::Busy { .. } | Convert::Held { .. } | Convert::Refused(_))))),
            act!([ram] assert!(matches!(ram.release_range(pages(4, 5)), Ok(_) | Err(Blocked::Busy { .. } | Blocked::Held { .. })))),
        ]);
        settle(&pool);
    });
}

#[test]
fn whoever_only_looks_never_stands_in_anybodys_way() {
    explore(|| {
        let (pool, ram) = wounded();
        at_once([
            act!([pool, ram] {
                drop((pool.explain(Pfn::new(FIRST + 1)), pool.withdrawn(), pool.stretches(), pool.footprint()));
                drop((ram.plan(pages(0, 6), pageless::Intent::Share), ram.max_mapping_order(0)));
                assert_eq!(pool.stats().frames, FRAMES)
            }),
            act!([pool] drop(pool.retry(run(0, FRAMES)))),
            act!([pool] { pool.poison(run(1, 2), Cause::new("MCE", 1, "")); pool.owner_died("vm") }),
        ]);
        settle(&pool);
    });
}
