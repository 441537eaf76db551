//! Shareability at rest: a small roaring bitmap of the shared frames, keyed by frame in its GiB.
//!
//! Only small ones go to rest, so that while one is opened (both forms alive) the two stay under the bound of a GiB.
//! Everything is built container by container for the same reason: roaring's own growth doubles its buffers.

use roaring::RoaringBitmap;

use crate::leaves::{Flat, Leaves};
use crate::span::{GIB_FRAMES, Span};

/// The most that one plane of a GiB has on the heap at any step, in bytes. With the 128-byte record of the GiB, and as much
/// again for what hangs on it, that is 40 KiB per GiB, or 40 MiB per TiB.
pub const PLANE_BYTES_MAX: usize = 40 * 1024 - 256;
/// The largest bitmap that goes to rest, in heap bytes: what the bound leaves beside the leaves it is opened into.
pub(crate) const REST_BYTES_MAX: usize = PLANE_BYTES_MAX - Leaves::MAX_BYTES;

/// Frames in one container of roaring.
const CONTAINER_FRAMES: u32 = 1 << 16;
/// Bytes of all bits of a container, and of a container in its bitmap form.
const CONTAINER_BYTES: usize = CONTAINER_FRAMES as usize / 8;
/// Bytes of roaring's entry for a container (0.12, 64 bits). Its type is private; the bounded-footprint test measures it.
const ENTRY_BYTES: usize = 40;

/// The heap bytes of [`packed`] for these frames, with the box it lies in.
pub(crate) fn planned_bytes(flat: &Flat) -> usize {
    size_of::<RoaringBitmap>() + flat.as_chunks::<CONTAINER_BYTES>().0.iter().map(planned_container_bytes).sum::<usize>()
}

fn planned_container_bytes(bytes: &[u8; CONTAINER_BYTES]) -> usize {
    let (mut frames, mut runs, mut carry) = (0, 0, 0);
    for eight in bytes.as_chunks::<8>().0 {
        let word = u64::from_le_bytes(*eight);
        frames += word.count_ones() as usize;
        runs += (word & !(word << 1 | carry)).count_ones() as usize;
        carry = word >> 63;
    }
    let listed = CONTAINER_BYTES.min(frames * 2);
    match frames {
        0 => 0,
        // Roaring's own rule: it counts the two bytes that a run container's header takes when serialised.
        _ if listed <= runs * 4 + 2 => ENTRY_BYTES + listed,
        _ => ENTRY_BYTES + runs * 4,
    }
}

/// The frames of `flat`, in the smallest form that roaring has, with no capacity to spare.
pub(crate) fn packed(flat: &Flat) -> RoaringBitmap {
    let mut all = RoaringBitmap::new();
    for (key, bytes) in (0..).zip(flat.as_chunks::<CONTAINER_BYTES>().0) {
        let mut part = RoaringBitmap::from_lsb0_bytes(key * CONTAINER_FRAMES, bytes);
        part.optimize();
        all |= part;
    }
    // A clone's vectors are as long as their contents.
    all.clone()
}

/// The frames, one bit each.
pub(crate) fn flat(frames: &RoaringBitmap) -> Flat {
    /// Up to here single frames are quicker than runs, which roaring searches for.
    const FEW: u64 = 8192;
    let mut flat = [0; GIB_FRAMES as usize / 8];
    if frames.len() <= FEW {
        frames.iter().for_each(|frame| flat[frame as usize / 8] |= 1 << (frame % 8));
    } else {
        runs(frames, Span::WHOLE).for_each(|run| fill(&mut flat, run));
    }
    flat
}

fn fill(flat: &mut Flat, run: Span) {
    let (from, to) = (run.start().next_multiple_of(8).min(run.end()), (run.end() & !7).max(run.start()));
    for frame in (run.start()..from).chain(to.max(from)..run.end()) {
        flat[frame as usize / 8] |= 1 << (frame % 8);
    }
    if from < to {
        flat[from as usize / 8..to as usize / 8].fill(u8::MAX);
    }
}

/// The heap bytes behind a bitmap that has no capacity to spare, without its own.
pub(crate) fn heap_bytes(exact: &RoaringBitmap) -> usize {
    let found = exact.statistics();
    // The byte counts of `statistics` describe other things (elements of four bytes, bits for bytes, headers), so only
    // its numbers of containers and values are used; a run container's bytes carry a header of two.
    let (arrays, bitmaps) = (found.n_values_array_containers as usize * 2, found.n_bitset_containers as usize * CONTAINER_BYTES);
    let runs = usize::try_from(found.n_bytes_run_containers).unwrap_or(0) - found.n_run_containers as usize * 2;
    found.n_containers as usize * ENTRY_BYTES + arrays + bitmaps + runs
}

/// Whether all frames of `span` are in (`Some(true)`), none is (`Some(false)`), or neither.
pub(crate) fn same(frames: &RoaringBitmap, span: Span) -> Option<bool> {
    match frames.range_cardinality(span.start()..span.end()) {
        0 => Some(false),
        n if n == u64::from(span.frames()) => Some(true),
        _ => None,
    }
}

/// The first longest run within `span` of frames that are in (or are not).
pub(crate) fn next_run(frames: &RoaringBitmap, span: Span, within: bool) -> Option<Span> {
    let mut runs = runs(frames, span);
    if within {
        return runs.next();
    }
    let mut at = span.start();
    for run in runs {
        if at < run.start() {
            return Span::new(at, run.start());
        }
        at = run.end();
    }
    Span::new(at, span.end())
}

/// The runs of frames within `span`, each as long as it can be, ascending.
pub(crate) fn runs(frames: &RoaringBitmap, span: Span) -> impl Iterator<Item = Span> + '_ {
    let mut pieces = frames.range(span.start()..span.end());
    let mut next = pieces.next_range();
    std::iter::from_fn(move || {
        let mut run = next.take()?;
        loop {
            next = pieces.next_range();
            match &next {
                // Roaring's runs end with their container; ours do not.
                Some(more) if *more.start() == run.end() + 1 => run = *run.start()..=*more.end(),
                _ => return Span::new(*run.start(), run.end() + 1),
            }
        }
    })
}

/// All frames of a GiB.
pub(crate) fn whole() -> RoaringBitmap {
    let mut all = RoaringBitmap::new();
    all.insert_range(0..GIB_FRAMES);
    all
}
