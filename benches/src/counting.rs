//! A global allocator that counts bytes while it is asked to, so that every contender's memory is measured in one way.
//!
//! Off, it costs one load of a line that nobody writes. Only requested bytes are counted: what the allocator below adds to
//! each request is the same for all, and left out.
#![allow(unsafe_code, reason = "a global allocator cannot be written without unsafe; this one only counts and passes on")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// The allocator of every program that links this crate.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

static ON: AtomicBool = AtomicBool::new(false);
static LIVE: AtomicI64 = AtomicI64::new(0);
static PEAK: AtomicI64 = AtomicI64::new(0);
/// One count at a time.
static COUNT: Mutex<()> = Mutex::new(());

fn note(bytes: i64) {
    if ON.load(Relaxed) {
        let live = LIVE.fetch_add(bytes, Relaxed) + bytes;
        PEAK.fetch_max(live, Relaxed);
    }
}

/// A layout is never larger than `isize::MAX`.
fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

// SAFETY: every call is passed on to `System` unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(signed(layout.size()));
        // SAFETY: the caller's promise about `layout` is the one that `System` needs.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(signed(layout.size()));
        // SAFETY: as for `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        note(-signed(layout.size()));
        // SAFETY: `at` came from `alloc` above with this layout, hence from `System`.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both buffers may be alive for a moment.
        note(signed(size));
        note(-signed(layout.size()));
        // SAFETY: `at` came from `alloc` above with this layout, hence from `System`.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// Bytes that a step added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counted {
    /// Still there after it.
    pub live: u64,
    /// The most that were there at once meanwhile.
    pub peak: u64,
}

/// Runs `step` and counts what it allocates and frees. What other threads do meanwhile counts too. Counts do not nest.
pub fn count<T>(step: impl FnOnce() -> T) -> (T, Counted) {
    let _one = COUNT.lock().unwrap_or_else(PoisonError::into_inner);
    LIVE.store(0, Relaxed);
    PEAK.store(0, Relaxed);
    ON.store(true, Relaxed);
    let result = step();
    ON.store(false, Relaxed);
    let bytes = |count: &AtomicI64| u64::try_from(count.load(Relaxed)).unwrap_or(0);
    (result, Counted { live: bytes(&LIVE), peak: bytes(&PEAK) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_and_what_was_there_at_once_are_counted() {
        let (kept, counted) = count(|| {
            drop(std::hint::black_box(vec![0_u8; 1 << 26]));
            vec![1_u8; 1 << 25]
        });
        // Other tests may allocate meanwhile, but not megabytes.
        assert!(counted.live.abs_diff(1 << 25) < 1 << 23, "{counted:?}");
        assert!(counted.peak.abs_diff(1 << 26) < 1 << 23, "{counted:?}");
        drop(kept);
    }
}
