//! Contenders for "may this be converted or merged?", and for splitting and merging.

use std::hint::black_box;

use pageless::Order;

use crate::bench::Bench;
use crate::contest::{Contest, Trial, cold, hot};
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

/// pageless's own answer about a run that starts at a GiB: one question for each largest block.
fn promotable(guest: &Guest, first: u64, count: u64) -> bool {
    let order = Order::DESCENDING.into_iter().find(|order| order.frames() <= count).unwrap_or(Order::BASE);
    let blocks = (0..count / order.frames()).map(|nth| (first + nth * order.frames()) * pageless::FRAME_BYTES);
    blocks.into_iter().all(|offset| guest.ram.promotable(offset, order).is_ok())
}

fn check(bench: &mut Bench, pages: &Pages, guest: &Guest, size: &str, count: usize) -> anyhow::Result<()> {
    let (sweeper, gibs) = (std::rc::Rc::clone(&bench.sweeper), pages.gibs());
    for is_cold in [false, true] {
        let state = if is_cold { "caches swept, asked once" } else { "asked again and again" };
        // Cold, another GiB each time.
        let mut nth = 0;
        let mut first = move || {
            nth += usize::from(is_cold);
            if count > PAGES { 0 } else { black_box(nth * 7 % gibs * PAGES) }
        };
        let mut contest = Contest::new(format!("may {size} be converted or merged?"), state);
        let mut first_of_ours = first;
        let ours = move || promotable(guest, first_of_ours() as u64, count as u64);
        contest = contest.entry("pageless", trial(is_cold, &sweeper, ours));
        for (name, scan) in scans(pages) {
            let mut first = first;
            contest = contest.entry(&name, trial(is_cold, &sweeper, move || scan(pages, first(), count)));
        }
        if count >= PAGES {
            let heads = move || pages.heads(first(), count);
            contest = contest.entry("unsplit 1G heads (Linux before any split)", trial(is_cold, &sweeper, heads));
        }
        bench.run(contest)?;
    }
    Ok(())
}

fn trial<'a>(is_cold: bool, sweeper: &std::rc::Rc<crate::contest::Sweeper>, op: impl FnMut() -> bool + 'a) -> Trial<'a> {
    if is_cold { cold(sweeper, op) } else { hot(op) }
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

/// A GiB goes from 4K pages to one folio and back. Both directions alternate; each is timed alone.
fn restructure(bench: &mut Bench, pages: &mut Pages, guest: &Guest) -> anyhow::Result<()> {
    let pages = std::cell::RefCell::new(pages);
    for merge in [true, false] {
        let name = if merge { "restructure.merge" } else { "restructure.split" };
        if !bench.wants(name) {
            continue;
        }
        let model = Box::new(|| {
            let mut pages = pages.borrow_mut();
            // Put into the state before it, untimed.
            let before = pages.split(0) && (merge || pages.merge(0));
            let start = std::time::Instant::now();
            let done = if merge { pages.merge(0) } else { pages.split(0) };
            let elapsed = crate::contest::nanos(start.elapsed());
            anyhow::ensure!(before && done, "the model refused");
            Ok(elapsed)
        });
        let ours = Box::new(|| {
            // The same for pageless: a GiB that was cut is promoted, or a whole one is cut to 4K.
            if merge {
                guest.ram.demote(0, Order::BASE)?
            } else {
                guest.ram.promote(0, Order::GIB1)?
            };
            let start = std::time::Instant::now();
            if merge {
                guest.ram.promote(0, Order::GIB1)?
            } else {
                guest.ram.demote(0, Order::BASE)?
            };
            Ok(crate::contest::nanos(start.elapsed()))
        });
        let operation = if merge { "merge 4K pages into one 1G" } else { "split one 1G into 4K pages" };
        // Linux cuts all of it; pageless notes that the leaves on the way to one frame are cut.
        let state = if merge { "uniform, nobody holds it" } else { "Linux: all of it; pageless: the leaves around one frame" };
        let contest = Contest::new(operation, state);
        bench.run(contest.entry("pageless", ours).entry("kernel RFC walk (model)", model))?;
    }
    pages.borrow_mut().split(0);
    Ok(())
}
