//! Several threads with random verbs on one allocation and on many, over mappings and a backing that fail now and then. Every
//! result is a partition, no frame ever has two owners, nothing that was lost for good comes back, no translation outlives its
//! owner, and the books agree while it goes on and at the end.
//!
//! The seed is printed when a test fails; `PAGELESS_SEED` sets it. What the threads do is repeated by it, when they do it is not.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails should panic")]

mod crowd;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use crowd::{Rolled, Shaky, ShakyBacking, Tally, roll, seed};
use pageless::{
    Allocation, Cause, Convert, Converted, FRAME_BYTES, Hold, Order, Pfn, PfnRange, Policy, Pool, Reclaimed, Request,
    RetryPolicy, RunSet,
};

const GIB: u64 = 1 << 18;
const NAMES: [&str; 2] = ["iommu", "ept"];

fn build(tally: &Arc<Tally>) -> Pool {
    let retry = RetryPolicy { at_once: 1, pause: Duration::ZERO, later: 1000, later_after: Duration::ZERO };
    let policy = Policy { retry, guard_drain: Duration::from_micros(100), ..Policy::default() };
    Pool::builder().backing(ShakyBacking(Arc::clone(tally))).policy(policy).build().unwrap()
}

fn start_seed() -> u64 {
    let given = std::env::var("PAGELESS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| u64::from(std::process::id()) << 16 | 7);
    println!("PAGELESS_SEED={seed}");
    seed
}

fn extents(ram: &Allocation) -> RunSet {
    ram.extents().iter().map(|extent| extent.frames).collect()
}

fn allocate(pool: &Pool, tally: &Arc<Tally>, frames: u64, owner: &str) -> Option<Allocation> {
    let order = if frames >= Order::MIB2.frames() { Order::MIB2 } else { Order::BASE };
    let ram = pool.allocate(Request::bytes(frames * FRAME_BYTES).order(order).owner(owner)).ok()?;
    tally.got(ram.id(), &extents(&ram));
    for (nth, name) in NAMES.iter().enumerate() {
        ram.attach(name, Arc::new(Shaky { tally: Arc::clone(tally), real: nth == 1 })).unwrap();
    }
    Some(ram)
}

fn some_range(ram: &Allocation) -> std::ops::Range<u64> {
    let frames = ram.bytes() / FRAME_BYTES;
    let from = roll(frames);
    let len = 1 + roll((frames - from).min(40));
    from * FRAME_BYTES..(from + len) * FRAME_BYTES
}

/// A panic that a mapping rolled is part of the game.
fn survived<T>(verb: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(verb)) {
        Ok(answer) => Some(answer),
        Err(payload) if payload.is::<Rolled>() => None,
        Err(payload) => resume_unwind(payload),
    }
}

/// Every frame of the range is in exactly one place.
fn check_conversion(tally: &Tally, answer: Result<Converted, Convert>, frames: u64) {
    match answer {
        Ok(converted) => assert_eq!(converted.frames().frames(), frames),
        Err(Convert::Torn { done, lost }) => {
            tally.lost(&lost);
            let gone: RunSet = lost.iter().map(pageless::Lost::frames).collect();
            assert!(!lost.is_empty() && done.intersection(&gone).is_empty(), "{done} and {gone}");
            assert_eq!(
                lost.iter().map(|lost| lost.frames().frames()).sum::<u64>() + done.frames(),
                frames,
                "{done} and {lost:?}"
            );
        }
        Err(Convert::OwnerGone { lost }) => tally.lost(&lost),
        Err(Convert::Busy { .. } | Convert::Held { .. } | Convert::Refused(_)) => {}
    }
}

fn check_reclaimed(tally: &Tally, told: &Reclaimed) {
    tally.lost(&told.lost);
    let parts: [RunSet; 5] = [
        told.freed.clone(),
        told.recovered.clone(),
        told.lost.iter().map(pageless::Lost::frames).collect(),
        told.waiting.iter().map(|waiting| waiting.frames).collect(),
        told.withdrawn.clone(),
    ];
    for (nth, part) in parts.iter().enumerate() {
        for other in &parts[nth + 1..] {
            assert!(part.intersection(other).is_empty(), "{part} and {other} in {told:?}");
        }
    }
}

/// One random verb on an allocation that others may use too.
fn shared_verb(tally: &Arc<Tally>, ram: &Allocation, holds: &mut Vec<Hold>) {
    let range = some_range(ram);
    let frames = (range.end - range.start) / FRAME_BYTES;
    match roll(16) {
        0..4 => survived(|| ram.share(range)).into_iter().for_each(|answer| check_conversion(tally, answer, frames)),
        4..7 => survived(|| ram.unshare(range)).into_iter().for_each(|answer| check_conversion(tally, answer, frames)),
        7..11 => {
            if let Ok(guard) = ram.map_guard(NAMES[1], range) {
                guard.extents().iter().for_each(|extent| tally.maps(ram.id(), extent.frames));
            }
        }
        11 => {
            holds.extend(ram.hold(range, "vfio"));
            holds.truncate(3);
        }
        12 => holds.clear(),
        13 => drop(ram.plan(range, pageless::Intent::Share)),
        14 => replace_lost(tally, ram),
        _ => {
            let _asked_for = survived(|| ram.demote(range.start, Order::BASE));
        }
    }
}

fn replace_lost(tally: &Tally, ram: &Allocation) {
    let at = roll(ram.bytes() / FRAME_BYTES) * FRAME_BYTES;
    let Ok(lost) = ram.frame(at) else { return };
    let given = tally.gives(ram.id(), &PfnRange::single(lost).into());
    match ram.replace(at) {
        Ok(replaced) => {
            if replaced.lost != lost {
                // Another thread replaced it in between.
                tally.keeps(ram.id(), &given);
                tally.gives(ram.id(), &PfnRange::single(replaced.lost).into());
            }
            tally.got(ram.id(), &PfnRange::single(replaced.frame).into());
        }
        Err(_) => tally.keeps(ram.id(), &given),
    }
}

/// Allocates, uses and gives back, again and again.
fn tenant(pool: &Pool, tally: &Arc<Tally>, shared: &Allocation, owner: &str, rounds: u64) {
    for _ in 0..rounds {
        let mut holds = Vec::new();
        let frames = if roll(8) == 0 { 512 } else { 1 + roll(60) };
        let Some(ram) = allocate(pool, tally, frames, owner) else {
            survived(|| check_reclaimed(tally, &pool.reclaim()));
            continue;
        };
        for _ in 0..roll(12) {
            shared_verb(tally, &ram, &mut holds);
        }
        for _ in 0..roll(6) {
            // Its lost frames are not replaced here: which thread took which is more than the tally can follow.
            let range = some_range(shared);
            let frames = (range.end - range.start) / FRAME_BYTES;
            let answer = survived(|| if roll(2) == 0 { shared.share(range) } else { shared.unshare(range) });
            answer.into_iter().for_each(|answer| check_conversion(tally, answer, frames));
        }
        if roll(3) == 0 {
            let range = some_range(&ram);
            if let Ok(part) = ram.frames(range.clone()) {
                let given = tally.gives(ram.id(), &part);
                if ram.release_range(range).is_err() {
                    tally.keeps(ram.id(), &given);
                }
            }
        }
        let given = tally.gives(ram.id(), &extents(&ram));
        if roll(2) == 0 {
            if let Err(refused) = ram.release() {
                tally.keeps(refused.allocation.id(), &given);
                drop(holds);
                tally.gives(refused.allocation.id(), &given);
            }
        } else {
            drop(ram);
        }
    }
}

/// Reclaims, poisons, sweeps and audits.
fn operator(pool: &Pool, tally: &Tally, rounds: u64) {
    for _ in 0..rounds {
        match roll(20) {
            0 => {
                let frame = PfnRange::single(tally.any_frame());
                pool.poison(frame, Cause::new("mce", 1, ""));
            }
            1..4 => drop(pool.retry(PfnRange::new(Pfn::new(0), Pfn::LIMIT).unwrap())),
            4 => tally.lost(&pool.quarantine_hung(Duration::from_millis(1))),
            5 => drop(pool.compact()),
            6 | 7 => {
                let verified = pool.verify();
                assert!(verified.is_sound(), "{:#?}", verified.faults);
            }
            8 => drop((pool.stats(), pool.withdrawn(), pool.explain(tally.any_frame()))),
            _ => check_reclaimed(tally, &pool.reclaim()),
        }
        std::thread::yield_now();
    }
}

fn crowd(nodes: &[(u32, u64, u64)], granule: u64, rounds: u64) {
    quiet();
    let start = start_seed();
    let tally = Tally::new(nodes, granule);
    let pool = build(&tally);
    seed(start);
    let shared = allocate(&pool, &tally, 200, "shared").unwrap();
    std::thread::scope(|scope| {
        for nth in 0..3 {
            let (pool, tally, shared) = (&pool, &tally, &shared);
            scope.spawn(move || {
                seed(start ^ (nth + 1) << 32);
                tenant(pool, tally, shared, &format!("vm-{nth}"), rounds);
            });
        }
        let (pool, tally) = (&pool, &tally);
        scope.spawn(move || {
            seed(start ^ 9 << 32);
            operator(pool, tally, rounds * 4);
        });
    });
    tally.gives(shared.id(), &extents(&shared));
    drop(shared);
    settle(&pool, &tally, granule);
}

/// Nothing fails any more: everything that was not lost for good comes back.
fn settle(pool: &Pool, tally: &Tally, granule: u64) {
    tally.faulty.store(false, SeqCst);
    let everything = PfnRange::new(Pfn::new(0), Pfn::LIMIT).unwrap();
    for _ in 0..2 {
        check_reclaimed(tally, &pool.retry(everything));
    }
    let verified = pool.verify();
    assert!(verified.is_sound(), "{:#?}", verified.faults);
    let stats = pool.stats();
    assert_eq!((stats.allocated, stats.converting, stats.allocations), (0, 0, 0), "{stats:?}");
    if granule == 1 {
        // A quarantined frame that is poisoned too stays with its owner; nothing else is left.
        let lost: RunSet = pool.withdrawn().iter().map(|run| run.frames).collect();
        assert_eq!(stats.free + lost.frames(), stats.frames, "{stats:?}");
    }
    for node in pool.nodes() {
        for pfn in node.frames.iter().filter(|pfn| tally.is_gone(*pfn)) {
            assert!(!pool.is_free(pfn), "{pfn} was lost for good and is free");
        }
    }
}

/// Panics that were rolled are not worth a message.
fn quiet() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !info.payload().is::<Rolled>() {
                loud(info);
            }
        }));
    });
}

#[test]
fn threads_over_single_frames_never_share_one_and_lose_none() {
    crowd(&[(0, GIB - 700, GIB + 324), (5, GIB + 324, GIB + 2000)], 1, 400);
}

#[test]
fn threads_over_granules_of_sixteen_never_share_a_frame_and_lose_none() {
    crowd(&[(0, GIB - 720, GIB + 1328)], 16, 400);
}

#[test]
fn threads_in_a_pool_that_is_too_small_for_them_starve_politely() {
    crowd(&[(0, GIB - 100, GIB + 200)], 1, 800);
}
