//! Share and unshare, with all checks and one no-op mapping behind `dyn`.

use std::rc::Rc;

use anyhow::ensure;
use pageless::Order;

use crate::bench::Bench;
use crate::contest::{Contest, Stopwatch, Trial, as_f64, batch, hot, nanos};
use crate::dice::Dice;
use crate::guest::{Guest, Toggler};

/// See [`super::Question::tasks`].
pub const TASKS: &[&str] = &["convert.4k", "convert.4k_cold", "convert.2m", "convert.1g_uniform", "convert.hostile"];

const GIB: u64 = Order::GIB1.frames();

/// Asks all of it that is wanted.
pub fn ask(bench: &mut Bench) -> anyhow::Result<()> {
    frames(bench)?;
    blocks(bench)?;
    gibs(bench)?;
    hostile(bench)
}

/// Runs what a [`Toggler`] planned; how many conversions did not change what they should.
pub fn run_plan(guest: &Guest, order: Order, plan: &[u64]) -> u64 {
    let frames = order.frames();
    plan.iter().filter(|coded| !guest.convert(**coded / 2 * frames, frames, **coded % 2 == 1)).count() as u64
}

fn frames(bench: &mut Bench) -> anyhow::Result<()> {
    const DENSITY: f64 = 0.1;
    if bench.wants("convert.4k") {
        let guest = Guest::new(bench.scale.pool_gibs)?;
        guest.share_random(Order::BASE, DENSITY, 21);
        let mut toggler = Toggler::new(guest.frames, DENSITY, 21);
        let trial = batch(|| Ok(toggler.plan(20_000)), |plan| run_plan(&guest, Order::BASE, plan));
        let contest = Contest::new("share or unshare a random 4K", "64 GiB, 10 % random 4K shared").key("convert.4k");
        bench.run(contest.entry("pageless", trial))?;
    }
    if bench.wants("convert.4k_cold") {
        let guest = Guest::new(bench.scale.tib_gibs)?;
        guest.share_random(Order::BASE, DENSITY, 22);
        let mut toggler = Toggler::new(guest.frames, DENSITY, 22);
        let sweeper = Rc::clone(&bench.sweeper);
        let prepare = || {
            let plan = toggler.plan(32_768);
            sweeper.sweep();
            Ok(plan)
        };
        let trial = batch(prepare, |plan| run_plan(&guest, Order::BASE, plan));
        let state = "1 TiB, 10 % random 4K shared, caches swept, 32,768 first touches";
        bench.run(Contest::new("share or unshare a random 4K", state).key("convert.4k_cold").entry("pageless", trial))?;
    }
    Ok(())
}

fn blocks(bench: &mut Bench) -> anyhow::Result<()> {
    const BLOCKS: usize = 1024;
    if !bench.wants("convert.2m") {
        return Ok(());
    }
    let guest = Guest::new(bench.scale.pool_gibs)?;
    let blocks = guest.frames / Order::MIB2.frames();
    guest.share_random(Order::MIB2, 0.1, 23);
    let mut toggler = Toggler::new(blocks, 0.1, 23);
    let trial = batch(|| Ok(toggler.plan(BLOCKS)), |plan| run_plan(&guest, Order::MIB2, plan));
    let contest = Contest::new("share or unshare a random 2M", "64 GiB, 10 % random 2M shared").key("convert.2m");
    bench.run(contest.entry("pageless", trial))?;

    let guest = Guest::new(bench.scale.pool_gibs)?;
    guest.share_random(Order::BASE, 0.1, 24);
    let (mut dice, mut mixed_again) = (Dice::new(25), Vec::new());
    let prepare = || {
        for &coded in &mixed_again {
            remix(&guest, coded, &mut dice)?;
        }
        let mut all: Vec<u64> = (0..blocks).collect();
        dice.shuffle(&mut all);
        let plan = all.into_iter().take(BLOCKS).map(|block| block * 2 + dice.below(2)).collect::<Vec<u64>>();
        mixed_again.clone_from(&plan);
        Ok(plan)
    };
    let trial = batch(prepare, |plan| run_plan(&guest, Order::MIB2, plan));
    let contest =
        Contest::new("share or unshare a random mixed 2M", "64 GiB, 10 % random 4K shared; the mapping is asked about every run");
    bench.run(contest.entry("pageless", trial))
}

/// Makes a block that was converted as a whole mixed again, with a tenth of its frames shared.
fn remix(guest: &Guest, coded: u64, dice: &mut Dice) -> anyhow::Result<()> {
    let start = coded / 2 * Order::MIB2.frames();
    if coded % 2 == 1 {
        ensure!(guest.convert(start, Order::MIB2.frames(), false), "the block at frame {start} was not shared");
    }
    let first = dice.below(10);
    ensure!((0..50).all(|nth| guest.convert(start + first + nth * 10, 1, true)), "a frame at {start} was shared already");
    Ok(())
}

fn gibs(bench: &mut Bench) -> anyhow::Result<()> {
    if !bench.wants("convert.1g_uniform") {
        return Ok(());
    }
    let guest = Guest::new(bench.scale.pool_gibs)?;
    let (gibs, mut nth) = (guest.frames / GIB, 0);
    let convert = || {
        // All of them to shared, then all back.
        let (gib, share) = (nth % gibs, nth / gibs % 2 == 0);
        nth += 1;
        guest.convert(gib * GIB, GIB, share)
    };
    let contest = Contest::new("share or unshare a uniform 1G", "64 GiB, every GiB in turn").key("convert.1g_uniform");
    bench.run(contest.entry("pageless", hot(convert)))
}

/// A sequence that a hostile guest might choose for one GiB: what it does first, untimed, and then its conversions, each as
/// first frame, frames, and whether to share.
struct Hostility {
    name: &'static str,
    before: Vec<(u64, u64, bool)>,
    steps: Vec<(u64, u64, bool)>,
}

/// The sequences. Each ends with all of the GiB private.
fn hostilities() -> Vec<Hostility> {
    let every_second = |share: bool| (0..GIB / 2).map(move |nth| (nth * 2, 1, share));
    let scattered = |share: bool| (0..GIB / 2).map(move |nth| (nth * 0x9e35 % (GIB / 2) * 2, 1, share));
    let toggles = |frame: u64| (0..50_000).map(move |nth| (frame, 1, nth % 2 == 0));
    let threshold: Vec<_> = (0..4095).map(|nth| (nth * 16, 1, true)).collect();
    let holes = (0..4096).flat_map(|nth| [(0, GIB, true), (nth * 64 + 1, 1, false)]);
    vec![
        Hostility {
            name: "every second frame shared and back, ascending",
            before: vec![],
            steps: every_second(true).chain(every_second(false)).collect(),
        },
        Hostility {
            name: "every second frame shared and back, scattered",
            before: vec![],
            steps: scattered(true).chain(scattered(false)).collect(),
        },
        Hostility {
            name: "every second frame of a shared GiB unshared and back, scattered",
            before: vec![(0, GIB, true)],
            steps: scattered(false).chain(scattered(true)).collect(),
        },
        Hostility {
            name: "one frame toggled at roaring's container threshold",
            before: threshold,
            steps: toggles(65_535).collect(),
        },
        Hostility { name: "one frame toggled in a uniform GiB", before: vec![], steps: toggles(77_777).collect() },
        Hostility {
            name: "the GiB shared and one frame of it unshared, again and again",
            before: vec![(0, 1, true), (1, 1, true)],
            steps: holes.collect(),
        },
    ]
}

fn hostile(bench: &mut Bench) -> anyhow::Result<()> {
    if !bench.wants("convert.hostile") {
        return Ok(());
    }
    let mut all = Vec::new();
    for sequence in hostilities() {
        let contest = Contest::new("one conversion of a hostile sequence, mean", sequence.name);
        bench.run(contest.entry("pageless", play(sequence)?))?;
        all.extend(bench.rows.last().cloned());
    }
    // The line of the design is about the worst of them.
    let worst = all.into_iter().max_by(|a, b| a.median.unwrap_or(0.0).total_cmp(&b.median.unwrap_or(0.0)));
    if let Some(mut worst) = worst {
        worst.key = Some("convert.hostile");
        worst.operation = "one conversion of the worst hostile sequence, mean".to_owned();
        bench.rows.push(worst);
    }
    Ok(())
}

fn play(sequence: Hostility) -> anyhow::Result<Trial<'static>> {
    let guest = Guest::new(1)?;
    Ok(Box::new(move || {
        guest.convert(0, GIB, false);
        let before = sequence.before.iter().all(|(frame, frames, share)| guest.convert(*frame, *frames, *share));
        ensure!(before, "{}: what comes first changed nothing", sequence.name);
        let start = Stopwatch::start();
        let wrong = sequence.steps.iter().filter(|(frame, frames, share)| !guest.convert(*frame, *frames, *share)).count();
        let elapsed = nanos(start.elapsed());
        ensure!(wrong == 0, "{}: {wrong} conversions changed nothing", sequence.name);
        Ok(elapsed / as_f64(sequence.steps.len() as u64))
    }))
}
