//! Bad arguments of every public verb: a typed answer with the value in it, and nothing changed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod scripted;

use std::ops::Range;

use pageless::{
    AllocateError, Blocked, BuildError, Cause, Detach, FRAME_BYTES, Frames, Intent, InvalidRange, LiftRefused, MetadataOnly,
    NodeFrames, Order, Pfn, PfnRange, Pool, PutError, Refused, Request, RunSet, TakeAtError,
};
use scripted::{Scripted, World, pages, run};

const SIZE: u64 = 16 * FRAME_BYTES;
const LAST: u64 = u64::MAX - (FRAME_BYTES - 1);

/// Ranges that no verb takes, with what each says.
fn bad_ranges() -> Vec<(Range<u64>, Refused)> {
    let unaligned = |value| Refused::Unaligned { value, unit: FRAME_BYTES };
    let outside = |start, end| Refused::Outside { start, end, size: SIZE };
    vec![
        (1..FRAME_BYTES, unaligned(1)),
        (0..FRAME_BYTES + 7, unaligned(FRAME_BYTES + 7)),
        (0..u64::MAX, unaligned(u64::MAX)),
        (u64::MAX..u64::MAX, unaligned(u64::MAX)),
        (0..0, Refused::Empty { start: 0, end: 0 }),
        #[allow(clippy::reversed_empty_ranges, reason = "that is the point")]
        (2 * FRAME_BYTES..FRAME_BYTES, Refused::Empty { start: 2 * FRAME_BYTES, end: FRAME_BYTES }),
        (0..SIZE + FRAME_BYTES, outside(0, SIZE + FRAME_BYTES)),
        (SIZE..SIZE + FRAME_BYTES, outside(SIZE, SIZE + FRAME_BYTES)),
        (0..LAST, outside(0, LAST)),
        (LAST - FRAME_BYTES..LAST, outside(LAST - FRAME_BYTES, LAST)),
    ]
}

/// What a verb on a range says when it is refused.
type OnRange<'w> = (&'static str, &'w dyn Fn(Range<u64>) -> Refused);

fn refused(blocked: Blocked) -> Refused {
    if let Blocked::Refused(refused) = blocked { refused } else { panic!("{blocked}") }
}

fn convert(answer: pageless::Convert) -> Refused {
    if let pageless::Convert::Refused(refused) = answer { refused } else { panic!("{answer}") }
}

#[test]
fn a_malformed_range_is_refused_by_every_verb_with_its_numbers() {
    let world = World::of(16);
    let ram = &world.ram;
    let verbs: [OnRange<'_>; 7] = [
        ("share", &|range| convert(ram.share(range).unwrap_err())),
        ("unshare", &|range| convert(ram.unshare(range).unwrap_err())),
        ("plan", &|range| ram.plan(range, Intent::Share).unwrap_err()),
        ("frames", &|range| ram.frames(range).unwrap_err()),
        ("hold", &|range| refused(ram.hold(range, "nic").unwrap_err())),
        ("map_guard", &|range| refused(ram.map_guard("ept", range).map(drop).unwrap_err())),
        ("release_range", &|range| refused(ram.release_range(range).unwrap_err())),
    ];
    let before = world.books();
    for (name, verb) in verbs {
        for (range, expected) in bad_ranges() {
            assert_eq!(verb(range.clone()), expected, "{name} of {range:?}");
            assert_eq!(world.books(), before, "{name} of {range:?}");
        }
    }
    assert_eq!(world.ept.asked(), []);
}

#[test]
fn an_offset_beyond_the_end_is_refused_by_every_verb_with_the_size() {
    let world = World::of(16);
    let ram = &world.ram;
    type OnOffset<'w> = (&'static str, &'w dyn Fn(u64) -> Refused);
    let verbs: [OnOffset<'_>; 8] = [
        ("frame", &|offset| ram.frame(offset).unwrap_err()),
        ("shareability", &|offset| ram.shareability(offset).unwrap_err()),
        ("max_mapping_order", &|offset| refused(ram.max_mapping_order(offset).unwrap_err())),
        ("demote", &|offset| refused(ram.demote(offset, Order::BASE).unwrap_err())),
        ("promotable", &|offset| refused(ram.promotable(offset, Order::BASE).unwrap_err())),
        ("promote to 2M", &|offset| refused(ram.promote(offset, Order::MIB2).unwrap_err())),
        ("promote to 1G", &|offset| refused(ram.promote(offset, Order::GIB1).unwrap_err())),
        ("replace", &|offset| refused(ram.replace(offset - offset % FRAME_BYTES).unwrap_err())),
    ];
    let before = world.books();
    for (name, verb) in verbs {
        for offset in [SIZE, SIZE + 1, 1 << 40, LAST, u64::MAX] {
            let refused = verb(offset);
            assert!(
                matches!(refused, Refused::Outside { size: SIZE, start, .. } if start <= offset),
                "{name} at {offset:#x}: {refused}"
            );
            assert_eq!(world.books(), before, "{name} at {offset:#x}");
        }
    }
    assert_eq!(ram.replace(1).unwrap_err(), Refused::Unaligned { value: 1, unit: FRAME_BYTES }.into());
}

#[test]
fn a_block_larger_than_the_allocation_is_refused_with_its_bounds() {
    let world = World::of(16);
    for order in [Order::MIB2, Order::GIB1] {
        let expected = Refused::Outside { start: 0, end: order.bytes(), size: SIZE };
        assert_eq!(world.ram.promotable(5, order).unwrap_err(), expected.clone().into());
        assert_eq!(world.ram.promote(5, order).unwrap_err(), expected.into());
    }
}

#[test]
fn a_block_whose_guest_and_pool_alignments_differ_cannot_be_one_leaf() {
    let pool = Pool::builder().backing(MetadataOnly::new(run(1, 1001))).build().unwrap();
    let ram = pool.allocate(Request::bytes(512 * FRAME_BYTES).contiguous().owner("vm")).unwrap();
    assert!(matches!(ram.extents()[..], [extent] if !extent.frames.start().is_aligned(Order::MIB2)), "{:?}", ram.extents());
    let refused = ram.promote(0, Order::MIB2).unwrap_err();
    assert!(matches!(refused, Blocked::Refused(Refused::NotOneLeaf { offset: 0, bytes, .. }) if bytes == Order::MIB2.bytes()));
}

#[test]
fn names_that_are_empty_taken_or_unknown_are_refused_by_name() {
    let world = World::of(16);
    let before = world.books();
    let ram = &world.ram;
    assert_eq!(ram.attach("", Scripted::new()).unwrap_err(), Refused::NoName { what: "mapping" });
    assert_eq!(ram.attach("ept", Scripted::new()).unwrap_err(), Refused::NameTaken { name: "ept".into() });
    assert_eq!(ram.hold(pages(0, 1), "").unwrap_err(), Refused::NoName { what: "holder" }.into());
    let unknown = Refused::NoSuchMapping { name: "iommu".into() };
    assert_eq!(ram.detach("iommu").unwrap_err(), Detach::Blocked(unknown.clone().into()));
    assert_eq!(ram.map_guard("iommu", pages(0, 1)).map(drop).unwrap_err(), unknown.into());
    assert_eq!(world.books(), before);
    assert_eq!(ram.mappings().len(), 1);
    assert!(ram.share(pages(0, 1)).is_ok(), "no guard was left behind");
}

#[test]
fn only_conversions_can_be_planned() {
    let world = World::of(16);
    for intent in [Intent::Reclaim, Intent::Detach, Intent::Resize] {
        assert_eq!(world.ram.plan(pages(0, 1), intent).unwrap_err(), Refused::NotAConversion { intent });
    }
}

#[test]
fn requests_of_no_possible_size_are_refused_with_the_unit() {
    let world = World::of(16);
    let before = world.books();
    for (bytes, order) in [(0, Order::BASE), (1, Order::BASE), (4097, Order::BASE), (4096, Order::MIB2), (u64::MAX, Order::GIB1)]
    {
        let error = world.pool.allocate(Request::bytes(bytes).order(order).owner("vm")).unwrap_err();
        assert_eq!(error, AllocateError::Size { bytes, unit: order.bytes() });
        assert_eq!(error.errno(), 22);
    }
    for request in [Request::bytes(LAST), Request::bytes(LAST).contiguous(), Request::bytes(1 << 62).order(Order::GIB1)] {
        let error = world.pool.allocate(request.owner("vm")).unwrap_err();
        assert!(matches!(error, AllocateError::NotEnough { .. }), "{error}");
    }
    assert_eq!(world.books(), before);
}

#[test]
fn requests_without_owner_or_for_an_unknown_node_are_refused() {
    let pool = scripted::pool_of(16);
    assert_eq!(pool.allocate(Request::bytes(4096)).unwrap_err(), AllocateError::NoOwner);
    for request in [Request::bytes(4096).require_node(u32::MAX), Request::bytes(4096).prefer_node(u32::MAX)] {
        let error = pool.allocate(request.owner("vm")).unwrap_err();
        assert_eq!(error, AllocateError::NoSuchNode { node: u32::MAX, known: vec![0] });
        assert_eq!(error.errno(), 22);
    }
    assert_eq!(pool.stats().free, 16);
}

#[test]
fn a_pool_is_built_only_over_nodes_that_make_sense() {
    let node = |node, start, end| NodeFrames { node, frames: run(start, end) };
    let build = |nodes: &[NodeFrames]| Pool::builder().backing(MetadataOnly::with_nodes(nodes.to_vec())).build().err().unwrap();
    assert_eq!(Pool::builder().build().err().unwrap(), BuildError::NoBacking);
    assert_eq!(build(&[]), BuildError::NoFrames);
    let out_of_order =
        |second, second_frames| BuildError::NodesOutOfOrder { first: 0, first_frames: run(8, 16), second, second_frames };
    assert_eq!(build(&[node(0, 8, 16), node(1, 15, 20)]), out_of_order(1, run(15, 20)));
    assert_eq!(build(&[node(0, 8, 16), node(1, 0, 4)]), out_of_order(1, run(0, 4)));
    assert_eq!(build(&[node(3, 0, 8), node(1, 8, 9), node(3, 9, 12)]), BuildError::DuplicateNode { node: 3 });
}

#[test]
fn ranges_that_hold_nothing_or_end_nowhere_do_not_exist() {
    let pfn = Pfn::new;
    assert_eq!(PfnRange::new(pfn(7), pfn(7)), Err(InvalidRange::Empty { start: pfn(7), end: pfn(7) }));
    assert_eq!(PfnRange::new(pfn(u64::MAX), pfn(0)), Err(InvalidRange::Empty { start: pfn(u64::MAX), end: pfn(0) }));
    assert_eq!(PfnRange::from_len(pfn(1), 0), Err(InvalidRange::Empty { start: pfn(1), end: pfn(1) }));
    let beyond = |start, frames| Err(InvalidRange::BeyondLimit { start: pfn(start), frames });
    assert_eq!(PfnRange::from_len(pfn(1), u64::MAX), beyond(1, u64::MAX));
    assert_eq!(PfnRange::from_len(pfn(u64::MAX), u64::MAX), beyond(u64::MAX, u64::MAX));
    assert_eq!(PfnRange::new(pfn(0), pfn(u64::MAX)), beyond(0, u64::MAX));
    assert_eq!(PfnRange::single(pfn(u64::MAX)).end(), Pfn::LIMIT);
    assert_eq!(PfnRange::block(pfn(u64::MAX), Order::GIB1).end(), Pfn::LIMIT);
    assert_eq!(run(0, 8).sub(u64::MAX, u64::MAX), None);
    assert_eq!(run(0, 8).split_at(u64::MAX), (Some(run(0, 8)), None));
    assert_eq!(Pfn::new(u64::MAX).align_up(Order::GIB1).get() % Order::GIB1.frames(), 0);
    assert_eq!(Order::from_log2(255), None);
}

#[test]
fn the_frame_layer_refuses_what_is_not_its_own_or_not_taken() {
    let frames = Frames::new(run(8, 24));
    assert_eq!(frames.take_at(run(0, 9)), Err(TakeAtError::Outside { pfn: Pfn::new(0), span: run(8, 24) }));
    assert_eq!(frames.put(run(20, 25)), Err(PutError::Foreign { pfn: Pfn::new(24), span: run(8, 24) }));
    assert_eq!(frames.put(run(8, 9)), Err(PutError::AlreadyFree { pfn: Pfn::new(8) }));
    frames.take_at(run(10, 12)).unwrap();
    assert_eq!(frames.take_at(run(8, 16)), Err(TakeAtError::NotFree { pfn: Pfn::new(10) }));
    assert_eq!(
        frames.put_batch(&[Pfn::new(10), Pfn::new(u64::MAX)]),
        Err(PutError::Foreign { pfn: Pfn::new(u64::MAX), span: run(8, 24) })
    );
    assert_eq!(frames.put_batch(&[Pfn::new(10), Pfn::new(10)]), Err(PutError::AlreadyFree { pfn: Pfn::new(10) }));
    assert_eq!((frames.take_run(0, Order::BASE), frames.take_run(u64::MAX, Order::GIB1)), (None, None));
    assert_eq!(frames.take(Order::GIB1), None);
    assert!(!frames.is_free(Pfn::new(u64::MAX)) && !frames.is_free(Pfn::new(10)));
    assert_eq!(frames.free_frames(), 14);
    assert!(frames.check().is_ok());
}

#[test]
fn frames_that_are_not_the_pools_are_nobodys_business() {
    let world = World::of(16);
    let before = world.books();
    let elsewhere = PfnRange::new(Pfn::new(16), Pfn::LIMIT).unwrap();
    assert_eq!(world.pool.poison(elsewhere, Cause::default()), RunSet::new());
    assert_eq!(world.pool.retry(elsewhere), pageless::Reclaimed::default());
    assert!(world.pool.explain(Pfn::new(16)).is_none() && world.pool.explain(Pfn::new(u64::MAX)).is_none());
    assert!(!world.pool.is_free(Pfn::new(u64::MAX)));
    assert_eq!(world.pool.owner_died("nobody"), 0);
    assert_eq!(world.books(), before);
    let World { pool, ram, .. } = world;
    drop(ram);
    assert_eq!(pool.hardware_replaced(run(8, 17), "invoice").unwrap_err(), LiftRefused::Outside { frames: run(8, 17) });
    assert_eq!(pool.poison(PfnRange::new(Pfn::new(15), Pfn::LIMIT).unwrap(), Cause::default()), RunSet::from(run(15, 16)));
}

#[test]
fn an_operation_that_hung_for_longer_than_time_itself_is_no_reason_to_panic() {
    let world = World::of(16);
    assert_eq!(world.pool.quarantine_hung(std::time::Duration::MAX), []);
}

#[test]
fn a_mapping_that_asks_to_wait_for_ever_is_asked_again_some_day() {
    let world = World::of(16);
    world.ept.sticks(run(0, 1), pageless::Verdict::Retry { after: std::time::Duration::MAX });
    let pageless::Convert::Torn { lost, .. } = world.ram.share(pages(0, 2)).unwrap_err() else { panic!() };
    assert!(lost[0].retry_after().unwrap() > std::time::Duration::from_secs(3600));
    assert_eq!(world.pool.reclaim(), pageless::Reclaimed::default());
    world.pool.retry(run(0, 16));
    world.ept.heals();
    assert_eq!(world.pool.retry(run(0, 16)).recovered, RunSet::from(run(0, 1)));
}
