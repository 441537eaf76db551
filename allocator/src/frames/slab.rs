//! Memory for leaves: many words, all zero at first, which cost nothing until they are touched.

use super::place::LEAF_WORDS;
use crate::sync::{AtomicU64, zeroed_words};

/// The words of all leaves of a group, or of as many as its span has. Each leaf is a cache line of its own.
#[derive(Debug)]
pub(super) struct Slab {
    words: Box<[AtomicU64]>,
    /// Words before the first that begins a cache line.
    skip: usize,
}

impl Slab {
    /// `words` words, all zero.
    pub(super) fn new(words: usize) -> Self {
        let words = zeroed_words(words + LEAF_WORDS - 1);
        // Words are 8 bytes and aligned to that, so the way to the next line is a whole number of them.
        let skip = (words.as_ptr().addr().wrapping_neg() % 64) / size_of::<u64>();
        Self { words, skip: skip.min(LEAF_WORDS - 1) }
    }

    /// The word with this number.
    #[inline]
    pub(super) fn word(&self, number: usize) -> Option<&AtomicU64> {
        self.words.get(self.skip + number)
    }

    /// The leaf that begins at the word with this number.
    #[inline]
    pub(super) fn leaf(&self, first: usize) -> Option<&[AtomicU64; LEAF_WORDS]> {
        let first = self.skip + first;
        self.words.get(first..first + LEAF_WORDS)?.try_into().ok()
    }

    /// Bytes, touched or not.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.words)
    }
}
