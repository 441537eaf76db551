//! I1: a frame is handed out only when it is free and sound.

use pageless::{Allocation, Cause, PfnRange, Pool, Request, RunSet, Verdict};

use crate::scripted::{Shutter, World, books, pages, pool_of, run, set};

/// Everything that the pool still hands out, frame by frame.
fn handed_out(pool: &Pool) -> (RunSet, Vec<Allocation>) {
    let taken: Vec<Allocation> = std::iter::from_fn(|| pool.allocate(Request::bytes(4096).owner("greedy")).ok()).collect();
    let frames = taken.iter().flat_map(|one| one.extents()).map(|extent| extent.frames).collect();
    (frames, taken)
}

/// Kept by `finish` in operation.rs: only `Ended::Done` of a reclaim puts frames back.
#[test]
fn frames_that_got_stuck_never_come_back_and_their_neighbours_do() {
    let World { pool, ram, ept } = World::of(32);
    ept.sticks(run(3, 5), Verdict::Never);
    ept.sticks(run(10, 11), crate::scripted::NOT_NOW);
    drop(ram.share(pages(0, 16)));
    drop(ram);
    pool.reclaim();
    let (frames, _taken) = handed_out(&pool);
    assert_eq!(frames, set([(0, 3), (5, 10), (11, 32)]));
    books(&pool);
}

/// Kept by `take_out` in poison.rs: a free frame that is poisoned leaves the frame layer.
#[test]
fn a_free_frame_that_is_poisoned_is_not_handed_out() {
    let pool = pool_of(32);
    pool.poison(run(7, 9), Cause::new("MCE", 1, ""));
    let (frames, _taken) = handed_out(&pool);
    assert_eq!(frames, set([(0, 7), (9, 32)]));
    books(&pool);
}

/// Kept by `split_by_withdrawal` in `Gib::complete` and in `Gib::reclaimable`: what is poisoned is not carried out.
#[test]
fn a_frame_poisoned_under_its_owner_is_not_handed_to_the_next() {
    let World { pool, ram, .. } = World::of(32);
    pool.poison(run(7, 9), Cause::new("MCE", 1, ""));
    drop(ram);
    assert_eq!(pool.reclaim().withdrawn, set([(7, 9)]));
    let (frames, _taken) = handed_out(&pool);
    assert_eq!(frames, set([(0, 7), (9, 32)]));
}

/// Kept by `split_by_withdrawal` in `Gib::complete`: the proof comes, and the mark that came before it counts.
#[test]
fn a_frame_poisoned_in_mid_reclaim_is_not_freed_by_the_proof() {
    let World { pool, ram, ept } = World::of(32);
    drop(ram);
    let parked = ept.parks();
    let strike = || pool.poison(run(7, 9), Cause::new("MCE", 1, ""));
    let (told, _) = crate::scripted::while_parked(parked, || pool.reclaim(), strike);
    assert_eq!(told.freed, set([(0, 7), (9, 32)]));
    assert_eq!(told.lost.iter().map(pageless::Lost::frames).collect::<RunSet>(), set([(7, 9)]));
    let (frames, _taken) = handed_out(&pool);
    assert_eq!(frames, set([(0, 7), (9, 32)]));
}

/// Kept by `assign` in pool.rs, which looks again under the locks.
#[test]
fn a_frame_poisoned_between_being_taken_and_being_assigned_is_not_handed_out() {
    let (pool, backing) = Shutter::pool(16, 1);
    backing.strikes_in_commit(run(2, 4));
    let ram = pool.allocate(Request::bytes(8 * 4096).owner("vm")).unwrap();
    assert!(ram.extents().iter().all(|extent| !extent.frames.overlaps(run(2, 4))), "{:?}", ram.extents());
    let stats = books(&pool).stats;
    assert_eq!((stats.allocated, stats.free, stats.poisoned), (8, 6, 2));
}

/// Kept by `swap` in replace.rs, which looks again under the lock.
#[test]
fn a_replacement_poisoned_between_being_taken_and_being_assigned_gives_way_to_another() {
    let (pool, backing) = Shutter::pool(16, 1);
    let ram = pool.allocate(Request::bytes(8 * 4096).owner("vm")).unwrap();
    let lost = ram.frame(0).unwrap();
    pool.poison(PfnRange::single(lost), Cause::new("MCE", 1, ""));
    let next = pool.allocate(Request::bytes(4096).owner("shows which comes next")).unwrap().frame(0).unwrap();
    pool.reclaim();
    backing.strikes_in_commit(PfnRange::single(next));
    let replaced = ram.replace(0).unwrap();
    assert_ne!(replaced.frame, next);
    assert_eq!(pool.explain(replaced.frame).unwrap().state.withdrawal(), None);
    assert_eq!(books(&pool).stats.poisoned, 2);
}

/// Kept by `swap` in replace.rs, which takes from the frame layer only: a lost frame is never put there.
#[test]
fn a_replacement_is_never_a_frame_that_was_lost_before() {
    let pool = pool_of(4);
    let ram = pool.allocate(Request::bytes(2 * 4096).owner("vm")).unwrap();
    for _ in 0..2 {
        pool.poison(run(0, 1), Cause::new("MCE", 1, ""));
        let first = ram.frame(0).unwrap();
        pool.poison(run(first.get(), first.get() + 1), Cause::new("MCE", 1, ""));
        let replaced = ram.replace(0).unwrap();
        assert_eq!(replaced.lost, first);
        assert!(pool.explain(replaced.frame).unwrap().state.withdrawal().is_none());
    }
    pool.poison(run(ram.frame(0).unwrap().get(), ram.frame(0).unwrap().get() + 1), Cause::new("MCE", 1, ""));
    assert_eq!(ram.replace(0).unwrap_err(), pageless::Refused::NoFrame { offset: 0 }.into());
    books(&pool);
}
