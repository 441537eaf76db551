//! How many bytes does a TiB of shareability need? Criterion measures anything that adds up: here it is bytes.
#![allow(clippy::unwrap_used, reason = "a benchmark may stop at the first surprise")]

use std::time::Duration;

use criterion::measurement::{Measurement, ValueFormatter};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pageless::Order;
use pageless_bench::figures::quantity;
use pageless_bench::question::footprint;

/// Bytes in the place of seconds.
struct Bytes;

impl Measurement for Bytes {
    type Intermediate = ();
    type Value = u64;

    fn start(&self) {}

    fn end(&self, (): ()) -> u64 {
        0
    }

    fn add(&self, a: &u64, b: &u64) -> u64 {
        a + b
    }

    fn zero(&self) -> u64 {
        0
    }

    #[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
    fn to_f64(&self, bytes: &u64) -> f64 {
        *bytes as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        &Self
    }
}

impl ValueFormatter for Bytes {
    fn format_value(&self, bytes: f64) -> String {
        quantity(bytes, "B")
    }

    fn scale_values(&self, _typical: f64, _values: &mut [f64]) -> &'static str {
        "B"
    }

    fn scale_throughputs(&self, _typical: f64, _throughput: &Throughput, _values: &mut [f64]) -> &'static str {
        "B"
    }

    fn scale_for_machines(&self, _values: &mut [f64]) -> &'static str {
        "B"
    }
}

/// Criterion goes by the clock: with `--quick` it doubles the number of times until some have passed, and these figures
/// take none. So each is given a little, or the number overflows.
const LASTS: Duration = Duration::from_millis(20);

fn times(bytes: u64, times: u64) -> u64 {
    std::thread::sleep(LASTS);
    bytes * times
}

/// GiBs that are really filled; told as of a TiB.
const GIBS: u64 = 16;

fn bytes(c: &mut Criterion<Bytes>) {
    let mut group = c.benchmark_group("footprint");
    let cases = [
        ("uniform", Order::GIB1, 0.0, false),
        ("random_2m", Order::MIB2, 0.01, false),
        ("random_4k", Order::BASE, 0.1, false),
        ("random_4k_rest", Order::BASE, 0.01, true),
    ];
    for (name, order, density, rest) in cases {
        let mut seen = None;
        let mut bytes = || {
            let filled = || footprint::filled(GIBS, order, density, rest).unwrap().pool.footprint().records as u64;
            *seen.get_or_insert_with(filled) * 1024 / GIBS
        };
        group.bench_function(name, |b| b.iter_custom(|count| times(bytes(), count)));
    }
    let mut seen = None;
    let mut worst = || *seen.get_or_insert_with(|| footprint::worst().unwrap()) * 1024;
    group.bench_function("worst", |b| b.iter_custom(|count| times(worst(), count)));
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .with_measurement(Bytes)
        .sample_size(10)
        .warm_up_time(Duration::from_millis(1))
        .measurement_time(Duration::from_millis(10));
    targets = bytes
}
criterion_main!(benches);
