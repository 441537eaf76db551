//! Putting many single frames at once.
//!
//! Over a large span nearly every put misses the caches. Here all words are looked at before any is changed: the misses
//! overlap, and the atomic writes find the words there.

use pageless_metadata::Pfn;
use smallvec::SmallVec;

use super::Frames;
use super::hot::one;
use super::outcome::PutError;
use super::place::Level;
use crate::sync::Ordering;

/// Frames that are looked at together. More would push each other out of the first cache before they are put.
const TOGETHER: usize = 64;

/// Which frames were named already, as far as that can be told from a few bits each: it may say so of one that was not.
struct Named([u64; 32]);

impl Named {
    /// Whether this frame may have been named before. 1 if so, else 0.
    #[inline]
    fn again(&mut self, pfn: Pfn) -> u64 {
        // Fibonacci hashing: the upper bits depend on all of the number.
        let hash = pfn.get().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 53;
        let (word, bit) = (&mut self.0[(hash >> 6) as usize & 31], hash & 63);
        let before = *word >> bit & 1;
        *word |= 1 << bit;
        before
    }
}

impl Frames {
    /// Puts single taken frames back, faster than one by one, in any order. A frame named twice is a double free. Errors as
    /// for [`Frames::put`].
    #[inline]
    pub fn put_batch(&self, frames: &[Pfn]) -> Result<(), PutError> {
        if frames.len() > TOGETHER || self.look_at(frames) != 0 {
            // Too many for that, or there is something about one of them: look closely.
            return self.put_with_care(frames);
        }
        self.put_each(frames)
    }

    /// Whether there may be something about one of these frames: that it lies outside, was named twice, is free, or that its
    /// words are not there yet. 0 if not. The words are in the cache then. Without branches, so that no miss waits for
    /// another.
    #[inline]
    fn look_at(&self, frames: &[Pfn]) -> u64 {
        // Twice: the shorter the loop that meets the misses, the more of them the processor has under way.
        let mut free = 0;
        for &pfn in frames {
            if !self.span.contains(pfn) {
                return 1;
            }
            let at = self.place(pfn);
            let Some(word) = self.groups[at.group()].cut().and_then(|slab| slab.leaf_word(at)) else { return 1 };
            free |= word.load(Ordering::SeqCst) >> at.bit();
        }
        let mut named = Named([0; 32]);
        for &pfn in frames {
            let at = self.place(pfn);
            let group = &self.groups[at.group()];
            let Some(lane) = group.cut().and_then(|slab| slab.lane(at)) else { return 1 };
            free |= lane.whole.load(Ordering::SeqCst) >> at.block();
            free |= group.whole.load(Ordering::SeqCst) >> at.gib() | named.again(pfn);
        }
        free & 1
    }

    #[inline]
    fn put_each(&self, frames: &[Pfn]) -> Result<(), PutError> {
        frames.iter().enumerate().try_for_each(|(nth, &pfn)| {
            // Each was looked at, so an error means that somebody put it meanwhile.
            self.put_frame(self.place(pfn)).map_err(|_| self.raced_in_batch(nth, pfn))
        })
    }

    #[cold]
    #[inline(never)]
    fn raced_in_batch(&self, nth: usize, pfn: Pfn) -> PutError {
        if nth == 0 { PutError::AlreadyFree { pfn } } else { PutError::Raced { pfn, from: pfn } }
    }

    #[cold]
    #[inline(never)]
    fn put_with_care(&self, frames: &[Pfn]) -> Result<(), PutError> {
        let mut sorted: SmallVec<[Pfn; TOGETHER]> = SmallVec::from_slice(frames);
        if !sorted.is_sorted() {
            sorted.sort_unstable();
        }
        if let Some(&pfn) = sorted.iter().find(|pfn| !self.span.contains(**pfn)) {
            return Err(PutError::Foreign { pfn, span: self.span });
        }
        let twice = sorted.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0]);
        let free = sorted.iter().copied().find(|&pfn| self.first_free(one(Level::Frames, self.place(pfn))).is_some());
        if let Some(pfn) = [twice, free].into_iter().flatten().min() {
            return Err(PutError::AlreadyFree { pfn });
        }
        // Of many, neighbours together; of few, as they were named.
        self.put_each(if frames.len() > TOGETHER { &sorted } else { frames })
    }
}
