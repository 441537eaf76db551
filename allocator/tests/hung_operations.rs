//! Operations that hang in a mapping: a sweep quarantines their frames, and whatever happened meanwhile, their late return
//! changes nothing and answers for every frame.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod scripted;

use std::time::Duration;

use pageless::{Cause, Convert, Intent, Lost, Pool, Refusal, Request, RunSet, Withdrawal};
use scripted::{Asked, Scripted, Shutter, World, books, pages, run, set, while_parked};

fn lost(runs: &[Lost]) -> RunSet {
    runs.iter().map(Lost::frames).collect()
}

/// Quarantines what is under way for longer than a moment.
fn sweep(pool: &Pool) -> Vec<Lost> {
    assert_eq!(pool.quarantine_hung(Duration::ZERO), [], "the first sweep only takes note");
    std::thread::sleep(Duration::from_millis(2));
    pool.quarantine_hung(Duration::from_millis(1))
}

#[test]
fn a_panic_of_a_mapping_under_reclaim_does_not_stop_the_pool() {
    let World { pool, ram, ept } = World::of(16);
    let other = Scripted::new();
    let _kept = {
        drop(ram);
        ept.panics_in_invalidate();
        other
    };
    let told = pool.reclaim();
    assert_eq!((told.freed, lost(&told.lost)), (RunSet::new(), set([(0, 16)])));
    assert_eq!(pool.retry(run(0, 16)).freed, set([(0, 16)]));
    assert_eq!(books(&pool).stats.free, 16);
}

#[test]
fn a_hung_operation_is_quarantined_and_its_late_return_changes_nothing() {
    let world = World::of(16);
    let host = world.also("host");
    let parked = world.ept.parks();
    let (late, (swept, before)) = while_parked(
        parked,
        || world.ram.share(pages(0, 8)),
        || {
            let swept = sweep(&world.pool);
            (swept, world.books())
        },
    );
    assert_eq!(lost(&swept), set([(0, 8)]));
    assert_eq!(swept[0].state(), Withdrawal::Quarantined);
    assert_eq!(world.books(), before, "the late return changed something");
    let Convert::Torn { done, lost: gone } = late.unwrap_err() else { panic!() };
    assert_eq!((done, lost(&gone)), (RunSet::new(), set([(0, 8)])));
    assert_eq!(host.asked(), [Asked::Prepare(Intent::Share, run(0, 8))], "nobody is asked for an operation that is over");
}

#[test]
fn a_sweep_spares_operations_that_are_young_or_new() {
    let world = World::of(16);
    let parked = world.ept.parks();
    let (shared, ()) = while_parked(
        parked,
        || world.ram.share(pages(0, 8)),
        || {
            assert_eq!(world.pool.quarantine_hung(Duration::ZERO), []);
            assert_eq!(world.pool.quarantine_hung(Duration::from_secs(3600)), []);
        },
    );
    assert!(shared.unwrap().changed());
    let parked = world.ept.parks();
    let (unshared, ()) = while_parked(
        parked,
        || world.ram.unshare(pages(0, 8)),
        || {
            assert_eq!(world.pool.quarantine_hung(Duration::ZERO), [], "another operation, first seen now");
        },
    );
    assert!(unshared.unwrap().changed());
}

#[test]
fn a_hung_operation_that_was_proven_meanwhile_comes_back_to_a_finished_conversion() {
    let world = World::of(16);
    let parked = world.ept.parks();
    let (late, before) = while_parked(
        parked,
        || world.ram.share(pages(0, 8)),
        || {
            sweep(&world.pool);
            assert_eq!(world.pool.retry(run(0, 8)).recovered, set([(0, 8)]));
            world.books()
        },
    );
    assert_eq!(world.books(), before);
    assert_eq!(*late.unwrap().frames(), set([(0, 8)]), "every frame is in exactly one field of the answer");
}

#[test]
fn a_hung_share_never_zeroes_memory_that_a_retry_has_given_back_to_the_guest() {
    let (pool, backing) = Shutter::pool(16, 1);
    let ram = pool.allocate(Request::bytes(16 * 4096).owner("vm")).unwrap();
    let ept = Scripted::new();
    ram.attach("ept", ept.clone()).unwrap();
    let parked = ept.parks();
    let (late, ()) = while_parked(
        parked,
        || ram.share(pages(0, 8)),
        || {
            sweep(&pool);
            pool.retry(run(0, 8));
            assert_eq!(backing.scrubbed(), set([(0, 8)]));
        },
    );
    late.unwrap();
    assert_eq!(backing.scrubbed(), RunSet::new(), "the guest uses these frames");
}

#[test]
fn a_hung_reclaim_never_punches_memory_that_somebody_else_got_meanwhile() {
    let (pool, backing) = Shutter::pool(16, 1);
    let ram = pool.allocate(Request::bytes(16 * 4096).owner("vm")).unwrap();
    let ept = Scripted::new();
    ram.attach("ept", ept.clone()).unwrap();
    drop(ram);
    let parked = ept.parks();
    let (late, next) = while_parked(
        parked,
        || pool.reclaim(),
        || {
            assert_eq!(lost(&sweep(&pool)), set([(0, 16)]));
            assert_eq!(pool.retry(run(0, 16)).freed, set([(0, 16)]));
            assert_eq!(backing.proven(), set([(0, 16)]));
            pool.allocate(Request::bytes(16 * 4096).owner("next")).unwrap()
        },
    );
    assert_eq!(late.freed, RunSet::new());
    assert_eq!(backing.proven(), RunSet::new(), "the next owner's memory");
    assert_eq!(books(&pool).stats.allocated, 16);
    drop(next);
}

#[test]
fn an_operation_that_hangs_in_prepare_asks_nobody_when_it_comes_back() {
    let world = World::of(16);
    let host = world.also("host");
    let parked = world.ept.parks_in_prepare();
    let (late, swept) = while_parked(parked, || world.ram.share(pages(0, 8)), || sweep(&world.pool));
    assert_eq!(lost(&swept), set([(0, 8)]));
    assert!(matches!(late.unwrap_err(), Convert::Torn { .. }));
    assert_eq!(world.ept.asked(), [Asked::Prepare(Intent::Share, run(0, 8))]);
    assert_eq!(host.asked(), [], "not even to prepare: the frames may be somebody else's by now");
}

#[test]
fn an_operation_that_hangs_in_a_prepare_that_refuses_says_what_it_lost() {
    let world = World::of(16);
    let host = world.also("host");
    host.refuses(Refusal::NoMemory);
    let parked = world.ept.parks_in_prepare();
    let (late, _) = while_parked(parked, || world.ram.share(pages(0, 8)), || sweep(&world.pool));
    let late = late.unwrap_err();
    assert!(matches!(&late, Convert::Torn { done, lost: gone } if done.is_empty() && lost(gone) == set([(0, 8)])), "{late}");
}

#[test]
fn poison_on_frames_of_a_hung_operation_leaves_the_others_in_its_answer() {
    let world = World::of(16);
    let parked = world.ept.parks();
    let (late, ()) = while_parked(
        parked,
        || world.ram.share(pages(0, 8)),
        || {
            sweep(&world.pool);
            world.pool.poison(run(3, 4), Cause::new("MCE", 0xbd, ""));
        },
    );
    let Convert::Torn { done, lost: gone } = late.unwrap_err() else { panic!() };
    assert_eq!((done, lost(&gone)), (RunSet::new(), set([(0, 8)])), "every frame is in exactly one field");
}
