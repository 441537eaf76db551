//! The atomics under loom. Only the frame layer, which has no lock, is explored with it; the pool's locks stay what they are.

use std::sync::OnceLock;

pub(crate) use crate::spin_lock::{SpinGuard, SpinLock};
#[allow(unused_imports, reason = "one list for the whole crate; not every part needs every kind")]
pub(crate) use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
#[allow(unused_imports, reason = "one list for the whole crate; not every part needs every kind")]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, fence};

/// A word of loom's. loom takes `SeqCst` for `AcqRel`, except at fences; so a sequentially consistent access has its fence
/// beside it, as on a machine that has no such access. A relaxed access has none.
#[derive(Debug, Default)]
pub(crate) struct AtomicU64(loom::sync::atomic::AtomicU64);

impl AtomicU64 {
    pub(crate) fn new(value: u64) -> Self {
        Self(loom::sync::atomic::AtomicU64::new(value))
    }

    pub(crate) fn load(&self, order: Ordering) -> u64 {
        fenced(order, || self.0.load(order))
    }

    pub(crate) fn store(&self, value: u64, order: Ordering) {
        fenced(order, || self.0.store(value, order));
    }

    pub(crate) fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        fenced(order, || self.0.fetch_add(value, order))
    }

    pub(crate) fn fetch_max(&self, value: u64, order: Ordering) -> u64 {
        fenced(order, || self.0.fetch_max(value, order))
    }

    pub(crate) fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
        fenced(order, || self.0.fetch_sub(value, order))
    }

    pub(crate) fn fetch_or(&self, value: u64, order: Ordering) -> u64 {
        fenced(order, || self.0.fetch_or(value, order))
    }

    pub(crate) fn fetch_and(&self, value: u64, order: Ordering) -> u64 {
        fenced(order, || self.0.fetch_and(value, order))
    }

    /// Never fails for nothing: that would only be tried again.
    pub(crate) fn compare_exchange_weak(&self, seen: u64, new: u64, order: Ordering, failed: Ordering) -> Result<u64, u64> {
        fenced(order, || self.0.compare_exchange(seen, new, order, failed))
    }
}

fn fenced<T>(order: Ordering, access: impl FnOnce() -> T) -> T {
    if order != Ordering::SeqCst {
        return access();
    }
    loom::sync::atomic::fence(Ordering::SeqCst);
    let result = access();
    loom::sync::atomic::fence(Ordering::SeqCst);
    result
}

/// What is made when it is first needed. loom must see who made it before whom.
#[derive(Debug)]
pub(crate) struct Late<T> {
    value: OnceLock<T>,
    made: loom::sync::atomic::AtomicBool,
    making: loom::sync::Mutex<()>,
}

impl<T> Default for Late<T> {
    fn default() -> Self {
        let made = loom::sync::atomic::AtomicBool::new(false);
        Self { value: OnceLock::new(), made, making: loom::sync::Mutex::new(()) }
    }
}

impl<T> Late<T> {
    pub(crate) fn get(&self) -> Option<&T> {
        if self.made.load(Ordering::Acquire) { self.value.get() } else { None }
    }

    pub(crate) fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
        let _making = self.making.lock();
        let value = self.value.get_or_init(make);
        self.made.store(true, Ordering::Release);
        value
    }
}

/// Words that are all 0.
pub(crate) fn zeroed_words(count: usize) -> Box<[AtomicU64]> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

/// Gives way to whoever is in the middle of what this thread waits for.
pub(crate) fn give_way(_tries: u32) {
    loom::thread::yield_now();
}

/// A small number of this thread: loom numbers its threads anew in each execution.
pub(crate) fn thread_number() -> usize {
    let text = format!("{:?}", loom::thread::current().id());
    text.bytes().filter(u8::is_ascii_digit).fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0'))
}
