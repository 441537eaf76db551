//! Does a cut span still give 2M blocks, and how soon does it say that there are none?
#![allow(clippy::unwrap_used, reason = "a benchmark may stop at the first surprise")]

use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use pageless::{Order, PfnRange};
use pageless_bench::contest::scaled;
use pageless_bench::question::frames;

fn fragmentation(c: &mut Criterion) {
    let mut group = c.benchmark_group("fragmentation");
    // One block in a hundred is free, and a frame is taken in every other.
    let (layer, free) = frames::shattered(1024).unwrap();
    group.bench_function("2m_pair", |b| b.iter(|| frames::pair(&layer, Order::MIB2)));
    group.bench_function("2m_take_until_none_is_left", |b| {
        b.iter_custom(|takes| {
            let all = || {
                let start = Instant::now();
                let blocks: Vec<_> = std::iter::from_fn(|| layer.take(Order::MIB2)).collect();
                let took = start.elapsed();
                assert_eq!(blocks.len() as u64, free, "not every free block was found");
                blocks.iter().for_each(|block| layer.put(PfnRange::block(*block, Order::MIB2)).unwrap());
                Ok((took, free))
            };
            scaled(takes, all).unwrap()
        });
    });
    let blocks: Vec<_> = std::iter::from_fn(|| layer.take(Order::MIB2)).collect();
    group.bench_function("2m_none_is_left", |b| b.iter(|| assert!(layer.take(Order::MIB2).is_none())));
    group.bench_function("4k_pair", |b| b.iter(|| frames::pair(&layer, Order::BASE)));
    drop(blocks);
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = fragmentation
}
criterion_main!(benches);
