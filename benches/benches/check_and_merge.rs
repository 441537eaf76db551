//! May a GiB be converted or merged, how large may a mapping be, and what does it cost to split and to merge?
#![allow(clippy::unwrap_used, reason = "a benchmark may stop at the first surprise")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use pageless::Order;
use pageless_bench::guest::Guest;
use pageless_bench::question::check;
use pageless_bench::rival::pages::{PAGES, Pages};

fn questions(c: &mut Criterion) {
    let mut group = c.benchmark_group("check");
    let guest = Guest::new(64).unwrap();
    let mut offsets = check::hot_gibs(&guest).into_iter().cycle();
    group.bench_function("1g_hot", |b| b.iter(|| offsets.next().is_some_and(|offset| check::promotable(&guest, offset))));
    group.bench_function("order_hot", |b| b.iter(|| offsets.next().is_some_and(|offset| check::is_one_leaf(&guest, offset))));
    let pages = Pages::new(1);
    let width = pages.width.name();
    group.bench_function("1g, kernel RFC walk", |b| b.iter(|| pages.walk(black_box(0), PAGES)));
    group.bench_function("1g, struct page scan", |b| b.iter(|| pages.scan(black_box(0), PAGES)));
    group.bench_function(format!("1g, packed u8, {width}"), |b| b.iter(|| pages.scan_bytes(black_box(0), PAGES)));
    group.bench_function("1g, unsplit head", |b| b.iter(|| pages.heads(black_box(0), PAGES)));
    group.finish();
}

fn restructure(c: &mut Criterion) {
    let mut group = c.benchmark_group("merge_and_split");
    let guest = Guest::new(1).unwrap();
    group.bench_function("1g, both", |b| {
        b.iter(|| {
            guest.ram.demote(0, Order::BASE).unwrap();
            guest.ram.promote(0, Order::GIB1).unwrap();
        });
    });
    let mut pages = Pages::new(1);
    group.bench_function("1g, both, kernel RFC walk", |b| {
        b.iter_custom(|rounds| {
            let start = Instant::now();
            assert!((0..rounds).all(|_| pages.merge(0, PAGES) && pages.split(0, PAGES)));
            start.elapsed()
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = questions, restructure
}
criterion_main!(benches);
