//! The answers of docs/GLOSSARY.md, row by row: what the caller learns, what it is over the C ABI, and that "unchanged" is
//! true of everything anyone can see.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod scripted;

use std::collections::BTreeSet;
use std::time::Duration;

use pageless::{
    AllocateError, Backing, Blocked, Cause, Convert, Detach, HolderId, Identity, Intent, MetadataOnly, NodeFrames, Operation,
    Pfn, PfnRange, Pool, ProofScope, Refusal, Refused, Request, Shareability, Shortage, Stuck, Verdict, WaitingFor, Withdrawal,
};
use scripted::{Asked, NOT_NOW, Parked, World, books, pages, pool_of, run, set, while_parked};

const EPERM: i32 = 1;
const EIO: i32 = 5;
const EAGAIN: i32 = 11;
const ENOMEM: i32 = 12;
const EBUSY: i32 = 16;
const EINVAL: i32 = 22;
const ERANGE: i32 = 34;
const EOPNOTSUPP: i32 = 95;
const ESTALE: i32 = 116;
const EUCLEAN: i32 = 117;
const EHWPOISON: i32 = 133;

/// Asserts that `share` of the pages is answered so, and that neither the answer nor asking changed anything.
fn unchanged(world: &World, pages: std::ops::Range<u64>) -> Convert {
    let before = world.books();
    let answer = world.ram.share(pages).unwrap_err();
    assert_eq!(world.books(), before, "{answer} must leave everything as it was");
    answer
}

#[test]
fn a_share_converts_every_frame_and_says_which() {
    let world = World::of(16);
    let shared = world.ram.share(pages(4, 12)).unwrap();
    assert!(shared.changed());
    assert_eq!(*shared.frames(), set([(4, 12)]));
    let expected = |page| if (4..12).contains(&page) { Shareability::Shared } else { Shareability::Private };
    for page in 0..16 {
        assert_eq!(world.ram.shareability(page * 4096).unwrap(), expected(page), "page {page}");
    }
    assert_eq!(world.books().stats.shared, 8);
}

#[test]
fn what_is_already_so_is_answered_without_asking_anybody() {
    let world = World::of(16);
    world.ram.share(pages(0, 8)).unwrap();
    world.ept.asked();
    let before = world.books();
    let again = world.ram.share(pages(2, 6)).unwrap();
    assert!(!again.changed());
    assert_eq!(*again.frames(), set([(2, 6)]));
    assert_eq!(world.ept.asked(), []);
    assert_eq!(world.books(), before);
}

#[test]
fn only_the_frames_that_change_are_asked_about() {
    let world = World::of(16);
    world.ram.share(pages(4, 8)).unwrap();
    world.ept.asked();
    let all = world.ram.share(pages(0, 16)).unwrap();
    assert_eq!(*all.frames(), set([(0, 16)]));
    assert_eq!(world.ept.invalidated(), [run(0, 4), run(8, 16)]);
}

#[test]
fn unknown_is_never_already_so_and_gets_the_full_work_either_way() {
    let pool = pool_of(8);
    let ram = pool.allocate(Request::bytes(8 * 4096).owner("vm").starts(Shareability::Unknown)).unwrap();
    let ept = scripted::Scripted::new();
    ram.attach("ept", ept.clone()).unwrap();
    assert!(ram.unshare(pages(0, 4)).unwrap().changed());
    assert!(ram.share(pages(4, 8)).unwrap().changed());
    assert_eq!(ept.invalidated(), [run(0, 4), run(4, 8)]);
    assert_eq!(books(&pool).stats.unknown, 0);
}

#[test]
fn a_converting_range_is_busy_and_unchanged() {
    let world = World::of(16);
    let parked = world.ept.parks();
    let (shared, busy) = while_parked(parked, || world.ram.share(pages(0, 8)), || unchanged(&world, pages(7, 9)));
    assert!(matches!(busy, Convert::Busy { after } if after > Duration::ZERO));
    assert_eq!(busy.errno(), EAGAIN);
    assert_eq!(*shared.unwrap().frames(), set([(0, 8)]));
}

#[test]
fn guards_that_are_not_dropped_in_time_make_a_range_busy_and_unchanged() {
    let world = World::of(16);
    let guard = world.ram.map_guard("ept", pages(3, 5)).unwrap();
    let busy = unchanged(&world, pages(0, 8));
    assert!(matches!(busy, Convert::Busy { .. }));
    assert_eq!(busy.errno(), EAGAIN);
    assert_eq!(world.ept.asked(), [], "nobody may be asked while somebody may map");
    drop(guard);
    assert!(world.ram.share(pages(0, 8)).unwrap().changed());
}

#[test]
fn a_mapping_that_is_busy_in_prepare_leaves_everything_unchanged_and_names_its_own_wait() {
    let world = World::of(16);
    world.ept.refuses(Refusal::Busy { after: Duration::from_millis(7) });
    let busy = unchanged(&world, pages(0, 8));
    assert_eq!(busy, Convert::Busy { after: Duration::from_millis(7) });
    assert_eq!(busy.errno(), EAGAIN);
}

#[test]
fn a_held_range_names_its_holder_and_is_unchanged() {
    let world = World::of(16);
    let hold = world.ram.hold(pages(6, 7), "vfio 0000:3b:00.0").unwrap();
    let held = unchanged(&world, pages(0, 8));
    assert_eq!(held, Convert::Held { holder: HolderId::new("vfio 0000:3b:00.0"), offset: 6 * 4096 });
    assert_eq!(held.errno(), EBUSY);
    drop(hold);
    assert!(world.ram.share(pages(0, 8)).is_ok());
}

#[test]
fn touching_quarantined_frames_is_refused_with_their_offset_and_unchanged() {
    let world = World::of(16);
    world.ept.sticks(run(4, 6), NOT_NOW);
    world.ram.share(pages(0, 8)).unwrap_err();
    let refused = unchanged(&world, pages(0, 16));
    let expected = Refused::Withdrawn { offset: 4 * 4096, frames: 2, state: Withdrawal::Quarantined };
    assert_eq!(refused, expected.into());
    assert_eq!(refused.errno(), EUCLEAN);
}

#[test]
fn touching_failed_frames_is_refused_with_their_offset_and_unchanged() {
    let world = World::of(16);
    world.ept.sticks(run(5, 6), Verdict::Never);
    world.ram.share(pages(0, 8)).unwrap_err();
    let refused = unchanged(&world, pages(5, 6));
    assert_eq!(refused, Refused::Withdrawn { offset: 5 * 4096, frames: 1, state: Withdrawal::Failed }.into());
    assert_eq!(refused.errno(), EUCLEAN);
}

#[test]
fn frames_that_became_somebody_elses_are_not_the_callers_to_convert() {
    let world = World::of(16);
    world.ram.release_range(pages(8, 16)).unwrap();
    world.pool.reclaim();
    let _other = world.pool.allocate(Request::bytes(8 * 4096).owner("vm-43")).unwrap();
    let refused = unchanged(&world, pages(6, 10));
    assert_eq!(refused, Refused::NotOwner { offset: 8 * 4096 }.into());
    assert_eq!(refused.errno(), EPERM);
}

#[test]
fn released_frames_are_stale_and_unchanged() {
    let world = World::of(16);
    world.ram.release_range(pages(2, 3)).unwrap();
    let refused = unchanged(&world, pages(0, 4));
    assert_eq!(refused, Refused::Released { offset: 2 * 4096 }.into());
    assert_eq!(refused.errno(), ESTALE);
}

#[test]
fn malformed_ranges_are_the_callers_bug_and_unchanged() {
    let world = World::of(16);
    for (range, expected, errno) in [
        (1..4096, Refused::Unaligned { value: 1, unit: 4096 }, EINVAL),
        (0..4097, Refused::Unaligned { value: 4097, unit: 4096 }, EINVAL),
        (4096..4096, Refused::Empty { start: 4096, end: 4096 }, EINVAL),
        (0..17 * 4096, Refused::Outside { start: 0, end: 17 * 4096, size: 16 * 4096 }, ERANGE),
    ] {
        let refused = unchanged(&world, range.clone());
        assert_eq!(refused, expected.into(), "{range:?}");
        assert_eq!(refused.errno(), errno, "{range:?}");
    }
    assert_eq!(world.ept.asked(), []);
}

#[test]
fn a_mapping_without_memory_for_its_tables_leaves_everything_unchanged() {
    let world = World::of(16);
    let second = world.also("host");
    second.refuses(Refusal::NoMemory);
    let refused = unchanged(&world, pages(1, 7));
    assert_eq!(refused, Refused::Mapping { mapping: "host".into(), refusal: Refusal::NoMemory }.into());
    assert_eq!(refused.errno(), ENOMEM);
    assert_eq!(world.ept.asked(), [Asked::Prepare(Intent::Share, run(1, 7))], "prepared, and never invalidated");
}

#[test]
fn a_mapping_that_will_not_is_a_lasting_refusal() {
    let world = World::of(16);
    world.ept.refuses(Refusal::Other("the TD is being migrated".into()));
    let refused = unchanged(&world, pages(0, 1));
    assert_eq!(refused.errno(), EOPNOTSUPP);
    assert_eq!(refused.to_string(), "mapping \"ept\" refused: the TD is being migrated");
}

#[test]
fn a_pool_without_enough_frames_is_out_of_memory_and_unchanged() {
    let world = World::of(16);
    let before = world.books();
    let error = world.pool.allocate(Request::bytes(4096).owner("late")).unwrap_err();
    assert!(matches!(error, AllocateError::NotEnough { bytes: 4096, .. }));
    assert_eq!(error.errno(), ENOMEM);
    assert_eq!(world.books(), before);
}

/// Has frame numbers, and no memory behind them.
struct Hollow;

impl Backing for Hollow {
    fn identity(&self) -> Identity {
        Identity::Synthetic
    }

    fn nodes(&self) -> Vec<NodeFrames> {
        vec![NodeFrames { node: 0, frames: run(0, 16) }]
    }

    fn proof(&self) -> ProofScope {
        MetadataOnly::of_bytes(4096).proof()
    }

    fn commit(&self, frames: PfnRange) -> Result<(), Shortage> {
        Err(Shortage { frames, reason: "no huge page is left; reserve more".into() })
    }

    fn scrub(&self, _: &Operation, _: PfnRange) -> Result<(), Stuck> {
        Ok(())
    }

    fn prove(&self, _: &Operation, _: PfnRange) -> Result<(), Stuck> {
        Ok(())
    }
}

#[test]
fn a_backing_without_memory_is_out_of_memory_and_the_frames_stay_free() {
    let pool = Pool::builder().backing(Hollow).build().unwrap();
    let before = books(&pool);
    let error = pool.allocate(Request::bytes(8192).owner("vm")).unwrap_err();
    assert_eq!(error.errno(), ENOMEM);
    assert!(error.to_string().contains("reserve more"), "{error}");
    assert_eq!(books(&pool), before);
}

#[test]
fn a_torn_share_keeps_the_tail_and_says_what_of_it_was_done() {
    let world = World::of(16);
    world.ept.sticks(run(4, 6), NOT_NOW);
    let torn = world.ram.share(pages(0, 12)).unwrap_err();
    assert_eq!(torn.errno(), EIO);
    let Convert::Torn { done, lost } = torn else { panic!("{torn}") };
    assert_eq!(done, set([(0, 4), (6, 12)]));
    let [lost] = &lost[..] else { panic!("{lost:?}") };
    assert_eq!((lost.frames(), lost.offset(), lost.state()), (run(4, 6), 4 * 4096, Withdrawal::Quarantined));
    assert!(lost.retry_after().is_some() && lost.recorded());
    assert_eq!(lost.cause(), &Cause::new("TDH.MEM.PAGE.REMOVE", 0x8000_0200, "busy").at_mapping("ept"));
    let stats = world.books().stats;
    assert_eq!((stats.shared, stats.quarantined, stats.failed), (10, 2, 0));
    assert_eq!(world.ram.shareability(14 * 4096).unwrap(), Shareability::Private);
}

#[test]
fn a_torn_share_tells_the_lost_runs_apart_by_whether_they_can_come_back() {
    let world = World::of(16);
    world.ept.sticks(run(1, 2), Verdict::Never);
    world.ept.sticks(run(5, 7), Verdict::Held { by: "nic".into() });
    let Convert::Torn { done, lost } = world.ram.share(pages(0, 10)).unwrap_err() else { panic!() };
    assert_eq!(done, set([(0, 1), (2, 5), (7, 10)]));
    let [failed, held] = &lost[..] else { panic!("{lost:?}") };
    assert_eq!(
        (failed.frames(), failed.state(), failed.retry_after(), failed.holder()),
        (run(1, 2), Withdrawal::Failed, None, None)
    );
    assert_eq!((held.frames(), held.state(), held.holder()), (run(5, 7), Withdrawal::Quarantined, Some(&HolderId::new("nic"))));
}

#[test]
fn a_later_mapping_is_never_asked_about_what_an_earlier_one_lost() {
    let world = World::of(16);
    let second = world.also("host");
    world.ept.sticks(run(4, 6), Verdict::Never);
    second.sticks(run(8, 9), NOT_NOW);
    let Convert::Torn { done, lost } = world.ram.share(pages(0, 12)).unwrap_err() else { panic!() };
    assert_eq!(done, set([(0, 4), (6, 8), (9, 12)]));
    assert_eq!(lost.iter().map(pageless::Lost::frames).collect::<Vec<_>>(), [run(4, 6), run(8, 9)]);
    assert_eq!(second.invalidated(), [run(0, 4), run(6, 12), run(9, 12)]);
    world.books();
}

#[test]
fn touching_poisoned_frames_is_refused_as_such_and_unchanged() {
    let world = World::of(16);
    world.pool.poison(run(3, 4), Cause::new("MCE", 0xbd, "uncorrectable"));
    let refused = unchanged(&world, pages(0, 8));
    assert_eq!(refused, Refused::Poisoned { offset: 3 * 4096, frames: 1 }.into());
    assert_eq!(refused.errno(), EHWPOISON);
}

#[test]
fn an_owner_that_dies_under_its_conversion_is_told_that_it_is_gone() {
    let world = World::of(16);
    world.ept.sticks(run(2, 3), NOT_NOW);
    let parked = world.ept.parks();
    let (gone, died) = while_parked(parked, || world.ram.share(pages(0, 8)), || world.pool.owner_died("vm-42"));
    assert_eq!(died, 1);
    let gone = gone.unwrap_err();
    assert_eq!(gone.errno(), ESTALE);
    let Convert::OwnerGone { lost } = gone else { panic!("{gone}") };
    assert_eq!(lost.iter().map(pageless::Lost::frames).collect::<Vec<_>>(), [run(2, 3)]);
    let stats = world.books().stats;
    assert_eq!((stats.released, stats.shared, stats.quarantined), (16, 0, 1));
}

#[test]
fn a_release_that_somebody_holds_gives_the_allocation_back_unchanged() {
    let World { pool, ram, .. } = World::of(16);
    let hold = ram.hold(pages(3, 4), "migration").unwrap();
    let before = books(&pool);
    let refused = ram.release().unwrap_err();
    assert_eq!(refused.why, Blocked::Held { holder: "migration".into(), offset: 3 * 4096 });
    assert_eq!(refused.why.errno(), EBUSY);
    assert_eq!(books(&pool), before);
    drop(hold);
    assert_eq!(refused.allocation.release().unwrap(), set([(0, 16)]));
}

#[test]
fn a_partial_release_is_all_or_nothing() {
    let world = World::of(16);
    world.ept.sticks(run(4, 5), Verdict::Never);
    world.ram.share(pages(4, 5)).unwrap_err();
    let before = world.books();
    let refused = world.ram.release_range(pages(0, 8)).unwrap_err();
    assert_eq!(refused, Refused::Withdrawn { offset: 4 * 4096, frames: 1, state: Withdrawal::Failed }.into());
    assert_eq!(world.books(), before);
    assert_eq!(world.ram.release_range(pages(0, 4)).unwrap(), set([(0, 4)]));
    assert_eq!(world.ram.release_range(pages(0, 4)).unwrap_err().errno(), ESTALE);
}

#[test]
fn a_reclaim_puts_every_frame_it_looked_at_in_exactly_one_place() {
    let World { pool, ram, ept } = World::of(16);
    ept.sticks(run(0, 1), Verdict::Never);
    ram.share(pages(0, 1)).unwrap_err();
    ept.heals();
    ept.sticks(run(4, 5), NOT_NOW);
    let _hold = ram.hold(pages(8, 10), "nic").unwrap();
    drop(ram);
    let told = pool.reclaim();
    assert_eq!(told.withdrawn, set([(0, 1)]));
    assert_eq!(told.lost.iter().map(pageless::Lost::frames).collect::<Vec<_>>(), [run(4, 5)]);
    assert_eq!(told.waiting.len(), 1);
    assert_eq!((told.waiting[0].frames, &told.waiting[0].why), (run(8, 10), &WaitingFor::Holder("nic".into())));
    assert_eq!(told.freed, set([(1, 4), (5, 8), (10, 16)]));
    books(&pool);
}

#[test]
fn a_detach_that_is_not_proven_keeps_the_mapping() {
    let world = World::of(16);
    world.ept.sticks(run(2, 4), NOT_NOW);
    let Detach::Torn { lost } = world.ram.detach("ept").unwrap_err() else { panic!() };
    assert_eq!(lost.iter().map(pageless::Lost::frames).collect::<Vec<_>>(), [run(2, 4)]);
    assert_eq!(world.ram.mappings().iter().map(|name| &**name).collect::<Vec<_>>(), ["ept"]);
}

#[test]
fn a_promotion_that_a_mapping_refuses_leaves_the_books_unchanged() {
    let world = World::of(512);
    world.ram.share(pages(0, 1)).unwrap();
    world.ram.unshare(pages(0, 1)).unwrap();
    let before = world.books();
    world.ept.refuses_promotion(Refusal::Other("EPT_INVALID_PROMOTE_CONDITIONS".into()));
    let refused = world.ram.promote(0, pageless::Order::MIB2).unwrap_err();
    assert_eq!(refused.errno(), EOPNOTSUPP);
    assert_eq!(world.books(), before);
    world.ram.promote(0, pageless::Order::MIB2).unwrap();
    assert_eq!(world.books().stats.broken_2m, 0);
}

/// One example of every answer that says "ask again".
fn transient() -> Vec<Convert> {
    vec![Convert::Busy { after: Duration::ZERO }, Convert::Held { holder: "nic".into(), offset: 0 }]
}

/// One example of every answer that says "asking again will not help".
fn permanent() -> Vec<Convert> {
    let name = String::from("ept");
    let refused = [
        Refused::Unaligned { value: 1, unit: 4096 },
        Refused::Empty { start: 0, end: 0 },
        Refused::Outside { start: 0, end: 1, size: 0 },
        Refused::NotOwner { offset: 0 },
        Refused::Released { offset: 0 },
        Refused::Withdrawn { offset: 0, frames: 1, state: Withdrawal::Failed },
        Refused::Poisoned { offset: 0, frames: 1 },
        Refused::NotLost { offset: 0 },
        Refused::NotOneLeaf { offset: 0, bytes: 4096, why: "" },
        Refused::Mapping { mapping: name.clone(), refusal: Refusal::Unsupported },
        Refused::Mapping { mapping: name.clone(), refusal: Refusal::NoMemory },
        Refused::NotAConversion { intent: Intent::Reclaim },
        Refused::NoSuchMapping { name: name.clone() },
        Refused::NameTaken { name },
        Refused::NoName { what: "holder" },
        Refused::NoMemory,
        Refused::NoFrame { offset: 0 },
    ];
    let torn = [Convert::Torn { done: set([(0, 1)]), lost: Vec::new() }, Convert::OwnerGone { lost: Vec::new() }];
    refused.into_iter().map(Convert::from).chain(torn).collect()
}

#[test]
fn a_transient_answer_and_a_lasting_one_are_never_the_same_errno() {
    let transient: BTreeSet<i32> = transient().iter().map(Convert::errno).collect();
    let permanent: BTreeSet<i32> = permanent().iter().map(Convert::errno).collect();
    assert_eq!(transient, BTreeSet::from([EAGAIN, EBUSY]));
    assert!(transient.is_disjoint(&permanent), "{transient:?} {permanent:?}");
    assert!(!permanent.contains(&0));
}

#[test]
fn a_lasting_obstacle_is_named_before_one_that_will_pass() {
    let world = World::of(16);
    world.ept.sticks(run(9, 10), Verdict::Never);
    world.ram.share(pages(9, 10)).unwrap_err();
    let _hold = world.ram.hold(pages(2, 3), "nic").unwrap();
    assert_eq!(unchanged(&world, pages(0, 16)).errno(), EUCLEAN, "the hold lies lower, and will pass");
    assert_eq!(unchanged(&world, pages(0, 9)).errno(), EBUSY);
}

#[test]
fn a_plan_foresees_the_answer_and_changes_nothing() {
    let world = World::of(1024);
    let before = world.books();
    let plan = world.ram.plan(pages(1, 600), Intent::Share).unwrap();
    assert_eq!((plan.blocked, plan.already_so), (None, false));
    assert_eq!(plan.demotes_2m, [run(0, 512), run(512, 1024)]);
    assert_eq!(world.books(), before);
    let hold = world.ram.hold(pages(4, 5), "nic").unwrap();
    let plan = world.ram.plan(pages(1, 600), Intent::Share).unwrap();
    assert_eq!(plan.blocked.unwrap().errno(), EBUSY);
    assert_eq!(plan.holders, [("nic".into(), run(4, 5))]);
    drop(hold);
    world.ram.share(pages(1, 600)).unwrap();
    let _guard = world.ram.map_guard("ept", pages(2, 3)).unwrap();
    let plan = world.ram.plan(pages(1, 600), Intent::Share).unwrap();
    assert_eq!((plan.blocked, plan.already_so), (None, true), "a guard is in nobody's way where nothing has to be done");
    assert!(!world.ram.share(pages(1, 600)).unwrap().changed());
}

#[test]
fn an_answer_reads_as_a_sentence_with_its_numbers() {
    assert_eq!(Pfn::new(3).to_string(), "pfn:0x3");
    let world = World::of(16);
    let parked: Parked = world.ept.parks();
    let ((), busy) = while_parked(parked, || drop(world.ram.share(pages(0, 1))), || world.ram.share(pages(0, 1)).unwrap_err());
    assert_eq!(busy.to_string(), "busy; try again after 50µs");
    world.ept.sticks(run(2, 3), Verdict::Never);
    let torn = world.ram.share(pages(2, 4)).unwrap_err().to_string();
    assert_eq!(
        torn,
        "1 of 2 frames were lost, first pfn:0x2..0x3 at offset 0x2000 is failed: ept: TDH.MEM.PAGE.REMOVE gave 0x80000200, busy"
    );
}
