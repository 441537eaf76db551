//! A frame of a whole GiB that was replaced: from then on every answer about its offset speaks of the new frame, also when the
//! lost one is somebody else's by then, or the same owner's at another offset.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod scripted;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pageless::{
    Allocation, Blocked, Cause, Convert, FRAME_BYTES, MetadataOnly, Order, Pfn, PfnRange, Pool, Refused, Request, RunSet,
    Shareability,
};
use scripted::{NOT_NOW, Scripted, books, pages, pool_of, run, set};

const GIB: u64 = Order::GIB1.frames();
const GIB_BYTES: u64 = Order::GIB1.bytes();
/// The offset whose frame is lost.
const AT: u64 = 700;

/// A VM of the pool's first GiB and one frame of the second, which has `free` more.
struct World {
    pool: Pool,
    ram: Allocation,
    ept: Arc<Scripted>,
}

impl World {
    fn new(free: u64) -> Self {
        let pool = pool_of(GIB + 1 + free);
        let ram = pool.allocate(Request::bytes(GIB_BYTES + FRAME_BYTES).contiguous().owner("vm")).unwrap();
        assert_eq!(ram.extents()[0].frames, run(0, GIB + 1));
        let ept = Scripted::new();
        ram.attach("ept", ept.clone()).unwrap();
        // The short way is warm: this GiB has a list, and the block a leaf.
        ram.share(pages(AT + 1, AT + 2)).unwrap();
        Self { pool, ram, ept }
    }

    /// Loses the frame at a page of the guest, for now, and puts another in its place: both.
    fn replaces(&self, page: u64) -> (Pfn, Pfn) {
        let lost = self.ram.frame(page * FRAME_BYTES).unwrap();
        self.ept.sticks(PfnRange::single(lost), NOT_NOW);
        let shared = self.ram.shareability(page * FRAME_BYTES).unwrap() == Shareability::Shared;
        let range = pages(page, page + 1);
        if shared {
            self.ram.unshare(range).unwrap_err()
        } else {
            self.ram.share(range).unwrap_err()
        };
        let replaced = self.ram.replace(page * FRAME_BYTES).unwrap();
        assert_eq!((replaced.offset, replaced.lost), (page * FRAME_BYTES, lost));
        self.ept.heals();
        (lost, replaced.frame)
    }

    /// What everybody says of the lost frame's offset while `frame` is behind it: of that frame, whatever happens.
    fn speaks_of(&self, frame: Pfn) {
        let (ram, at) = (&self.ram, AT * FRAME_BYTES);
        let one = RunSet::from(PfnRange::single(frame));
        let before = books(&self.pool).stats.shared;
        self.ept.asked();
        for (shared, order) in [(true, Order::BASE), (false, Order::BASE)] {
            let page = pages(AT, AT + 1);
            let answer = if shared { ram.share(page).unwrap() } else { ram.unshare(page).unwrap() };
            assert_eq!((answer.frames(), answer.changed()), (&one, true));
            assert_eq!(self.ept.invalidated(), one.runs());
            let expected = if shared { Shareability::Shared } else { Shareability::Private };
            assert_eq!(ram.shareability(at).unwrap(), expected);
            assert_eq!(self.pool.explain(frame).unwrap().state.shareability, expected);
            assert_eq!(ram.max_mapping_order(at).unwrap(), order);
            assert_eq!(books(&self.pool).stats.shared, before + u64::from(shared));
        }
        assert_eq!(ram.frame(at).unwrap(), frame);
        assert_eq!(ram.frames(pages(AT, AT + 1)).unwrap(), one);
        // No large leaf has the frame in the middle of others.
        for order in [Order::MIB2, Order::GIB1] {
            let refused = ram.promotable(at, order).unwrap_err();
            assert!(matches!(refused, Blocked::Refused(Refused::NotOneLeaf { .. })), "{order:?}: {refused}");
            ram.promote(at, order).unwrap_err();
        }
        assert!(ram.max_mapping_order(0).unwrap() <= Order::MIB2, "a GiB of which one frame is elsewhere");
        assert!(ram.max_mapping_order((AT + 2) * FRAME_BYTES).unwrap() <= Order::BASE);
    }

    /// Conversions of the block and of the GiB take the new frame along, and leave the lost one alone.
    fn converts_around(&self, frame: Pfn, lost: Pfn) {
        for (from, to) in [(512, 1024), (0, GIB), (600, 3000), (AT - 1, AT + 1)] {
            let mut expected = RunSet::from(run(from, to));
            expected.remove(PfnRange::single(lost));
            expected.insert(PfnRange::single(frame));
            let theirs = self.pool.explain(lost).unwrap().state.shareability;
            for shared in [true, false] {
                let range = pages(from, to);
                let answer = if shared { self.ram.share(range).unwrap() } else { self.ram.unshare(range).unwrap() };
                assert_eq!(*answer.frames(), expected, "{from}..{to}");
                assert_eq!(self.pool.explain(lost).unwrap().state.shareability, theirs, "{from}..{to}");
            }
        }
        books(&self.pool);
    }
}

#[test]
fn an_offset_whose_frame_was_replaced_speaks_of_the_new_one() {
    let world = World::new(3);
    let (lost, frame) = world.replaces(AT);
    world.speaks_of(frame);
    world.converts_around(frame, lost);
}

#[test]
fn it_does_so_after_the_lost_frame_was_freed() {
    let world = World::new(3);
    let (lost, frame) = world.replaces(AT);
    assert_eq!(world.pool.retry(run(0, GIB)).freed, PfnRange::single(lost).into());
    assert!(world.pool.is_free(lost));
    world.speaks_of(frame);
    world.converts_around(frame, lost);
    assert!(world.pool.is_free(lost));
}

#[test]
fn it_does_so_when_the_lost_frame_is_somebody_elses() {
    let world = World::new(1);
    let (lost, frame) = world.replaces(AT);
    world.pool.retry(run(0, GIB));
    let other = world.pool.allocate(Request::bytes(FRAME_BYTES).owner("other")).unwrap();
    assert_eq!(other.frame(0).unwrap(), lost);
    other.share(0..FRAME_BYTES).unwrap();
    world.speaks_of(frame);
    world.converts_around(frame, lost);
    assert_eq!(other.shareability(0).unwrap(), Shareability::Shared);
    drop(other);
    assert_eq!(world.pool.reclaim().freed, PfnRange::single(lost).into());
}

/// Then all of the GiB is one live owner's again, and its record says so; only not where the guest has it.
#[test]
fn it_does_so_when_the_lost_frame_is_at_another_offset_of_the_same_owner() {
    let world = World::new(1);
    let (lost, frame) = world.replaces(AT);
    world.pool.retry(run(0, GIB));
    let (_, again) = world.replaces(GIB);
    assert_eq!(again, lost, "the only free frame");
    assert_eq!(world.ram.frame(GIB_BYTES).unwrap(), lost);
    world.ram.unshare(pages(0, GIB)).unwrap();
    world.speaks_of(frame);
    world.ram.share(pages(GIB, GIB + 1)).unwrap();
    assert_eq!(world.ram.shareability(AT * FRAME_BYTES).unwrap(), Shareability::Private);
    assert_eq!(world.ram.shareability(GIB_BYTES).unwrap(), Shareability::Shared);
    world.converts_around(frame, lost);
    assert_eq!(world.ram.unshare(pages(GIB, GIB + 1)).unwrap().frames(), &RunSet::from(PfnRange::single(lost)));
    assert_ne!(world.ram.max_mapping_order(0), Ok(Order::GIB1));
    books(&world.pool);
}

#[test]
fn a_conversion_under_way_while_another_frame_of_its_gib_is_replaced_is_done() {
    for (from, to) in [(705, 706), (1024, 1536), (900, 3000)] {
        let world = World::new(2);
        let (answer, (lost, frame)) =
            scripted::while_parked(world.ept.parks(), || world.ram.share(pages(from, to)), || world.replaces(AT));
        assert_eq!(*answer.unwrap().frames(), set([(from, to)]));
        assert_eq!(books(&world.pool).stats.shared, 1 + to - from);
        world.ram.unshare(pages(from, to)).unwrap();
        world.speaks_of(frame);
        world.converts_around(frame, lost);
    }
}

#[test]
fn a_frame_that_is_poisoned_in_a_quiet_gib_refuses_until_it_is_replaced() {
    let world = World::new(2);
    world.pool.poison(run(AT, AT + 1), pageless::Cause::new("MCE", 0xbd, ""));
    for range in [pages(AT, AT + 1), pages(512, 1024), pages(0, GIB), pages(600, 3000)] {
        let refused = world.ram.share(range).unwrap_err();
        assert!(
            matches!(refused, Convert::Refused(Refused::Poisoned { offset, frames: 1 }) if offset == AT * FRAME_BYTES),
            "{refused}"
        );
    }
    let replaced = world.ram.replace(AT * FRAME_BYTES).unwrap();
    world.speaks_of(replaced.frame);
}

/// A verb about the first frame of an allocation; whether it was carried out.
type Verb = fn(&Allocation) -> bool;

#[test]
fn an_offset_that_was_given_up_reaches_no_frame_that_takes_the_place_of_another() {
    const ROUNDS: usize = 60;
    let verbs: [(&str, Verb); 5] = [
        ("share", |ram| ram.share(0..FRAME_BYTES).is_ok()),
        ("share two", |ram| ram.share(0..2 * FRAME_BYTES).is_ok()),
        ("hold", |ram| ram.hold(0..FRAME_BYTES, "dma").is_ok()),
        ("demote", |ram| ram.demote(0, Order::BASE).is_ok()),
        ("release", |ram| ram.release_range(0..FRAME_BYTES).is_ok()),
    ];
    for (name, verb) in verbs {
        for round in 0..ROUNDS {
            let pool = Pool::builder().backing(MetadataOnly::of_bytes(2 * GIB_BYTES)).build().unwrap();
            let ram = pool.allocate(Request::bytes(2 * GIB_BYTES).order(Order::GIB1).owner("vm")).unwrap();
            let given_up = ram.frame(0).unwrap();
            if round % 2 == 0 {
                ram.share(2 * FRAME_BYTES..3 * FRAME_BYTES).unwrap();
            }
            ram.release_range(0..FRAME_BYTES).unwrap();
            pool.reclaim();
            pool.poison(PfnRange::single(ram.frame(GIB_BYTES).unwrap()), Cause::new("test", 0, "poisoned"));
            let (begun, over) = (AtomicBool::new(false), AtomicBool::new(false));
            std::thread::scope(|scope| {
                let other = scope.spawn(|| {
                    let mut done = 0;
                    while !over.load(Ordering::SeqCst) {
                        done += u32::from(verb(&ram));
                        begun.store(true, Ordering::SeqCst);
                    }
                    done
                });
                while !begun.load(Ordering::SeqCst) {
                    std::hint::spin_loop();
                }
                (0..round * 37 % 500).for_each(|_| std::hint::spin_loop());
                assert_eq!(ram.replace(GIB_BYTES).unwrap().frame, given_up, "the only free frame");
                over.store(true, Ordering::SeqCst);
                assert_eq!(other.join().unwrap(), 0, "{name} was carried out for an offset without a frame, round {round}");
            });
            assert_eq!(ram.shareability(GIB_BYTES).unwrap(), Shareability::Private, "{name}, round {round}");
            assert!(pool.verify().is_sound(), "{name}, round {round}: {:?}", pool.verify());
        }
    }
}
