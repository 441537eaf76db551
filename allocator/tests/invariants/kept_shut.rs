//! I12: a withdrawn page of a synthetic backing is never punched, truncated or closed while its mark stands.
//!
//! [`Shutter`] remembers being asked to touch a page that is shut, failed or poisoned, and its `shut` asserts that it was not.

use std::sync::Arc;

use pageless::{Allocation, Cause, Convert, Pool, Request, RunSet, Verdict};

use crate::scripted::{NOT_NOW, Scripted, Shutter, books, pages, run, set, while_parked};

fn world(granule: u64) -> (Pool, Arc<Shutter>, Allocation, Arc<Scripted>) {
    let (pool, backing) = Shutter::pool(16, granule);
    let ram = pool.allocate(Request::bytes(16 * 4096).owner("vm")).unwrap();
    let ept = Scripted::new();
    ram.attach("ept", ept.clone()).unwrap();
    (pool, backing, ram, ept)
}

/// Kept by `tell_backing` in pool.rs, called by `finish` before it returns.
#[test]
fn pages_are_shut_before_the_caller_is_told_of_their_loss() {
    let (_pool, backing, ram, ept) = world(1);
    ept.sticks(run(3, 5), Verdict::Never);
    ept.sticks(run(9, 10), NOT_NOW);
    let Convert::Torn { .. } = ram.share(pages(0, 12)).unwrap_err() else { panic!() };
    assert_eq!(backing.shut(), set([(3, 5), (9, 10)]));
    assert_eq!(backing.scrubbed(), set([(0, 3), (5, 9), (10, 12)]), "what is lost is not touched");
}

/// Kept by `poison` in poison.rs.
#[test]
fn poisoned_pages_are_shut_whoever_has_them() {
    let (pool, backing, ram, _ept) = world(1);
    ram.release_range(pages(0, 4)).unwrap();
    pool.reclaim();
    pool.poison(run(2, 6), Cause::new("MCE", 1, ""));
    assert_eq!(backing.shut(), set([(2, 6)]));
}

/// Kept by `tell_backing`, called by the sweep in hung.rs and by the drop of an operation.
#[test]
fn pages_of_a_hung_or_panicked_operation_are_shut() {
    let (pool, backing, ram, ept) = world(1);
    ept.panics_in_invalidate();
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ram.share(pages(0, 2)))).is_err());
    assert_eq!(backing.shut(), set([(0, 2)]));
    let parked = ept.parks();
    let (late, ()) = while_parked(
        parked,
        || ram.share(pages(4, 8)),
        || {
            pool.quarantine_hung(std::time::Duration::ZERO);
            std::thread::sleep(std::time::Duration::from_millis(2));
            assert_eq!(pool.quarantine_hung(std::time::Duration::from_millis(1)).len(), 1);
            assert_eq!(backing.shut(), set([(0, 2), (4, 8)]));
        },
    );
    late.unwrap_err();
    assert_eq!((backing.shut(), backing.scrubbed()), (set([(0, 2), (4, 8)]), RunSet::new()));
}

/// Kept by `lift_to_ask` and `shut_again` in recall.rs.
#[test]
fn a_quarantined_page_is_opened_for_its_proof_and_shut_again_without() {
    for granule in [1, 4] {
        let (pool, backing, ram, ept) = world(granule);
        ept.sticks(run(4, 8), NOT_NOW);
        drop(ram.share(pages(4, 8)));
        drop(ram);
        pool.reclaim();
        assert_eq!(backing.shut(), set([(4, 8)]), "granule {granule}: the mapping did not prove it");
        ept.heals();
        backing.sticks(Some((run(4, 8), NOT_NOW)));
        pool.reclaim();
        assert_eq!(backing.shut(), set([(4, 8)]), "granule {granule}: the backing did not prove it");
        backing.sticks(None);
        backing.proven();
        assert_eq!(pool.reclaim().freed, set([(4, 8)]));
        assert_eq!((backing.shut(), backing.proven()), (RunSet::new(), set([(4, 8)])), "granule {granule}");
        books(&pool);
    }
}

/// Kept by `end_recall`, which opens what the proof gave back to a live owner.
#[test]
fn a_page_whose_conversion_is_completed_later_is_open_again() {
    let (pool, backing, ram, ept) = world(1);
    ept.sticks(run(4, 6), NOT_NOW);
    drop(ram.share(pages(0, 8)));
    ept.heals();
    assert_eq!(pool.retry(run(0, 16)).recovered, set([(4, 6)]));
    assert_eq!(backing.shut(), RunSet::new());
    assert!(backing.scrubbed().contains_range(run(4, 6)), "zeroed before the host sees it");
}

/// Kept by `Registry::pick`, `claim` in granule.rs and `leave_poisoned` in recall.rs. [`Shutter`] watches.
#[test]
fn no_pass_ever_touches_a_failed_or_poisoned_page() {
    for granule in [1, 4] {
        let (pool, backing, ram, ept) = world(granule);
        ept.sticks(run(1, 2), Verdict::Never);
        ept.sticks(run(8, 12), NOT_NOW);
        drop(ram.share(pages(0, 16)));
        ept.heals();
        pool.poison(run(9, 10), Cause::new("MCE", 1, ""));
        pool.poison(run(14, 15), Cause::new("MCE", 1, ""));
        drop(ram);
        for _ in 0..3 {
            pool.reclaim();
            pool.retry(run(0, 16));
        }
        let untouched = if granule == 1 { set([(1, 2), (9, 10), (14, 15)]) } else { set([(0, 4), (8, 16)]) };
        assert!(backing.proven().intersection(&untouched).is_empty(), "granule {granule}");
        let shut = backing.shut();
        assert!([run(1, 2), run(9, 10), run(14, 15)].iter().all(|page| shut.contains_range(*page)), "granule {granule}: {shut}");
        books(&pool);
    }
}

/// Kept by `unmark` and `open` in poison.rs: what bears another mark stays shut.
#[test]
fn a_reset_opens_only_what_bears_no_other_mark() {
    let (pool, backing, ram, ept) = world(1);
    ept.sticks(run(2, 5), Verdict::Never);
    drop(ram.share(pages(0, 8)));
    pool.poison(run(4, 6), Cause::new("MCE", 1, ""));
    ept.heals();
    drop(ram);
    pool.reclaim();
    pool.platform_reset("reboot").unwrap();
    assert_eq!(backing.shut(), set([(4, 6)]));
    assert_eq!(pool.reclaim().freed, set([(2, 4)]));
    pool.hardware_replaced(run(0, 16), "invoice").unwrap();
    assert_eq!(backing.shut(), RunSet::new());
    pool.reclaim();
    assert_eq!(books(&pool).stats.free, 16);
}
