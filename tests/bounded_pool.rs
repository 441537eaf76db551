//! I8 through the pool: whatever a guest converts, in whatever order, live metadata stays at or below 40 KiB for its GiB, at
//! every step and within none.
//!
//! The guest has one GiB and a million conversions: the full GiB, every second 4 KiB of it in any order, back and forth,
//! toggles where the representation would like to change, and `compact` at moments of its choosing. The bytes are counted by
//! the allocator, so nothing that the pool forgets to report is missed.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::ops::Range;
use std::sync::Arc;

use pageless::{Allocation, FRAME_BYTES, Mapping, MetadataOnly, Operation, Order, PfnRange, Pool, Refusal, Request, Stuck};
use pageless_tests::counting::{Counting, live, peak_of};

#[global_allocator]
static COUNTING: Counting = Counting::ALWAYS;

/// The bound per plane and GiB.
const BOUND: usize = 40 << 10;
const FRAMES: u64 = 262_144;
const CONVERSIONS: u64 = 1_000_000;
const SEED: u64 = 0x5eed_1e55;

struct Proves;

impl Mapping for Proves {
    fn prepare(&self, _op: &Operation) -> Result<(), Refusal> {
        Ok(())
    }

    fn invalidate(&self, _op: &Operation, _frames: PfnRange) -> Result<(), Stuck> {
        Ok(())
    }
}

/// A guest that converts, and the meter that watches it.
struct Guest {
    pool: Pool,
    ram: Allocation,
    base: usize,
    highest: usize,
    conversions: u64,
    random: u64,
}

impl Guest {
    fn new() -> Self {
        let pool = Pool::builder().backing(MetadataOnly::of_bytes(Order::GIB1.bytes())).build().unwrap();
        let ram = pool.allocate(Request::bytes(Order::GIB1.bytes()).order(Order::GIB1).owner("hostile")).unwrap();
        ram.attach("stage 2", Arc::new(Proves)).unwrap();
        Self { pool, ram, base: live(), highest: 0, conversions: 0, random: SEED }
    }

    fn convert(&mut self, shared: bool, frames: Range<u64>) {
        let bytes = frames.start * FRAME_BYTES..frames.end * FRAME_BYTES;
        let (result, peak) = peak_of(|| if shared { self.ram.share(bytes) } else { self.ram.unshare(bytes) });
        result.unwrap();
        self.note(peak, &format!("conversion of {frames:?} to shared: {shared}"));
        self.conversions += 1;
    }

    fn compact(&mut self) {
        let (_, peak) = peak_of(|| self.pool.compact());
        self.note(peak, "compact");
    }

    fn note(&mut self, peak: usize, what: &str) {
        let bytes = peak.saturating_sub(self.base);
        assert!(bytes <= BOUND, "seed {SEED:#x}, step {}: {what}: {bytes} bytes at once", self.conversions);
        self.highest = self.highest.max(bytes);
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound
    }

    /// Every second frame, upwards, downwards, or in an order that visits each once and looks like none.
    fn alternate(&mut self, shared: bool, odd: u64, order: u64) {
        for nth in 0..FRAMES / 2 {
            let place = match order {
                0 => nth,
                1 => FRAMES / 2 - 1 - nth,
                _ => nth.wrapping_mul(0x9e37_79b1) % (FRAMES / 2),
            };
            let frame = place * 2 + odd;
            self.convert(shared, frame..frame + 1);
        }
    }
}

#[test]
fn a_million_hostile_conversions_never_exceed_the_bound() {
    let mut guest = Guest::new();
    for (order, compact) in [(0, false), (1, true), (2, false)] {
        guest.convert(true, 0..FRAMES);
        guest.alternate(false, 0, order);
        if compact {
            guest.compact();
        }
        guest.alternate(true, 0, 2 - order);
        guest.convert(false, 0..FRAMES);
    }
    // Around roaring's threshold of 4,096 values in a container, and around what goes to rest at all.
    for values in [1_024, 3_100, 4_095, 4_096, 4_097] {
        (0..values).for_each(|nth| guest.convert(true, nth * 16..nth * 16 + 1));
        for toggle in 0..512 {
            guest.convert(toggle % 2 == 1, 0..1);
            if toggle % 8 == 0 {
                guest.compact();
            }
        }
        guest.convert(false, 0..FRAMES);
    }
    while guest.conversions < CONVERSIONS {
        let (start, length) = (guest.below(FRAMES), 1 << guest.below(19));
        let shared = guest.below(2) == 0;
        guest.convert(shared, start..(start + length).min(FRAMES));
        if guest.below(1_000) == 0 {
            guest.compact();
        }
    }
    assert!(guest.pool.verify().is_sound(), "{:?}", guest.pool.verify().faults);
    println!("{} conversions, at most {} bytes at once", guest.conversions, guest.highest);
}
