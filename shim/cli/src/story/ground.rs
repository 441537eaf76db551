//! The memory that the tour stands on: which, and why.

use std::sync::Arc;

use anyhow::{Context, bail};
use pageless_host::{HostBacking, HostError, HostMemory, PageAvailability, PageSize, ProofMethod, Zeroing as HostZeroing, probe};

use crate::args::{BackingChoice, MIN_WINDOW, TourSettings, Zeroing};
use crate::figures;
use crate::window::WindowSpec;

/// The memory, its name on the command line, and why it was taken.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) memory: Arc<dyn HostBacking>,
    /// Its length in bytes.
    pub(crate) bytes: u64,
    pub(crate) name: &'static str,
    pub(crate) reason: String,
    /// The window on the command line, where it is one.
    pub(crate) window: Option<String>,
    /// Whether the kernel keeps a `struct page` for each frame.
    pub(crate) has_struct_pages: bool,
}

/// Segments at most: each costs a descriptor, and a seal proves, and loses, a whole one.
const SEGMENTS: u64 = 1024;
/// Huge pages at least: a page cannot be mapped in parts, so the two guests and what is left need one each.
const PAGES: u64 = 3;

/// Chooses the memory, lays it out, and takes none of it yet.
pub(crate) fn choose(settings: &TourSettings) -> anyhow::Result<Ground> {
    if let Some(window) = &settings.window {
        return physical(window, settings.zeroing);
    }
    let Some(memory) = settings.memory else { bail!("neither a window nor a size was given") };
    let asked = |page: PageSize| (page, format!("--backing {} asked for it", name(page)));
    let (page, reason) = match settings.backing {
        BackingChoice::Auto => automatic(memory, &probe()),
        BackingChoice::Memfd | BackingChoice::Physical => asked(PageSize::Base4K),
        BackingChoice::Hugetlb2m => asked(PageSize::Huge2M),
        BackingChoice::Hugetlb1g => asked(PageSize::Huge1G),
    };
    if page.is_huge() && !fits(memory, page) {
        bail!(
            "--backing {} needs a pool of whole {page} pages, at least {PAGES} of them, and {} is not; try --memory {}",
            name(page),
            figures::bytes(memory),
            figures::bytes((memory / page.bytes()).max(PAGES) * page.bytes()).replace(' ', "")
        );
    }
    let laid_out = lay_out(settings, memory, page);
    let laid_out = laid_out.with_context(|| format!("{} of {} cannot be had", figures::bytes(memory), name(page)))?;
    Ok(Ground { memory: Arc::new(laid_out), bytes: memory, name: name(page), reason, window: None, has_struct_pages: true })
}

/// Opens the window: nothing is written before it is allocated.
fn physical(spec: &WindowSpec, zeroing: Zeroing) -> anyhow::Result<Ground> {
    let zeroing = if zeroing == Zeroing::On { HostZeroing::On } else { HostZeroing::Off };
    let window = spec.builder().zeroing(zeroing).build().with_context(|| format!("the window {spec} cannot be had"))?;
    let (bytes, page) = (window.frames().bytes(), window.page());
    if bytes < MIN_WINDOW || !fits(bytes, page.max(PageSize::Huge2M)) {
        bail!(
            "the window {spec} has {}; the tour needs {} or more, in whole blocks of 2 MiB, and at least {PAGES} pages of {page}",
            figures::bytes(bytes),
            figures::bytes(MIN_WINDOW)
        );
    }
    Ok(Ground {
        bytes,
        name: "physical",
        reason: format!("--window {spec} asked for it"),
        window: Some(spec.to_string()),
        has_struct_pages: window.has_struct_pages(),
        memory: Arc::new(window),
    })
}

/// The largest huge pages of which enough are free, else ordinary memory; and why not the others.
fn automatic(memory: u64, offers: &[PageAvailability]) -> (PageSize, String) {
    let enough = |offer: &&PageAvailability| offer.page.is_huge() && offer.bytes >= memory && fits(memory, offer.page);
    if let Some(offer) = offers.iter().find(enough) {
        let pages = figures::count(offer.bytes / offer.page.bytes());
        return (offer.page, format!("{pages} pages of {} are reserved and free, and that is enough", size(offer.page)));
    }
    let few = offers.iter().find(|offer| offer.page.is_huge() && offer.bytes > 0);
    let why = few.map_or_else(
        || "no huge pages are reserved on this host, and memfd needs none".to_owned(),
        |offer| format!("huge pages of {} are reserved, but only {}", size(offer.page), figures::bytes(offer.bytes)),
    );
    (PageSize::Base4K, why)
}

const fn fits(memory: u64, page: PageSize) -> bool {
    memory.is_multiple_of(page.bytes()) && memory / page.bytes() >= PAGES
}

fn size(page: PageSize) -> String {
    figures::bytes(page.bytes())
}

const fn name(page: PageSize) -> &'static str {
    match page {
        PageSize::Base4K => "memfd",
        PageSize::Huge2M => "hugetlb-2m",
        PageSize::Huge1G => "hugetlb-1g",
    }
}

fn lay_out(settings: &TourSettings, bytes: u64, page: PageSize) -> Result<HostMemory, HostError> {
    let (proof, zeroing) = match settings.zeroing {
        Zeroing::On => (ProofMethod::Seal, HostZeroing::On),
        // A seal replaces the pages, and fresh ones are empty: only memory that keeps its pages can show stale bytes.
        Zeroing::Off => (ProofMethod::ProcessUnmap, HostZeroing::Off),
    };
    let builder = HostMemory::builder().bytes(bytes).page(page).proof(proof).zeroing(zeroing);
    match builder.clone().segment_bytes(segment(bytes, page)).build() {
        Err(HostError::DescriptorLimit { .. }) => builder.build(),
        result => result,
    }
}

/// The smallest segment that makes at most [`SEGMENTS`] of them.
fn segment(memory: u64, page: PageSize) -> u64 {
    memory.div_ceil(SEGMENTS).next_power_of_two().max(page.bytes()).max(PageSize::Huge2M.bytes())
}

/// Memory that the host says is available, in bytes; 0 where it does not say.
pub(crate) fn available() -> u64 {
    probe().into_iter().find(|offer| !offer.page.is_huge()).map_or(0, |offer| offer.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(page: PageSize, bytes: u64) -> PageAvailability {
        PageAvailability { page, bytes, why_not: None }
    }

    #[test]
    fn the_largest_pages_of_which_enough_are_reserved_are_taken() {
        let offers = |gib: u64, mib: u64| {
            [offer(PageSize::Huge1G, gib << 30), offer(PageSize::Huge2M, mib << 20), offer(PageSize::Base4K, 1 << 40)]
        };
        assert_eq!(automatic(8 << 30, &offers(8, 0)).0, PageSize::Huge1G);
        assert_eq!(automatic(2 << 30, &offers(8, 2048)).0, PageSize::Huge2M, "two pages of 1 GiB are too few for the story");
        assert_eq!(automatic((8 << 30) + (2 << 20), &offers(16, 16 << 10)).0, PageSize::Huge2M);
        let (page, why) = automatic(8 << 30, &offers(0, 1024));
        assert_eq!(page, PageSize::Base4K);
        assert_eq!(why, "huge pages of 2 MiB are reserved, but only 1 GiB");
        assert!(automatic(8 << 30, &offers(0, 0)).1.contains("no huge pages"));
    }

    #[test]
    fn segments_are_small_and_not_too_many() {
        assert_eq!(segment(1 << 30, PageSize::Base4K), 2 << 20);
        assert_eq!(segment(8 << 30, PageSize::Base4K), 8 << 20);
        assert_eq!(segment(12 << 30, PageSize::Huge2M), 16 << 20);
        assert_eq!(segment(8 << 30, PageSize::Huge1G), 1 << 30);
        assert_eq!(segment(16 << 40, PageSize::Base4K), 16 << 30);
    }
}
