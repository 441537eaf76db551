//! I2: a frame becomes free only when every mapping ever attached to its allocation, and its backing, proved it unreachable.

use std::sync::Arc;

use pageless::{Allocation, Pool, Request, RunSet, Verdict, Withdrawal};

use crate::scripted::{Asked, NOT_NOW, Scripted, Shutter, World, books, pages, pool_of, run, set};

fn guest(pool: &Pool, names: &[&str]) -> (Allocation, Vec<Arc<Scripted>>) {
    let ram = pool.allocate(Request::bytes(16 * 4096).contiguous().owner("vm")).unwrap();
    let mappings: Vec<_> = names.iter().map(|_| Scripted::new()).collect();
    names.iter().zip(&mappings).for_each(|(name, mapping)| ram.attach(name, mapping.clone()).unwrap());
    (ram, mappings)
}

/// Kept by the loop over all mappings in `OpenOperation::invalidate`.
#[test]
fn each_of_three_mappings_alone_keeps_what_it_did_not_prove() {
    for stuck in 0..3 {
        let pool = pool_of(16);
        let (ram, mappings) = guest(&pool, &["iommu", "ept", "host"]);
        drop(ram);
        mappings[stuck].sticks(run(5, 7), NOT_NOW);
        assert_eq!(pool.reclaim().freed, set([(0, 5), (7, 16)]), "mapping {stuck}");
        assert!(!pool.is_free(run(5, 6).start()));
        mappings[stuck].heals();
        assert_eq!(pool.reclaim().freed, set([(5, 7)]), "mapping {stuck}");
        assert!(mappings.iter().all(|mapping| mapping.invalidated().contains(&run(5, 7))), "asked again, all of them");
        books(&pool);
    }
}

/// Kept by `prove_frames` in granule.rs: the backing is asked last.
#[test]
fn the_backing_keeps_what_it_did_not_prove() {
    let (pool, backing) = Shutter::pool(16, 1);
    let (ram, _mappings) = guest(&pool, &["ept"]);
    drop(ram);
    backing.sticks(Some((run(5, 7), NOT_NOW)));
    let told = pool.reclaim();
    assert_eq!(told.freed, set([(0, 5), (7, 16)]));
    assert_eq!(told.lost[0].cause().to_string(), "backing: F_ADD_SEALS(F_SEAL_WRITE) gave 0x10, EBUSY");
    backing.sticks(None);
    assert_eq!(pool.reclaim().freed, set([(5, 7)]));
}

/// Kept by `set_aside` in granule.rs: a granule is proven when all of it is released or free.
#[test]
fn a_granule_of_which_somebody_has_a_part_waits_as_a_whole() {
    let (pool, backing) = Shutter::pool(16, 4);
    let (ram, _mappings) = guest(&pool, &["ept"]);
    ram.release_range(pages(2, 8)).unwrap();
    let told = pool.reclaim();
    assert_eq!((told.freed, backing.proven()), (set([(4, 8)]), set([(4, 8)])));
    assert_eq!(told.waiting[0].frames, run(2, 4));
    ram.release_range(pages(0, 2)).unwrap();
    let told = pool.reclaim();
    assert_eq!((told.freed, backing.proven()), (set([(0, 4)]), set([(0, 4)])));
    books(&pool);
}

/// Kept by `OpenOperation::invalidate`, which asks for private frames too: shareability is not reachability.
#[test]
fn frames_that_were_never_converted_are_asked_about_like_the_others() {
    let pool = pool_of(16);
    let (ram, mappings) = guest(&pool, &["ept"]);
    ram.share(pages(4, 8)).unwrap();
    mappings[0].asked();
    drop(ram);
    pool.reclaim();
    assert_eq!(mappings[0].invalidated(), [run(0, 16)]);
}

/// Kept by `detach` in attach.rs, which removes only after `losses.runs().is_empty()`.
#[test]
fn a_detach_without_its_proof_changes_nothing_about_who_must_prove() {
    let pool = pool_of(16);
    let (ram, mappings) = guest(&pool, &["iommu", "ept"]);
    mappings[0].sticks(run(5, 7), NOT_NOW);
    ram.detach("iommu").unwrap_err();
    drop(ram);
    assert_eq!(pool.reclaim().freed, set([(0, 5), (7, 16)]));
    mappings[0].asked();
    mappings[0].heals();
    assert_eq!(pool.reclaim().freed, set([(5, 7)]));
    assert!(mappings[0].invalidated().contains(&run(5, 7)));
}

/// Kept by `Attached::needed_for` in ownership.rs.
#[test]
fn a_detached_mapping_still_proves_what_was_released_or_lost_before_and_nothing_else() {
    let pool = pool_of(16);
    let (ram, mappings) = guest(&pool, &["iommu", "ept"]);
    ram.release_range(pages(0, 2)).unwrap();
    mappings[0].sticks(run(8, 9), Verdict::Never);
    drop(ram.share(pages(8, 9)));
    let detached = ram.detach("iommu").unwrap();
    assert_eq!(*detached.still_asked_about(), set([(0, 2), (8, 9)]));
    mappings[0].asked();
    ram.share(pages(10, 12)).unwrap();
    assert_eq!(mappings[0].asked(), [], "proven, and unable to map again");
    mappings[0].sticks(run(1, 2), NOT_NOW);
    drop(ram);
    let told = pool.reclaim();
    assert_eq!(
        told.lost.iter().map(|lost| (lost.frames(), lost.state())).collect::<Vec<_>>(),
        [(run(1, 2), Withdrawal::Quarantined)]
    );
    assert_eq!(told.freed, set([(0, 1), (2, 8), (9, 16)]));
}

/// Kept by `mark_released` and `OpenOperation::invalidate`: "none was ever attached" is the only empty proof.
#[test]
fn frames_that_nothing_ever_mapped_are_free_as_soon_as_the_backing_agrees() {
    let (pool, backing) = Shutter::pool(16, 1);
    let (ram, _) = guest(&pool, &[]);
    drop(ram);
    assert_eq!(pool.stats().free, 0, "released is not free");
    assert_eq!((pool.reclaim().freed, backing.proven()), (set([(0, 16)]), set([(0, 16)])));
}

/// Kept by `lift_quarantine` in recall.rs: the proof of a conversion frees nothing.
#[test]
fn a_quarantined_conversion_whose_owner_dies_is_asked_everything_again() {
    let World { pool, ram, ept } = World::of(16);
    let host = Scripted::new();
    ram.attach("host", host.clone()).unwrap();
    ept.sticks(run(2, 4), NOT_NOW);
    drop(ram.share(pages(0, 8)));
    drop(ram);
    ept.heals();
    host.asked();
    host.sticks(run(2, 4), NOT_NOW);
    assert_eq!(pool.reclaim().freed, set([(0, 2), (4, 16)]));
    host.heals();
    assert_eq!(pool.reclaim().freed, set([(2, 4)]));
    assert!(host.asked().contains(&Asked::Invalidate(pageless::Intent::Reclaim, run(2, 4))));
}

/// Kept by `OpenOperation::prepare`: who refuses has not proven.
#[test]
fn a_mapping_that_refuses_to_prepare_keeps_the_frames_released() {
    let pool = pool_of(16);
    let (ram, mappings) = guest(&pool, &["ept"]);
    drop(ram);
    mappings[0].refuses(pageless::Refusal::NoMemory);
    assert_eq!(pool.reclaim().freed, RunSet::new());
    assert_eq!(books(&pool).stats.released, 16);
    assert_eq!(pool.reclaim().freed, set([(0, 16)]));
}
