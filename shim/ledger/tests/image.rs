//! A pool is handed over as an image: the next one is the same in everything, and an image that is not whole is refused.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod cast;

use std::sync::Arc;

use cast::{NOT_NOW, Sticky, pages, run};
use pageless::ledger::{Kept, Ledger, LedgerError, Token};
use pageless::{BuildError, Cause, FRAME_BYTES, Mapping, MetadataOnly, NodeFrames, Pool, Request, Shareability, Verdict};
use pageless_ledger::{export_shared, from_image, to_image};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const FRAMES: u64 = 1 << 19;

fn memory() -> MetadataOnly {
    let half = FRAMES / 2 + 4096;
    MetadataOnly::with_nodes([NodeFrames { node: 0, frames: run(512, half) }, NodeFrames { node: 3, frames: run(half, FRAMES) }])
}

/// A pool with something of everything, none of which may stand in the way.
fn lived() -> (Pool, Token) {
    let pool = Pool::builder().backing(memory()).ledger(Kept::new()).build().unwrap();
    let ept = Sticky::new();
    let ram = pool.allocate(Request::bytes(200_000 * FRAME_BYTES).owner("vm-1")).unwrap();
    ram.attach("ept", ept.clone()).unwrap();
    let mut dice = StdRng::seed_from_u64(1);
    for _ in 0..3000 {
        let at = dice.random_range(0..199_990);
        ram.share(pages(at, at + dice.random_range(1..8))).unwrap();
    }
    for at in [10, 5000, 5001, 100_000] {
        let frame = ram.frame(at * FRAME_BYTES).unwrap().get();
        ept.sticks(frame, if at == 10 { NOT_NOW } else { Verdict::Never });
    }
    assert!(ram.unshare(pages(0, 150_000)).is_err() || ram.share(pages(0, 150_000)).is_err());
    ept.heals();
    pool.poison(run(300_000, 300_002), Cause::new("MCE", 0xb, "uncorrectable"));
    ram.release_range(pages(160_000, 160_100)).unwrap();
    std::mem::forget(ram.hold(pages(170_000, 170_010), "dma").unwrap());
    let token = ram.token().unwrap();
    std::mem::forget(ram);
    let other = pool.allocate(Request::bytes(64 * FRAME_BYTES).owner("vm-2").starts(Shareability::Unknown)).unwrap();
    std::mem::forget(other);
    (pool, token)
}

fn restored(bytes: &[u8]) -> Pool {
    Pool::builder().backing(memory()).snapshot(from_image(bytes).unwrap()).build().unwrap()
}

#[test]
fn a_pool_that_is_handed_over_is_the_same_in_everything() {
    let (pool, token) = lived();
    let image = to_image(&pool.snapshot());
    let next = restored(&image);
    assert_eq!(next.verify().faults, Vec::<String>::new());
    assert_eq!(next.stats(), pool.stats());
    assert_eq!(next.stretches(), pool.stretches());
    assert_eq!(next.withdrawn(), pool.withdrawn());
    assert_eq!(next.nodes(), pool.nodes());
    assert_eq!(next.orphaned_holds().len(), 1);
    assert_eq!(to_image(&next.snapshot()).len(), image.len());
    // And it works: the owner comes back, and what is released needs its proof.
    let ram = next.reattach(token).unwrap();
    let mapping: Arc<dyn Mapping> = Sticky::new();
    assert_eq!(next.answer_for("ept", &mapping), 1);
    assert!(ram.share(pages(180_000, 180_001)).is_ok());
    assert_eq!(next.reclaim().freed.frames(), 100);
    assert!(next.verify().is_sound());
}

#[test]
fn an_image_that_is_not_whole_is_refused_by_name() {
    let (pool, _) = lived();
    let image = to_image(&pool.snapshot());
    assert!(matches!(from_image(&image[..image.len() - 1]), Err(LedgerError::Damaged { .. })));
    assert!(matches!(from_image(b"short"), Err(LedgerError::Damaged { .. })));
    assert!(matches!(from_image(&[0; 64]), Err(LedgerError::Foreign { .. })));
    let mut other = image.clone();
    other[8] = 2;
    assert!(matches!(from_image(&other), Err(LedgerError::Version { found: 2, .. })));
    for at in (0..image.len()).step_by(97) {
        let mut flipped = image.clone();
        flipped[at] ^= 1 << (at % 8);
        assert!(from_image(&flipped).is_err(), "byte {at}");
    }
}

#[test]
fn an_image_of_another_pool_or_older_than_the_ledger_is_refused() {
    let (pool, _) = lived();
    let image = to_image(&pool.snapshot());
    let other = Pool::builder().backing(MetadataOnly::new(run(0, 64))).snapshot(from_image(&image).unwrap()).build();
    assert!(matches!(other, Err(BuildError::Ledger(LedgerError::OtherPool { .. }))));
    let kept = Kept::new();
    let later: Arc<dyn Ledger> = kept;
    let living = Pool::builder().backing(memory()).ledger(Arc::clone(&later)).build().unwrap();
    let before = living.snapshot();
    living.poison(run(400_000, 400_001), Cause::new("MCE", 1, ""));
    drop(living);
    let old = Pool::builder().backing(memory()).ledger(later).snapshot(before).build();
    let Err(BuildError::Ledger(LedgerError::Inconsistent { why, .. })) = old else { panic!() };
    assert!(why.contains("older than the ledger"), "{why}");
}

#[test]
fn other_roaring_libraries_can_read_who_may_reach_what() {
    let (pool, _) = lived();
    let mut bytes = Vec::new();
    export_shared(&pool.snapshot(), &mut bytes).unwrap();
    let read = roaring::RoaringTreemap::deserialize_from(&bytes[..]).unwrap();
    let shared: u64 = pool.stats().shared;
    assert_eq!(read.len(), shared);
    // The portable format for 64 bits: 8 bytes how many maps, then for each 4 bytes high half and a 32-bit map with its cookie.
    assert_eq!(u64::from_le_bytes(bytes[..8].try_into().unwrap()), 1);
    assert!([12346, 12347].contains(&(u32::from_le_bytes(bytes[12..16].try_into().unwrap()) & 0xffff)));
}

#[test]
fn the_image_of_random_sharing_is_near_its_entropy() {
    let pool = Pool::builder().backing(MetadataOnly::new(run(0, 1 << 18))).build().unwrap();
    let ram = pool.allocate(Request::bytes(1 << 30).contiguous().owner("vm")).unwrap();
    let mut dice = StdRng::seed_from_u64(7);
    for at in (0..1 << 18).filter(|_| dice.random_bool(0.1)) {
        ram.share(pages(at, at + 1)).unwrap();
    }
    let image = to_image(&pool.snapshot());
    let (p, frames) = (0.1f64, f64::from(1 << 18));
    let entropy = -(p * p.log2() + (1.0 - p) * (1.0 - p).log2()) * frames / 8.0;
    #[allow(clippy::cast_precision_loss)]
    let ratio = image.len() as f64 / entropy;
    println!("{} bytes, {ratio:.3} times the entropy", image.len());
    assert!(ratio <= 1.1, "{ratio}");
}
