//! How Linux answers: one reference count for each 4 KiB page, in 64 bytes of `struct page`, found through an xarray.
//!
//! The arrays are real. What is left out is said in docs/BENCHMARKS.md, and all of it would make Linux slower: locks, the
//! page allocator that gives back the vmemmap's pages on a split, page tables, TLB flushes.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::rival::simd::{Line, Width};

/// 4 KiB pages of a GiB.
pub const PAGES: usize = 262_144;
/// The reference count of a page that only its file holds.
const ONLY_THE_FILE: u32 = 1;

/// Where a head's `flags` have the folio's order; 0 is a page of its own.
const ORDER_MASK: u64 = 0xff;

/// Linux's `struct page`, as far as the question needs it: `compound_head` at 0x08, `_refcount` at 0x34.
#[repr(C, align(64))]
pub struct StructPage {
    flags: u64,
    compound_head: AtomicU64,
    between: [u64; 4],
    mapcount: u32,
    refcount: AtomicU32,
    memcg: u64,
}

const _: () = assert!(size_of::<StructPage>() == 64);
const _: () = assert!(std::mem::offset_of!(StructPage, compound_head) == 0x08);
const _: () = assert!(std::mem::offset_of!(StructPage, refcount) == 0x34);

impl StructPage {
    const fn new() -> Self {
        let (compound_head, refcount) = (AtomicU64::new(0), AtomicU32::new(ONLY_THE_FILE));
        Self { flags: 0, compound_head, between: [0; 4], mapcount: 0, refcount, memcg: 0 }
    }

    fn is_small_and_unheld(&self) -> bool {
        self.compound_head.load(Ordering::Relaxed) & 1 == 0 && self.refcount.load(Ordering::Relaxed) == ONLY_THE_FILE
    }

    fn swap_count(&self, from: u32, to: u32) -> bool {
        self.refcount.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

/// A node of the xarray: 64 slots and a header, as `struct xa_node` has them.
#[repr(C, align(64))]
struct Node {
    _header: [u64; 8],
    /// The number of a page plus one, or of a node of the level below plus one; 0 is empty.
    slots: [AtomicU64; 64],
}

impl Node {
    fn new(first: u64, used: u64) -> Self {
        let slot = |nth: usize| AtomicU64::new(if (nth as u64) < used { first + nth as u64 + 1 } else { 0 });
        Self { _header: [0; 8], slots: std::array::from_fn(slot) }
    }
}

/// The pages of some GiBs as Linux keeps them, and the packed arrays that it does not have.
pub struct Pages {
    pages: Vec<StructPage>,
    leaves: Vec<Node>,
    /// Levels above the leaves, the lowest first; the last has one node.
    above: Vec<Vec<Node>>,
    /// What a split restores the vmemmap from: 16 MiB, allocated and touched beforehand, which is kind to Linux.
    restored: Vec<StructPage>,
    words: Vec<Line>,
    bytes: Vec<Line>,
    bits: Vec<Line>,
    /// The registers that the packed scans use.
    pub width: Width,
}

/// Every byte 1.
const BYTES_OF_ONE: Line = Line([0x0101_0101_0101_0101; 8]);
/// Every 32-bit word 1.
const WORDS_OF_ONE: Line = Line([0x0000_0001_0000_0001; 8]);

impl Pages {
    /// All pages of so many GiBs, each a page of its own that only its file holds.
    #[must_use]
    pub fn new(gibs: usize) -> Self {
        let count = gibs * PAGES;
        let leaves: Vec<Node> = (0..count / 64).map(|nth| Node::new(nth as u64 * 64, 64)).collect();
        let (mut above, mut below) = (Vec::<Vec<Node>>::new(), leaves.len());
        while below > 1 {
            let level: Vec<Node> =
                (0..below.div_ceil(64)).map(|nth| Node::new(nth as u64 * 64, (below - nth * 64).min(64) as u64)).collect();
            below = level.len();
            above.push(level);
        }
        Self {
            pages: (0..count).map(|_| StructPage::new()).collect(),
            leaves,
            above,
            restored: (0..PAGES).map(|_| StructPage::new()).collect(),
            words: vec![WORDS_OF_ONE; count / 16],
            bytes: vec![BYTES_OF_ONE; count / 64],
            bits: vec![Line([0; 8]); count.div_ceil(512)],
            width: Width::of_this_machine(),
        }
    }

    /// How many GiBs there are.
    #[must_use]
    pub fn gibs(&self) -> usize {
        self.pages.len() / PAGES
    }

    /// The plain scan: no index, no reference taken.
    #[must_use]
    pub fn scan(&self, first: usize, count: usize) -> bool {
        self.pages[first..first + count].iter().all(StructPage::is_small_and_unheld)
    }

    /// Packed 32-bit counters. Whole lines are compared, so a question about one page reads its line's neighbours too.
    #[must_use]
    pub fn scan_words(&self, first: usize, count: usize) -> bool {
        self.width.all_are(&self.words[first / 16..(first + count).div_ceil(16)], WORDS_OF_ONE)
    }

    /// Packed 8-bit counters.
    #[must_use]
    pub fn scan_bytes(&self, first: usize, count: usize) -> bool {
        self.width.all_are(&self.bytes[first / 64..(first + count).div_ceil(64)], BYTES_OF_ONE)
    }

    /// One bit for each page: held or not.
    #[must_use]
    pub fn scan_bits(&self, first: usize, count: usize) -> bool {
        self.width.all_are(&self.bits[first / 512..(first + count).div_ceil(512)], Line([0; 8]))
    }

    /// The heads of GiBs that were never split, for any part of them: where Linux is O(1) too.
    #[must_use]
    pub fn heads(&self, first: usize, count: usize) -> bool {
        let heads = (first / PAGES..(first + count).div_ceil(PAGES)).map(|gib| gib * PAGES);
        heads.into_iter().all(|head| self.pages[head].refcount.load(Ordering::Relaxed) == ONLY_THE_FILE)
    }

    /// The kernel RFC's walk: finds each folio through the index, takes a reference if it is not frozen, looks whether it is
    /// still the folio at that index and whether anybody else holds it, and puts the reference back. A large folio is one.
    #[must_use]
    pub fn walk(&self, first: usize, count: usize) -> bool {
        let (mut alone, mut at, end) = (true, first, first + count);
        while at < end {
            let node = self.descend(at / 64);
            let leaf_end = end.min((at / 64 + 1) * 64);
            while at < leaf_end {
                let slot = &node.slots[at % 64];
                let entry = slot.load(Ordering::Acquire);
                let Some(page) = self.page(entry) else { return false };
                if !get(page) || slot.load(Ordering::Relaxed) != entry {
                    return false;
                }
                // One for the file, one for this walk.
                alone &= page.refcount.load(Ordering::Relaxed) == ONLY_THE_FILE + 1;
                let pages = 1 << (page.flags & ORDER_MASK);
                page.refcount.fetch_sub(1, Ordering::Release);
                at = at / pages * pages + pages;
            }
        }
        alone
    }

    fn page(&self, entry: u64) -> Option<&StructPage> {
        self.pages.get(usize::try_from(entry.checked_sub(1)?).ok()?)
    }

    /// From the root to a leaf, one dependent load for each level, as the kernel does when a leaf node ends.
    fn descend(&self, leaf: usize) -> &Node {
        let mut node = 0;
        for (up, level) in self.above.iter().enumerate().rev() {
            let slot = leaf >> (6 * up) & 63;
            let entry = level[node].slots[slot].load(Ordering::Acquire);
            node = usize::try_from(entry.saturating_sub(1)).unwrap_or(0);
        }
        &self.leaves[node]
    }

    /// The index's slots of some pages, each leaf looked up once.
    fn slots(&self, first: usize, count: usize) -> impl Iterator<Item = (usize, &AtomicU64)> {
        let end = first + count;
        (first / 64..end.div_ceil(64)).flat_map(move |leaf| {
            let node = self.descend(leaf);
            (first.max(leaf * 64)..end.min(leaf * 64 + 64)).map(move |at| (at, &node.slots[at % 64]))
        })
    }

    /// Splits a folio: copies the restored vmemmap in, makes every tail a page of its own, stores each in the index.
    pub fn split(&mut self, first: usize, count: usize) -> bool {
        self.split_pages(first, count);
        self.slots(first, count).for_each(|(at, slot)| slot.store(at as u64 + 1, Ordering::Release));
        true
    }

    /// The same without the index: the array of `struct page` alone, plain stores.
    pub fn split_pages(&mut self, first: usize, count: usize) -> bool {
        for (page, restored) in self.pages[first..first + count].iter_mut().zip(self.restored.iter().cycle()) {
            page.flags = restored.flags;
            page.between = restored.between;
            page.mapcount = restored.mapcount;
            page.memcg = restored.memcg;
            page.compound_head.store(0, Ordering::Relaxed);
            page.refcount.store(ONLY_THE_FILE, Ordering::Release);
        }
        true
    }

    /// Merges 4 KiB pages into a folio of a power of two of them: freezes the count of each, makes each a tail of the head,
    /// lets the index lead to the head. False, and nothing changed, when somebody holds one.
    pub fn merge(&mut self, first: usize, count: usize) -> bool {
        let freeze = |slot: &AtomicU64| {
            let page = self.page(slot.load(Ordering::Acquire));
            page.is_some_and(|page| page.swap_count(ONLY_THE_FILE, 0))
        };
        let frozen = self.slots(first, count).take_while(|(_, slot)| freeze(slot)).count();
        if frozen < count {
            self.pages[first..first + frozen].iter().for_each(|page| page.refcount.store(ONLY_THE_FILE, Ordering::Release));
            return false;
        }
        for (at, slot) in self.slots(first, count) {
            self.pages[at].compound_head.store((first as u64 * 64) | 1, Ordering::Relaxed);
            slot.store(first as u64 + 1, Ordering::Release);
        }
        self.finish_merge(first, count);
        true
    }

    /// The same without the index and without locked instructions: what a scan of the array of `struct page` would do.
    pub fn merge_pages(&mut self, first: usize, count: usize) -> bool {
        if !self.scan(first, count) {
            return false;
        }
        for page in &mut self.pages[first..first + count] {
            *page.refcount.get_mut() = 0;
            *page.compound_head.get_mut() = (first as u64 * 64) | 1;
        }
        self.finish_merge(first, count);
        true
    }

    fn finish_merge(&mut self, first: usize, count: usize) {
        let head = &mut self.pages[first];
        head.flags = u64::from(count.trailing_zeros());
        *head.compound_head.get_mut() = 0;
        *head.refcount.get_mut() = ONLY_THE_FILE;
    }

    /// Takes a reference on one page, in every array, as a pin does.
    pub fn hold(&mut self, page: usize) {
        self.pages[page].refcount.fetch_add(1, Ordering::Relaxed);
        self.words[page / 16].0[page % 16 / 2] += 1 << (page % 2 * 32);
        self.bytes[page / 64].0[page % 64 / 8] += 1 << (page % 8 * 8);
        self.bits[page / 512].0[page % 512 / 64] |= 1 << (page % 64);
    }
}

/// `folio_try_get`: adds a reference unless the count is zero.
fn get(page: &StructPage) -> bool {
    let mut count = page.refcount.load(Ordering::Relaxed);
    while count != 0 {
        match page.refcount.compare_exchange_weak(count, count + 1, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => return true,
            Err(now) => count = now,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scan_says_yes_until_one_page_is_held_and_only_about_ranges_with_it() {
        let mut pages = Pages::new(2);
        type Scan = fn(&Pages, usize, usize) -> bool;
        let scans: [Scan; 5] = [Pages::scan, Pages::walk, Pages::scan_words, Pages::scan_bytes, Pages::scan_bits];
        assert!(scans.iter().all(|scan| scan(&pages, 0, 2 * PAGES) && scan(&pages, 77, 1)));
        pages.hold(PAGES + 1234);
        assert!(scans.iter().all(|scan| scan(&pages, 0, PAGES) && !scan(&pages, PAGES, PAGES)));
        assert!(pages.heads(0, 2 * PAGES));
    }

    #[test]
    fn a_merge_can_be_split_again_and_is_refused_for_a_held_page() {
        type Change = fn(&mut Pages, usize, usize) -> bool;
        let kinds: [(Change, Change); 2] = [(Pages::merge, Pages::split), (Pages::merge_pages, Pages::split_pages)];
        for (merge, split) in kinds {
            let mut pages = Pages::new(2);
            for count in [512, PAGES] {
                assert!(merge(&mut pages, PAGES, count) && pages.heads(PAGES, count));
                assert!(!pages.scan(PAGES, count), "tails are no pages of their own");
                assert!(split(&mut pages, PAGES, count) && pages.walk(PAGES, PAGES) && pages.scan(PAGES, PAGES));
            }
            pages.hold(5);
            assert!(!merge(&mut pages, 0, PAGES), "page 5 is held");
            assert!(pages.scan(0, 5) && pages.walk(0, 5) && !pages.walk(5, 1), "a refused merge changed something");
        }
    }

    #[test]
    fn a_walk_meets_a_large_folio_once_and_sees_who_holds_it() {
        let mut pages = Pages::new(1);
        assert!(pages.merge(512, 512) && pages.walk(0, PAGES));
        pages.hold(512);
        assert!(pages.walk(0, 512) && !pages.walk(0, PAGES) && !pages.walk(700, 1) && pages.walk(1024, 512));
    }
}
