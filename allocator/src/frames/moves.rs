//! The epoch of structural moves: what makes "none left" an honest answer.
//!
//! A *move* is whatever makes free frames invisible for a moment, or visible where a scan may already have looked: cutting
//! a GiB or a block, taking words one after the other, clearing a hint before looking again, setting a hint that was clear.
//! A scan that found nothing may say so only if no move was under way when it began and none has begun since.

use crate::sync::{AtomicU64, Ordering, give_way};

const ONE_BEGUN: u64 = 1 << 32;
const UNDER_WAY: u64 = ONE_BEGUN - 1;

/// Low half: moves under way. High half: moves ever begun, wrapping; a scan would have to sleep through 2^32 moves to be
/// deceived.
#[derive(Debug)]
pub(super) struct Moves(AtomicU64);

impl Moves {
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Begins a move; dropping the result ends it. Pairs with [`Moves::settled`]: the count rises before the first frame is
    /// hidden and falls after the last is back.
    pub(super) fn begin(&self) -> Move<'_> {
        self.0.fetch_add(ONE_BEGUN + 1, Ordering::SeqCst);
        Move(self)
    }

    /// What `look` found, or nothing if nothing moved while it looked. Pairs with [`Moves::begin`].
    pub(super) fn settled<T>(&self, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        let mut tries = 0;
        loop {
            let before = self.0.load(Ordering::SeqCst);
            if let Some(found) = look() {
                return Some(found);
            }
            if before & UNDER_WAY == 0 && self.0.load(Ordering::SeqCst) == before {
                return None;
            }
            give_way(tries);
            tries = tries.saturating_add(1);
        }
    }

    /// Whether no move is under way.
    pub(super) fn idle(&self) -> bool {
        self.0.load(Ordering::SeqCst) & UNDER_WAY == 0
    }
}

/// A move under way.
#[must_use = "the move ends when this is dropped"]
pub(super) struct Move<'a>(&'a Moves);

impl Drop for Move<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}
