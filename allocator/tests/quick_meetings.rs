//! What meets a conversion that began quickly: in a quiet GiB that is all one owner's, on a frame, a block, the GiB and an odd
//! run, in a GiB without a past and in two with one, while a mapping prepares and while it proves.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod scripted;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use pageless::{
    Blocked, Cause, Convert, Converted, FRAME_BYTES, Intent, Lost, Order, Refusal, Refused, Request, RunSet, Shareability,
    Verdict, Withdrawal,
};
use scripted::{Asked, NOT_NOW, Scripted, Shutter, World, books, pages, run, set, while_parked};

const GIB: u64 = Order::GIB1.frames();
/// Frames that no conversion here asks for, unless it asks for all.
const ASIDE: Range<u64> = 4000..4010;

/// One world: what is converted in it, and in which call of the mapping the meeting happens.
struct Case {
    world: World,
    from: u64,
    to: u64,
    /// Frames of the GiB that are shared before.
    shared: u64,
    in_prepare: bool,
    name: String,
}

impl Case {
    fn range(&self) -> Range<u64> {
        pages(self.from, self.to)
    }

    fn frames(&self) -> u64 {
        self.to - self.from
    }

    /// Shares the range, and meanwhile does `verb`.
    fn meets<'c, M>(&'c self, verb: impl FnOnce(&'c World) -> M) -> (Result<Converted, Convert>, M) {
        let parked = if self.in_prepare { self.world.ept.parks_in_prepare() } else { self.world.ept.parks() };
        let met = while_parked(parked, || self.world.ram.share(self.range()), || verb(&self.world));
        assert_eq!(self.world.books().stats.converting, 0, "{}", self.name);
        met
    }

    /// Meets what is refused and changes nothing: the conversion does not notice.
    fn refuses<'c, M>(&'c self, verb: impl FnOnce(&'c World) -> M) -> M {
        let (shared, met) = self.meets(|world| {
            let before = world.books();
            let met = verb(world);
            assert_eq!(world.books(), before, "{}: whoever is refused changes nothing", self.name);
            met
        });
        self.is_done(&shared.unwrap());
        met
    }

    /// Everything was shared, and the next conversion undoes it.
    fn is_done(&self, shared: &Converted) {
        let name = &self.name;
        assert!(shared.changed(), "{name}");
        assert_eq!(*shared.frames(), set([(self.from, self.to)]), "{name}");
        assert_eq!(self.world.books().stats.shared, self.shared + self.frames(), "{name}");
        for page in [self.from, self.to - 1] {
            assert_eq!(self.world.ram.shareability(page * FRAME_BYTES).unwrap(), Shareability::Shared, "{name}");
        }
        assert!(!self.world.ram.share(self.range()).unwrap().changed(), "{name}");
        assert!(self.world.ram.unshare(self.range()).unwrap().changed(), "{name}");
        assert_eq!(self.world.books().stats.shared, self.shared, "{name}");
    }
}

/// Every kind of range, in a GiB without a past, in one that was converted before, and in one that is not all alike.
fn each_case(ranges: &[(u64, u64)], test: impl Fn(&Case)) {
    for &(from, to) in ranges {
        for (past, in_prepare) in (0..3).flat_map(|past| [(past, false), (past, true)]) {
            let world = World::of(GIB);
            if past > 0 {
                world.ram.share(pages(700, 704)).unwrap();
                world.ram.unshare(pages(700, if past == 1 { 704 } else { 703 })).unwrap();
            }
            world.ept.asked();
            let name = format!("{from}..{to}, past {past}, in prepare: {in_prepare}");
            let shared = u64::from(past == 2 && to - from < GIB);
            // All of a GiB that is mixed is none of these conversions.
            if past < 2 || to - from < GIB {
                test(&Case { world, from, to, shared, in_prepare, name });
            }
        }
    }
}

/// A frame of a block that may have a leaf, a block, and an odd run; and all of it.
const PARTS: [(u64, u64); 3] = [(705, 706), (1024, 1536), (900, 3000)];
const ALL: [(u64, u64); 4] = [PARTS[0], PARTS[1], PARTS[2], (0, GIB)];

fn machine_check() -> Cause {
    Cause::new("MCE", 0xbd, "uncorrectable")
}

fn lost(runs: &[Lost]) -> RunSet {
    runs.iter().map(Lost::frames).collect()
}

fn torn(answer: Result<Converted, Convert>, case: &Case) -> (RunSet, Vec<Lost>) {
    match answer {
        Err(Convert::Torn { done, lost }) => (done, lost),
        other => panic!("{}: {other:?}", case.name),
    }
}

#[test]
fn its_own_frames_that_are_poisoned_meanwhile_end_as_lost_and_the_others_are_done() {
    each_case(&ALL, |case| {
        let strike = run(case.to - 1, case.to);
        let (answer, fresh) = case.meets(|world| world.pool.poison(strike, machine_check()));
        assert_eq!(fresh, strike.into());
        let (done, gone) = torn(answer, case);
        let mut rest = set([(case.from, case.to)]);
        rest.remove(strike);
        assert_eq!((&done, lost(&gone)), (&rest, strike.into()), "{}", case.name);
        assert_eq!(gone[0].state(), Withdrawal::Poisoned, "{}", case.name);
        let stats = case.world.books().stats;
        assert_eq!((stats.poisoned, stats.shared), (1, case.shared + case.frames() - 1), "{}", case.name);
        case.world.ram.max_mapping_order((case.to - 1) * FRAME_BYTES).unwrap_err();
        case.world.ram.share(case.range()).unwrap_err();
    });
}

#[test]
fn poison_beside_it_takes_nothing_from_it() {
    each_case(&PARTS, |case| {
        let strike = run(ASIDE.start, ASIDE.end);
        let (answer, _) = case.meets(|world| world.pool.poison(strike, machine_check()));
        case.is_done(&answer.unwrap());
        assert_eq!(case.world.books().stats.poisoned, strike.frames(), "{}", case.name);
        assert!(matches!(case.world.ram.share(pages(0, GIB)), Err(Convert::Refused(_))), "{}", case.name);
    });
}

#[test]
fn an_owner_that_dies_under_it_gets_nothing_flipped_and_everything_comes_back() {
    each_case(&ALL, |case| {
        let (answer, died) = case.meets(|world| {
            let died = world.pool.owner_died("vm-42");
            assert_eq!(world.pool.reclaim().freed.frames(), GIB - case.frames(), "{}", case.name);
            died
        });
        assert_eq!((answer, died), (Err(Convert::OwnerGone { lost: Vec::new() }), 1), "{}", case.name);
        let stats = case.world.books().stats;
        assert_eq!((stats.released, stats.shared), (case.frames(), 0), "{}", case.name);
        assert_eq!(case.world.pool.reclaim().freed, set([(case.from, case.to)]), "{}", case.name);
        assert_eq!(case.world.books().stats.free, GIB);
        case.world.ram.share(case.range()).unwrap_err();
        case.world.ram.shareability(case.from * FRAME_BYTES).ok();
        assert_eq!(case.world.books().stats.free, GIB);
    });
}

#[test]
fn a_release_of_its_frames_is_busy_and_one_beside_is_done() {
    each_case(&PARTS, |case| {
        let (from, to) = (case.from, case.to);
        let met = case.refuses(|world| world.ram.release_range(pages(to - 1, to + 1)).unwrap_err());
        assert!(matches!(met, Blocked::Busy { .. }), "{}", case.name);
        let (answer, released) = case.meets(|world| world.ram.release_range(pages(ASIDE.start, ASIDE.end)).unwrap());
        assert_eq!(released, set([(ASIDE.start, ASIDE.end)]));
        case.is_done(&answer.unwrap());
        assert_eq!(case.world.pool.reclaim().freed, released, "{}", case.name);
        assert_eq!(case.world.books().stats.free, 10, "{from}");
    });
}

#[test]
fn another_conversion_of_its_frames_is_busy() {
    each_case(&ALL, |case| {
        let (from, to) = (case.from, case.to);
        let one = pages(to - 1, to);
        for range in [one, pages(from, to), pages(0, GIB), pages(from & !511, (from & !511) + 512), pages(from, GIB)] {
            let [share, unshare] =
                case.refuses(|world| [world.ram.share(range.clone()), world.ram.unshare(range.clone())].map(Result::unwrap_err));
            assert!(matches!(share, Convert::Busy { .. }), "{}: {share}", case.name);
            assert!(matches!(unshare, Convert::Busy { .. }), "{}: {unshare}", case.name);
        }
    });
}

#[test]
fn conversions_beside_it_are_done_and_so_is_it() {
    each_case(&PARTS, |case| {
        // A frame of its block or of the one before it, a block, a frame far away, an odd run.
        let others = [(699, 700), (5 * 512, 6 * 512), (8000, 8001), (9000, 9900)];
        let others: Vec<_> = others.into_iter().filter(|(from, to)| *to <= case.from || case.to <= *from).collect();
        let (answer, ()) = case.meets(|world| {
            for (from, to) in &others {
                assert_eq!(*world.ram.share(pages(*from, *to)).unwrap().frames(), set([(*from, *to)]), "{}", case.name);
                world.books();
            }
        });
        assert!(answer.unwrap().changed());
        let frames: u64 = others.iter().map(|(from, to)| to - from).sum();
        assert_eq!(case.world.books().stats.shared, case.shared + case.frames() + frames, "{}", case.name);
        for (from, to) in others.into_iter().chain([(case.from, case.to)]) {
            assert!(case.world.ram.unshare(pages(from, to)).unwrap().changed(), "{}", case.name);
        }
        assert_eq!(case.world.books().stats.shared, case.shared, "{}", case.name);
    });
}

#[test]
fn a_hold_or_a_guard_on_its_frames_is_busy_and_one_beside_stays() {
    each_case(&PARTS, |case| {
        let (to, aside) = (case.to, pages(ASIDE.start, ASIDE.end));
        let met = case.refuses(|world| {
            let guard = world.ram.map_guard("ept", pages(to - 1, to + 1)).map(drop);
            [world.ram.hold(pages(to - 1, to + 1), "nic").map(drop), guard].map(Result::unwrap_err)
        });
        assert!(met.iter().all(|met| matches!(met, Blocked::Busy { .. })), "{}: {met:?}", case.name);
        let (answer, hold) = case.meets(|world| world.ram.hold(aside.clone(), "nic").unwrap());
        case.is_done(&answer.unwrap());
        assert!(matches!(case.world.ram.share(pages(0, GIB)), Err(Convert::Held { .. })), "{}", case.name);
        drop(hold);
        let (answer, guard) = case.meets(|world| world.ram.map_guard("ept", aside.clone()).unwrap());
        case.is_done(&answer.unwrap());
        assert!(matches!(case.world.ram.share(pages(0, GIB)), Err(Convert::Busy { .. })), "{}", case.name);
        drop(guard);
        case.world.ram.share(pages(0, GIB)).unwrap();
        case.world.books();
    });
}

#[test]
fn a_sweep_that_takes_its_mark_leaves_it_nothing_to_flip_and_nobody_to_ask() {
    each_case(&ALL, |case| {
        let host = case.world.also("host");
        let (answer, swept) = case.meets(|world| {
            assert_eq!(world.pool.quarantine_hung(Duration::ZERO), []);
            std::thread::sleep(Duration::from_millis(2));
            world.pool.quarantine_hung(Duration::from_millis(1))
        });
        assert_eq!(lost(&swept), set([(case.from, case.to)]), "{}", case.name);
        let (done, gone) = torn(answer, case);
        assert_eq!((done, lost(&gone)), (RunSet::new(), lost(&swept)), "{}", case.name);
        let prepared = Asked::Prepare(Intent::Share, run(case.from, case.to));
        assert_eq!(host.asked(), if case.in_prepare { vec![] } else { vec![prepared] }, "{}", case.name);
        let stats = case.world.books().stats;
        assert_eq!((stats.quarantined, stats.shared), (case.frames(), case.shared), "{}", case.name);
        assert_eq!(case.world.pool.retry(run(0, GIB)).recovered, lost(&swept), "{}", case.name);
        assert_eq!(case.world.books().stats.shared, case.shared + case.frames(), "{}", case.name);
    });
}

#[test]
fn a_compaction_under_it_changes_nothing() {
    each_case(&ALL, |case| {
        let (answer, _) = case.meets(|world| world.pool.compact());
        case.is_done(&answer.unwrap());
        case.world.pool.compact();
        case.is_done(&case.world.ram.share(case.range()).unwrap());
    });
}

#[test]
fn a_sound_frame_of_it_is_not_replaced_and_a_detach_is_busy() {
    each_case(&ALL, |case| {
        let met = case.refuses(|world| world.ram.replace(case.from * FRAME_BYTES).unwrap_err());
        assert!(matches!(met, Blocked::Refused(_)), "{}", case.name);
        let met = case.refuses(|world| world.ram.detach("ept").unwrap_err());
        assert!(matches!(met, pageless::Detach::Blocked(Blocked::Busy { .. })), "{}", case.name);
    });
}

#[test]
fn a_demotion_of_its_block_is_busy_and_one_beside_is_kept() {
    each_case(&PARTS, |case| {
        let (from, aside) = (case.from * FRAME_BYTES, ASIDE.start * FRAME_BYTES);
        let met = case.refuses(|world| world.ram.demote(from, Order::BASE).unwrap_err());
        assert!(matches!(met, Blocked::Busy { .. }), "{}", case.name);
        assert_eq!(case.world.ram.max_mapping_order(aside).unwrap(), Order::MIB2, "{}", case.name);
        let (answer, ()) = case.meets(|world| world.ram.demote(aside, Order::BASE).unwrap());
        case.is_done(&answer.unwrap());
        assert_eq!(case.world.ram.max_mapping_order(aside).unwrap(), Order::BASE, "{}", case.name);
    });
}

#[test]
fn a_mapping_that_panics_in_it_quarantines_all_of_it_and_spares_the_rest() {
    each_case(&ALL, |case| {
        let ept = &case.world.ept;
        if case.in_prepare {
            ept.panics_in_prepare()
        } else {
            ept.panics_in_invalidate()
        }
        assert!(catch_unwind(AssertUnwindSafe(|| case.world.ram.share(case.range()))).is_err());
        let stats = case.world.books().stats;
        let counts = (stats.quarantined, stats.converting, stats.shared);
        assert_eq!(counts, (case.frames(), 0, case.shared), "{}", case.name);
        if case.frames() < GIB {
            case.world.ram.share(pages(ASIDE.start, ASIDE.end)).unwrap();
            case.world.ram.unshare(pages(ASIDE.start, ASIDE.end)).unwrap();
        }
        assert_eq!(case.world.pool.retry(run(0, GIB)).recovered, set([(case.from, case.to)]), "{}", case.name);
        assert_eq!(case.world.books().stats.shared, case.shared + case.frames(), "{}", case.name);
        case.world.ram.unshare(case.range()).unwrap();
        case.is_done(&case.world.ram.share(case.range()).unwrap());
    });
}

#[test]
fn a_mapping_that_refuses_leaves_everything_as_it_was() {
    each_case(&ALL, |case| {
        let (before, second) = (case.world.books(), case.world.also("host"));
        for _ in 0..2 {
            second.refuses(Refusal::Busy { after: Duration::from_millis(3) });
            let refused = case.world.ram.share(case.range()).unwrap_err();
            assert_eq!(refused, Convert::Busy { after: Duration::from_millis(3) }, "{}", case.name);
            assert_eq!(case.world.books(), before, "{}", case.name);
        }
        assert_eq!(case.world.ept.invalidated(), [], "{}", case.name);
        case.is_done(&case.world.ram.share(case.range()).unwrap());
    });
}

#[test]
fn what_is_stuck_in_it_is_withdrawn_and_the_others_are_done() {
    each_case(&ALL, |case| {
        for (verdict, state) in [(Verdict::Never, Withdrawal::Failed), (NOT_NOW, Withdrawal::Quarantined)] {
            let at = case.to - if state == Withdrawal::Failed { 1 } else { 2 };
            if at < case.from || (state == Withdrawal::Quarantined && case.frames() == GIB) {
                continue;
            }
            case.world.ept.sticks(run(at, at + 1), verdict);
            // What failed is left out the second time.
            let range = pages(case.from, at + 1);
            let (done, gone) = torn(case.world.ram.share(range.clone()), case);
            let expected = if at == case.from { RunSet::new() } else { set([(case.from, at)]) };
            assert_eq!((done, lost(&gone), gone[0].state()), (expected, set([(at, at + 1)]), state), "{}", case.name);
            let stats = case.world.books().stats;
            assert_eq!((stats.converting, stats.shared), (0, case.shared + at - case.from), "{}", case.name);
            if at > case.from {
                case.world.ram.unshare(pages(case.from, at)).unwrap();
            }
            case.world.ept.heals();
        }
    });
}

#[test]
fn a_second_mapping_is_asked_only_for_what_the_first_has_proven() {
    each_case(&ALL, |case| {
        let host = case.world.also("host");
        case.world.ept.sticks(run(case.from, case.from + 1), NOT_NOW);
        let (_, gone) = torn(case.world.ram.share(case.range()), case);
        assert_eq!(lost(&gone), set([(case.from, case.from + 1)]));
        let rest = set([(case.from, case.to)]).difference(&set([(case.from, case.from + 1)]));
        assert_eq!(host.invalidated(), rest.runs(), "{}", case.name);
    });
}

#[test]
fn what_becomes_shared_is_zeroed_and_what_a_sweep_took_meanwhile_is_not() {
    for (from, to) in PARTS {
        let (pool, backing) = Shutter::pool(GIB, 1);
        let ram = pool.allocate(Request::bytes(Order::GIB1.bytes()).owner("vm")).unwrap();
        let ept = Scripted::new();
        ram.attach("ept", ept.clone()).unwrap();
        ram.share(pages(700, 702)).unwrap();
        ram.unshare(pages(700, 702)).unwrap();
        assert_eq!(backing.scrubbed(), set([(700, 702)]));
        ram.share(pages(from, to)).unwrap();
        assert_eq!(backing.scrubbed(), set([(from, to)]));
        ram.unshare(pages(from, to)).unwrap();
        assert_eq!(backing.scrubbed(), RunSet::new());
        let (late, ()) = while_parked(
            ept.parks(),
            || ram.share(pages(from, to)),
            || {
                pool.quarantine_hung(Duration::ZERO);
                std::thread::sleep(Duration::from_millis(2));
                pool.quarantine_hung(Duration::from_millis(1));
                pool.retry(run(0, GIB));
                assert_eq!(backing.scrubbed(), set([(from, to)]));
            },
        );
        late.unwrap();
        assert_eq!(backing.scrubbed(), RunSet::new(), "the guest uses these frames");
        // Contents that the owner keeps are nobody's to zero.
        drop(ram);
        pool.reclaim();
        let kept = pool.allocate(Request::bytes(Order::GIB1.bytes()).keep_contents().owner("vm")).unwrap();
        kept.share(pages(from, to)).unwrap();
        assert_eq!(backing.scrubbed(), RunSet::new());
    }
}

#[test]
fn a_mapping_that_was_detached_is_asked_about_what_it_still_owes_and_nothing_else() {
    for (from, to) in ALL {
        let world = World::of(2 * GIB);
        let host = world.also("host");
        world.ram.share(pages(700, 702)).unwrap();
        host.sticks(run(GIB + 5, GIB + 6), NOT_NOW);
        world.ram.share(pages(GIB + 5, GIB + 6)).unwrap_err();
        assert_eq!(*world.ram.detach("host").unwrap().still_asked_about(), set([(GIB + 5, GIB + 6)]));
        host.asked();
        for _ in 0..2 {
            world.ram.share(pages(from, to)).unwrap();
            world.ram.unshare(pages(from, to)).unwrap();
        }
        assert_eq!(host.asked(), [], "{from}..{to}");
        assert_eq!(world.ept.invalidated().last(), Some(&run(from, to)));
        world.books();
    }
}

#[test]
fn only_what_changes_is_asked_about_again_or_quarantined() {
    let world = || {
        let world = World::of(GIB);
        world.ram.share(pages(700, 710)).unwrap();
        world.ept.asked();
        world
    };
    let panicked = world();
    panicked.ept.panics_in_invalidate();
    assert!(catch_unwind(AssertUnwindSafe(|| panicked.ram.share(pages(700, 720)))).is_err());
    assert_eq!((panicked.books().stats.quarantined, panicked.books().stats.shared), (10, 10));
    let stuck = world();
    stuck.ept.sticks(run(715, 716), NOT_NOW);
    let Err(Convert::Torn { done, lost: gone }) = stuck.ram.share(pages(700, 720)) else { panic!() };
    assert_eq!((done.frames(), lost(&gone)), (19, set([(715, 716)])));
    assert_eq!(stuck.ept.invalidated(), [run(710, 720), run(716, 720)]);
    stuck.books();
}

#[test]
fn the_mapping_that_is_in_the_way_is_named_and_those_before_it_are_not_asked_twice() {
    for (from, to) in ALL {
        let world = World::of(GIB);
        let host = world.also("host");
        host.refuses(Refusal::NoMemory);
        let refused = world.ram.share(pages(from, to)).unwrap_err();
        assert!(matches!(&refused, Convert::Refused(Refused::Mapping { mapping, .. }) if mapping == "host"), "{refused}");
        assert_eq!(world.ept.asked(), [Asked::Prepare(Intent::Share, run(from, to))]);
        host.sticks(run(to - 1, to), NOT_NOW);
        let Err(Convert::Torn { lost: gone, .. }) = world.ram.share(pages(from, to)) else { panic!() };
        assert_eq!((lost(&gone), &*gone[0].cause().mapping), (set([(to - 1, to)]), "host"));
        assert_eq!(world.ept.invalidated(), [run(from, to)]);
        world.books();
    }
}

#[test]
fn a_conversion_in_a_gib_that_was_promoted_cuts_its_leaves_again() {
    for (from, to) in PARTS {
        let world = World::of(GIB);
        for _ in 0..2 {
            world.ram.share(pages(from, to)).unwrap();
            world.ram.unshare(pages(from, to)).unwrap();
            assert_eq!(world.ram.max_mapping_order(0), Ok(Order::MIB2), "{from}..{to}");
            let inside = if to - from == 512 { Order::MIB2 } else { Order::BASE };
            assert_eq!(world.ram.max_mapping_order((to - 1) * FRAME_BYTES), Ok(inside), "{from}..{to}");
            world.ram.promote(0, Order::GIB1).unwrap();
            assert_eq!(world.ram.max_mapping_order(0), Ok(Order::GIB1), "{from}..{to}");
            world.books();
        }
    }
}

#[test]
fn a_conversion_that_comes_back_too_late_changes_nothing_of_the_next_owner() {
    for (from, to) in ALL {
        let World { pool, ram, ept } = World::of(GIB);
        ram.share(pages(from, to)).unwrap();
        let (late, next) = while_parked(
            ept.parks(),
            || ram.unshare(pages(from, to)),
            || {
                pool.quarantine_hung(Duration::ZERO);
                std::thread::sleep(Duration::from_millis(2));
                pool.quarantine_hung(Duration::from_millis(1));
                pool.owner_died("vm-42");
                pool.retry(run(0, GIB));
                pool.reclaim();
                let next = pool.allocate(Request::bytes(Order::GIB1.bytes()).owner("next")).unwrap();
                next.share(pages(0, GIB)).unwrap();
                next
            },
        );
        assert_eq!(late, Err(Convert::OwnerGone { lost: Vec::new() }), "{from}..{to}");
        assert_eq!(books(&pool).stats.shared, GIB, "{from}..{to}");
        assert_eq!(next.shareability(from * FRAME_BYTES), Ok(Shareability::Shared));
    }
}
