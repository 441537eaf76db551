//! Contenders for "may this be converted or merged?", and for splitting and merging.

use std::cell::RefCell;
use std::hint::black_box;
use std::rc::Rc;
use std::time::Instant;

use pageless::Order;

use crate::bench::Bench;
use crate::contest::{Contest, Sweeper, Trial, cold, hot, nanos};
use crate::floor::clock_ns;
use crate::guest::Guest;
use crate::rival::pages::{PAGES, Pages};

/// See [`super::Question::tasks`].
pub const TASKS: &[&str] = &["restructure.check", "restructure.held", "restructure.merge", "restructure.split"];

/// GiBs of the arrays: 1 GiB of `struct page`.
const GIBS: usize = 16;
const SIZES: [(&str, usize); 4] = [("4K", 1), ("2M", 512), ("1G", PAGES), ("16G", 16 * PAGES)];

type Scan = fn(&Pages, usize, usize) -> bool;

/// Asks all of it that is wanted.
pub fn ask(bench: &mut Bench) -> anyhow::Result<()> {
    if !TASKS.iter().fold(false, |any, task| bench.wants(task) | any) {
        return Ok(());
    }
    let mut pages = Pages::new(GIBS.min(usize::try_from(bench.scale.pool_gibs)?));
    let guest = Guest::new(bench.scale.pool_gibs.max(GIBS as u64))?;
    if bench.wants("restructure.check") {
        for (size, count) in SIZES {
            check(bench, &pages, &guest, size, count.min(pages.gibs() * PAGES))?;
        }
    }
    if bench.wants("restructure.merge") | bench.wants("restructure.split") {
        restructure(bench, &mut pages, &guest)?;
    }
    if bench.wants("restructure.held") {
        held(bench, pages, &guest)?;
    }
    Ok(())
}

fn scans(pages: &Pages) -> [(String, Scan); 5] {
    let width = pages.width.name();
    [
        ("kernel RFC walk (model)".to_owned(), Pages::walk),
        ("struct page scan".to_owned(), Pages::scan),
        (format!("packed u32, {width}"), Pages::scan_words),
        (format!("packed u8, {width}"), Pages::scan_bytes),
        (format!("one bit per 4K, {width}"), Pages::scan_bits),
    ]
}

/// A run of pages as pageless is asked about it: one question for each largest block.
#[derive(Clone, Copy)]
struct Blocks {
    order: Order,
    count: u64,
}

impl Blocks {
    fn of(pages: usize) -> Self {
        let pages = pages as u64;
        let order = Order::DESCENDING.into_iter().find(|order| order.frames() <= pages).unwrap_or(Order::BASE);
        Self { order, count: pages / order.frames() }
    }

    /// Asks about every block from a page on, until the answer is no.
    #[inline]
    fn all(self, first: usize, mut ask: impl FnMut(u64, Order) -> bool) -> bool {
        let first = first as u64 * pageless::FRAME_BYTES;
        (0..self.count).all(|nth| ask(first + nth * self.order.bytes(), self.order))
    }
}

fn check(bench: &mut Bench, pages: &Pages, guest: &Guest, size: &str, count: usize) -> anyhow::Result<()> {
    let blocks = Blocks::of(count);
    for is_cold in [false, true] {
        let state = if is_cold { "caches swept, asked once" } else { "asked again and again" };
        let ours = move |first| blocks.all(first, |offset, order| guest.ram.promotable(offset, order).is_ok());
        let mut contest = Contest::new(format!("may {size} be converted or merged?"), state);
        contest = contest.entry("pageless", trial(bench, is_cold, pages, count, ours));
        for (name, scan) in scans(pages) {
            contest = contest.entry(&name, trial(bench, is_cold, pages, count, move |first| scan(pages, first, count)));
        }
        let heads = move |first| pages.heads(first, count);
        contest = contest.entry("unsplit 1G heads (Linux before any split)", trial(bench, is_cold, pages, count, heads));
        bench.run(contest)?;
    }
    Ok(())
}

/// Asks about the first page again and again; or once, on swept caches, about another GiB each time.
fn trial<'a>(bench: &Bench, is_cold: bool, pages: &Pages, count: usize, op: impl FnMut(usize) -> bool + 'a) -> Trial<'a> {
    let (mut op, gibs, mut nth) = (op, pages.gibs(), 0);
    if !is_cold {
        return hot(move || op(black_box(0)));
    }
    let draw = move || {
        nth += 1;
        if count > PAGES { 0 } else { nth * 7 % gibs * PAGES }
    };
    cold(&bench.sweeper, draw, op)
}

/// One page of the GiB is held: what does each side say, and after how long?
fn held(bench: &mut Bench, mut pages: Pages, guest: &Guest) -> anyhow::Result<()> {
    let page = PAGES / 2 + 77;
    pages.hold(page);
    let bytes = page as u64 * pageless::FRAME_BYTES;
    let hold = guest.ram.hold(bytes..bytes + pageless::FRAME_BYTES, "nvme0")?;
    let answer = guest.ram.share(0..Order::GIB1.bytes());
    let names = answer.as_ref().is_err_and(|why| why.to_string().contains("nvme0"));
    anyhow::ensure!(names, "pageless did not name the holder: {answer:?}");
    let refused = || guest.ram.share(0..Order::GIB1.bytes()).is_err();
    let state = "a page in its middle is held; pageless says by whom, a count cannot";
    let mut contest = Contest::new("refuse to convert 1G", state).entry("pageless", hot(refused));
    for (name, scan) in scans(&pages) {
        let pages = &pages;
        contest = contest.entry(&name, hot(move || !scan(pages, black_box(0), PAGES)));
    }
    bench.run(contest)?;
    drop(hold);
    Ok(())
}

/// A model of how Linux merges and splits.
struct Model {
    name: &'static str,
    merge: fn(&mut Pages, usize, usize) -> bool,
    split: fn(&mut Pages, usize, usize) -> bool,
}

const MODELS: [Model; 2] = [
    Model { name: "kernel RFC walk (model)", merge: Pages::merge, split: Pages::split },
    Model { name: "struct page array alone", merge: Pages::merge_pages, split: Pages::split_pages },
];

/// Pages become one folio, or one folio becomes pages; 16G is sixteen of 1G. Each is timed alone, and put into the state
/// before it untimed.
fn restructure(bench: &mut Bench, pages: &mut Pages, guest: &Guest) -> anyhow::Result<()> {
    let (gibs, pages) = (pages.gibs(), RefCell::new(pages));
    for (size, count) in SIZES.into_iter().skip(1) {
        for (merges, is_cold) in [(true, false), (true, true), (false, false), (false, true)] {
            if !bench.wants(if merges { "restructure.merge" } else { "restructure.split" }) {
                continue;
            }
            let operation = if merges { format!("merge 4K pages into {size}") } else { format!("split {size} into 4K pages") };
            // Linux cuts all of it; pageless notes that the leaves on the way to one frame are cut.
            let state = if merges { "nobody holds it" } else { "Linux: all of it; pageless: the leaves around one frame" };
            let caches = if is_cold { "caches swept" } else { "just used" };
            let mut contest = Contest::new(operation, format!("{state}; {caches}"));
            let sweeper = is_cold.then(|| Rc::clone(&bench.sweeper));
            contest = contest.entry("pageless", ours(guest, merges, count.min(gibs * PAGES), sweeper.clone()));
            for model in &MODELS {
                contest = contest.entry(model.name, theirs(model, &pages, merges, count, sweeper.clone()));
            }
            bench.run(contest)?;
        }
    }
    pages.borrow_mut().split(0, gibs * PAGES);
    Ok(())
}

fn ours(guest: &Guest, merges: bool, count: usize, sweeper: Option<Rc<Sweeper>>) -> Trial<'_> {
    let blocks = Blocks::of(count);
    let change = move |merges: bool| {
        blocks.all(0, |offset, order| {
            if merges { guest.ram.promote(offset, order).is_ok() } else { guest.ram.demote(offset, Order::BASE).is_ok() }
        })
    };
    once(move || change(!merges), move || change(merges), sweeper)
}

fn theirs<'a>(
    model: &'a Model,
    pages: &'a RefCell<&mut Pages>,
    merges: bool,
    count: usize,
    sweeper: Option<Rc<Sweeper>>,
) -> Trial<'a> {
    let change = move |merges: bool| {
        let mut pages = pages.borrow_mut();
        let (all, folio) = (count.min(pages.gibs() * PAGES), count.min(PAGES));
        let change = if merges { model.merge } else { model.split };
        (0..all).step_by(folio).all(|first| change(&mut pages, first, folio))
    };
    // Whatever was there before, it is pages of their own now.
    once(move || change(false) && (merges || change(true)), move || change(merges), sweeper)
}

/// Prepares, sweeps the caches where that is asked for, and times one operation.
fn once<'a>(mut before: impl FnMut() -> bool + 'a, mut op: impl FnMut() -> bool + 'a, sweeper: Option<Rc<Sweeper>>) -> Trial<'a> {
    let clock = clock_ns();
    Box::new(move || {
        anyhow::ensure!(before(), "the state before it was refused");
        if let Some(sweeper) = &sweeper {
            sweeper.sweep();
        }
        black_box(Instant::now());
        let start = Instant::now();
        let done = op();
        let elapsed = nanos(start.elapsed());
        anyhow::ensure!(done, "it was refused");
        Ok((elapsed - clock).max(0.1))
    })
}
