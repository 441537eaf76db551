//! I9: one bad frame costs the proof granule of its backing; the rest of its GiB stays allocatable.

use pageless::{Buildable, Cause, Order, Request, Verdict};

use crate::scripted::{Shutter, World, books, run, set};

const GIB: u64 = Order::GIB1.frames();

/// Kept by `ask_run` in asking.rs: what follows a stuck run is asked about, and by `finish`, which frees the survivors.
#[test]
fn one_failed_frame_costs_4_kib_of_its_gib() {
    let World { pool, ram, ept } = World::of(2 * GIB);
    ept.sticks(run(777, 778), Verdict::Never);
    drop(ram);
    pool.reclaim();
    let buildable = Buildable { gib1: 1, mib2: 1023, base: 2 * GIB - 1 };
    assert_eq!(books(&pool).stats.buildable, buildable);
    let rest = pool.allocate(Request::bytes((2 * GIB - 1) * 4096).owner("next")).unwrap();
    assert!(rest.extents().iter().all(|extent| !extent.frames.contains(run(777, 778).start())));
}

/// Kept by `take_out` in poison.rs.
#[test]
fn one_poisoned_frame_costs_4_kib_of_its_gib() {
    let World { pool, ram, .. } = World::of(GIB);
    drop(ram);
    pool.reclaim();
    pool.poison(run(GIB - 1, GIB), Cause::new("MCE", 1, ""));
    assert_eq!(books(&pool).stats.buildable, Buildable { gib1: 0, mib2: 511, base: GIB - 1 });
}

/// Kept by `lose` in granule.rs: a stuck granule is lost whole, and alone.
#[test]
fn a_granule_that_is_not_proven_costs_itself_and_nothing_beside_it() {
    let (pool, backing) = Shutter::pool(64, 8);
    let ram = pool.allocate(Request::bytes(64 * 4096).owner("vm")).unwrap();
    drop(ram);
    backing.sticks(Some((run(19, 20), Verdict::Never)));
    let told = pool.reclaim();
    assert_eq!(told.freed, set([(0, 16), (24, 64)]));
    assert_eq!(told.lost.iter().map(pageless::Lost::frames).collect::<pageless::RunSet>(), set([(16, 24)]));
    books(&pool);
}
