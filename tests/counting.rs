//! A global allocator that counts live and peak bytes, for tests that hold metadata against its bound (invariant I8) and for
//! the comparison's figures in bytes.
//!
//! Each thread counts for itself: what the test harness allocates in its own thread does not disturb a measurement. What is
//! measured must free in the thread in which it allocates. Only requested bytes count: what the allocator below adds to each
//! request is the same for everybody, and left out.
#![allow(unsafe_code, reason = "a global allocator cannot be written without unsafe; this one only counts and passes on")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The counting allocator: `#[global_allocator] static COUNTING: Counting = Counting::ALWAYS;`.
pub struct Counting {
    always: bool,
}

impl Counting {
    /// Counts everything.
    pub const ALWAYS: Self = Self { always: true };
    /// Counts only within [`count`], for programs that measure time as well: otherwise it costs one load of the thread's own.
    pub const WHEN_ASKED: Self = Self { always: false };

    fn counts(&self) -> bool {
        self.always || ASKED.get()
    }
}

/// Where counting starts: high enough that a thread which frees what others allocated, as the test harness has it do, does
/// not count below zero. Only differences mean anything.
const START: usize = 1 << 40;

// Constants without destructors: reading them in the allocator allocates nothing, at any moment of a thread's life.
thread_local! {
    static ASKED: Cell<bool> = const { Cell::new(false) };
    static LIVE: Cell<usize> = const { Cell::new(START) };
    static PEAK: Cell<usize> = const { Cell::new(START) };
    static CALLS: Cell<usize> = const { Cell::new(0) };
    static REFUSING: Cell<bool> = const { Cell::new(false) };
}

fn note(bytes: usize) {
    LIVE.set(LIVE.get().wrapping_add(bytes));
    PEAK.set(PEAK.get().max(LIVE.get()));
}

// SAFETY: every call is passed on to `System` unchanged, or refused with a null pointer, which the contract allows.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if self.counts() {
            CALLS.set(CALLS.get().wrapping_add(1));
            if REFUSING.get() {
                return std::ptr::null_mut();
            }
            note(layout.size());
        }
        // SAFETY: the caller's promise about `layout` is the one that `System` needs.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if self.counts() {
            CALLS.set(CALLS.get().wrapping_add(1));
            if REFUSING.get() {
                return std::ptr::null_mut();
            }
            note(layout.size());
        }
        // SAFETY: as for `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        if self.counts() {
            LIVE.set(LIVE.get().wrapping_sub(layout.size()));
        }
        // SAFETY: `at` came from `alloc` above with this layout, hence from `System`.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if self.counts() {
            CALLS.set(CALLS.get().wrapping_add(1));
            if REFUSING.get() {
                return std::ptr::null_mut();
            }
            // Both buffers count while both could be alive.
            note(size);
            LIVE.set(LIVE.get().wrapping_sub(layout.size()));
        }
        // SAFETY: `at` came from `alloc` above with this layout, hence from `System`; `size` is the caller's promise.
        unsafe { System.realloc(at, layout, size) }
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

/// Bytes that a step added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counted {
    /// Still there after it.
    pub live: u64,
    /// The most that were there at once meanwhile.
    pub peak: u64,
}

/// Runs `step` and counts what this thread allocates and frees in it. Counts do not nest.
pub fn count<T>(step: impl FnOnce() -> T) -> (T, Counted) {
    let before = live();
    ASKED.set(true);
    let (result, peak) = peak_of(step);
    ASKED.set(false);
    (result, Counted { live: live().saturating_sub(before) as u64, peak: peak.saturating_sub(before) as u64 })
}
