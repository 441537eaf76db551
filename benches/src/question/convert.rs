//! Share and unshare, with all checks and one no-op mapping behind `dyn`.

use std::rc::Rc;

use anyhow::ensure;
use pageless::Order;

use crate::bench::Bench;
use crate::contest::{Contest, Trial, batch, drawn};
use crate::dice::Dice;
use crate::guest::{Guest, Swing, Toggler};

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

/// Conversions of random blocks of this order, of which each is shared already with this probability.
pub fn swing(guest: &Guest, order: Order, density: f64, seed: u64, conversions: usize) -> anyhow::Result<Swing> {
    guest.share_random(order, density, seed);
    let plan = Toggler::new(guest.frames / order.frames(), density, seed).plan(conversions);
    Swing::new(order, &plan)
}

/// A trial that runs it again and again.
fn swinging<'a>(guest: &'a Guest, mut swing: Swing) -> Trial<'a> {
    drawn(swing.len(), || Ok(()), move || swing.run(guest))
}

fn frames(bench: &mut Bench) -> anyhow::Result<()> {
    if bench.wants("convert.4k") {
        let guest = Guest::new(bench.scale.pool_gibs)?;
        let swing = swing(&guest, Order::BASE, 0.1, 21, 65_536)?;
        let contest = Contest::new("share or unshare a random 4K", "64 GiB, 10 % random 4K shared").key("convert.4k");
        bench.run(contest.entry("pageless", swinging(&guest, swing)))?;
    }
    if bench.wants("convert.4k_cold") {
        let guest = Guest::new(bench.scale.tib_gibs)?;
        let mut swing = swing(&guest, Order::BASE, 0.1, 22, 32_768)?;
        let sweeper = Rc::clone(&bench.sweeper);
        let sweep = || {
            sweeper.sweep();
            Ok(())
        };
        let trial = drawn(swing.len(), sweep, || swing.run(&guest));
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
    let swing = swing(&guest, Order::MIB2, 0.1, 23, 16_384)?;
    let contest = Contest::new("share or unshare a random 2M", "64 GiB, 10 % random 2M shared").key("convert.2m");
    bench.run(contest.entry("pageless", swinging(&guest, swing)))?;

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
    let convert = |coded: &u64| u64::from(!guest.convert(coded / 2 * 512, 512, coded % 2 == 1));
    let trial = batch(prepare, |plan| plan.iter().map(convert).sum());
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
    const RUNS: usize = 64;
    let guest = Guest::new(bench.scale.pool_gibs)?;
    let mut swing = every_gib(&guest)?;
    let trial = drawn(RUNS * swing.len(), || Ok(()), || (0..RUNS).map(|_| swing.run(&guest)).sum());
    let state = "64 GiB, every GiB once in random order, then back";
    bench.run(Contest::new("share or unshare a uniform 1G", state).key("convert.1g_uniform").entry("pageless", trial))
}

/// Every GiB of a private guest, in random order.
pub fn every_gib(guest: &Guest) -> anyhow::Result<Swing> {
    let mut plan: Vec<u64> = (0..guest.frames / GIB).map(|gib| gib * 2 + 1).collect();
    Dice::new(26).shuffle(&mut plan);
    Swing::new(Order::GIB1, &plan)
}

/// A sequence that a hostile guest might choose for one GiB: what it does first, untimed, and then its conversions, each as
/// first frame, frames, and whether to share.
pub struct Hostility {
    /// In one word.
    pub id: &'static str,
    /// What it does.
    pub name: &'static str,
    before: Vec<Step>,
    steps: Vec<Step>,
}

type Step = (u32, u32, bool);

/// The sequences.
#[must_use]
pub fn hostilities() -> Vec<Hostility> {
    const ALL: u32 = 1 << 18;
    let every_second = |share: bool| (0..ALL / 2).map(move |nth| (nth * 2, 1, share));
    let scattered = |share: bool| (0..ALL / 2).map(move |nth| (nth.wrapping_mul(0x9e35) % (ALL / 2) * 2, 1, share));
    let toggles = |frame: u32| (0..50_000).map(move |nth| (frame, 1, nth % 2 == 0));
    let threshold: Vec<_> = (0..4095).map(|nth| (nth * 16, 1, true)).collect();
    let holes = (0..4096).flat_map(|nth| [(0, ALL, true), (nth * 64 + 1, 1, false)]);
    // Each block in turn, far from the one before.
    let block = |nth: u32| nth * 181 % 512 * 512;
    let cuts = (0..8192).flat_map(move |nth| [(block(nth) + 7, 1, true), (block(nth) + 7, 1, false)]);
    let block_holes = (0..8192).flat_map(move |nth| [(block(nth), 512, true), (block(nth) + 9, 1, false)]);
    vec![
        Hostility {
            id: "ascending",
            name: "every second frame shared and back, ascending",
            before: vec![],
            steps: every_second(true).chain(every_second(false)).collect(),
        },
        Hostility {
            id: "scattered",
            name: "every second frame shared and back, scattered",
            before: vec![],
            steps: scattered(true).chain(scattered(false)).collect(),
        },
        Hostility {
            id: "holes",
            name: "every second frame of a shared GiB unshared and back, scattered",
            before: vec![(0, 1 << 18, true)],
            steps: scattered(false).chain(scattered(true)).collect(),
        },
        Hostility {
            id: "threshold",
            name: "one frame toggled at roaring's container threshold",
            before: threshold,
            steps: toggles(65_535).collect(),
        },
        Hostility { id: "toggle", name: "one frame toggled in a uniform GiB", before: vec![], steps: toggles(77_777).collect() },
        Hostility {
            id: "gib_hole",
            name: "the GiB shared and one frame of it unshared, again and again",
            before: vec![(0, 1, true), (1, 1, true)],
            steps: holes.collect(),
        },
        Hostility {
            id: "block_cut",
            name: "one frame of a uniform block shared and back, block after block",
            before: vec![],
            steps: cuts.collect(),
        },
        Hostility {
            id: "block_hole",
            name: "a block shared and one frame of it unshared, block after block",
            before: vec![],
            steps: block_holes.collect(),
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

impl Hostility {
    /// How many conversions it has.
    #[must_use]
    pub fn conversions(&self) -> u64 {
        self.steps.len() as u64
    }

    /// Makes all of a guest's first GiB private again, but for what comes first.
    pub fn prepare(&self, guest: &Guest) -> anyhow::Result<()> {
        guest.convert(0, GIB, false);
        let wrong = run_steps(guest, &self.before);
        ensure!(wrong == 0, "{}: {wrong} steps of what comes first changed nothing", self.name);
        Ok(())
    }

    /// Its conversions; how many of them changed nothing.
    #[must_use]
    pub fn play(&self, guest: &Guest) -> u64 {
        run_steps(guest, &self.steps)
    }
}

fn play(sequence: Hostility) -> anyhow::Result<Trial<'static>> {
    let (guest, sequence) = (Rc::new(Guest::new(1)?), Rc::new(sequence));
    let (prepared, again) = (Rc::clone(&guest), Rc::clone(&sequence));
    Ok(drawn(sequence.steps.len(), move || again.prepare(&prepared), move || sequence.play(&guest)))
}

fn run_steps(guest: &Guest, steps: &[Step]) -> u64 {
    let convert = |(frame, frames, share): &Step| guest.convert(u64::from(*frame), u64::from(*frames), *share);
    steps.iter().map(|step| u64::from(!convert(step))).sum()
}
