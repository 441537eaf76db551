//! Interleavings of the frame layer, explored by shuttle: `cargo test -p pageless --features shuttle --test shuttle_frames`.
#![cfg(feature = "shuttle")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;

use pageless::frames::{Frames, PutError, TakeAtError};
use pageless::{Order, Pfn, PfnRange};
use shuttle::thread;

/// Schedules tried per test; shuttle prints the failing one.
const SCHEDULES: usize = 1500;

fn explore(test: impl Fn() + Send + Sync + 'static) {
    let test = Arc::new(test);
    let random = Arc::clone(&test);
    shuttle::check_random(move || random(), SCHEDULES);
    shuttle::check_pct(move || test(), SCHEDULES / 2, 3);
}

fn span(start: u64, frames: u64) -> PfnRange {
    PfnRange::from_len(Pfn::new(start), frames).unwrap()
}

fn both<A: Send + 'static, B: Send + 'static>(
    a: impl FnOnce() -> A + Send + 'static,
    b: impl FnOnce() -> B + Send + 'static,
) -> (A, B) {
    let other = thread::spawn(b);
    let mine = a();
    (mine, other.join().unwrap())
}

#[test]
fn two_takers_of_the_last_two_frames_both_get_one() {
    explore(|| {
        let frames = Arc::new(Frames::new(span(600, 2)));
        let (one, two) = (Arc::clone(&frames), Arc::clone(&frames));
        let (a, b) = both(move || one.take(Order::BASE), move || two.take(Order::BASE));
        assert!(a.is_some() && b.is_some() && a != b, "{a:?} {b:?}");
        assert_eq!(frames.take(Order::BASE), None);
    });
}

#[test]
fn a_frame_is_found_while_a_block_is_cut_and_completed_beside_it() {
    explore(|| {
        let frames = Arc::new(Frames::new(span(512, 1024)));
        let (one, two) = (Arc::clone(&frames), Arc::clone(&frames));
        let ((), ()) = both(
            move || {
                let pfn = one.take(Order::BASE).expect("a block's worth is free at any time");
                one.put(PfnRange::single(pfn)).unwrap();
            },
            move || {
                let pfn = two.take(Order::MIB2).or_else(|| two.take(Order::MIB2)).expect("the other block is free");
                two.put(PfnRange::block(pfn, Order::MIB2)).unwrap();
            },
        );
        assert_eq!(frames.check(), Ok(()));
        assert_eq!(frames.buildable().mib2, 2);
        assert!(frames.take(Order::MIB2).is_some() && frames.take(Order::MIB2).is_some());
    });
}

#[test]
fn a_frame_is_never_denied_to_the_only_taker_while_one_is_put() {
    explore(|| {
        let frames = Arc::new(Frames::new(span(0, 3)));
        frames.take_at(span(0, 2)).unwrap();
        let (one, two) = (Arc::clone(&frames), Arc::clone(&frames));
        // At any time frame 1 or frame 2 is free: 1 is back before 2 is taken.
        let (a, ()) = both(
            move || one.take(Order::BASE),
            move || {
                two.put(span(1, 1)).unwrap();
                let _ = two.take_at(span(2, 1));
            },
        );
        assert!(a.is_some());
        assert_eq!(frames.check(), Ok(()));
    });
}

#[test]
fn of_two_overlapping_take_ats_at_least_one_wins_and_a_loser_leaves_nothing() {
    explore(|| {
        let frames = Arc::new(Frames::new(span(500, 100)));
        let (one, two) = (Arc::clone(&frames), Arc::clone(&frames));
        let (a, b) = both(move || one.take_at(span(505, 30)), move || two.take_at(span(520, 30)));
        assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
        assert!(matches!(a.and(b), Err(TakeAtError::NotFree { .. })));
        assert_eq!(frames.free_frames(), 70);
        assert_eq!(frames.check(), Ok(()));
    });
}

#[test]
fn one_of_two_puts_of_a_frame_is_refused() {
    explore(|| {
        let frames = Arc::new(Frames::new(span(70, 3)));
        let pfn = frames.take(Order::BASE).unwrap();
        let (one, two) = (Arc::clone(&frames), Arc::clone(&frames));
        let (a, b) = both(move || one.put(PfnRange::single(pfn)), move || two.put_batch(&[pfn]));
        assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
        assert_eq!(a.and(b), Err(PutError::AlreadyFree { pfn }));
        assert_eq!(frames.free_frames(), 3);
        assert_eq!(frames.check(), Ok(()));
    });
}

#[test]
fn halves_put_by_two_threads_make_a_block() {
    explore(|| {
        let frames = Arc::new(Frames::new(span(1024, 512)));
        assert_eq!(frames.take(Order::MIB2), Some(Pfn::new(1024)));
        let (one, two) = (Arc::clone(&frames), Arc::clone(&frames));
        let (a, b) = both(move || one.put(span(1024, 256)), move || two.put(span(1280, 256)));
        assert_eq!((a, b), (Ok(()), Ok(())));
        assert_eq!(frames.check(), Ok(()));
        assert_eq!(frames.take(Order::MIB2), Some(Pfn::new(1024)));
    });
}

#[test]
fn a_take_and_a_take_at_never_share_a_frame() {
    explore(|| {
        let frames = Arc::new(Frames::new(span(510, 4)));
        let (one, two) = (Arc::clone(&frames), Arc::clone(&frames));
        let (a, b) = both(move || one.take(Order::BASE).unwrap(), move || two.take_at(span(510, 3)));
        match b {
            Ok(()) => assert_eq!(a, Pfn::new(513)),
            Err(error) => assert_eq!(error, TakeAtError::NotFree { pfn: a }),
        }
        assert_eq!(frames.check(), Ok(()));
    });
}

#[test]
fn two_takers_of_one_whole_block_both_get_a_frame() {
    explore(|| {
        let frames = Arc::new(Frames::new(span(512, 512)));
        let (one, two) = (Arc::clone(&frames), Arc::clone(&frames));
        // While one of them cuts the block, no frame of it can be seen.
        let (a, b) = both(move || one.take(Order::BASE), move || two.take(Order::BASE));
        assert!(a.is_some() && b.is_some() && a != b, "{a:?} {b:?}");
        assert_eq!(frames.check(), Ok(()));
    });
}

#[test]
fn a_frame_put_while_a_starving_taker_clears_its_hint_is_found_later() {
    explore(|| {
        let frames = Arc::new(Frames::new(span(5, 1)));
        let pfn = frames.take(Order::BASE).unwrap();
        let (one, two) = (Arc::clone(&frames), Arc::clone(&frames));
        let (taken, put) = both(move || one.take(Order::BASE), move || two.put(PfnRange::single(pfn)));
        assert_eq!(put, Ok(()));
        assert_eq!(frames.check(), Ok(()));
        assert_eq!(taken.or_else(|| frames.take(Order::BASE)), Some(pfn));
    });
}
