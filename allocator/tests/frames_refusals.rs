//! What a put refuses: one test for each check on its way, so that none can be left out unnoticed. Every refusal changes
//! nothing.
#![allow(clippy::unwrap_used)]

use pageless::frames::{Frames, PutError};
use pageless::{Order, Pfn, PfnRange};

const GIB: u64 = Order::GIB1.frames();
const BLOCK: u64 = Order::MIB2.frames();
/// First frame of the layers here.
const BASE: u64 = 4 * GIB;

fn span(start: u64, frames: u64) -> PfnRange {
    PfnRange::from_len(Pfn::new(start), frames).unwrap()
}

/// A layer of so many GiBs, all free.
fn layer(gibs: u64) -> Frames {
    Frames::new(span(BASE, gibs * GIB))
}

/// Puts the run, alone and, if it is one frame, in a batch; both must say that `pfn` is free, and change nothing.
fn refused(frames: &Frames, run: PfnRange, pfn: u64) {
    let before = frames.free_runs();
    let pfn = Pfn::new(pfn);
    assert_eq!(frames.put(run), Err(PutError::AlreadyFree { pfn }), "{run}");
    if run.frames() == 1 {
        assert_eq!(frames.put_batch(&[pfn]), Err(PutError::AlreadyFree { pfn }), "{run} in a batch");
    }
    assert_eq!(frames.free_runs(), before);
    assert_eq!(frames.check(), Ok(()));
}

#[test]
fn a_frame_that_was_put_is_refused() {
    let frames = layer(1);
    frames.take_at(span(BASE, BLOCK)).unwrap();
    frames.put(span(BASE + 7, 1)).unwrap();
    refused(&frames, span(BASE + 7, 1), BASE + 7);
}

#[test]
fn a_frame_of_a_free_block_is_refused() {
    let frames = layer(1);
    // Leaves are there, and this frame's is empty.
    frames.take_at(span(BASE, 1)).unwrap();
    refused(&frames, span(BASE + BLOCK + 3, 1), BASE + BLOCK + 3);
    refused(&frames, span(BASE + BLOCK + 3, 5), BASE + BLOCK + 3);
}

#[test]
fn a_frame_of_a_free_gib_is_refused() {
    let frames = layer(2);
    refused(&frames, span(BASE + GIB + 3, 1), BASE + GIB + 3);
    // The same once there are words for cut GiBs and leaves.
    frames.take_at(span(BASE, 1)).unwrap();
    refused(&frames, span(BASE + GIB + 3, 1), BASE + GIB + 3);
    refused(&frames, span(BASE + GIB + 3, 5), BASE + GIB + 3);
}

#[test]
fn a_block_that_was_put_is_refused() {
    let frames = layer(1);
    let block = PfnRange::block(frames.take(Order::MIB2).unwrap(), Order::MIB2);
    frames.put(block).unwrap();
    refused(&frames, block, block.start().get());
}

#[test]
fn a_block_of_a_free_gib_is_refused() {
    let frames = layer(2);
    refused(&frames, span(BASE + GIB, BLOCK), BASE + GIB);
    frames.take_at(span(BASE, BLOCK)).unwrap();
    refused(&frames, span(BASE + GIB + BLOCK, BLOCK), BASE + GIB + BLOCK);
}

#[test]
fn a_block_of_which_a_frame_is_free_is_refused() {
    let frames = layer(1);
    frames.take_at(span(BASE, BLOCK)).unwrap();
    frames.put(span(BASE + 100, 1)).unwrap();
    refused(&frames, span(BASE, BLOCK), BASE + 100);
    refused(&frames, span(BASE, 2 * BLOCK), BASE + 100);
}

#[test]
fn a_gib_that_was_put_is_refused() {
    let frames = layer(3);
    frames.take_at(span(BASE, 3 * GIB)).unwrap();
    frames.put(span(BASE + GIB, GIB)).unwrap();
    refused(&frames, span(BASE + GIB, GIB), BASE + GIB);
    refused(&frames, span(BASE, 3 * GIB), BASE + GIB);
}

#[test]
fn a_gib_of_which_a_block_is_free_is_refused() {
    let frames = layer(2);
    frames.take_at(span(BASE, 2 * GIB)).unwrap();
    frames.put(span(BASE + GIB + 9 * BLOCK, BLOCK)).unwrap();
    refused(&frames, span(BASE + GIB, GIB), BASE + GIB + 9 * BLOCK);
    refused(&frames, span(BASE, 2 * GIB), BASE + GIB + 9 * BLOCK);
}

#[test]
fn a_gib_of_which_a_frame_is_free_is_refused() {
    let frames = layer(2);
    frames.take_at(span(BASE, 2 * GIB)).unwrap();
    frames.put(span(BASE + GIB + 9, 1)).unwrap();
    refused(&frames, span(BASE + GIB, GIB), BASE + GIB + 9);
    refused(&frames, span(BASE, 2 * GIB), BASE + GIB + 9);
}

#[test]
fn a_run_that_is_as_long_as_a_block_but_not_aligned_puts_its_own_frames() {
    let frames = layer(3);
    for (size, shift) in [(BLOCK, 5), (GIB, 5), (GIB, BLOCK)] {
        frames.take_at(frames.span()).unwrap();
        let run = span(BASE + shift, size);
        frames.put(run).unwrap();
        assert_eq!(frames.free_runs(), [run].into_iter().collect());
        refused(&frames, run, BASE + shift);
        frames.put(span(BASE, shift)).unwrap();
        frames.put(span(BASE + shift + size, 3 * GIB - size - shift)).unwrap();
        assert_eq!(frames.check(), Ok(()));
    }
}

#[test]
fn whatever_reaches_outside_the_span_is_foreign() {
    let frames = Frames::new(span(BASE + 3, 2 * GIB));
    frames.take_at(frames.span()).unwrap();
    let end = BASE + 3 + 2 * GIB;
    let foreign = |pfn| Err(PutError::Foreign { pfn: Pfn::new(pfn), span: frames.span() });
    for (run, pfn) in [
        (span(BASE + 2, 1), BASE + 2),
        (span(end, 1), end),
        (span(end + 200 * GIB, 1), end + 200 * GIB),
        (span(BASE, BLOCK), BASE),
        (span(BASE + 2 * GIB, BLOCK), end),
        (span(BASE, GIB), BASE),
        (span(BASE + 2 * GIB, GIB), end),
        (span(BASE + GIB, 2 * GIB), end),
        (span(BASE + 70 * GIB, GIB), BASE + 70 * GIB),
    ] {
        assert_eq!(frames.put(run), foreign(pfn), "{run}");
        assert_eq!(frames.put_batch(&[Pfn::new(BASE + 9), Pfn::new(pfn)]), foreign(pfn));
    }
    assert_eq!(frames.free_frames(), 0);
    assert_eq!(frames.check(), Ok(()));
}

#[test]
fn a_batch_with_one_bad_frame_puts_none() {
    let frames = layer(2);
    frames.take_at(span(BASE, BLOCK)).unwrap();
    frames.put(span(BASE + 50, 1)).unwrap();
    let free = frames.free_runs();
    // Free as a frame, as part of a block, as part of a GiB, and named twice.
    for bad in [BASE + 50, BASE + BLOCK + 8, BASE + GIB + 8, BASE + 4] {
        let batch = [BASE + 4, bad, BASE + 60].map(Pfn::new);
        assert_eq!(frames.put_batch(&batch), Err(PutError::AlreadyFree { pfn: Pfn::new(bad) }));
        assert_eq!(frames.free_runs(), free);
    }
    let many: Vec<Pfn> = (0..200).map(|nth| Pfn::new(BASE + nth)).collect();
    assert_eq!(frames.put_batch(&many), Err(PutError::AlreadyFree { pfn: Pfn::new(BASE + 50) }));
    assert_eq!(frames.free_runs(), free);
    frames.put_batch(&many[..50]).unwrap();
    frames.put_batch(&many[51..]).unwrap();
    assert_eq!(frames.check(), Ok(()));
}

#[test]
fn a_run_of_gibs_over_a_group_of_64_is_taken_and_put_as_one() {
    let frames = layer(200);
    frames.take_at(span(BASE + 40 * GIB, 1)).unwrap();
    assert_eq!(frames.take_run(150 * GIB, Order::GIB1), Some(span(BASE + 41 * GIB, 150 * GIB)));
    assert_eq!(frames.take_run(41 * GIB, Order::GIB1), None);
    frames.put(span(BASE + 41 * GIB, 150 * GIB)).unwrap();
    refused(&frames, span(BASE + 41 * GIB, 150 * GIB), BASE + 41 * GIB);
    assert_eq!(frames.check(), Ok(()));
}

#[test]
fn what_becomes_whole_again_through_any_put_is_found() {
    // The last frame of a block, the last block of a GiB, by themselves and in a batch.
    for batch in [false, true] {
        let frames = layer(1);
        let last = frames.take(Order::BASE).unwrap();
        assert_eq!(frames.take(Order::GIB1), None);
        while frames.take(Order::MIB2).is_some() {}
        if batch {
            frames.put_batch(&[last]).unwrap()
        } else {
            frames.put(PfnRange::single(last)).unwrap()
        }
        assert_eq!(frames.check(), Ok(()));
        let block = frames.take(Order::MIB2).unwrap();
        assert_eq!(block, last.align_down(Order::MIB2));
        for nth in 0..GIB / BLOCK {
            frames.put(span(BASE + nth * BLOCK, BLOCK)).unwrap();
            assert_eq!(frames.check(), Ok(()));
        }
        assert_eq!(frames.take(Order::GIB1), Some(Pfn::new(BASE)));
    }
}

#[test]
fn a_run_of_gibs_whose_free_gib_lies_in_its_second_word_puts_none() {
    let frames = layer(100);
    frames.take_at(span(BASE, 100 * GIB)).unwrap();
    frames.put(span(BASE + 70 * GIB, GIB)).unwrap();
    refused(&frames, span(BASE, 100 * GIB), BASE + 70 * GIB);
}
