//! The frame layer under several threads: no frame has two takers, and nothing is lost or denied.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread;

use pageless::frames::Frames;
use pageless::{Order, Pfn, PfnRange};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const GIB: u64 = 262_144;
const BASE: u64 = 2 * GIB - 700;

/// Who has each frame: 0 for nobody.
struct Owners(Vec<AtomicU8>);

impl Owners {
    fn mark(&self, range: PfnRange, from: u8, to: u8) {
        for pfn in range.iter() {
            let before = self.0[(pfn.get() - BASE) as usize].swap(to, Ordering::SeqCst);
            assert_eq!(before, from, "{pfn} had owner {before}, not {from}");
        }
    }
}

fn some_taking(frames: &Frames, rng: &mut StdRng, full: bool) -> Option<PfnRange> {
    let span = frames.span();
    match rng.random_range(0..100) {
        0..60 => frames.take(Order::BASE).map(PfnRange::single),
        60..80 => frames.take(Order::MIB2).map(|pfn| PfnRange::block(pfn, Order::MIB2)),
        80..82 if full => frames.take(Order::GIB1).map(|pfn| PfnRange::block(pfn, Order::GIB1)),
        82..90 => frames.take_run(rng.random_range(1..1500), Order::BASE),
        _ => {
            let start = rng.random_range(span.start().get()..span.end().get() - 2000);
            let range = PfnRange::from_len(Pfn::new(start), rng.random_range(1..2000)).unwrap();
            frames.take_at(range).ok().map(|()| range)
        }
    }
}

fn stress(threads: u8, steps: usize, span_frames: u64) {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let frames = Frames::new(PfnRange::from_len(Pfn::new(BASE), span_frames).unwrap());
    let owners = Owners((0..span_frames).map(|_| AtomicU8::new(0)).collect());
    thread::scope(|scope| {
        for me in 1..=threads {
            let (frames, owners) = (&frames, &owners);
            scope.spawn(move || {
                let mut rng = StdRng::seed_from_u64(seed ^ u64::from(me));
                let mut held: Vec<PfnRange> = Vec::new();
                for step in 0..steps {
                    // Waves: fill for a while, then drain, so that blocks and GiBs are cut and come back.
                    let fill = if step / 500 % 2 == 0 { 0.7 } else { 0.25 };
                    if held.is_empty() || rng.random_bool(fill) {
                        if let Some(range) = some_taking(frames, &mut rng, step % 3 == 0) {
                            owners.mark(range, 0, me);
                            held.push(range);
                        }
                        continue;
                    }
                    let at = rng.random_range(0..held.len());
                    let range = held.swap_remove(at);
                    let (now, later) = range.split_at(rng.random_range(1..=range.frames()));
                    held.extend(later);
                    owners.mark(now.unwrap(), me, 0);
                    frames.put(now.unwrap()).unwrap();
                }
                for range in held {
                    owners.mark(range, me, 0);
                    frames.put(range).unwrap();
                }
            });
        }
    });
    assert_eq!(frames.check(), Ok(()));
    assert_eq!(frames.free_frames(), span_frames);
    let whole = frames.span().whole_blocks(Order::GIB1).map_or(0, |run| run.frames() / GIB);
    for _ in 0..whole {
        assert!(frames.take(Order::GIB1).is_some(), "a GiB did not come back");
    }
}

#[test]
fn no_frame_has_two_takers_and_whole_gibs_come_back() {
    for threads in [2, 3, 4] {
        stress(threads, 6000, 3 * GIB + 1400);
    }
}

#[test]
fn no_frame_has_two_takers_when_there_are_few() {
    for threads in [2, 4] {
        stress(threads, 20_000, 3000);
    }
}

/// Runs `other` until `tries` takes of `order` have succeeded; each is put back at once.
fn never_denied(frames: &Frames, order: Order, tries: usize, other: impl Fn(&AtomicBool) + Sync) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| other(&done));
        for nth in 0..tries {
            let taken = frames.take(order);
            if taken.is_none() {
                done.store(true, Ordering::SeqCst);
            }
            let pfn = taken.unwrap_or_else(|| unreachable!("take {nth} of {order} was denied"));
            frames.put(PfnRange::block(pfn, order)).unwrap();
        }
        done.store(true, Ordering::SeqCst);
    });
}

#[test]
fn a_frame_is_never_denied_while_another_thread_cuts_and_completes_the_last_blocks() {
    // Two blocks: the other thread holds at most one of them, whole or in part.
    let frames = Frames::new(PfnRange::from_len(Pfn::new(512), 1024).unwrap());
    never_denied(&frames, Order::BASE, 200_000, |done| {
        while !done.load(Ordering::SeqCst) {
            if let Some(pfn) = frames.take(Order::MIB2) {
                frames.put(PfnRange::block(pfn, Order::MIB2)).unwrap();
            }
        }
    });
    assert_eq!(frames.check(), Ok(()));
}

#[test]
fn a_block_is_never_denied_while_another_thread_pairs_frames() {
    // The other thread needs one frame at a time, so one of the two blocks can always be built.
    let frames = Frames::new(PfnRange::from_len(Pfn::new(512), 1024).unwrap());
    let spare = PfnRange::single(frames.take(Order::BASE).unwrap());
    never_denied(&frames, Order::MIB2, 50_000, |done| {
        while !done.load(Ordering::SeqCst) {
            // Exactly beside the spare frame, so that the other block stays whole.
            let beside = PfnRange::from_len(spare.start().add(1), 1).unwrap();
            if frames.take_at(beside).is_ok() {
                frames.put(beside).unwrap();
            }
        }
    });
    frames.put(spare).unwrap();
    assert_eq!(frames.check(), Ok(()));
}

#[test]
fn a_block_is_never_denied_while_gibs_are_cut_and_completed() {
    let frames = Frames::new(PfnRange::from_len(Pfn::new(GIB), 2 * GIB).unwrap());
    never_denied(&frames, Order::MIB2, 100_000, |done| {
        while !done.load(Ordering::SeqCst) {
            if let Some(pfn) = frames.take(Order::GIB1) {
                frames.put(PfnRange::block(pfn, Order::GIB1)).unwrap();
            }
        }
    });
    assert_eq!(frames.check(), Ok(()));
}

#[test]
fn one_of_two_threads_that_put_the_same_frame_is_refused() {
    let frames = Frames::new(PfnRange::from_len(Pfn::new(0), 2048).unwrap());
    for _ in 0..3000 {
        let pfn = frames.take(Order::BASE).unwrap();
        let wins: usize = thread::scope(|scope| {
            let put = || usize::from(frames.put(PfnRange::single(pfn)).is_ok());
            let other = scope.spawn(put);
            put() + other.join().unwrap()
        });
        assert_eq!(wins, 1);
    }
}
