//! How many instructions do the hot paths have? Counted by valgrind, so no neighbour's noise moves them, and checked against
//! [`MOST`]: the gate of CI. Time is measured elsewhere, and gates nothing.
//!
//! `cargo bench -p pageless-bench --bench instructions` wants valgrind and `gungraun-runner`, of the version that
//! benches/Cargo.toml names. What is counted is the body of each function here; its `setup` is not.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a benchmark may stop at the first surprise")]
#![allow(missing_docs, reason = "the macros define items without any")]

use std::hint::black_box;
use std::sync::Arc;

use gungraun::prelude::*;
use gungraun::{Callgrind, EventKind};
use pageless::frames::Frames;
use pageless::{Mapping, Order, Pfn, Pool};
use pageless_bench::guest::{self, Guest, NoOp, Swing};
use pageless_bench::question::convert::{self, Hostility};
use pageless_bench::question::frames::{self, Rounds};
use pageless_bench::question::{check, pool};

/// The instructions of each benchmark, as gungraun prints them, with the compiler and the lock file of the day. More than these
/// plus [`MARGIN_PERCENT`] is red. Whoever makes a path shorter writes the new figure here, and whoever makes one longer says
/// why.
const MOST: [(&str, u64); 16] = [
    ("frames.4k_pair", 151_494),
    ("frames.2m_pair", 137_494),
    ("frames.1g_pair", 111_494),
    ("frames.put", 20_241),
    ("frames.put_batch", 37_808),
    ("convert.4k", 813_384),
    ("convert.2m", 653_082),
    ("convert.1g", 2_314),
    ("hostile.threshold", 19_800_077),
    ("hostile.scattered", 108_245_657),
    ("hostile.gib_hole", 6_831_873),
    ("hostile.block_hole", 13_839_425),
    ("check.1g", 19_517),
    ("check.order", 19_517),
    ("check.state", 47_165),
    ("pool.16g_cycle", 2_962_559),
];

/// Room for another C library or patch release of the compiler.
const MARGIN_PERCENT: u64 = 5;

/// The limit of a benchmark.
fn limit(name: &str) -> LibraryBenchmarkConfig {
    let most = MOST.iter().find(|(known, _)| *known == name).map(|(_, most)| *most);
    let most = most.unwrap_or_else(|| panic!("{name} has no line in MOST"));
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(Callgrind::default().hard_limits([(EventKind::Ir, most * (100 + MARGIN_PERCENT) / 100)]));
    config
}

const PAIRS: u64 = 1000;

fn layer(order: Order) -> (Frames, Order) {
    let layer = frames::layer(4).unwrap();
    assert!(frames::pair(&layer, order));
    (layer, order)
}

#[library_benchmark(setup = layer)]
#[bench::base(args = (Order::BASE), config = limit("frames.4k_pair"))]
#[bench::mib2(args = (Order::MIB2), config = limit("frames.2m_pair"))]
#[bench::gib1(args = (Order::GIB1), config = limit("frames.1g_pair"))]
fn pairs((layer, order): (Frames, Order)) -> Frames {
    assert!((0..PAIRS).all(|_| frames::pair(&layer, order)));
    layer
}

/// One frame of every eighth block of four GiBs.
const PUTS: u64 = 256;

fn taken() -> (Frames, Vec<Pfn>) {
    let taken = frames::taken(4).unwrap();
    let list = Rounds::new(4, 11).next(&taken).unwrap();
    assert_eq!(list.len() as u64, PUTS);
    (taken, list)
}

#[library_benchmark(setup = taken)]
#[bench::single(config = limit("frames.put"))]
fn put((taken, list): (Frames, Vec<Pfn>)) -> (Frames, Vec<Pfn>) {
    assert_eq!(frames::put_each(&taken, &list), 0);
    (taken, list)
}

#[library_benchmark(setup = taken)]
#[bench::sixteen(config = limit("frames.put_batch"))]
fn put_batch((taken, list): (Frames, Vec<Pfn>)) -> (Frames, Vec<Pfn>) {
    assert_eq!(frames::put_sixteens(&taken, &list), 0);
    (taken, list)
}

const CONVERSIONS: usize = 2000;
const GIBS: u64 = 8;

/// A guest of so many GiBs, of which every tenth block is shared, and conversions that have run before.
fn swing(order: Order, gibs: u64) -> (Guest, Swing) {
    let guest = Guest::new(gibs).unwrap();
    let mut swing = convert::swing(&guest, order, 0.1, 21, CONVERSIONS).unwrap();
    assert_eq!(swing.run(&guest) + swing.run(&guest), 0);
    (guest, swing)
}

fn every_gib() -> (Guest, Swing) {
    let guest = Guest::new(GIBS).unwrap();
    let mut swing = convert::every_gib(&guest).unwrap();
    assert_eq!(swing.run(&guest) + swing.run(&guest), 0);
    (guest, swing)
}

#[library_benchmark]
#[bench::base(args = (Order::BASE, 1), setup = swing, config = limit("convert.4k"))]
#[bench::mib2(args = (Order::MIB2, 16), setup = swing, config = limit("convert.2m"))]
#[bench::gib1(setup = every_gib, config = limit("convert.1g"))]
fn conversions((guest, mut swing): (Guest, Swing)) -> (Guest, Swing) {
    assert_eq!(swing.run(&guest), 0);
    (guest, swing)
}

fn hostile(id: &str) -> (Guest, Hostility) {
    let sequence = convert::hostilities().into_iter().find(|sequence| sequence.id == id).unwrap();
    let guest = Guest::new(1).unwrap();
    sequence.prepare(&guest).unwrap();
    (guest, sequence)
}

#[library_benchmark(setup = hostile)]
#[bench::threshold(args = ("threshold"), config = limit("hostile.threshold"))]
#[bench::scattered(args = ("scattered"), config = limit("hostile.scattered"))]
#[bench::gib_hole(args = ("gib_hole"), config = limit("hostile.gib_hole"))]
#[bench::block_hole(args = ("block_hole"), config = limit("hostile.block_hole"))]
fn hostility((guest, sequence): (Guest, Hostility)) -> (Guest, Hostility) {
    assert_eq!(sequence.play(&guest), 0);
    (guest, sequence)
}

const QUESTIONS: u64 = 1024;

fn asked() -> (Guest, Vec<u64>) {
    let guest = Guest::new(GIBS).unwrap();
    let offsets = check::hot_gibs(&guest);
    assert_eq!(offsets.len() as u64, QUESTIONS);
    (guest, offsets)
}

#[library_benchmark(setup = asked)]
#[bench::gib(config = limit("check.1g"))]
fn promotable((guest, offsets): (Guest, Vec<u64>)) -> (Guest, Vec<u64>) {
    assert!(offsets.iter().all(|offset| check::promotable(&guest, *offset)));
    (guest, offsets)
}

#[library_benchmark(setup = asked)]
#[bench::gib(config = limit("check.order"))]
fn max_mapping_order((guest, offsets): (Guest, Vec<u64>)) -> (Guest, Vec<u64>) {
    assert!(offsets.iter().all(|offset| check::is_one_leaf(&guest, *offset)));
    (guest, offsets)
}

#[library_benchmark(setup = asked)]
#[bench::gib(config = limit("check.state"))]
fn shareability((guest, offsets): (Guest, Vec<u64>)) -> (Guest, Vec<u64>) {
    assert!(offsets.iter().all(|offset| black_box(guest.ram.shareability(*offset)).is_ok()));
    (guest, offsets)
}

const CYCLES: u64 = 100;

fn empty_pool() -> (Pool, Arc<dyn Mapping>) {
    let (made, stage2): (_, Arc<dyn Mapping>) = (guest::pool(64).unwrap(), Arc::new(NoOp));
    assert!(pool::cycle(&made, 16, &stage2));
    (made, stage2)
}

#[library_benchmark(setup = empty_pool)]
#[bench::gibs_16(config = limit("pool.16g_cycle"))]
fn cycle((made, stage2): (Pool, Arc<dyn Mapping>)) -> (Pool, Arc<dyn Mapping>) {
    assert!((0..CYCLES).all(|_| pool::cycle(&made, 16, &stage2)));
    (made, stage2)
}

library_benchmark_group!(
    name = hot_paths,
    benchmarks = [pairs, put, put_batch, conversions, hostility, promotable, max_mapping_order, shareability, cycle]
);
main!(library_benchmark_groups = hot_paths);
