//! The honest comparison: the same question, answered by reading reference counts out of a real array of `struct page`.
//!
//! *May this GiB be converted, or merged into one huge page?* Linux answers by reading 262,144 counters, one in each 64-byte
//! `struct page`. Here the array is really allocated, filled and read. The model leaves out what Linux does besides; see
//! [`LEFT_OUT`].

use std::collections::TryReserveError;
use std::hint::black_box;
use std::mem::{offset_of, size_of};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pageless::Order;
use serde::Serialize;

/// Bytes of a `struct page` on 64-bit Linux.
pub const STRUCT_PAGE_BYTES: u64 = size_of::<StructPage>() as u64;

/// The largest array that is really allocated: 2 GiB, which describes a pool of 128 GiB. The cost of a check does not depend
/// on how many other GiBs there are, so larger pools are measured over a part.
pub const ARRAY_LIMIT: u64 = 2 << 30;

/// The array that this host can well spare: [`ARRAY_LIMIT`], or a quarter of the available memory where that is less.
#[must_use]
pub fn array_limit() -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let bytes = available.and_then(|text| crate::figures::parse_size(text).ok());
    bytes.map_or(ARRAY_LIMIT, |bytes| ARRAY_LIMIT.min(bytes / 4))
}

/// What the model leaves out: read it before quoting a number.
pub const LEFT_OUT: [&str; 7] = [
    "Both sides only answer the question. Unmapping, page-table work and TLB flushes cost the same with either, and are left out.",
    "An unsplit 1 GiB huge page has one counter, in its head: there Linux answers with one load too. The gain begins once the page has been split to 4 KiB, as a conversion does.",
    "Linux finds its pages through an xarray and takes a reference on each folio; the scan here walks a plain array, which is faster than the kernel's own walk.",
    "Cold answers include misses of the TLB: the array lies in this process's heap, usually in 4 KiB pages; the kernel's own is mapped by larger ones.",
    "One byte per frame, packed, scans far faster than struct page. Linux has no such array; it is measured so that the opponent is not a straw man.",
    "memfd and hugetlb memory keep their own struct page in the kernel, whatever pageless does. Only on memory without struct page (a physical window, VM_PFNMAP) are those bytes really saved.",
    "The bytes of struct page are computed, 64 for each frame; beside the measured times stands how much was really allocated for them.",
];

/// The reference count of a page that only its file holds.
const ONLY_THE_FILE: u32 = 1;

/// Linux's `struct page`, as far as the question needs it.
#[repr(C, align(64))]
struct StructPage {
    _flags: u64,
    /// Bit 0 set: this is the tail of a compound page, and the rest is the address of its head.
    compound_head: AtomicU64,
    _between: [u64; 4],
    _mapcount: u32,
    refcount: AtomicU32,
    _memcg: u64,
}

const _: () = assert!(size_of::<StructPage>() == 64);
const _: () = assert!(offset_of!(StructPage, compound_head) == 0x08);
const _: () = assert!(offset_of!(StructPage, refcount) == 0x34);

impl StructPage {
    const fn held_by_its_file() -> Self {
        Self {
            _flags: 0,
            compound_head: AtomicU64::new(0),
            _between: [0; 4],
            _mapcount: 0,
            refcount: AtomicU32::new(ONLY_THE_FILE),
            _memcg: 0,
        }
    }
}

/// A real array of `struct page`, 4 KiB pages all, for the whole GiBs of a pool as far as it fits.
pub struct PageArray {
    pages: Vec<StructPage>,
    /// The opponent that Linux does not have: one byte per frame of the first GiB, packed.
    packed: Vec<u8>,
}

impl PageArray {
    /// Allocates and fills the array for a pool of `pool_frames` frames: all its whole GiBs, or as many as fit into `limit`
    /// bytes, but at least one. `each_gib` is called after every GiB.
    pub fn new(pool_frames: u64, limit: u64, mut each_gib: impl FnMut()) -> Result<Self, TryReserveError> {
        let gib = Order::GIB1.frames();
        let gibs = (pool_frames / gib).min(limit / (gib * STRUCT_PAGE_BYTES)).max(1);
        let mut pages = Vec::new();
        pages.try_reserve_exact(usize::try_from(gibs * gib).unwrap_or(usize::MAX))?;
        for _ in 0..gibs {
            pages.extend((0..gib).map(|_| StructPage::held_by_its_file()));
            each_gib();
        }
        let packed = vec![1; usize::try_from(gib).unwrap_or(0)];
        Ok(Self { pages, packed })
    }

    /// How many GiBs of a pool the array describes.
    #[must_use]
    pub fn gibs(&self) -> u64 {
        self.pages.len() as u64 / Order::GIB1.frames()
    }

    /// Bytes of the array.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.pages.len() as u64 * STRUCT_PAGE_BYTES
    }

    /// The counters of one GiB; none beyond the end.
    fn gib(&self, gib: u64) -> &[StructPage] {
        let frames = Order::GIB1.frames();
        let first = usize::try_from(gib.saturating_mul(frames)).unwrap_or(usize::MAX);
        let end = first.saturating_add(usize::try_from(frames).unwrap_or(usize::MAX));
        self.pages.get(first..end).unwrap_or_default()
    }

    /// Whether every one of a GiB's 262,144 pages is a page of its own that only its file holds: the scan.
    #[must_use]
    pub fn may_convert(&self, gib: u64) -> bool {
        let pages = self.gib(gib);
        !pages.is_empty()
            && pages.iter().all(|page| {
                page.compound_head.load(Ordering::Relaxed) & 1 == 0 && page.refcount.load(Ordering::Relaxed) == ONLY_THE_FILE
            })
    }

    /// The same for a GiB that was never split: its head's counter is all there is to read.
    #[must_use]
    pub fn unsplit_may_convert(&self, gib: u64) -> bool {
        self.gib(gib).first().is_some_and(|head| head.refcount.load(Ordering::Relaxed) == ONLY_THE_FILE)
    }

    /// The same over one packed byte per frame.
    #[must_use]
    pub fn packed_may_convert(&self) -> bool {
        self.packed.chunks(4096).all(|counts| counts.iter().fold(0, |wrong, count| wrong | (count ^ 1)) == 0)
    }

    /// Takes a reference on the frame at this index, as a speculative reader of memory does at any time, and as a failed
    /// unmap once did on purpose. Afterwards the scan says no, and cannot say which of the two it was.
    pub fn take_reference(&self, frame: u64) {
        if let Some(page) = usize::try_from(frame).ok().and_then(|frame| self.pages.get(frame)) {
            page.refcount.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Gives back a reference taken on this frame.
    pub fn drop_reference(&self, frame: u64) {
        if let Some(page) = usize::try_from(frame).ok().and_then(|frame| self.pages.get(frame)) {
            page.refcount.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// What one question costs, in nanoseconds, median.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Cost {
    /// Asked again and again about the same GiB.
    pub hot_ns: f64,
    /// Asked once about a GiB after the caches were swept.
    pub cold_ns: f64,
}

/// The four answers side by side.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Comparison {
    /// pageless, asked through the closure.
    pub pageless: Cost,
    /// The scan of 262,144 reference counts in `struct page`.
    pub refcount_scan: Cost,
    /// One packed byte per frame.
    pub packed_scan: Cost,
    /// One counter: a 1 GiB huge page that was never split.
    pub unsplit_head: Cost,
    /// GiBs that the array described.
    pub gibs: u64,
    /// Bytes of the array that were really allocated.
    pub allocated_bytes: u64,
    /// Bytes read between two cold questions.
    pub swept_bytes: u64,
    /// Hot batches, of each of which one mean enters the median.
    pub hot_rounds: usize,
    /// Cold questions.
    pub cold_rounds: usize,
}

/// Hot batches per contender.
const HOT_ROUNDS: usize = 31;
/// Cold questions per contender.
const COLD_ROUNDS: usize = 15;
/// A hot batch lasts at least this long, so that reading the clock does not show.
const BATCH: Duration = Duration::from_micros(200);

/// Steps that [`compare`] reports, for a progress bar.
pub const COMPARE_STEPS: u64 = 4 * (COLD_ROUNDS as u64 + 1);

/// Asks pageless (`ask`, which gets the number of a GiB in the pool) and the array the same question, hot and cold.
/// `step` is called [`COMPARE_STEPS`] times.
pub fn compare(array: &PageArray, seed: u64, ask: impl Fn(u64) -> bool, mut step: impl FnMut()) -> Comparison {
    let mut sweeper = Sweeper::new(seed, array.gibs());
    let pageless = measure(&mut sweeper, &ask, &mut step);
    let refcount_scan = measure(&mut sweeper, |gib| array.may_convert(gib), &mut step);
    let packed_scan = measure(&mut sweeper, |_| array.packed_may_convert(), &mut step);
    let unsplit_head = measure(&mut sweeper, |gib| array.unsplit_may_convert(gib), &mut step);
    Comparison {
        pageless,
        refcount_scan,
        packed_scan,
        unsplit_head,
        gibs: array.gibs(),
        allocated_bytes: array.bytes(),
        swept_bytes: sweeper.bytes(),
        hot_rounds: HOT_ROUNDS,
        cold_rounds: COLD_ROUNDS,
    }
}

/// Measures one contender.
fn measure(sweeper: &mut Sweeper, ask: impl Fn(u64) -> bool, step: &mut impl FnMut()) -> Cost {
    let timed = |calls: u32, gib: u64| {
        let start = Instant::now();
        for _ in 0..calls {
            black_box(ask(black_box(gib)));
        }
        start.elapsed()
    };
    let mut calls = 1;
    while timed(calls, 0) < BATCH && calls < 1 << 24 {
        calls *= 2;
    }
    let mut hot: Vec<f64> = (0..HOT_ROUNDS).map(|_| nanos(timed(calls, 0)) / f64::from(calls)).collect();
    step();
    let mut clock: Vec<f64> = (0..HOT_ROUNDS).map(|_| nanos(timed(0, 0))).collect();
    let clock = median(&mut clock);
    let mut cold: Vec<f64> = (0..COLD_ROUNDS)
        .map(|_| {
            let gib = sweeper.sweep();
            // The clock's own code and data were swept too; they are no part of the question.
            black_box(Instant::now());
            let elapsed = nanos(timed(1, gib));
            step();
            (elapsed - clock).max(0.0)
        })
        .collect();
    let hundredths = |ns: f64| (ns * 100.0).round() / 100.0;
    Cost { hot_ns: hundredths(median(&mut hot)).max(0.01), cold_ns: hundredths(median(&mut cold)) }
}

fn nanos(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e9
}

/// The middle value; 0 of none.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Pushes everything else out of the caches by reading more than they hold, and names the GiB to ask about next.
struct Sweeper {
    buffer: Vec<u64>,
    state: u64,
    gibs: u64,
}

impl Sweeper {
    /// A sweeper over twice the largest cache of this machine, from 64 to 256 MiB, or over less where there is no memory.
    fn new(seed: u64, gibs: u64) -> Self {
        let wanted = (2 * largest_cache()).clamp(64 << 20, 256 << 20);
        let words = usize::try_from(wanted / 8).unwrap_or(0);
        let mut buffer = Vec::new();
        if buffer.try_reserve_exact(words).is_ok() {
            buffer.resize(words, seed | 1);
        }
        Self { buffer, state: seed, gibs: gibs.max(1) }
    }

    fn bytes(&self) -> u64 {
        self.buffer.len() as u64 * 8
    }

    fn sweep(&mut self) -> u64 {
        let sum = self.buffer.iter().step_by(8).fold(0_u64, |sum, word| sum.wrapping_add(*word));
        black_box(sum);
        // splitmix64, Vigna's constants.
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 27)) % self.gibs
    }
}

/// Bytes of the largest cache that Linux reports for the first processor; 0 where it reports none.
fn largest_cache() -> u64 {
    let sizes = (0..8).filter_map(|index| {
        let text = std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size")).ok()?;
        crate::figures::parse_size(text.trim()).ok()
    });
    sizes.max().unwrap_or(0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn one_reference_anywhere_in_the_gib_stops_the_scan_and_giving_it_back_frees_it() {
        let array = PageArray::new(2 << 18, ARRAY_LIMIT, || ()).unwrap();
        assert_eq!((array.gibs(), array.bytes()), (2, 32 << 20));
        for frame in [0, 77_777, 262_143] {
            array.take_reference(frame);
            assert!(!array.may_convert(0) && array.may_convert(1), "{frame}");
            array.drop_reference(frame);
            assert!(array.may_convert(0), "{frame}");
        }
        assert!(array.packed_may_convert() && array.unsplit_may_convert(0));
    }

    #[test]
    fn a_gib_beyond_the_array_may_not_be_converted() {
        let array = PageArray::new(1 << 18, ARRAY_LIMIT, || ()).unwrap();
        assert!(!array.may_convert(1) && !array.unsplit_may_convert(u64::MAX));
        array.take_reference(u64::MAX);
    }

    #[test]
    fn the_array_stops_at_its_limit_and_holds_a_gib_at_least() {
        assert_eq!(PageArray::new(u64::MAX, 32 << 20, || ()).unwrap().gibs(), 2);
        assert_eq!(PageArray::new(1, 0, || ()).unwrap().gibs(), 1);
    }

    #[test]
    fn every_contender_is_asked_and_every_cost_is_a_number() {
        let array = PageArray::new(1 << 18, ARRAY_LIMIT, || ()).unwrap();
        let (asked, steps) = (Cell::new(0_u64), Cell::new(0));
        let ask = |gib| {
            assert_eq!(gib, 0);
            asked.set(asked.get() + 1);
            true
        };
        let told = compare(&array, 1, ask, || steps.set(steps.get() + 1));
        assert!(asked.get() > 40);
        assert_eq!(steps.get(), COMPARE_STEPS);
        for cost in [told.pageless, told.refcount_scan, told.packed_scan, told.unsplit_head] {
            assert!(cost.hot_ns.is_finite() && cost.hot_ns > 0.0 && cost.cold_ns.is_finite());
        }
        assert_eq!((told.gibs, told.allocated_bytes), (1, 16 << 20));
    }
}
