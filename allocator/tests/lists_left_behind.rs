//! The lists of mappings that conversions leave in the GiBs' records: the next conversion asks whoever is attached by then, no
//! list keeps a mapping alive that nobody needs, and a mapping's end may call the pool.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod scripted;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use pageless::{Allocation, Mapping, Operation, Order, Pool, Refusal, Request, Stuck, Verdict};
use scripted::{Scripted, books, pages, pool_of, run};

const GIB: u64 = Order::GIB1.frames();
const GIBS: u64 = 3;

fn owner(pool: &Pool, gibs: u64) -> Allocation {
    owner_named(pool, gibs, "vm")
}

fn owner_named(pool: &Pool, gibs: u64, name: &str) -> Allocation {
    pool.allocate(Request::bytes(gibs * Order::GIB1.bytes()).order(Order::GIB1).owner(name)).unwrap()
}

/// A frame, a block, an odd run and all of a GiB.
fn kinds(gib: u64) -> [Range<u64>; 4] {
    [(705, 706), (1024, 1536), (900, 3000), (0, GIB)].map(|(from, to)| pages(gib * GIB + from, gib * GIB + to))
}

/// Converts to and fro, in every way, in every GiB.
fn convert_everywhere(ram: &Allocation, gibs: u64) {
    for range in (0..gibs).flat_map(kinds) {
        assert!(ram.share(range.clone()).unwrap().changed(), "{range:?}");
        assert!(ram.unshare(range).unwrap().changed());
    }
}

/// A mapping that proves everything and at its end does what a test says.
#[derive(Default)]
struct Mortal {
    asked: AtomicU64,
    last_words: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Mapping for Mortal {
    fn prepare(&self, _: &Operation) -> Result<(), Refusal> {
        Ok(())
    }

    fn invalidate(&self, _: &Operation, _: pageless::PfnRange) -> Result<(), Stuck> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        if let Some(words) = self.last_words.lock().unwrap().take() {
            words();
        }
    }
}

/// Attaches a mapping that nobody else has.
fn attach(ram: &Allocation, name: &str) -> Weak<Mortal> {
    let mapping = Arc::new(Mortal::default());
    let weak = Arc::downgrade(&mapping);
    ram.attach(name, mapping).unwrap();
    weak
}

#[test]
fn a_mapping_attached_after_conversions_is_asked_by_the_very_next_one_of_every_gib() {
    let pool = pool_of(GIBS * GIB);
    let ram = owner(&pool, GIBS);
    convert_everywhere(&ram, GIBS);
    for nth in 0..6 {
        let late = attach(&ram, &format!("late {nth}")).upgrade().unwrap();
        // Each kind of conversion is the first one that a later mapping meets.
        let kind = (nth % 4) as usize;
        for (asked, range) in (1..).zip((0..GIBS).map(|gib| kinds(gib)[kind].clone())) {
            ram.share(range.clone()).unwrap();
            assert_eq!(late.asked.load(Ordering::Relaxed), asked, "{range:?}");
        }
        (0..GIBS).for_each(|gib| drop(ram.unshare(kinds(gib)[kind].clone()).unwrap()));
    }
    books(&pool);
}

#[test]
fn a_mapping_that_is_detached_is_asked_no_more_and_nothing_keeps_it_alive() {
    let pool = pool_of(GIBS * GIB);
    let ram = owner(&pool, GIBS);
    let _kept = attach(&ram, "kept");
    for _ in 0..3 {
        let weak = attach(&ram, "ept");
        convert_everywhere(&ram, GIBS);
        drop(ram.detach("ept").unwrap());
        assert!(weak.upgrade().is_none(), "a list in some record has it");
        convert_everywhere(&ram, GIBS);
    }
    books(&pool);
}

#[test]
fn no_list_outlives_the_allocation_whichever_way_it_ends() {
    type End = fn(&Pool, Allocation);
    let ends: [(&str, End); 5] = [
        ("release", |_, ram| drop(ram.release().unwrap())),
        ("drop", |_, ram| drop(ram)),
        ("owner_died", |pool, ram| {
            pool.owner_died("vm");
            assert!(pool.verify().is_sound());
            drop(ram);
        }),
        ("release_range of all", |_, ram| drop(ram.release_range(0..ram.bytes()).unwrap())),
        ("release_range GiB by GiB", |_, ram| {
            (0..GIBS).for_each(|gib| drop(ram.release_range(pages(gib * GIB, gib * GIB + GIB)).unwrap()));
        }),
    ];
    for (name, end) in ends {
        let pool = pool_of(GIBS * GIB);
        let ram = owner(&pool, GIBS);
        let weak = attach(&ram, "ept");
        convert_everywhere(&ram, GIBS);
        end(&pool, ram);
        pool.reclaim();
        assert_eq!(books(&pool).stats.free, GIBS * GIB, "{name}");
        assert!(weak.upgrade().is_none(), "{name}: a list in some record has it");
        // Whoever gets the GiBs next asks nobody of the past.
        let next = owner(&pool, GIBS);
        let own = attach(&next, "ept").upgrade().unwrap();
        convert_everywhere(&next, GIBS);
        assert_eq!(own.asked.load(Ordering::Relaxed), 8 * GIBS, "{name}");
    }
}

#[test]
fn a_release_while_a_conversion_is_under_way_leaves_no_list_behind() {
    for (from, to) in [(705, 706), (1024, 1536), (900, 3000)] {
        let pool = pool_of(GIB);
        let ram = owner(&pool, 1);
        let (weak, ept) = (attach(&ram, "mortal"), Scripted::new());
        ram.attach("ept", ept.clone()).unwrap();
        convert_everywhere(&ram, 1);
        // Beside it, and then all.
        let aside = || ram.release_range(pages(4000, 4001)).unwrap();
        scripted::while_parked(ept.parks(), || ram.share(pages(from, to)).unwrap(), aside);
        scripted::while_parked(ept.parks(), || ram.unshare(pages(from, to)).unwrap_err(), || pool.owner_died("vm"));
        drop(ram);
        pool.reclaim();
        assert_eq!(books(&pool).stats.free, GIB);
        assert!(weak.upgrade().is_none(), "{from}..{to}");
    }
}

#[test]
fn no_list_of_a_gib_that_lost_a_frame_outlives_the_allocation() {
    let pool = pool_of(GIBS * GIB);
    let ram = owner(&pool, GIBS - 1);
    let (weak, ept) = (attach(&ram, "mortal"), Scripted::new());
    ram.attach("ept", ept.clone()).unwrap();
    convert_everywhere(&ram, GIBS - 1);
    ept.sticks(run(7, 8), Verdict::Never);
    ram.share(pages(7, 8)).unwrap_err();
    ram.replace(7 * 4096).unwrap();
    let all = kinds(0).into_iter().chain(kinds(1));
    all.for_each(|range| drop((ram.share(range.clone()).unwrap(), ram.unshare(range).unwrap())));
    drop((ram, ept));
    pool.reclaim();
    assert_eq!(books(&pool).stats.free, GIBS * GIB - 1);
    // The lost frame's owner is remembered with its mappings; nothing is asked of them.
    drop(pool);
    assert!(weak.upgrade().is_none());
}

/// Runs a test in a thread, and fails where that does not return.
fn returns(test: impl FnOnce() + Send + 'static) {
    let (tell, told) = channel();
    let running = std::thread::spawn(move || {
        test();
        tell.send(()).unwrap();
    });
    let waited = told.recv_timeout(Duration::from_secs(60));
    assert!(waited != Err(std::sync::mpsc::RecvTimeoutError::Timeout), "it waits for ever");
    running.join().unwrap();
}

/// A pool with two owners, and a mapping of the first whose end calls everything there is.
fn talkative() -> (Pool, Arc<Allocation>, Arc<Allocation>, Weak<Mortal>) {
    let pool = pool_of(3 * GIB);
    let (ram, other) = (Arc::new(owner(&pool, 1)), Arc::new(owner_named(&pool, 1, "other")));
    let ept = Arc::new(Mortal::default());
    let (at_end, beside, own) = (pool.clone(), other.clone(), Arc::downgrade(&ram));
    *ept.last_words.lock().unwrap() = Some(Box::new(move || {
        assert!(at_end.verify().is_sound());
        drop((at_end.allocate(Request::bytes(4096).owner("will")).unwrap(), at_end.reclaim(), at_end.stats()));
        beside.share(pages(3, 4)).unwrap();
        beside.unshare(pages(0, GIB)).unwrap();
        // Its own allocation too, if it is there; other mappings may be in the way.
        if let Some(own) = own.upgrade() {
            drop((own.share(pages(9, 10)), own.shareability(0), own.mappings(), own.max_mapping_order(0)));
        }
    }));
    let weak = Arc::downgrade(&ept);
    ram.attach("ept", ept).unwrap();
    convert_everywhere(&ram, 1);
    (pool, ram, other, weak)
}

#[test]
fn a_mapping_whose_end_calls_the_pool_may_be_detached() {
    returns(|| {
        let (pool, ram, _other, weak) = talkative();
        drop(ram.detach("ept").unwrap());
        assert!(weak.upgrade().is_none());
        books(&pool);
    });
}

#[test]
fn a_mapping_whose_end_calls_the_pool_may_go_with_the_allocation() {
    for way in 0..4 {
        returns(move || {
            let (pool, ram, _other, weak) = talkative();
            let ram = Arc::into_inner(ram).unwrap();
            match way {
                0 => drop(ram.release().unwrap()),
                1 => drop((ram.release_range(0..ram.bytes()).unwrap(), ram)),
                2 => drop((pool.owner_died("vm"), ram)),
                _ => drop(ram),
            }
            pool.reclaim();
            pool.reclaim();
            assert!(weak.upgrade().is_none(), "way {way}");
            books(&pool);
        });
    }
}

/// The list that a conversion finds out of date is dropped by it, and may be the last one that has a mapping.
#[test]
fn a_mapping_whose_end_calls_the_pool_may_be_dropped_by_a_conversion() {
    for (nth, late) in (0..4).flat_map(|nth| [(nth, false), (nth, true)]) {
        returns(move || {
            let (pool, ram, _other, weak) = talkative();
            let ept = Scripted::new();
            ram.attach("second", ept.clone()).unwrap();
            let range = kinds(0)[nth].clone();
            if late {
                // The list with the second mapping is replaced while a conversion has it.
                scripted::while_parked(
                    ept.parks(),
                    || ram.share(range.clone()).unwrap(),
                    || ram.attach("third", Scripted::new()).unwrap(),
                );
            }
            drop(ram.detach("ept").unwrap());
            assert!(weak.upgrade().is_none());
            drop((ram.share(range.clone()).unwrap(), ram.unshare(range).unwrap()));
            books(&pool);
        });
    }
}
