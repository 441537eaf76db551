//! I3: no verb leads out of failed or poisoned, except a platform reset or a replacement of the hardware, each with its
//! evidence and with no live allocation.

use std::time::Duration;

use pageless::{Cause, LiftRefused, Request, RunSet, Verdict};

use crate::scripted::{World, books, pages, run, set};

/// A world in which frame 3 has failed and frame 5 is poisoned, and everything else would prove now.
fn wounded() -> World {
    let world = World::of(16);
    world.ept.sticks(run(3, 4), Verdict::Never);
    drop(world.ram.share(pages(0, 8)));
    world.ept.heals();
    world.pool.poison(run(5, 6), Cause::new("MCE", 1, ""));
    world
}

fn still_withdrawn(pool: &pageless::Pool, after: &str) {
    let stats = books(pool).stats;
    assert_eq!((stats.failed, stats.poisoned), (1, 1), "after {after}");
    assert!(!pool.is_free(run(3, 4).start()) && !pool.is_free(run(5, 6).start()), "after {after}");
}

/// Kept by `Registry::pick`, which takes quarantined entries only, and by `Gib::obstacle`.
#[test]
fn no_verb_of_a_live_owner_leads_out() {
    let World { pool, ram, .. } = wounded();
    let verbs: [(&str, &dyn Fn()); 10] = [
        ("share", &|| drop(ram.share(pages(3, 4)))),
        ("unshare", &|| drop(ram.unshare(pages(0, 8)))),
        ("release of a part", &|| drop(ram.release_range(pages(3, 6)))),
        ("demote", &|| drop(ram.demote(3 * 4096, pageless::Order::BASE))),
        ("detach", &|| drop(ram.detach("ept"))),
        ("retry", &|| drop(pool.retry(run(0, 16)))),
        ("reclaim", &|| drop(pool.reclaim())),
        ("a sweep", &|| drop(pool.quarantine_hung(Duration::ZERO))),
        ("compact", &|| assert!(pool.compact() <= 1)),
        ("poison", &|| drop(pool.poison(run(3, 4), Cause::new("MCE", 2, "")))),
    ];
    for (name, verb) in &verbs[..9] {
        verb();
        still_withdrawn(&pool, name);
    }
    verbs[9].1();
    let stats = books(&pool).stats;
    assert_eq!((stats.failed, stats.poisoned), (1, 2), "one mark more, none less");
}

/// Kept by `Gib::reclaimable` and `Registry::pick`.
#[test]
fn neither_the_owners_end_nor_a_replacement_leads_out() {
    let World { pool, ram, .. } = wounded();
    let spare = ram.release_range(pages(12, 16)).unwrap();
    assert_eq!(pool.reclaim().freed, spare);
    ram.replace(3 * 4096).unwrap();
    ram.replace(5 * 4096).unwrap();
    still_withdrawn(&pool, "replace");
    drop(ram);
    pool.reclaim();
    pool.retry(run(0, 16));
    still_withdrawn(&pool, "release, reclaim and retry");
    assert_eq!(pool.stats().free, 14);
}

/// Kept by `check_lift` in poison.rs.
#[test]
fn evidence_counts_only_when_it_is_given_and_nobody_lives() {
    let World { pool, ram, .. } = wounded();
    for evidence in ["", "  \n"] {
        assert!(matches!(pool.platform_reset(evidence).unwrap_err(), LiftRefused::NoEvidence { .. }));
        assert!(matches!(pool.hardware_replaced(run(0, 16), evidence).unwrap_err(), LiftRefused::NoEvidence { .. }));
    }
    assert!(matches!(pool.platform_reset("reboot 7").unwrap_err(), LiftRefused::Live { live: 1, .. }));
    still_withdrawn(&pool, "refused resets");
    drop(ram);
    pool.reclaim();
    assert_eq!(pool.platform_reset("reboot 7").unwrap(), set([(3, 4)]));
    let stats = books(&pool).stats;
    assert_eq!((stats.failed, stats.poisoned), (0, 1));
    assert_eq!(pool.reclaim().freed, set([(3, 4)]), "released by the reset, and free by proof");
    assert_eq!(pool.hardware_replaced(run(0, 16), "invoice 7").unwrap(), set([(5, 6)]));
    pool.reclaim();
    assert_eq!(books(&pool).stats.free, 16);
    assert!(pool.allocate(Request::bytes(16 * 4096).owner("next")).is_ok());
    assert_eq!(pool.platform_reset("again").unwrap(), RunSet::new());
}
