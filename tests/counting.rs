//! A global allocator that counts live and peak bytes, for tests that hold metadata against its bound (invariant I8).
//!
//! The counters belong to the process, so a test binary that uses it has one test.
#![allow(unsafe_code, reason = "a global allocator cannot be written without unsafe; this one only counts and passes on")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// The counting allocator: `#[global_allocator] static COUNTING: Counting = Counting;`.
pub struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);
static REFUSING: AtomicBool = AtomicBool::new(false);

// SAFETY: every call is passed on to `System` unchanged, or refused with a null pointer, which the contract allows.
// `realloc` is the trait's own: it allocates, copies, frees, so that both buffers count while both could be alive.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Relaxed);
        if REFUSING.load(Relaxed) {
            return std::ptr::null_mut();
        }
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(live, Relaxed);
        // SAFETY: the caller's promise about `layout` is the one that `System` needs.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: `at` came from `alloc` above with this layout, hence from `System`.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Bytes live now.
#[must_use]
pub fn live() -> usize {
    LIVE.load(Relaxed)
}

/// Calls of the allocator so far.
#[must_use]
pub fn calls() -> usize {
    CALLS.load(Relaxed)
}

/// Runs `step`, and returns its result and the most bytes that were live at once meanwhile.
pub fn peak_of<T>(step: impl FnOnce() -> T) -> (T, usize) {
    PEAK.store(live(), Relaxed);
    let result = step();
    (result, PEAK.load(Relaxed))
}

/// Runs `step` while every request for memory is refused.
pub fn refusing<T>(step: impl FnOnce() -> T) -> T {
    REFUSING.store(true, Relaxed);
    let result = step();
    REFUSING.store(false, Relaxed);
    result
}
