//! I4: clearing one kind of withdrawal never clears another.

use pageless::{Cause, Verdict, Withdrawal};

use crate::scripted::{NOT_NOW, World, books, pages, run, set, while_parked};

fn marks(pool: &pageless::Pool, frame: u64) -> Vec<Withdrawal> {
    pool.explain(run(frame, frame + 1).start()).unwrap().marks.into_iter().map(|mark| mark.state).collect()
}

/// Kept by `Gib::lift_failed` and `Gib::lift_poisoned`, and by `Registry::lift`.
#[test]
fn a_reset_leaves_poison_and_a_replacement_leaves_failure() {
    for reset_first in [true, false] {
        let World { pool, ram, ept } = World::of(8);
        ept.sticks(run(2, 4), Verdict::Never);
        drop(ram.share(pages(0, 8)));
        ept.heals();
        pool.poison(run(3, 5), Cause::new("MCE", 1, ""));
        drop(ram);
        pool.reclaim();
        assert_eq!(marks(&pool, 3), [Withdrawal::Failed, Withdrawal::Poisoned]);
        if reset_first {
            assert_eq!(pool.platform_reset("reboot").unwrap(), set([(2, 4)]));
            assert_eq!((marks(&pool, 2), marks(&pool, 3)), (vec![], vec![Withdrawal::Poisoned]));
        } else {
            assert_eq!(pool.hardware_replaced(run(0, 8), "invoice").unwrap(), set([(3, 5)]));
            assert_eq!((marks(&pool, 3), marks(&pool, 4)), (vec![Withdrawal::Failed], vec![]));
        }
        pool.reclaim();
        assert!(!pool.is_free(run(3, 4).start()), "one mark stands");
        books(&pool);
    }
}

/// Kept by `Gib::prove_later`, which takes the quarantine off and nothing else.
#[test]
fn the_proof_of_a_quarantined_frame_leaves_its_poison() {
    let World { pool, ram, ept } = World::of(8);
    ept.sticks(run(2, 5), NOT_NOW);
    drop(ram.share(pages(0, 8)));
    pool.poison(run(3, 4), Cause::new("MCE", 1, ""));
    ept.heals();
    assert_eq!(pool.retry(run(0, 8)).recovered, set([(2, 3), (4, 5)]));
    assert!(marks(&pool, 3).contains(&Withdrawal::Poisoned));
    drop(ram);
    pool.retry(run(0, 8));
    assert!(marks(&pool, 3).contains(&Withdrawal::Poisoned));
    assert!(!pool.is_free(run(3, 4).start()));
    books(&pool);
}

/// Kept by `Gib::prove_later` again: here the poison comes when the proof is nearly there, and nobody has looked for it.
#[test]
fn poison_that_strikes_during_the_proof_of_a_quarantined_frame_stays() {
    for dies in [false, true] {
        let World { pool, ram, ept } = World::of(8);
        ram.share(pages(0, 8)).unwrap();
        ept.sticks(run(2, 5), NOT_NOW);
        drop(ram.unshare(pages(0, 8)));
        ept.heals();
        if dies {
            pool.owner_died("vm-42");
        }
        let parked = ept.parks();
        let strike = || pool.poison(run(3, 4), Cause::new("MCE", 1, ""));
        let (told, _) = while_parked(parked, || pool.retry(run(2, 5)), strike);
        assert!(!told.freed.overlaps(run(3, 4)) && !told.recovered.overlaps(run(3, 4)), "{told:?}");
        assert!(marks(&pool, 3).contains(&Withdrawal::Poisoned));
        assert!(!pool.is_free(run(3, 4).start()));
        books(&pool);
    }
}

/// Kept by `Gib::lift_failed`: a quarantine ends by proof, whatever was reset.
#[test]
fn a_reset_does_not_end_a_quarantine() {
    let World { pool, ram, ept } = World::of(8);
    ept.sticks(run(2, 3), NOT_NOW);
    ept.sticks(run(3, 4), Verdict::Never);
    drop(ram.share(pages(0, 8)));
    drop(ram);
    assert_eq!(pool.platform_reset("reboot").unwrap(), set([(3, 4)]));
    assert_eq!(marks(&pool, 2), [Withdrawal::Quarantined]);
    assert_eq!(books(&pool).stats.quarantined, 1);
}
