//! The same question, asked of pageless and of an array of reference counts.

use anyhow::Context;
use pageless::{Order, Pfn, PfnRange};

use super::Story;
use super::guest::Guest;
use crate::figures;
use crate::refcount::{COMPARE_STEPS, Comparison, LEFT_OUT, PageArray, array_limit, compare};

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
         struct pages takes {} ({} and {} with cold caches).",
        figures::nanoseconds(comparison.pageless.hot_ns),
        figures::nanoseconds(comparison.refcount_scan.hot_ns),
        figures::nanoseconds(comparison.pageless.cold_ns),
        figures::nanoseconds(comparison.refcount_scan.cold_ns),
    ));
    LEFT_OUT.iter().for_each(|sentence| story.tell.line(sentence));
    Ok(comparison)
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
