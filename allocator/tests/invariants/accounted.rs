//! I5: each verb's result, error or not, partitions the frames it was given.

use pageless::{Convert, Lost, Pool, Reclaimed, RunSet, Verdict};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::scripted::{NOT_NOW, Scripted, World, books, pages, run};

const FRAMES: u64 = 24;

/// Adds sets that must not share a frame.
fn disjoint<'a>(parts: impl IntoIterator<Item = &'a RunSet>) -> RunSet {
    parts.into_iter().fold(RunSet::new(), |all, part| {
        assert!(all.intersection(part).is_empty(), "{part} is in two places");
        all.union(part)
    })
}

fn lost(lost: &[Lost]) -> RunSet {
    disjoint(lost.iter().map(|lost| RunSet::from(lost.frames())).collect::<Vec<_>>().iter())
}

fn looked_at(told: &Reclaimed) -> RunSet {
    let waiting = disjoint(told.waiting.iter().map(|one| RunSet::from(one.frames)).collect::<Vec<_>>().iter());
    disjoint([&told.freed, &lost(&told.lost), &waiting, &told.withdrawn])
}

fn trouble(mapping: &Scripted, dice: &mut StdRng) {
    mapping.heals();
    for _ in 0..dice.random_range(0..3) {
        let start = dice.random_range(0..FRAMES - 4);
        let verdict = if dice.random_bool(0.3) { Verdict::Never } else { NOT_NOW };
        mapping.sticks(run(start, start + dice.random_range(1..4)), verdict);
    }
}

fn released(pool: &Pool) -> RunSet {
    let is = |state: pageless::metadata::FrameState| state.occupancy == pageless::metadata::Occupancy::Released;
    pool.stretches().into_iter().filter(|stretch| is(stretch.state)).map(|stretch| stretch.frames).collect()
}

/// Kept by `Losses::cut` in asking.rs and by `finish` in operation.rs; for reclaim by the fields that `pass` fills.
#[test]
fn whatever_gets_stuck_where_every_frame_is_in_exactly_one_field() {
    let mut dice = StdRng::seed_from_u64(0x1_5eed);
    for _ in 0..300 {
        let World { pool, ram, ept } = World::of(FRAMES);
        let mappings = [ept, Scripted::new(), Scripted::new()];
        ram.attach("host", mappings[1].clone()).unwrap();
        ram.attach("iommu", mappings[2].clone()).unwrap();
        for _ in 0..dice.random_range(1..4) {
            mappings.iter().for_each(|mapping| trouble(mapping, &mut dice));
            let start = dice.random_range(0..FRAMES - 1);
            let range = pages(start, dice.random_range(start + 1..=FRAMES));
            let given = ram.frames(range.clone()).unwrap();
            match ram.share(range) {
                Ok(shared) => assert_eq!(*shared.frames(), given),
                Err(Convert::Torn { done, lost: gone }) => assert_eq!(disjoint([&done, &lost(&gone)]), given),
                Err(refused) => assert!(matches!(refused, Convert::Refused(_)), "{refused}"),
            }
            books(&pool);
        }
        drop(ram);
        for _ in 0..3 {
            mappings.iter().for_each(|mapping| trouble(mapping, &mut dice));
            let given = released(&pool);
            assert_eq!(looked_at(&pool.reclaim()), given);
            books(&pool);
        }
    }
}
