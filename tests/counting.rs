//! A global allocator that counts live and peak bytes, for tests that hold metadata against its bound (invariant I8).
//!
//! Each thread counts for itself: what the test harness allocates in its own thread does not disturb a measurement. What is
//! measured must free in the thread in which it allocates.
#![allow(unsafe_code, reason = "a global allocator cannot be written without unsafe; this one only counts and passes on")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The counting allocator: `#[global_allocator] static COUNTING: Counting = Counting;`.
pub struct Counting;

/// Where counting starts: high enough that a thread which frees what others allocated, as the test harness has it do, does
/// not count below zero. Only differences mean anything.
const START: usize = 1 << 40;

// Constants without destructors: reading them in the allocator allocates nothing, at any moment of a thread's life.
thread_local! {
    static LIVE: Cell<usize> = const { Cell::new(START) };
    static PEAK: Cell<usize> = const { Cell::new(START) };
    static CALLS: Cell<usize> = const { Cell::new(0) };
    static REFUSING: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: every call is passed on to `System` unchanged, or refused with a null pointer, which the contract allows.
// `realloc` is the trait's own: it allocates, copies, frees, so that both buffers count while both could be alive.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get().wrapping_add(1));
        if REFUSING.get() {
            return std::ptr::null_mut();
        }
        LIVE.set(LIVE.get().wrapping_add(layout.size()));
        PEAK.set(PEAK.get().max(LIVE.get()));
        // SAFETY: the caller's promise about `layout` is the one that `System` needs.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.set(LIVE.get().wrapping_sub(layout.size()));
        // SAFETY: `at` came from `alloc` above with this layout, hence from `System`.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Bytes live now, allocated by this thread, counted from somewhere: only differences mean anything.
#[must_use]
pub fn live() -> usize {
    LIVE.get()
}

/// Calls of the allocator by this thread so far.
#[must_use]
pub fn calls() -> usize {
    CALLS.get()
}

/// Runs `step`, and returns its result and the most bytes that were live at once meanwhile.
pub fn peak_of<T>(step: impl FnOnce() -> T) -> (T, usize) {
    PEAK.set(live());
    let result = step();
    (result, PEAK.get())
}

/// Runs `step` while every request for memory is refused.
pub fn refusing<T>(step: impl FnOnce() -> T) -> T {
    REFUSING.set(true);
    let result = step();
    REFUSING.set(false);
    result
}
