//! I6: a verb refused in check or prepare has changed nothing anyone can see.

use pageless::{Cause, Intent, Order, Refusal, Request, Verdict};

use crate::scripted::{NOT_NOW, Scripted, World, pages, run};

/// A world with something in every state.
fn varied() -> (World, std::sync::Arc<Scripted>) {
    let world = World::of(1536);
    let host = world.also("host");
    world.ram.share(pages(0, 700)).unwrap();
    world.ept.sticks(run(20, 22), NOT_NOW);
    world.ept.sticks(run(25, 26), Verdict::Never);
    drop(world.ram.unshare(pages(10, 30)));
    world.ept.heals();
    world.pool.poison(run(40, 41), Cause::new("MCE", 1, ""));
    world.ram.release_range(pages(50, 60)).unwrap();
    (world, host)
}

/// Kept by `begin`, `prepare` and `cancel` in operation.rs: the mark goes, and demotion is recorded only by `finish`.
#[test]
fn whoever_is_refused_and_by_whom_the_books_stay_the_same() {
    let (world, host) = varied();
    let ram = &world.ram;
    let hold = ram.hold(pages(70, 71), "nic").unwrap();
    let guard = ram.map_guard("ept", pages(80, 81)).unwrap();
    let refusals: [(&str, &dyn Fn() -> bool); 16] = [
        ("share of quarantined", &|| ram.share(pages(18, 24)).is_err()),
        ("unshare of failed", &|| ram.unshare(pages(25, 26)).is_err()),
        ("share of poisoned", &|| ram.share(pages(30, 45)).is_err()),
        ("unshare of released", &|| ram.unshare(pages(45, 55)).is_err()),
        ("unshare of held", &|| ram.unshare(pages(61, 75)).is_err()),
        ("unshare of guarded", &|| ram.unshare(pages(80, 90)).is_err()),
        ("prepare that is busy", &|| {
            host.refuses(Refusal::Busy { after: std::time::Duration::ZERO });
            ram.unshare(pages(100, 600)).is_err()
        }),
        ("prepare without memory", &|| {
            world.ept.refuses(Refusal::NoMemory);
            ram.share(pages(701, 1030)).is_err()
        }),
        ("release of a part that is held", &|| ram.release_range(pages(61, 75)).is_err()),
        ("hold of released", &|| ram.hold(pages(50, 51), "nic").is_err()),
        ("guard of withdrawn", &|| ram.map_guard("ept", pages(20, 21)).is_err()),
        ("demote that a mapping refuses", &|| {
            host.refuses(Refusal::Unsupported);
            ram.demote(1100 * 4096, Order::BASE).is_err()
        }),
        ("promote of a mixed block", &|| ram.promote(600 * 4096, Order::MIB2).is_err()),
        ("promote that a mapping will not", &|| {
            host.refuses_promotion(Refusal::Unsupported);
            ram.promote(1024 * 4096, Order::MIB2).is_err()
        }),
        ("replace of sound", &|| ram.replace(0).is_err()),
        ("allocate without frames", &|| world.pool.allocate(Request::bytes(1 << 30).owner("late")).is_err()),
    ];
    for (name, refused) in refusals {
        let before = world.books();
        assert!(refused(), "{name}");
        assert_eq!(world.books(), before, "{name}");
    }
    drop((hold, guard));
}

/// Kept by `plan` in plan.rs, which only looks.
#[test]
fn asking_is_free_too() {
    let (world, host) = varied();
    world.ept.asked();
    host.asked();
    let before = world.books();
    for (from, to) in [(0, 1), (0, 1536), (18, 24), (600, 1100)] {
        drop(world.ram.plan(pages(from, to), Intent::Share).unwrap());
        drop(world.ram.promotable(from * 4096, Order::MIB2));
        drop(world.ram.max_mapping_order(from * 4096));
        drop(world.ram.shareability(from * 4096));
    }
    assert_eq!(world.books(), before);
    assert_eq!((world.ept.asked(), host.asked()), (vec![], vec![]));
}
