//! Fragmented spans: what is free is found, and what is not is said honestly.
#![allow(clippy::unwrap_used)]

use pageless::frames::Frames;
use pageless::{Order, Pfn, PfnRange};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

const GIB: u64 = 262_144;

fn span(base: u64, frames: u64) -> PfnRange {
    PfnRange::from_len(Pfn::new(base), frames).unwrap()
}

#[test]
fn every_free_2m_block_is_found_among_blocks_that_miss_one_frame() {
    let gibs = 20;
    let frames = Frames::new(span(0, gibs * GIB));
    let mut free = Vec::new();
    for block in 0..gibs * 512 {
        // One percent stays whole; each other block loses one frame.
        if block % 100 == 37 {
            free.push(Pfn::new(block * 512));
        } else {
            frames.take_at(PfnRange::single(Pfn::new(block * 512 + block * 7 % 512))).unwrap();
        }
    }
    assert_eq!(frames.buildable().mib2, free.len() as u64);
    let mut found: Vec<_> = std::iter::from_fn(|| frames.take(Order::MIB2)).collect();
    found.sort();
    assert_eq!(found, free);
    assert_eq!(frames.take(Order::MIB2), None);
    assert_eq!(frames.take(Order::GIB1), None);
    assert_eq!(frames.check(), Ok(()));
}

#[test]
fn small_requests_leave_whole_gibs_whole() {
    let frames = Frames::new(span(0, 8 * GIB));
    for _ in 0..2000 {
        frames.take(Order::BASE).unwrap();
    }
    for _ in 0..400 {
        frames.take(Order::MIB2).unwrap();
    }
    assert_eq!(frames.buildable().gib1, 7, "all small requests fit into one GiB");
}

#[test]
fn small_requests_fill_the_fullest_gib_first() {
    let frames = Frames::new(span(0, 4 * GIB));
    // GiB 0: nearly empty. GiB 1: nearly full. GiB 2: half full.
    frames.take_at(span(0, 512)).unwrap();
    frames.take_at(span(GIB, GIB - 20 * 512)).unwrap();
    frames.take_at(span(2 * GIB, GIB / 2)).unwrap();
    for _ in 0..20 {
        assert_eq!(frames.take(Order::MIB2).unwrap().align_down(Order::GIB1), Pfn::new(GIB));
    }
    assert_eq!(frames.take(Order::MIB2).unwrap().align_down(Order::GIB1), Pfn::new(2 * GIB));
    assert_eq!(frames.take(Order::BASE).unwrap().align_down(Order::GIB1), Pfn::new(2 * GIB));
}

#[test]
fn a_gib_taken_as_frames_and_put_in_any_order_is_a_gib_again() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let frames = Frames::new(span(3 * GIB, GIB));
    let mut taken: Vec<_> = std::iter::from_fn(|| frames.take(Order::BASE)).collect();
    assert_eq!(taken.len() as u64, GIB);
    assert_eq!((frames.take(Order::GIB1), frames.take(Order::MIB2)), (None, None));
    taken.shuffle(&mut StdRng::seed_from_u64(seed));
    let last = taken.pop().unwrap();
    taken.chunks(16).for_each(|batch| frames.put_batch(batch).unwrap());
    assert_eq!(frames.take(Order::GIB1), None);
    frames.put(PfnRange::single(last)).unwrap();
    assert_eq!(frames.take(Order::GIB1), Some(Pfn::new(3 * GIB)));
    frames.put(span(3 * GIB, GIB)).unwrap();
    assert_eq!(frames.check(), Ok(()));
}

#[test]
fn a_run_of_64_gibs_is_found_between_fragments() {
    let frames = Frames::new(span(0, 1024 * GIB));
    for gib in (0..1024).filter(|gib| gib % 40 == 3 && *gib != 523) {
        frames.take_at(PfnRange::single(Pfn::new(gib * GIB + 77))).unwrap();
    }
    let run = frames.take_run(64 * GIB, Order::GIB1).unwrap();
    assert_eq!(run, span(484 * GIB, 64 * GIB));
    assert_eq!(frames.take_run(64 * GIB, Order::GIB1), None);
    // Not a whole number of GiBs, and across fragments only where it fits.
    let odd = frames.take_run(39 * GIB + 100, Order::BASE).unwrap();
    frames.put(run).unwrap();
    frames.put(odd).unwrap();
    assert_eq!(frames.check(), Ok(()));
}

#[test]
fn the_largest_span_there_is_is_built_and_used() {
    let frames = Frames::new(span(1, Pfn::LIMIT.get() - 1));
    let last = Pfn::new(Pfn::LIMIT.get() - 1);
    frames.take_at(PfnRange::single(last)).unwrap();
    assert_eq!(frames.take(Order::BASE).map(|pfn| frames.is_free(pfn)), Some(false));
    assert_eq!(frames.free_frames(), Pfn::LIMIT.get() - 3);
    frames.put(PfnRange::single(last)).unwrap();
    assert!(frames.footprint_bytes() < 16 << 20);
}

#[test]
fn blocks_survive_a_storm_of_frames() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let frames = Frames::new(span(GIB - 5, 2 * GIB));
    let mut held = Vec::new();
    for _ in 0..200_000 {
        if rng.random_bool(0.5) || held.is_empty() {
            held.extend(frames.take(Order::BASE));
        } else {
            let at = rng.random_range(0..held.len());
            frames.put(PfnRange::single(held.swap_remove(at))).unwrap();
        }
    }
    frames.put_batch(&held).unwrap();
    assert_eq!(frames.buildable().gib1, 1);
    assert_eq!(frames.take(Order::GIB1), Some(Pfn::new(GIB)));
}

#[test]
fn the_longest_run_of_gibs_is_found_wherever_it_lies() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    for _ in 0..300 {
        let gibs = rng.random_range(1..400);
        let frames = Frames::new(span(GIB, gibs * GIB));
        let mut holes: Vec<u64> = (0..rng.random_range(0..5)).map(|_| rng.random_range(0..gibs)).collect();
        holes.sort_unstable();
        holes.dedup();
        for hole in &holes {
            frames.take_at(span(GIB + hole * GIB, GIB)).unwrap();
        }
        let edges: Vec<u64> = holes.iter().copied().chain([gibs]).collect();
        let starts = [0].into_iter().chain(holes.iter().map(|hole| hole + 1));
        let longest = starts.zip(&edges).map(|(start, end)| end - start).max().unwrap();
        assert_eq!(frames.take_run((longest + 1) * GIB, Order::GIB1), None);
        if longest > 0 {
            let run = frames.take_run(longest * GIB, Order::GIB1).unwrap();
            assert_eq!((run.frames(), run.start().is_aligned(Order::GIB1)), (longest * GIB, true));
            frames.put(run).unwrap();
        }
        assert_eq!(frames.free_frames(), (gibs - holes.len() as u64) * GIB);
        assert_eq!(frames.check(), Ok(()));
    }
}
