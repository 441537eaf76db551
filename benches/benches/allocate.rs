//! What does it cost to take memory and to give it back?
#![allow(clippy::unwrap_used, reason = "a benchmark may stop at the first surprise")]

use std::cell::LazyCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use pageless::frames::Frames;
use pageless::{Mapping, Order, Pfn};
use pageless_bench::contest::scaled;
use pageless_bench::guest::{self, NoOp};
use pageless_bench::question::frames::{self, Rounds};
use pageless_bench::question::pool;

fn allocate(c: &mut Criterion) {
    let mut group = c.benchmark_group("allocate");
    let layer = frames::layer(64).unwrap();
    for (name, order) in [("4k_pair_hot", Order::BASE), ("2m_pair_hot", Order::MIB2), ("1g_pair", Order::GIB1)] {
        group.bench_function(name, |b| b.iter(|| frames::pair(&layer, order)));
    }
    let holed = LazyCell::new(|| frames::holed(1024).unwrap());
    group.bench_function("64g_pair", |b| {
        let holed: &Frames = &holed;
        b.iter(|| frames::run_pair(holed, 64 * Order::GIB1.frames()));
    });
    let taken = LazyCell::new(|| frames::taken(1024).unwrap());
    type Put = fn(&Frames, &[Pfn]) -> u64;
    let puts: [(_, Put); 2] = [("4k_put_random_1tib", frames::put_each), ("4k_put_batch_1tib", frames::put_sixteens)];
    for (name, put) in puts {
        let mut rounds = Rounds::new(1024, 11);
        group.bench_function(name, |b| {
            let taken: &Frames = &taken;
            b.iter_custom(|puts| {
                let round = || {
                    let list = rounds.next(taken)?;
                    let start = Instant::now();
                    assert_eq!(put(taken, &list), 0);
                    Ok((start.elapsed(), list.len() as u64))
                };
                scaled(puts, round).unwrap()
            });
        });
        rounds.finish(&taken).unwrap();
    }
    let (pool, stage2): (_, Arc<dyn Mapping>) = (guest::pool(64).unwrap(), Arc::new(NoOp));
    group.bench_function("pool_16g_cycle", |b| b.iter(|| assert!(pool::cycle(&pool, 16, &stage2))));
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = allocate
}
criterion_main!(benches);
