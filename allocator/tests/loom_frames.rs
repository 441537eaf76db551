//! All interleavings of small worlds of the frame layer, tried by loom: `cargo loom`. The same source as ever, with loom's
//! atomics. loom tries every order of the atomic accesses in which no more than a few times a thread is interrupted that
//! could have gone on; each world says how many.
#![cfg(feature = "loom")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use loom::sync::Arc;
use loom::thread;
use pageless::frames::{Frames, PutError, TakeAtError};
use pageless::{Order, Pfn, PfnRange};

const GIB: u64 = Order::GIB1.frames();

/// Tries all interleavings with so many interruptions.
fn all_with(interruptions: usize, world: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(interruptions);
    builder.max_branches = 1_000_000;
    builder.check(world);
}

fn span(start: u64, frames: u64) -> PfnRange {
    PfnRange::from_len(Pfn::new(start), frames).unwrap()
}

fn frame(number: u64) -> PfnRange {
    span(number, 1)
}

/// Runs both at once, on a layer each can use.
fn both<A, B: Send + 'static>(
    frames: &Arc<Frames>,
    a: impl FnOnce(&Frames) -> A,
    b: impl FnOnce(&Frames) -> B + Send + 'static,
) -> (A, B) {
    let theirs = Arc::clone(frames);
    let other = thread::spawn(move || b(&theirs));
    let mine = a(frames);
    (mine, other.join().unwrap())
}

#[test]
fn two_takers_of_the_last_two_frames_both_get_one() {
    all_with(3, || {
        let frames = Arc::new(Frames::new(span(600, 2)));
        let (a, b) = both(&frames, |f| f.take(Order::BASE), |f| f.take(Order::BASE));
        assert!(a.is_some() && b.is_some() && a != b, "{a:?} {b:?}");
        assert_eq!(frames.take(Order::BASE), None);
    });
}

#[test]
fn two_threads_that_take_and_put_in_one_leaf_are_never_denied() {
    all_with(2, || {
        let frames = Arc::new(Frames::new(span(70, 2)));
        let pair = |f: &Frames| {
            let pfn = f.take(Order::BASE).expect("each holds one of two frames at most");
            f.put(PfnRange::single(pfn)).unwrap();
        };
        both(&frames, pair, pair);
        assert_eq!(frames.free_frames(), 2);
        assert_eq!(frames.check(), Ok(()));
    });
}

#[test]
fn the_last_frame_is_found_in_the_block_that_another_thread_prefers() {
    all_with(3, || {
        let frames = Arc::new(Frames::new(span(0, 3)));
        // The other thread prefers the only leaf there is; whoever comes last steals from it.
        let (a, b) = both(&frames, |f| f.take(Order::BASE), |f| [f.take(Order::BASE), f.take(Order::BASE)]);
        assert!(a.is_some() && b[0].is_some() && b[1].is_some(), "{a:?} {b:?}");
        assert_eq!(frames.take(Order::BASE), None);
    });
}

#[test]
fn a_frame_is_never_denied_to_the_only_taker_while_one_is_put() {
    all_with(3, || {
        let frames = Arc::new(Frames::new(span(0, 3)));
        frames.take_at(span(0, 2)).unwrap();
        // At any time frame 1 or frame 2 is free: 1 is back before 2 is taken.
        let churn = |f: &Frames| {
            f.put(frame(1)).unwrap();
            let _ = f.take_at(frame(2));
        };
        let (taken, ()) = both(&frames, |f| f.take(Order::BASE), churn);
        assert!(taken.is_some());
        assert_eq!(frames.check(), Ok(()));
    });
}

#[test]
fn a_frame_put_while_a_taker_clears_its_hint_is_found_later() {
    all_with(3, || {
        let frames = Arc::new(Frames::new(span(5, 1)));
        let pfn = frames.take(Order::BASE).unwrap();
        let (taken, put) = both(&frames, |f| f.take(Order::BASE), move |f| f.put(PfnRange::single(pfn)));
        assert_eq!(put, Ok(()));
        assert_eq!(frames.check(), Ok(()));
        assert_eq!(taken.or_else(|| frames.take(Order::BASE)), Some(pfn));
    });
}

#[test]
fn one_of_two_puts_of_a_frame_is_refused() {
    all_with(3, || {
        let frames = Arc::new(Frames::new(span(70, 3)));
        let pfn = frames.take(Order::BASE).unwrap();
        let (a, b) = both(&frames, |f| f.put(PfnRange::single(pfn)), move |f| f.put_batch(&[pfn]));
        assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
        assert_eq!(a.and(b), Err(PutError::AlreadyFree { pfn }));
        assert_eq!(frames.free_frames(), 3);
        assert_eq!(frames.check(), Ok(()));
    });
}

#[test]
fn one_of_two_puts_of_a_block_is_refused() {
    all_with(3, || {
        let frames = Arc::new(Frames::new(span(512, 1024)));
        let block = PfnRange::block(frames.take(Order::MIB2).unwrap(), Order::MIB2);
        let (a, b) = both(&frames, |f| f.put(block), move |f| f.put(block));
        assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
        assert_eq!(a.and(b), Err(PutError::AlreadyFree { pfn: block.start() }));
        assert_eq!(frames.check(), Ok(()));
    });
}

#[test]
fn a_block_is_found_while_the_one_beside_it_is_cut() {
    all_with(2, || {
        let frames = Arc::new(Frames::new(span(512, 1024)));
        let (small, large) = both(&frames, |f| f.take(Order::BASE), |f| f.take(Order::MIB2));
        assert!(small.is_some() && large.is_some(), "{small:?} {large:?}");
        assert_eq!(frames.free_frames(), 511);
    });
}

#[test]
fn two_takers_of_one_whole_block_both_get_a_frame() {
    all_with(2, || {
        let frames = Arc::new(Frames::new(span(512, 512)));
        // While one of them cuts the block, no frame of it can be seen.
        let (a, b) = both(&frames, |f| f.take(Order::BASE), |f| f.take(Order::BASE));
        assert!(a.is_some() && b.is_some() && a != b, "{a:?} {b:?}");
        assert_eq!(frames.check(), Ok(()));
    });
}

#[test]
fn a_put_that_completes_a_block_is_seen_by_the_next_taker_of_blocks() {
    all_with(2, || {
        let frames = Arc::new(Frames::new(span(512, 512)));
        let pfn = frames.take(Order::BASE).unwrap();
        // The seeker may come too early; nothing may be left behind then that hides the block.
        let (taken, put) = both(&frames, |f| f.take(Order::MIB2), move |f| f.put(PfnRange::single(pfn)));
        assert_eq!(put, Ok(()));
        assert_eq!(frames.check(), Ok(()));
        assert_eq!(taken.or_else(|| frames.take(Order::MIB2)), Some(Pfn::new(512)));
    });
}

#[test]
fn halves_put_by_two_threads_make_a_block() {
    all_with(2, || {
        let frames = Arc::new(Frames::new(span(1024, 512)));
        assert_eq!(frames.take(Order::MIB2), Some(Pfn::new(1024)));
        let (a, b) = both(&frames, |f| f.put(span(1024, 64)), |f| f.put(span(1088, 448)));
        assert_eq!((a, b), (Ok(()), Ok(())));
        assert_eq!(frames.check(), Ok(()));
        assert_eq!(frames.take(Order::MIB2), Some(Pfn::new(1024)));
    });
}

#[test]
fn of_two_overlapping_take_ats_one_wins_and_the_loser_leaves_nothing() {
    all_with(2, || {
        let frames = Arc::new(Frames::new(span(500, 100)));
        let (a, b) = both(&frames, |f| f.take_at(span(505, 30)), |f| f.take_at(span(520, 30)));
        assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
        assert!(matches!(a.and(b), Err(TakeAtError::NotFree { .. })));
        assert_eq!(frames.free_frames(), 70);
        assert_eq!(frames.check(), Ok(()));
    });
}

#[test]
fn a_gib_that_is_put_is_taken_once_and_not_lost() {
    all_with(3, || {
        let frames = Arc::new(Frames::new(span(GIB, GIB)));
        let gib = PfnRange::block(frames.take(Order::GIB1).unwrap(), Order::GIB1);
        let (a, (put, b)) = both(&frames, |f| f.take(Order::GIB1), move |f| (f.put(gib), f.take(Order::GIB1)));
        assert_eq!(put, Ok(()));
        assert!(a.is_some() != b.is_some(), "{a:?} {b:?}");
        assert_eq!(frames.take(Order::GIB1), None);
    });
}

#[test]
fn one_of_two_puts_of_a_gib_is_refused() {
    all_with(3, || {
        let frames = Arc::new(Frames::new(span(GIB, GIB)));
        let gib = PfnRange::block(frames.take(Order::GIB1).unwrap(), Order::GIB1);
        let (a, b) = both(&frames, |f| f.put(gib), move |f| f.put(gib));
        assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
        assert_eq!(a.and(b), Err(PutError::AlreadyFree { pfn: gib.start() }));
    });
}

#[test]
fn a_gib_goes_to_one_of_those_who_want_all_and_a_block_of_it() {
    all_with(1, || {
        let frames = Arc::new(Frames::new(span(GIB, GIB)));
        let (all, part) = both(&frames, |f| f.take(Order::GIB1), |f| f.take(Order::MIB2));
        assert!(all.is_some() != part.is_some(), "{all:?} {part:?}");
    });
}

#[test]
fn a_block_is_found_while_the_gib_beside_it_is_taken() {
    all_with(1, || {
        let frames = Arc::new(Frames::new(span(GIB, 2 * GIB)));
        let (all, part) = both(&frames, |f| f.take(Order::GIB1), |f| f.take(Order::MIB2));
        assert!(all.is_some() && part.is_some(), "{all:?} {part:?}");
    });
}
