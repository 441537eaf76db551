//! Do two threads convert faster than one?
#![allow(clippy::unwrap_used, reason = "a benchmark may stop at the first surprise")]

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use pageless_bench::contest::scaled;
use pageless_bench::question::threads::Team;

/// Time for one conversion of each thread.
fn threads(c: &mut Criterion) {
    let mut group = c.benchmark_group("threads");
    let team = Team::neighbours().unwrap();
    let conversions = team.conversions();
    group.bench_function("alone", |b| b.iter_custom(|n| scaled(n, || Ok((team.alone(0)?, conversions))).unwrap()));
    group.bench_function("neighbouring_gibs", |b| b.iter_custom(|n| scaled(n, || Ok((team.both()?, conversions))).unwrap()));
    let team = Team::same_gib().unwrap();
    group.bench_function("same_gib", |b| b.iter_custom(|n| scaled(n, || Ok((team.both()?, conversions))).unwrap()));
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = threads
}
criterion_main!(benches);
