//! I8: no sequence of conversions makes a plane exceed its bound, at any step and within none.
//!
//! This binary counts every byte it asks the allocator for, so `heap_bytes` is compared with the truth.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use pageless_metadata::{GIB_FRAMES, PLANE_BYTES_MAX, SharePlane, Span, SparsePlane, Uniformity};
use pageless_tests::counting::{Counting, calls, live, peak_of, refusing};

#[global_allocator]
static COUNTING: Counting = Counting::ALWAYS;

/// Live bytes on entry; a plane's bytes are what is live beyond them.
struct Meter {
    base: usize,
    highest: usize,
}

impl Meter {
    fn new() -> Self {
        Self { base: live(), highest: 0 }
    }

    /// Runs one step, and returns its result and the number of calls of the allocator. Asserts the bound on its peak.
    fn step<T>(&mut self, what: &str, step: impl FnOnce() -> T) -> (T, usize) {
        let before = calls();
        let (result, peak) = peak_of(step);
        let peak = peak - self.base;
        assert!(peak <= PLANE_BYTES_MAX, "{what}: {peak} bytes at once");
        self.highest = self.highest.max(peak);
        (result, calls() - before)
    }

    fn live(&self) -> usize {
        live() - self.base
    }
}

/// Both planes have the two verbs that a guest can choose the order of; only one can be told to compact.
trait Plane {
    fn put(&mut self, span: Span, value: bool) -> u32;
    fn rest(&mut self);
    fn bytes(&self) -> usize;
    fn count(&self) -> u32;
    fn verify(&self);
}

impl Plane for SharePlane {
    fn put(&mut self, span: Span, value: bool) -> u32 {
        self.set(span, value)
    }

    fn rest(&mut self) {
        self.compact();
    }

    fn bytes(&self) -> usize {
        self.heap_bytes()
    }

    fn count(&self) -> u32 {
        self.shared_frames()
    }

    fn verify(&self) {
        self.check().unwrap();
    }
}

impl Plane for SparsePlane {
    fn put(&mut self, span: Span, value: bool) -> u32 {
        if value { self.insert(span) } else { self.remove(span) }
    }

    fn rest(&mut self) {}

    fn bytes(&self) -> usize {
        self.heap_bytes()
    }

    fn count(&self) -> u32 {
        self.frames()
    }

    fn verify(&self) {
        self.check().unwrap();
    }
}

/// Xorshift: the sequence is the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from((self.0 >> 20) % u64::from(limit)).unwrap()
    }

    fn span(&mut self) -> Span {
        let from = self.below(GIB_FRAMES);
        let frames = match self.below(16) {
            0 => GIB_FRAMES,
            1 => 1 + self.below(70_000),
            2..=4 => 512,
            5..=8 => 1 + self.below(1100),
            _ => 1,
        };
        let from = if frames == 512 { from & !511 } else { from };
        Span::new(from, (from + frames).min(GIB_FRAMES)).unwrap()
    }
}

struct Hostile<'a, P> {
    plane: &'a mut P,
    meter: Meter,
    dice: Dice,
    steps: u64,
}

impl<P: Plane> Hostile<'_, P> {
    fn put(&mut self, what: &str, span: Span, value: bool) {
        let before = self.plane.count();
        let (changed, _) = self.meter.step(what, || self.plane.put(span, value));
        assert_eq!(self.plane.count().abs_diff(before), changed, "{what} {span:?}");
        self.agree(what);
    }

    fn rest(&mut self, what: &str) {
        self.meter.step(what, || self.plane.rest());
        self.agree(what);
    }

    fn agree(&mut self, what: &str) {
        assert_eq!(self.plane.bytes(), self.meter.live(), "{what}, step {}: counted bytes and live bytes", self.steps);
        self.steps += 1;
        if self.steps.is_multiple_of(4096) {
            self.plane.verify();
        }
    }

    /// All frames, then every second one back, in the order that `nth` gives the blocks.
    fn checkerboard(&mut self, what: &str, value: bool, nth: impl Fn(u32) -> u32) {
        self.put(what, Span::WHOLE, value);
        for block in (0..512).map(nth) {
            for frame in (0..512).step_by(2) {
                self.put(what, Span::single(block * 512 + frame), !value);
            }
            if self.dice.below(64) == 0 {
                self.rest(what);
            }
        }
        self.plane.verify();
    }

    /// Scattered frames up to `frames`, then back and forth over that number.
    fn threshold(&mut self, what: &str, within: u32, frames: u32) {
        self.put(what, Span::WHOLE, false);
        let stride = within / (frames + 2);
        let at = |nth: u32| Span::single(nth * stride + 1);
        for nth in 0..frames {
            self.put(what, at(nth), true);
        }
        for round in 0..300 {
            if round % 3 == 0 {
                self.rest(what);
            }
            self.put(what, at(frames), true);
            if round % 5 == 0 {
                self.rest(what);
            }
            self.put(what, at(frames), false);
        }
        self.plane.verify();
    }

    /// One frame of every block both ways, so that as many leaves as possible come and go.
    fn edges(&mut self, what: &str) {
        for value in [true, false] {
            self.put(what, Span::WHOLE, !value);
            for block in 0..512 {
                self.put(what, Span::single(block * 512 + 255), value);
            }
            self.rest(what);
            for block in (0..512).rev() {
                self.put(what, Span::block(block), block % 2 == 0);
                self.put(what, Span::new(block * 512, GIB_FRAMES.min(block * 512 + 513)).unwrap(), value);
            }
        }
    }

    fn random(&mut self, what: &str, steps: u32, calm: u32) {
        for _ in 0..steps {
            if self.dice.below(calm) == 0 {
                self.rest(what);
            }
            let (span, value) = (self.dice.span(), self.dice.below(2) == 0);
            // Wide spans would make everything uniform again at once.
            if span.frames() <= 1100 || self.dice.below(64) == 0 {
                self.put(what, span, value);
            }
        }
        self.plane.verify();
    }
}

fn no_sequence_exceeds_the_bound(name: &str, plane: &mut impl Plane) {
    let mut hostile = Hostile { plane, meter: Meter::new(), dice: Dice(0x9e37_79b9_7f4a_7c15), steps: 0 };
    hostile.checkerboard("every second private, ascending", true, |block| block);
    hostile.checkerboard("every second shared, in a scattered order", false, |block| block * 77 % 512);
    hostile.checkerboard("every second private, descending", true, |block| 511 - block);
    for (within, frames) in [
        (GIB_FRAMES, 4096),
        (65_536, 4096),
        (GIB_FRAMES, 16_384),
        (GIB_FRAMES, 2621),
        (GIB_FRAMES, 3300),
        (GIB_FRAMES, 256),
        (GIB_FRAMES, 64),
    ] {
        hostile.threshold("back and forth over a threshold", within, frames);
    }
    hostile.edges("one frame per block");
    hostile.random("any order, seldom compacted", 700_000, 20_000);
    hostile.random("any order, often compacted", 40_000, 50);
    hostile.put("all private again", Span::WHOLE, false);
    hostile.rest("all private again");
    assert_eq!(hostile.meter.live(), 0, "memory is left behind");
    println!("{name}: {} steps, at most {} bytes", hostile.steps, hostile.meter.highest);
}

fn comb(plane: &mut SharePlane, from: u32, by: usize) {
    (from..GIB_FRAMES).step_by(by).for_each(|frame| {
        plane.set(Span::single(frame), true);
    });
}

/// Reserves spans on a plane that `prepare` made, sets whatever else, and then those: the last allocates nothing.
fn a_reserved_set_allocates_nothing(dice: &mut Dice, prepare: impl Fn(&mut SharePlane)) {
    let mut plane = SharePlane::new();
    prepare(&mut plane);
    for _ in 0..200 {
        let mut meter = Meter { base: live() - plane.heap_bytes(), highest: 0 };
        let spans: Vec<Span> = (0..1 + dice.below(8)).map(|_| dice.span()).collect();
        meter.base += spans.capacity() * size_of::<Span>();
        for span in &spans {
            meter.step("reserve", || plane.reserve(*span)).0.unwrap();
            assert_eq!(plane.heap_bytes(), meter.live());
        }
        for span in &spans {
            for _ in 0..dice.below(20) {
                let (other, shared) = (dice.span(), dice.below(2) == 0);
                meter.step("another set", || plane.set(other, shared));
            }
            if !span.is_whole() {
                assert!(!meter.step("compact", || plane.compact()).0, "compacted under a reservation");
            }
            if dice.below(8) == 0 {
                meter.step("unreserve", || plane.unreserve(*span));
                continue;
            }
            let (_, calls) = meter.step("the reserved set", || plane.set_reserved(*span, dice.below(2) == 0));
            assert_eq!(calls, 0, "{span:?} was reserved, and its set called the allocator");
        }
        plane.check().unwrap();
        assert_eq!(plane.heap_bytes(), meter.live());
        if dice.below(4) == 0 {
            meter.step("compact", || plane.compact());
        }
    }
}

/// The reserved block becomes uniform again, as a part of the whole GiB or on its own, and any number of others then ask for
/// leaves: whatever room the reservation left behind is gone, unless it is really kept.
fn a_reservation_outlives_sets_that_make_its_blocks_uniform() {
    for others in 0..512 {
        let (mut plane, span) = (SharePlane::new(), Span::new(511, 513).unwrap());
        plane.reserve(span).unwrap();
        for part in [span, Span::WHOLE] {
            plane.set(part, true);
            plane.set(part, false);
        }
        (0..others).for_each(|nth| {
            plane.set(Span::single((nth + 2) % 512 * 512 + 100), true);
            plane.set(Span::single(100), false);
        });
        let before = calls();
        plane.set_reserved(span, true);
        assert_eq!(calls(), before, "after sets of {others} other blocks");
        plane.check().unwrap();
    }
}

fn a_refused_reservation_changes_nothing() {
    let preparations: [fn(&mut SharePlane); 4] = [
        |_| {},
        |plane| comb(plane, 7, 100),
        |plane| {
            comb(plane, 7, 100);
            plane.compact();
        },
        |plane| {
            plane.set(Span::block(3), true);
        },
    ];
    for prepare in preparations {
        let mut plane = SharePlane::new();
        prepare(&mut plane);
        let before = plane.to_roaring();
        let span = Span::new(511, 1025).unwrap();
        let refused = refusing(|| plane.reserve(span));
        assert!(refused.is_err() || plane.uniformity(span) == Uniformity::Mixed, "{refused:?}");
        if refused.is_ok() {
            plane.unreserve(span);
        }
        plane.check().unwrap();
        assert_eq!(plane.to_roaring(), before);
        plane.reserve(span).unwrap();
        let calls_before = calls();
        assert_eq!(plane.set_reserved(span, true), 514 - u32::try_from(before.range_cardinality(511..1025)).unwrap());
        assert_eq!(calls(), calls_before);
    }
}

fn footprints_per_tib_are_within_their_bars() {
    /// The record of a GiB, which the pool keeps: the bars include it.
    const RECORD: usize = 128;
    let mut dice = Dice(42);
    let mut measure = |what: &str, bar: usize, fill: &mut dyn FnMut(&mut SharePlane, &mut Dice)| {
        let mut plane = SharePlane::new();
        fill(&mut plane, &mut dice);
        let per_tib = (plane.heap_bytes() + RECORD) * 1024;
        println!("{what}: {} frames shared, {} bytes per GiB, {per_tib} per TiB", plane.shared_frames(), plane.heap_bytes());
        assert!(per_tib <= bar, "{what}: {per_tib} bytes per TiB, the bar is {bar}");
    };
    let scatter = |plane: &mut SharePlane, dice: &mut Dice, frames: u32| {
        while plane.shared_frames() < frames {
            plane.set(Span::single(dice.below(GIB_FRAMES)), true);
        }
    };
    measure("uniform", 128 << 10, &mut |_, _| {});
    measure("1 % random 2M, in use", 272 << 10, &mut |plane, dice| {
        for _ in 0..5 {
            plane.set(Span::block(dice.below(512)), true);
        }
    });
    measure("10 % random 4K, in use", 36 << 20, &mut |plane, dice| scatter(plane, dice, 26_214));
    measure("1 % random 4K, in use", 36 << 20, &mut |plane, dice| scatter(plane, dice, 2_621));
    measure("1 % random 4K, at rest", 10 << 20, &mut |plane, dice| {
        scatter(plane, dice, 2_621);
        plane.compact();
    });
    measure("1 % random 4K five deviations up, at rest", 10 << 20, &mut |plane, dice| {
        scatter(plane, dice, 2_621 + 5 * 51);
        plane.compact();
    });
    measure("checkerboard", 40 << 20, &mut |plane, _| comb(plane, 0, 2));
    measure("checkerboard, reserved", 40 << 20, &mut |plane, _| {
        comb(plane, 0, 2);
        plane.reserve(Span::single(1)).unwrap();
    });
}

#[test]
fn planes_stay_bounded_counted_and_reserved() {
    let mut dice = Dice(7);
    no_sequence_exceeds_the_bound("share plane", &mut SharePlane::new());
    no_sequence_exceeds_the_bound("sparse plane", &mut SparsePlane::new());
    a_reserved_set_allocates_nothing(&mut dice, |_| {});
    a_reserved_set_allocates_nothing(&mut dice, |plane| comb(plane, 3, 2));
    a_reserved_set_allocates_nothing(&mut dice, |plane| {
        comb(plane, 3, 100);
        plane.compact();
    });
    a_reservation_outlives_sets_that_make_its_blocks_uniform();
    a_refused_reservation_changes_nothing();
    footprints_per_tib_are_within_their_bars();
}
