//! The same question, asked of pageless and of an array of reference counts.

use anyhow::Context;
use pageless::{Order, Pfn, PfnRange};

use super::Story;
use super::guest::Guest;
use crate::figures;
use crate::narrate::wrap;
use crate::refcount::{COMPARE_STEPS, Comparison, LEFT_OUT, PageArray, STRUCT_PAGE_BYTES, array_limit, compare};

/// May this GiB be converted or promoted? Measured, hot and cold.
pub(super) fn tell(story: &mut Story<'_>, last: &Guest) -> anyhow::Result<Comparison> {
    story.tell.chapter("One question, two ways to answer it");
    let frames = story.pool.stats().frames;
    let steps = COMPARE_STEPS + frames.div_ceil(Order::GIB1.frames());
    let progress = story.tell.progress("measuring", steps);
    let array = PageArray::new(frames, array_limit(), || progress.advance(1)).context("no memory for an array of struct page")?;
    let offsets = gibs(last, array.gibs());
    // The hot question is about number 0 of the array: let it be a GiB that could be one leaf, if there is one.
    let could = |offset: u64| last.ram.promotable(offset, Order::GIB1).is_ok();
    let first = offsets.iter().position(|offset| offset.is_some_and(could)).unwrap_or(0);
    let ask = |gib: u64| {
        let at = (usize::try_from(gib).unwrap_or(0) + first) % offsets.len().max(1);
        offsets.get(at).copied().flatten().is_some_and(could)
    };
    let comparison = compare(&array, story.settings.seed, ask, || progress.advance(1));
    drop(progress);
    story.tell.line(format!(
        "May this GiB be converted, or merged into one huge page? pageless answers in {}; reading the 262,144 reference counts of its \
         struct pages takes {}, {} times as long.",
        figures::nanoseconds(comparison.pageless.hot_ns),
        figures::nanoseconds(comparison.refcount_scan.hot_ns),
        figures::ratio(comparison.refcount_scan.hot_ns, comparison.pageless.hot_ns),
    ));
    story.tell.show(&side_by_side(story.pool.footprint().total() as u64, frames * STRUCT_PAGE_BYTES, &comparison));
    story.tell.show(&story.tell.paint().dim("   What this leaves out:"));
    for sentence in LEFT_OUT {
        let wrapped = wrap(sentence, story.tell.columns(), "     ").replacen("     ", "   - ", 1);
        story.tell.show(&story.tell.paint().dim(&wrapped));
    }
    Ok(comparison)
}

/// Both costs as a table.
fn side_by_side(ours: u64, theirs: u64, told: &Comparison) -> String {
    let rows = [
        ("pageless", told.pageless, figures::bytes(ours)),
        ("struct page scan", told.refcount_scan, figures::bytes(theirs)),
        ("packed scan (not in Linux)", told.packed_scan, String::new()),
        ("one unsplit huge page", told.unsplit_head, String::new()),
    ];
    let line = |name: &str, hot: &str, cold: &str, bytes: &str| {
        format!("   {name:<28}{hot:>10}{cold:>12}{bytes:>14}").trim_end().to_owned()
    };
    let head = line("", "hot", "cold", "metadata");
    let rows = rows
        .iter()
        .map(|(name, cost, bytes)| line(name, &figures::nanoseconds(cost.hot_ns), &figures::nanoseconds(cost.cold_ns), bytes));
    format!("\n{head}\n{}\n", rows.collect::<Vec<_>>().join("\n"))
}

/// Where the first frame that the guest has of each GiB lies in its memory.
fn gibs(guest: &Guest, gibs: u64) -> Vec<Option<u64>> {
    let extents = guest.ram.extents();
    let offset_of = |number: u64| {
        let block = PfnRange::block(Pfn::new(number * Order::GIB1.frames()), Order::GIB1);
        extents.iter().find_map(|extent| Some(extent.clipped(block)?.offset))
    };
    (0..gibs).map(offset_of).collect()
}
