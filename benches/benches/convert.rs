//! What does it cost to share and unshare, with all checks and one mapping that does nothing behind `dyn`?
#![allow(clippy::unwrap_used, reason = "a benchmark may stop at the first surprise")]

use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use pageless::Order;
use pageless_bench::contest::scaled;
use pageless_bench::guest::{Guest, Swing};
use pageless_bench::question::convert;

fn swinging(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, plan: impl Fn(&Guest) -> anyhow::Result<Swing>) {
    // Made once, and only if the filter lets it run.
    let mut made: Option<(Guest, Swing)> = None;
    group.bench_function(name, |b| {
        let (guest, swing) = made.get_or_insert_with(|| {
            let guest = Guest::new(64).unwrap();
            let swing = plan(&guest).unwrap();
            (guest, swing)
        });
        let mut run = || {
            let start = Instant::now();
            assert_eq!(swing.run(guest), 0);
            Ok((start.elapsed(), swing.len() as u64))
        };
        b.iter_custom(|conversions| scaled(conversions, &mut run).unwrap());
    });
}

fn random(c: &mut Criterion) {
    let mut group = c.benchmark_group("convert");
    swinging(&mut group, "4k", |guest| convert::swing(guest, Order::BASE, 0.1, 21, 65_536));
    swinging(&mut group, "2m", |guest| convert::swing(guest, Order::MIB2, 0.1, 23, 16_384));
    swinging(&mut group, "1g_uniform", convert::every_gib);
    group.finish();
}

fn hostile(c: &mut Criterion) {
    let mut group = c.benchmark_group("hostile");
    for sequence in convert::hostilities() {
        let guest = Guest::new(1).unwrap();
        let run = || {
            sequence.prepare(&guest)?;
            let start = Instant::now();
            assert_eq!(sequence.play(&guest), 0);
            Ok((start.elapsed(), sequence.conversions()))
        };
        group.bench_function(sequence.id, |b| b.iter_custom(|conversions| scaled(conversions, run).unwrap()));
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = random, hostile
}
criterion_main!(benches);
