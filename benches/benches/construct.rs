//! How long does it take until there is a pool?
#![allow(clippy::unwrap_used, reason = "a benchmark may stop at the first surprise")]

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use pageless_bench::guest;
use pageless_bench::question::frames;

fn construct(c: &mut Criterion) {
    let mut group = c.benchmark_group("construct");
    for gibs in [64, 1024] {
        // What is returned is dropped outside the time.
        group.bench_function(format!("pool_{gibs}_gib"), |b| b.iter_with_large_drop(|| guest::pool(gibs).unwrap()));
        group.bench_function(format!("frames_{gibs}_gib"), |b| b.iter_with_large_drop(|| frames::layer(gibs).unwrap()));
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = construct
}
criterion_main!(benches);
