//! Contenders for shareability: nanoseconds and bytes for the patterns that guests make.

use anyhow::ensure;
use pageless::Order;

use crate::bench::Bench;
use crate::contest::{Contest, Stopwatch, Trial, as_f64, batch, nanos};
use crate::counting::count;
use crate::dice::Dice;
use crate::guest::Toggler;
use crate::report::ENTROPY_LIMIT;
use crate::rival::plane::{Flat, Intervals, Ours, OursAtRest, Plane, Ranges, Roaring, RoaringPerGib};

/// See [`super::Question::tasks`].
pub const TASKS: &[&str] = &[
    "share.uniform",
    "share.random_2m",
    "share.random_4k_1",
    "share.random_4k_10",
    "share.checkerboard",
    "share.alternation",
    "share.threshold",
];

const GIB: u64 = Order::GIB1.frames();

/// A pattern: blocks of an order, each shared with a probability; or every second frame.
#[derive(Clone, Copy)]
struct Pattern {
    task: &'static str,
    name: &'static str,
    order: Order,
    density: f64,
}

const CHECKERBOARD: f64 = 0.5;

const PATTERNS: [Pattern; 5] = [
    Pattern { task: "share.uniform", name: "uniform", order: Order::BASE, density: 0.0 },
    Pattern { task: "share.random_2m", name: "1 % random 2M", order: Order::MIB2, density: 0.01 },
    Pattern { task: "share.random_4k_1", name: "1 % random 4K", order: Order::BASE, density: 0.01 },
    Pattern { task: "share.random_4k_10", name: "10 % random 4K", order: Order::BASE, density: 0.1 },
    Pattern { task: "share.checkerboard", name: "checkerboard", order: Order::BASE, density: CHECKERBOARD },
];

impl Pattern {
    fn blocks(self, gibs: u64) -> Vec<u64> {
        let blocks = gibs * GIB / self.order.frames();
        if self.density.to_bits() == CHECKERBOARD.to_bits() {
            return (0..blocks).step_by(2).collect();
        }
        Dice::new(81).pick(blocks, self.density).collect()
    }

    /// What an ideal coder would need for a TiB of such blocks, each shared with this probability, in bytes.
    fn entropy_per_tib(self) -> f64 {
        entropy(self.density) * as_f64(1024 * GIB / self.order.frames()) / 8.0
    }
}

/// Bits for each block that is shared with this probability.
fn entropy(p: f64) -> f64 {
    if p > 0.0 { -(p * p.log2() + (1.0 - p) * (1.0 - p).log2()) } else { 0.0 }
}

/// Asks all of it that is wanted.
pub fn ask(bench: &mut Bench) -> anyhow::Result<()> {
    let gibs = bench.scale.rival_gibs;
    for pattern in PATTERNS {
        if bench.wants(pattern.task) {
            let toggles = Contest::new(
                format!("set {}", pattern.order),
                format!("{gibs} GiB, {}; a random one shared, a random one unshared", pattern.name),
            );
            let toggles = toggles
                .entry(Ours::NAME, filled::<Ours>(bench, pattern)?)
                .entry(Flat::NAME, filled::<Flat>(bench, pattern)?)
                .entry(Intervals::NAME, filled::<Intervals>(bench, pattern)?)
                .entry(Ranges::NAME, filled::<Ranges>(bench, pattern)?)
                .entry(Roaring::NAME, filled::<Roaring>(bench, pattern)?)
                .entry(RoaringPerGib::NAME, filled::<RoaringPerGib>(bench, pattern)?);
            bench.run(toggles)?;
            drop(filled::<OursAtRest>(bench, pattern)?);
            bench.bytes(bytes_contest(pattern, gibs), ENTROPY_LIMIT, pattern.entropy_per_tib());
        }
    }
    hostile(bench)
}

fn bytes_contest<'a>(pattern: Pattern, gibs: u64) -> Contest<'a> {
    Contest::new("bytes per TiB, by a counting allocator", format!("{}, over {gibs} GiB", pattern.name))
}

/// Fills a structure, notes its bytes, and makes the trial that changes it at random without changing its density.
fn filled<'a, P: Plane + 'a>(bench: &mut Bench, pattern: Pattern) -> anyhow::Result<Trial<'a>> {
    let gibs = bench.scale.rival_gibs;
    let (blocks, frames) = (pattern.blocks(gibs), pattern.order.frames());
    let (mut plane, counted) = count(|| {
        let mut plane = P::new(gibs);
        blocks.iter().for_each(|block| plane.set(block * frames..(block + 1) * frames, true));
        plane.settle();
        plane
    });
    ensure!(blocks.iter().all(|block| plane.is_shared(block * frames)), "{} lost a frame", P::NAME);
    bench.bytes_per_tib(bytes_contest(pattern, gibs), P::NAME, counted, gibs);
    let mut toggler = Toggler::of(gibs * GIB / frames, blocks, 82);
    let run = move |plan: &[u64]| {
        for coded in plan {
            plane.set(coded / 2 * frames..(coded / 2 + 1) * frames, coded % 2 == 1);
        }
        let last = plan.last().copied().unwrap_or(0);
        u64::from(plane.is_shared(last / 2 * frames) != (last % 2 == 1))
    };
    Ok(batch(move || Ok(toggler.plan(2_000)), run))
}

/// What a guest would do on purpose, in one GiB.
fn hostile(bench: &mut Bench) -> anyhow::Result<()> {
    // One of roaring's containers, of 65,536 frames, so that the slowest contender ends too.
    let scattered = |share: bool| (0..32_768_u64).map(move |nth| (nth * 0x9e35 % 32_768 * 2, share));
    let alternation: Vec<_> = scattered(false).chain(scattered(true)).collect();
    let threshold: Vec<_> = (0..20_000).map(|nth| (65_535, nth % 2 == 0)).collect();
    let cases = [
        (
            "share.alternation",
            "a shared GiB; every second frame of its first 256 MiB unshared and back, scattered",
            true,
            alternation,
        ),
        ("share.threshold", "one GiB, one frame toggled at 4,095 others in a container", false, threshold),
    ];
    for (task, state, whole, steps) in cases {
        if bench.wants(task) {
            let contest = Contest::new("set 4K, hostile", state)
                .entry(Ours::NAME, sequence::<Ours>(bench, state, whole, &steps))
                .entry(Flat::NAME, sequence::<Flat>(bench, state, whole, &steps))
                .entry(Intervals::NAME, sequence::<Intervals>(bench, state, whole, &steps))
                .entry(Ranges::NAME, sequence::<Ranges>(bench, state, whole, &steps))
                .entry(Roaring::NAME, sequence::<Roaring>(bench, state, whole, &steps))
                .entry(RoaringPerGib::NAME, sequence::<RoaringPerGib>(bench, state, whole, &steps));
            bench.run(contest)?;
            // Every second of 65,536 frames; or 4,095 of them. (p log p + (1 - p) log (1 - p) for each frame.)
            let bits_per_frame: f64 = if whole { 1.0 } else { entropy(1.0 / 16.0) };
            bench.bytes(peak_contest(state), ENTROPY_LIMIT, bits_per_frame * 65_536.0 / 8.0);
        }
    }
    Ok(())
}

fn peak_contest<'a>(state: &str) -> Contest<'a> {
    Contest::new("the most bytes at once meanwhile, by a counting allocator", state)
}

fn sequence<'a, P: Plane + 'a>(bench: &mut Bench, state: &str, whole: bool, steps: &'a [(u64, bool)]) -> Trial<'a> {
    let begin = move |plane: &mut P| {
        plane.set(0..GIB, whole);
        if !whole {
            (0..4_095).for_each(|nth| plane.set(nth * 16..nth * 16 + 1, true));
        }
    };
    let (mut plane, counted) = count(|| {
        let mut plane = P::new(1);
        begin(&mut plane);
        steps.iter().for_each(|(frame, share)| plane.set(*frame..frame + 1, *share));
        plane
    });
    bench.bytes(peak_contest(state), P::NAME, as_f64(counted.peak));
    Box::new(move || {
        begin(&mut plane);
        let start = Stopwatch::start();
        steps.iter().for_each(|(frame, share)| plane.set(*frame..frame + 1, *share));
        let elapsed = nanos(start.elapsed());
        ensure!(steps.last().is_none_or(|(frame, share)| plane.is_shared(*frame) == *share), "a step was lost");
        Ok(elapsed / as_f64(steps.len() as u64))
    })
}
