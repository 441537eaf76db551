//! Allocations whose GiBs are in a row, are whole but lie anywhere, or are made of odd parts: every range of bytes, also a bad one,
//! is answered alike, and nothing is converted that was not asked for.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]
#![allow(clippy::cast_possible_truncation, reason = "a few GiB")]

mod scripted;

use std::ops::Range;
use std::sync::Arc;

use pageless::{Allocation, Convert, FRAME_BYTES, Order, Pool, Refused, Request, RunSet, Shareability};
use scripted::{Scripted, books, pages, pool_of};

const GIB: u64 = Order::GIB1.frames();
const GIB_BYTES: u64 = Order::GIB1.bytes();
/// What the allocation has.
const FRAMES: u64 = 4 * GIB + 700;
const SIZE: u64 = FRAMES * FRAME_BYTES;

/// One layout: the pool, the allocation, its mapping, and whoever has the rest.
struct World {
    pool: Pool,
    ram: Allocation,
    ept: Arc<Scripted>,
    _others: Vec<Allocation>,
}

fn attached(pool: Pool, ram: Allocation, others: Vec<Allocation>) -> World {
    let ept = Scripted::new();
    ram.attach("ept", ept.clone()).unwrap();
    World { pool, ram, ept, _others: others }
}

fn owners(pool: &Pool, frames: &[u64]) -> Vec<Allocation> {
    frames.iter().map(|frames| pool.allocate(Request::bytes(frames * FRAME_BYTES).owner("other")).unwrap()).collect()
}

fn in_a_row() -> World {
    let pool = pool_of(6 * GIB);
    let ram = pool.allocate(Request::bytes(SIZE).contiguous().owner("vm")).unwrap();
    assert!(matches!(ram.extents()[..], [extent] if extent.frames.start().is_aligned(Order::GIB1)));
    attached(pool, ram, Vec::new())
}

/// Every second owner of a GiB has gone.
fn anywhere() -> World {
    let pool = pool_of(10 * GIB);
    let mut others = owners(&pool, &[GIB; 10]);
    [8, 7, 5, 3, 1].into_iter().for_each(|nth| drop(others.swap_remove(nth)));
    pool.reclaim();
    let ram = pool.allocate(Request::bytes(SIZE).owner("vm")).unwrap();
    let extents = ram.extents();
    assert!(extents.len() > 2, "{extents:?}");
    assert!(extents.iter().all(|extent| extent.frames.start().is_aligned(Order::GIB1) && extent.offset % GIB_BYTES == 0));
    attached(pool, ram, others)
}

/// What is free are half GiBs, blocks and frames.
fn odd_parts() -> World {
    let pool = pool_of(8 * GIB);
    let sizes: Vec<u64> = (0..24).map(|nth| [GIB / 2, 512, 3, GIB / 4 + 77][nth % 4]).collect();
    let mut others = owners(&pool, &sizes);
    (0..others.len() / 2).for_each(|nth| drop(others.remove(nth)));
    pool.reclaim();
    let ram = pool.allocate(Request::bytes(SIZE).owner("vm")).unwrap();
    let extents = ram.extents();
    assert!(extents.iter().any(|extent| !extent.frames.start().is_aligned(Order::GIB1)), "{extents:?}");
    attached(pool, ram, others)
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    /// A range of bytes: mostly what page tables have entries for, and what is almost that.
    fn range(&mut self) -> Range<u64> {
        let length = [1, 1, 512, 512, GIB, GIB, self.below(2000) + 1, self.below(3 * GIB) + 1][self.below(8) as usize];
        let unit = [1, length.min(GIB), 512, GIB][self.below(4) as usize];
        let from = self.below(FRAMES / unit) * unit;
        pages(from, (from + length).min(FRAMES))
    }
}

/// What a malformed range is refused with; none for a good one.
fn refusal(range: &Range<u64>) -> Option<Refused> {
    let unaligned = |value| Refused::Unaligned { value, unit: FRAME_BYTES };
    let Range { start, end } = *range;
    match () {
        () if !start.is_multiple_of(FRAME_BYTES) => Some(unaligned(start)),
        () if !end.is_multiple_of(FRAME_BYTES) => Some(unaligned(end)),
        () if start >= end => Some(Refused::Empty { start, end }),
        () if end > SIZE => Some(Refused::Outside { start, end, size: SIZE }),
        () => None,
    }
}

/// Ranges that are none: of a usual length, and of no length.
fn bad_ranges() -> Vec<Range<u64>> {
    const LAST: u64 = u64::MAX - (FRAME_BYTES - 1);
    let mut bad = vec![0..0, SIZE..SIZE, SIZE..SIZE + FRAME_BYTES, 0..LAST, 0..u64::MAX, u64::MAX..u64::MAX, LAST..u64::MAX];
    for length in [FRAME_BYTES, 512 * FRAME_BYTES, GIB_BYTES, 3 * FRAME_BYTES] {
        for start in [0, FRAME_BYTES, 5 * GIB_BYTES, SIZE - FRAME_BYTES, 4 * GIB_BYTES, LAST - length] {
            bad.extend([
                start + 1..start + 1 + length,
                start..start + length - 1,
                start..start + length + 1,
                start + length..start,
            ]);
            bad.push(start + length..start + length);
            bad.push(start..start + length);
        }
        // The end wraps to what looks like a length.
        bad.extend([LAST..length - FRAME_BYTES, u64::MAX..length - 1, 7 * GIB_BYTES..7 * GIB_BYTES + length]);
    }
    bad.retain(|range| refusal(range).is_some());
    bad
}

#[test]
fn a_malformed_range_is_refused_with_its_numbers_in_every_layout() {
    for world in [in_a_row(), anywhere(), odd_parts()] {
        world.ram.share(pages(3, 5)).unwrap();
        world.ept.asked();
        let before = books(&world.pool);
        for range in bad_ranges() {
            let expected = || Err(Convert::Refused(refusal(&range).unwrap()));
            assert_eq!(world.ram.share(range.clone()), expected(), "{range:?}");
            assert_eq!(world.ram.unshare(range.clone()), expected(), "{range:?}");
        }
        assert_eq!(books(&world.pool), before);
        assert_eq!(world.ept.asked(), []);
    }
}

/// Runs of pages that are not `shared` yet.
fn changes(plain: &[bool], range: &Range<u64>, shared: bool) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for page in range.start / FRAME_BYTES..range.end / FRAME_BYTES {
        match runs.last_mut() {
            _ if plain[page as usize] == shared => {}
            Some(last) if last.end == page => last.end += 1,
            _ => runs.push(page..page + 1),
        }
    }
    runs
}

#[test]
fn random_conversions_change_what_was_asked_for_and_nothing_else_in_every_layout() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(17);
    println!("SEED={seed}");
    for (layout, world) in [("in a row", in_a_row()), ("anywhere", anywhere()), ("odd parts", odd_parts())] {
        let (mut random, mut plain) = (Random(seed), vec![false; FRAMES as usize]);
        for step in 0..300 {
            let (range, shared) = (random.range(), random.below(2) == 0);
            let what = format!("{layout}, step {step}: {range:?} shared: {shared}");
            let changes = changes(&plain, &range, shared);
            let answer = if shared { world.ram.share(range.clone()) } else { world.ram.unshare(range.clone()) }.unwrap();
            assert_eq!(answer.changed(), !changes.is_empty(), "{what}");
            assert_eq!(*answer.frames(), world.ram.frames(range.clone()).unwrap(), "{what}");
            let asked: RunSet = world.ept.invalidated().into_iter().collect();
            let changed = changes.iter().flat_map(|run| world.ram.frames(pages(run.start, run.end)).unwrap().runs().to_vec());
            assert_eq!(asked, changed.collect(), "{what}");
            plain[(range.start / FRAME_BYTES) as usize..(range.end / FRAME_BYTES) as usize].fill(shared);
            let probes = [range.start, range.end - 1, range.start.saturating_sub(1), range.end.min(SIZE - 1), random.below(SIZE)];
            for at in probes {
                let expected = if plain[(at / FRAME_BYTES) as usize] { Shareability::Shared } else { Shareability::Private };
                assert_eq!(world.ram.shareability(at).unwrap(), expected, "{what}: {at:#x}");
            }
            if step % 50 == 0 {
                let shared = plain.iter().filter(|shared| **shared).count() as u64;
                assert_eq!(books(&world.pool).stats.shared, shared, "{what}");
            }
        }
    }
}

#[test]
fn whole_gibs_have_the_same_leaves_wherever_they_lie() {
    let [row, spread] = [in_a_row(), anywhere()];
    let mut random = Random(3);
    for step in 0..200 {
        let (range, shared) = (random.range(), random.below(2) == 0);
        for world in [&row, &spread] {
            drop(if shared { world.ram.share(range.clone()) } else { world.ram.unshare(range.clone()) }.unwrap());
            if step % 20 == 0 {
                drop(world.ram.promote(range.start, Order::GIB1));
                drop(world.ram.promote(range.start, Order::MIB2));
                world.pool.compact();
            }
        }
        for at in [range.start, range.end - 1, random.below(SIZE), 0, GIB_BYTES, 2 * GIB_BYTES, 3 * GIB_BYTES, SIZE - 1] {
            assert_eq!(row.ram.max_mapping_order(at), spread.ram.max_mapping_order(at), "{step}: {range:?}, at {at:#x}");
            for order in Order::DESCENDING {
                let [one, other] = [&row, &spread].map(|world| world.ram.promotable(at, order).is_ok());
                assert_eq!(one, other, "{step}: {range:?}, at {at:#x}, {order:?}");
            }
        }
    }
}
