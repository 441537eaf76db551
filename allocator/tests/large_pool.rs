//! Pools as large as hosts: built and used within ordinary memory and seconds, wherever their frames begin and their nodes
//! meet.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod scripted;

use std::time::{Duration, Instant};

use pageless::{
    AllocateError, Allocation, Buildable, Cause, FRAME_BYTES, MetadataOnly, NodeFrames, Order, Pfn, PfnRange, Pool, Request,
    RunSet, Shareability, Verdict,
};
use scripted::{Scripted, run};

const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const GIB_FRAMES: u64 = Order::GIB1.frames();

#[test]
fn a_pool_of_16_tib_is_built_and_used_within_seconds_and_megabytes() {
    let began = Instant::now();
    let pool = Pool::builder().backing(MetadataOnly::of_bytes(16 * TIB)).build().unwrap();
    let ram = pool.allocate(Request::bytes(TIB).order(Order::GIB1).owner("vm")).unwrap();
    ram.attach("ept", Scripted::new()).unwrap();
    assert!(ram.share(0..TIB).unwrap().changed());
    for nth in 0..1024 {
        assert!(ram.unshare(nth * GIB + 4096..nth * GIB + 8192).unwrap().changed());
    }
    let stats = pool.stats();
    assert_eq!((stats.frames, stats.free), (16 * TIB / FRAME_BYTES, 15 * TIB / FRAME_BYTES));
    assert_eq!((stats.shared, stats.broken_2m, stats.demoted_1g), (TIB / FRAME_BYTES - 1024, 1024, 1024));
    assert_eq!(stats.buildable.gib1, 15 * 1024);
    let bytes = pool.footprint().total();
    assert!(bytes < 96 << 20, "{bytes} bytes for 16 TiB, 1 TiB of them in use");
    assert_eq!(pool.compact(), 1024);
    assert!(pool.footprint().total() < bytes);
    assert_eq!(ram.release().unwrap().frames(), TIB / FRAME_BYTES);
    assert_eq!(pool.reclaim().freed.frames(), TIB / FRAME_BYTES);
    let found = pool.verify();
    assert!(found.is_sound(), "{:?}", found.faults);
    assert_eq!((found.frames, pool.stats().free), (16 * TIB / FRAME_BYTES, 16 * TIB / FRAME_BYTES));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[test]
fn a_pool_may_reach_up_to_the_last_frame_there_is() {
    let last = PfnRange::new(Pfn::new(Pfn::LIMIT.get() - 3 * GIB_FRAMES / 2), Pfn::LIMIT).unwrap();
    let pool = Pool::builder().backing(MetadataOnly::new(last)).build().unwrap();
    let ram = pool.allocate(Request::bytes(last.bytes()).owner("vm")).unwrap();
    assert_eq!(ram.share(0..last.bytes()).unwrap().frames().frames(), last.frames());
    assert!(pool.explain(Pfn::new(Pfn::LIMIT.get() - 1)).unwrap().owner.is_some());
    drop(ram);
    assert_eq!(pool.reclaim().freed.frames(), last.frames());
    assert!(pool.verify().is_sound());
}

/// Two nodes that meet in the middle of a GiB, and even of a 2 MiB block.
fn two_nodes() -> (Pool, PfnRange, PfnRange) {
    let (first, second) = (run(3 * GIB_FRAMES, 5 * GIB_FRAMES + 700), run(5 * GIB_FRAMES + 700, 8 * GIB_FRAMES));
    let nodes = [NodeFrames { node: 2, frames: first }, NodeFrames { node: 5, frames: second }];
    (Pool::builder().backing(MetadataOnly::with_nodes(nodes)).build().unwrap(), first, second)
}

fn lies_in(ram: &Allocation, node: PfnRange) -> bool {
    ram.extents().iter().all(|extent| node.contains_range(extent.frames))
}

#[test]
fn a_required_node_is_the_only_one_and_a_preferred_one_comes_first() {
    let (pool, first, second) = two_nodes();
    let ask = |bytes| Request::bytes(bytes).owner("vm");
    let required = pool.allocate(ask(GIB).require_node(5)).unwrap();
    assert!(lies_in(&required, second));
    let preferred = pool.allocate(ask(GIB).prefer_node(5)).unwrap();
    assert!(lies_in(&preferred, second));
    let elsewhere = pool.allocate(ask(2 * GIB).prefer_node(5).order(Order::GIB1)).unwrap();
    assert!(lies_in(&elsewhere, first), "what does not fit comes whole from another node: {elsewhere:?}");
    let error = pool.allocate(ask(2 * GIB).require_node(5)).unwrap_err();
    let AllocateError::NotEnough { buildable, .. } = error else { panic!("{error}") };
    assert_eq!(buildable.base, second.frames() - 2 * GIB_FRAMES, "told of the node that was required, not of the other");
    assert_eq!(pool.explain(first.start()).unwrap().node, 2);
    assert_eq!(pool.explain(second.start()).unwrap().node, 5);
    assert!(pool.verify().is_sound());
}

#[test]
fn an_allocation_over_a_border_inside_a_gib_converts_and_comes_back_whole() {
    let (pool, first, second) = two_nodes();
    let all = first.bytes() + second.bytes();
    let ram = pool.allocate(Request::bytes(all).owner("vm")).unwrap();
    assert!(ram.extents().iter().all(|extent| first.contains_range(extent.frames) || second.contains_range(extent.frames)));
    assert_eq!(ram.share(0..all).unwrap().frames().frames(), first.frames() + second.frames());
    let border = ram.extents().iter().find(|extent| extent.frames.contains(second.start())).copied().unwrap();
    assert_eq!(ram.shareability(border.offset_of(second.start())).unwrap(), Shareability::Shared);
    assert!(ram.max_mapping_order(border.offset_of(second.start())).unwrap() < Order::GIB1, "half of its GiB is another node's");
    drop(ram);
    assert_eq!(pool.reclaim().freed.frames(), first.frames() + second.frames());
    assert_eq!(pool.stats().buildable, Buildable { gib1: 4, mib2: 5 * 512 - 1, base: 5 * GIB_FRAMES });
    assert!(pool.verify().is_sound());
}

#[test]
fn a_pool_that_begins_anywhere_hands_out_aligned_blocks_of_its_own() {
    let frames = run(GIB_FRAMES + 13, 3 * GIB_FRAMES + 999);
    let pool = Pool::builder().backing(MetadataOnly::new(frames)).build().unwrap();
    let gib = pool.allocate(Request::bytes(GIB).order(Order::GIB1).owner("vm")).unwrap();
    assert_eq!(gib.extents()[0].frames, run(2 * GIB_FRAMES, 3 * GIB_FRAMES));
    let huge = pool.allocate(Request::bytes(2 << 20).order(Order::MIB2).owner("vm")).unwrap();
    assert!(huge.extents()[0].frames.start().is_aligned(Order::MIB2) && frames.contains_range(huge.extents()[0].frames));
    let rest = pool.stats().free;
    let small = pool.allocate(Request::bytes(rest * FRAME_BYTES).owner("vm")).unwrap();
    assert_eq!(small.extents().iter().map(|extent| extent.frames.frames()).sum::<u64>(), rest);
    assert_eq!(pool.stats().free, 0);
    assert!(pool.verify().is_sound());
}

/// Takes as much as an answer promised, at that order, and no block more.
fn is_true(pool: &Pool, buildable: Buildable) {
    for (order, blocks) in [(Order::GIB1, buildable.gib1), (Order::MIB2, buildable.mib2), (Order::BASE, buildable.base)] {
        let ask = |blocks: u64| pool.allocate(Request::bytes(blocks * order.bytes()).order(order).owner("takes at its word"));
        if blocks > 0 {
            drop(ask(blocks).unwrap_or_else(|error| panic!("{blocks} blocks of {order}: {error}")));
            pool.reclaim();
        }
        assert!(matches!(ask(blocks + 1), Err(AllocateError::NotEnough { .. })), "more than {blocks} blocks of {order}");
    }
}

#[test]
fn not_enough_tells_what_can_be_built_and_that_is_true() {
    let (pool, _, _) = two_nodes();
    let mut kept = Vec::new();
    for bytes in [4096, 2 << 20, 4096 * 513, GIB, 4096 * 3, GIB + 4096] {
        kept.push(pool.allocate(Request::bytes(bytes).owner("vm")).unwrap());
        let error = pool.allocate(Request::bytes(64 * GIB).owner("greedy")).unwrap_err();
        let AllocateError::NotEnough { buildable, .. } = error else { panic!("{error}") };
        assert_eq!(buildable, pool.stats().buildable);
        is_true(&pool, buildable);
    }
    drop(kept.remove(2));
    pool.reclaim();
    is_true(&pool, pool.stats().buildable);
    assert!(pool.verify().is_sound());
}

#[test]
fn a_replaced_frame_of_a_whole_gib_is_found_where_it_is_now() {
    let pool = Pool::builder().backing(MetadataOnly::of_bytes(2 * GIB)).build().unwrap();
    let ram = pool.allocate(Request::bytes(GIB).order(Order::GIB1).owner("vm")).unwrap();
    let ept = Scripted::new();
    ram.attach("ept", ept.clone()).unwrap();
    let (offset, lost) = (7 * FRAME_BYTES, ram.frame(7 * FRAME_BYTES).unwrap());
    pool.poison(PfnRange::single(lost), Cause::new("MCE", 0xb, "uncorrectable"));
    let fresh = ram.replace(offset).unwrap().frame;
    assert_eq!((ram.frame(offset).unwrap(), ram.shareability(offset).unwrap()), (fresh, Shareability::Private));
    ept.asked();
    assert_eq!(*ram.share(offset..offset + FRAME_BYTES).unwrap().frames(), RunSet::from(PfnRange::single(fresh)));
    assert_eq!(ept.invalidated(), [PfnRange::single(fresh)]);
    assert_eq!(ram.shareability(offset).unwrap(), Shareability::Shared);
    drop(ram);
    pool.reclaim();
    assert!(pool.verify().is_sound());
}

/// Loses the frames at these offsets for a while, and has others take their places.
fn replace_for_a_while(pool: &Pool, ram: &Allocation, ept: &Scripted, offsets: [u64; 2], share: bool) {
    for offset in offsets {
        ept.sticks(PfnRange::single(ram.frame(offset).unwrap()), Verdict::Retry { after: Duration::ZERO });
        let frame = offset..offset + FRAME_BYTES;
        let _torn = if share { ram.share(frame) } else { ram.unshare(frame) }.unwrap_err();
    }
    let lost = offsets.map(|offset| ram.frame(offset).unwrap());
    offsets.into_iter().for_each(|offset| assert_eq!(ram.replace(offset).unwrap().offset, offset));
    ept.heals();
    lost.into_iter().for_each(|frame| drop(pool.retry(PfnRange::single(frame))));
}

#[test]
fn a_gib_whose_frames_have_changed_places_is_no_leaf() {
    let pool = Pool::builder().backing(MetadataOnly::of_bytes(2 * GIB)).build().unwrap();
    let ram = pool.allocate(Request::bytes(GIB).order(Order::GIB1).owner("vm")).unwrap();
    let others = pool.allocate(Request::bytes(GIB - 2 * FRAME_BYTES).owner("others")).unwrap();
    let ept = Scripted::new();
    ram.attach("ept", ept.clone()).unwrap();
    let of_the_gib = ram.frame(0).unwrap();
    let (one, two) = (3 * FRAME_BYTES, 5 * FRAME_BYTES);
    // The two spare frames take their places; then those two are lost, and only the first two are left to take theirs.
    replace_for_a_while(&pool, &ram, &ept, [one, two], true);
    assert_eq!(pool.stats().free, 2);
    replace_for_a_while(&pool, &ram, &ept, [two, one], true);
    let back = [one, two].map(|offset| ram.frame(offset).unwrap());
    assert!(back.iter().all(|frame| PfnRange::block(of_the_gib, Order::GIB1).contains(*frame)), "{back:?}");
    // The GiB is all of the owner's, sound and private again, but not in the guest's order.
    assert!(ram.promotable(0, Order::GIB1).is_err());
    assert_eq!(ram.max_mapping_order(0).unwrap(), Order::BASE);
    assert!(pool.verify().is_sound());
    drop(others);
}
