//! What meets a converting range (docs/ARCHITECTURE.md): every meeting of two operations on one range.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod scripted;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use pageless::{
    Blocked, Cause, Convert, Intent, LiftRefused, Lost, Order, Pool, Refused, Request, RunSet, Shareability, Verdict, WaitingFor,
    Withdrawal,
};
use scripted::{IMPATIENT, NOT_NOW, Scripted, World, books, pages, run, set, while_parked};

/// What `verb` says while a share of the first 8 of 16 frames is parked inside the mapping; the share must not notice.
fn meets<R>(verb: impl FnOnce(&World) -> R) -> R {
    let world = World::of(16);
    let parked = world.ept.parks();
    let (shared, met) = while_parked(
        parked,
        || world.ram.share(pages(0, 8)),
        || {
            let before = world.books();
            let met = verb(&world);
            assert_eq!(world.books(), before, "whoever is refused changes nothing");
            met
        },
    );
    assert_eq!(*shared.unwrap().frames(), set([(0, 8)]));
    assert_eq!(world.books().stats.converting, 0);
    met
}

fn lost(runs: &[Lost]) -> RunSet {
    runs.iter().map(Lost::frames).collect()
}

#[test]
fn a_hold_on_a_converting_range_is_busy() {
    assert!(matches!(meets(|world| world.ram.hold(pages(7, 9), "nic").unwrap_err()), Blocked::Busy { .. }));
}

#[test]
fn a_map_guard_on_a_converting_range_is_busy() {
    assert!(matches!(meets(|world| drop(world.ram.map_guard("ept", pages(9, 16)))), ()), "the frames beside it are mapped");
    assert!(matches!(meets(|world| world.ram.map_guard("ept", pages(7, 9)).map(drop).unwrap_err()), Blocked::Busy { .. }));
}

#[test]
fn a_conversion_either_way_of_a_converting_range_is_busy() {
    assert!(matches!(meets(|world| world.ram.share(pages(0, 1)).unwrap_err()), Convert::Busy { .. }));
    assert!(matches!(meets(|world| world.ram.unshare(pages(7, 16)).unwrap_err()), Convert::Busy { .. }));
}

#[test]
fn a_partial_release_of_a_converting_range_is_busy() {
    assert!(matches!(meets(|world| world.ram.release_range(pages(4, 12)).unwrap_err()), Blocked::Busy { .. }));
}

#[test]
fn a_detach_while_any_frame_converts_is_busy() {
    let answer = meets(|world| world.ram.detach("ept").unwrap_err());
    assert!(matches!(answer, pageless::Detach::Blocked(Blocked::Busy { .. })), "{answer}");
}

#[test]
fn a_demotion_or_promotion_of_a_converting_block_is_busy() {
    let world = World::of(512);
    let parked = world.ept.parks();
    let (_, met) = while_parked(
        parked,
        || world.ram.share(pages(0, 512)),
        || {
            [
                world.ram.demote(4096, Order::BASE).unwrap_err(),
                world.ram.promote(0, Order::MIB2).unwrap_err(),
                world.ram.promotable(0, Order::MIB2).unwrap_err(),
                world.ram.max_mapping_order(0).unwrap_err(),
            ]
        },
    );
    met.iter().for_each(|answer| assert!(matches!(answer, Blocked::Busy { .. }), "{answer}"));
}

#[test]
fn a_conversion_of_a_block_that_is_being_promoted_is_busy() {
    let world = World::of(512);
    let parked = world.ept.parks_in_promote();
    let (promoted, met) =
        while_parked(parked, || world.ram.promote(0, Order::MIB2), || world.ram.share(pages(3, 4)).unwrap_err());
    promoted.unwrap();
    assert!(matches!(met, Convert::Busy { .. }));
}

#[test]
fn reclaim_and_retry_leave_a_converting_range_of_a_live_owner_alone() {
    let told = meets(|world| [world.pool.reclaim(), world.pool.retry(run(0, 16))]);
    told.iter().for_each(|told| assert_eq!(*told, pageless::Reclaimed::default()));
}

#[test]
fn a_reset_and_a_replacement_are_refused_while_a_guest_runs() {
    let [reset, replaced] = meets(|world| {
        [world.pool.platform_reset("kexec log"), world.pool.hardware_replaced(run(0, 8), "invoice 7")].map(Result::unwrap_err)
    });
    assert!(matches!(reset, LiftRefused::Live { live: 1, .. }));
    assert!(matches!(replaced, LiftRefused::Live { live: 1, .. }));
}

#[test]
fn a_sound_frame_that_converts_cannot_be_replaced() {
    assert_eq!(meets(|world| world.ram.replace(4096).unwrap_err()), Refused::NotLost { offset: 4096 }.into());
}

#[test]
fn poison_in_mid_conversion_is_recorded_and_its_frames_end_as_lost() {
    let world = World::of(16);
    let parked = world.ept.parks();
    let strike = || world.pool.poison(run(3, 5), Cause::new("MCE", 0xbd, "uncorrectable"));
    let (torn, fresh) = while_parked(parked, || world.ram.share(pages(0, 8)), strike);
    assert_eq!(fresh, set([(3, 5)]));
    let Convert::Torn { done, lost: gone } = torn.unwrap_err() else { panic!() };
    assert_eq!(done, set([(0, 3), (5, 8)]));
    assert_eq!(lost(&gone), set([(3, 5)]));
    assert_eq!((gone[0].state(), gone[0].retry_after()), (Withdrawal::Poisoned, None));
    assert_eq!(world.books().stats.poisoned, 2);
}

#[test]
fn a_frame_that_is_both_stuck_and_poisoned_is_told_as_poisoned() {
    let world = World::of(16);
    world.ept.sticks(run(2, 6), NOT_NOW);
    let parked = world.ept.parks();
    let strike = || world.pool.poison(run(3, 5), Cause::new("MCE", 0xbd, "uncorrectable"));
    let (torn, _) = while_parked(parked, || world.ram.share(pages(0, 8)), strike);
    let Convert::Torn { done, lost: gone } = torn.unwrap_err() else { panic!() };
    assert_eq!((done, lost(&gone)), (set([(0, 2), (6, 8)]), set([(2, 6)])));
    let states: Vec<_> = gone.iter().map(|lost| (lost.frames(), lost.state())).collect();
    use Withdrawal::{Poisoned, Quarantined};
    assert_eq!(states, [(run(2, 3), Quarantined), (run(3, 5), Poisoned), (run(5, 6), Quarantined)]);
    world.books();
}

#[test]
fn an_owner_may_die_under_its_conversion_and_the_flip_does_nothing() {
    let World { pool, ram, ept } = World::of(16);
    let parked = ept.parks();
    let (gone, died) = while_parked(
        parked,
        || ram.share(pages(0, 8)),
        || {
            let died = pool.owner_died("vm-42");
            let told = pool.reclaim();
            assert_eq!(told.freed, set([(8, 16)]), "the converting frames are not free yet");
            assert_eq!(told.waiting.len(), 1);
            assert_eq!((told.waiting[0].frames, &told.waiting[0].why), (run(0, 8), &WaitingFor::Operation));
            assert!(!pool.is_free(run(0, 8).start()));
            died
        },
    );
    assert_eq!(died, 1);
    assert_eq!(gone.unwrap_err(), Convert::OwnerGone { lost: Vec::new() });
    let stats = books(&pool).stats;
    assert_eq!((stats.released, stats.shared, stats.converting), (8, 0, 0));
    assert_eq!(pool.reclaim().freed, set([(0, 8)]));
    assert_eq!(pool.owner_died("vm-42"), 0);
    drop(ram);
    assert_eq!(books(&pool).stats.free, 16);
}

#[test]
fn an_owner_may_die_under_its_detach_and_the_frames_still_need_every_proof() {
    let World { pool, ram, ept } = World::of(16);
    let host = Scripted::new();
    ram.attach("host", host.clone()).unwrap();
    let parked = ept.parks();
    let (detached, _) = while_parked(parked, || ram.detach("ept").map(drop), || pool.owner_died("vm-42"));
    assert!(matches!(detached.unwrap_err(), pageless::Detach::OwnerGone { .. }));
    host.sticks(run(1, 2), Verdict::Never);
    let told = pool.reclaim();
    assert_eq!((told.freed, lost(&told.lost)), (set([(0, 1), (2, 16)]), set([(1, 2)])));
    books(&pool);
}

#[test]
fn a_panic_in_invalidate_quarantines_everything_that_was_not_proven() {
    let world = World::of(16);
    world.ram.share(pages(4, 6)).unwrap();
    world.ept.panics_in_invalidate();
    let panicked = catch_unwind(AssertUnwindSafe(|| world.ram.share(pages(0, 8))));
    assert!(panicked.is_err());
    let stats = world.books().stats;
    assert_eq!((stats.quarantined, stats.converting, stats.shared), (6, 0, 2), "4..6 was shared, and nobody was asked");
    let told = world.pool.retry(run(0, 16));
    assert_eq!(told.recovered, set([(0, 4), (6, 8)]));
    assert_eq!(world.books().stats.shared, 8);
}

#[test]
fn a_panic_in_prepare_quarantines_the_range_and_spares_the_rest() {
    let world = World::of(16);
    world.ept.panics_in_prepare();
    assert!(catch_unwind(AssertUnwindSafe(|| world.ram.share(pages(0, 8)))).is_err());
    let stats = world.books().stats;
    assert_eq!((stats.quarantined, stats.converting), (8, 0));
    assert!(world.ram.share(pages(8, 16)).is_ok());
    assert_eq!(world.pool.withdrawn()[0].cause.meaning, "a mapping panicked");
}

/// A world in which frames 2..4 of a share of 0..8 are quarantined.
fn quarantined() -> World {
    let world = World::of(16);
    world.ept.sticks(run(2, 4), NOT_NOW);
    world.ram.share(pages(0, 8)).unwrap_err();
    world
}

#[test]
fn a_later_proof_completes_the_conversion_of_a_live_owner() {
    let world = quarantined();
    assert_eq!(world.pool.retry(run(0, 16)).withdrawn, set([(2, 4)]), "asked about, and not proven");
    assert_eq!(world.pool.withdrawn()[0].attempts, 1);
    world.ept.heals();
    let told = world.pool.reclaim();
    assert_eq!((told.recovered, told.freed), (set([(2, 4)]), RunSet::new()));
    assert_eq!(world.ram.shareability(2 * 4096).unwrap(), Shareability::Shared);
    let stats = world.books().stats;
    assert_eq!((stats.quarantined, stats.shared), (0, 8));
    assert!(!world.ram.share(pages(0, 8)).unwrap().changed());
}

#[test]
fn a_later_proof_frees_the_frames_of_a_dead_owner() {
    let World { pool, ram, ept } = quarantined();
    drop(ram);
    let told = pool.reclaim();
    assert_eq!((told.freed, told.withdrawn), (set([(0, 2), (4, 16)]), set([(2, 4)])));
    assert_eq!(pool.withdrawn()[0].intent, Some(Intent::Reclaim), "nobody wants the conversion any more");
    ept.heals();
    let told = pool.reclaim();
    assert_eq!((told.freed, told.recovered), (set([(2, 4)]), RunSet::new()));
    assert_eq!(books(&pool).stats.free, 16);
    assert!(pool.allocate(Request::bytes(16 * 4096).owner("next")).is_ok());
}

#[test]
fn an_owner_that_dies_while_its_quarantine_is_asked_about_needs_the_larger_proof() {
    let World { pool, ram, ept } = quarantined();
    ept.heals();
    let parked = ept.parks();
    let (told, _) = while_parked(parked, || pool.retry(run(2, 4)), || pool.owner_died("vm-42"));
    assert!(told.recovered.is_empty() && !told.freed.contains(run(2, 3).start()), "that proof was for a conversion: {told:?}");
    assert_eq!(books(&pool).stats.quarantined, 2);
    assert!(pool.retry(run(2, 4)).freed.contains_range(run(2, 4)));
    drop(ram);
    books(&pool);
}

#[test]
fn a_verdict_of_never_on_retry_is_final_with_its_cause() {
    let World { pool, ram, ept } = quarantined();
    ept.heals();
    ept.sticks(run(3, 4), Verdict::Never);
    let told = pool.retry(run(0, 16));
    assert_eq!((told.recovered, lost(&told.lost)), (set([(2, 3)]), set([(3, 4)])));
    assert_eq!(told.lost[0].state(), Withdrawal::Failed);
    ept.heals();
    drop(ram);
    assert!(!pool.retry(run(0, 16)).freed.contains_range(run(3, 4)));
    assert_eq!(books(&pool).stats.failed, 1);
}

#[test]
fn two_retries_at_once_ask_about_a_run_once() {
    let world = quarantined();
    world.ept.heals();
    world.ept.asked();
    let parked = world.ept.parks();
    let (first, second) = while_parked(parked, || world.pool.retry(run(0, 16)), || world.pool.retry(run(0, 16)));
    assert_eq!((first.recovered, second.recovered), (set([(2, 4)]), RunSet::new()));
    assert_eq!(world.ept.invalidated(), [run(2, 4)]);
}

#[test]
fn a_mapping_detached_while_frames_were_quarantined_is_asked_about_them_whatever_they_wait_for() {
    let world = quarantined();
    let host = world.also("host");
    let detached = world.ram.detach("ept").unwrap();
    assert_eq!(*detached.still_asked_about(), set([(2, 4)]));
    assert_eq!(world.pool.retry(run(0, 16)).recovered, RunSet::new(), "the one that got stuck has not proven anything");
    assert_eq!(world.books().stats.quarantined, 2);
    world.ept.heals();
    assert_eq!(world.pool.retry(run(0, 16)).recovered, set([(2, 4)]));
    assert!(host.invalidated().contains(&run(2, 4)));
}

#[test]
fn a_guard_that_is_dropped_in_time_lets_the_operation_go_on() {
    let world = World::of(16);
    let policy = pageless::Policy { guard_drain: Duration::from_secs(20), ..IMPATIENT };
    let pool = Pool::builder().backing(pageless::MetadataOnly::new(run(0, 16))).policy(policy).build().unwrap();
    let ram = pool.allocate(Request::bytes(16 * 4096).owner("vm")).unwrap();
    ram.attach("ept", world.ept.clone()).unwrap();
    let guard = ram.map_guard("ept", pages(0, 4)).unwrap();
    let began = Instant::now();
    std::thread::scope(|threads| {
        let sharing = threads.spawn(|| ram.share(pages(0, 8)).map(|_| began.elapsed()));
        while books(&pool).stats.converting == 0 {
            std::thread::yield_now();
        }
        assert!(matches!(ram.map_guard("ept", pages(4, 8)), Err(Blocked::Busy { .. })), "marked: no new guards");
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(world.ept.asked(), [], "nobody is asked while a guard is out");
        drop(guard);
        assert!(sharing.join().unwrap().unwrap() >= Duration::from_millis(20));
    });
    assert_eq!(world.ept.invalidated(), [run(0, 8)]);
}

#[test]
fn a_guard_on_released_frames_keeps_reclaim_waiting() {
    let World { pool, ram, .. } = World::of(16);
    let guard = ram.map_guard("ept", pages(0, 4)).unwrap();
    pool.owner_died("vm-42");
    let told = pool.reclaim();
    assert_eq!(told.freed, RunSet::new());
    assert!(told.waiting.iter().all(|waiting| waiting.why == WaitingFor::Operation), "{told:?}");
    drop(guard);
    assert_eq!(pool.reclaim().freed, set([(0, 16)]));
    drop(ram);
}

#[test]
fn a_hold_outlives_its_owner_and_keeps_the_frames_from_reclaim() {
    let World { pool, ram, .. } = World::of(16);
    let hold = ram.hold(pages(0, 4), "nic").unwrap();
    drop(ram);
    assert_eq!(pool.reclaim().freed, set([(4, 16)]));
    drop(hold);
    assert_eq!(pool.reclaim().freed, set([(0, 4)]));
}

#[test]
fn a_name_that_is_attached_again_while_its_detach_ends_stays_attached() {
    let world = World::of(16);
    let parked = world.ept.parks();
    let (detached, second) = while_parked(
        parked,
        || world.ram.detach("ept"),
        || {
            let second = world.ram.attach("ept", Scripted::new());
            second.unwrap_err()
        },
    );
    assert!(detached.is_ok());
    assert_eq!(second, Refused::NameTaken { name: "ept".into() });
    world.ram.attach("ept", Scripted::new()).unwrap();
    assert_eq!(world.ram.mappings().len(), 1);
}

#[test]
fn a_mapping_attached_in_mid_conversion_can_map_only_what_is_beside_it() {
    let world = World::of(16);
    let parked = world.ept.parks();
    let (shared, host) = while_parked(
        parked,
        || world.ram.share(pages(0, 8)),
        || {
            let host = world.also("host");
            assert!(matches!(world.ram.map_guard("host", pages(7, 8)), Err(Blocked::Busy { .. })));
            drop(world.ram.map_guard("host", pages(8, 9)).unwrap());
            host
        },
    );
    shared.unwrap();
    assert_eq!(host.asked(), []);
}

#[test]
fn a_frame_that_replaces_another_during_a_detach_keeps_the_mapping_attached() {
    let pool = Pool::builder().backing(pageless::MetadataOnly::new(run(0, 9))).policy(IMPATIENT).build().unwrap();
    let ram = pool.allocate(Request::bytes(8 * 4096).owner("vm")).unwrap();
    let (ept, host) = (Scripted::new(), Scripted::new());
    ram.attach("ept", ept.clone()).unwrap();
    ram.attach("host", host.clone()).unwrap();
    ept.sticks(run(3, 4), Verdict::Never);
    ram.share(pages(3, 4)).unwrap_err();
    let (detached, fresh) = while_parked(
        host.parks(),
        || ram.detach("host"),
        || {
            let fresh = ram.replace(3 * 4096).unwrap().frame;
            // The mapping may translate to the new frame now, and the detach will not ask it about that.
            drop(ram.map_guard("host", pages(3, 4)).unwrap());
            fresh
        },
    );
    assert!(matches!(detached, Err(pageless::Detach::Blocked(Blocked::Busy { .. }))), "{detached:?}");
    assert_eq!(ram.mappings().len(), 2);
    ram.detach("host").unwrap();
    assert!(host.invalidated().iter().any(|asked| asked.contains(fresh)), "{fresh} needs its proof too");
    assert_eq!(ram.mappings().len(), 1);
}
