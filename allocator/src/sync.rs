//! The one place that chooses locks and atomics: std's atomics and parking_lot's locks, or, under the feature `shuttle`,
//! shuttle's, so that its scheduler can explore interleavings; or, under the feature `loom`, loom's atomics, which the frame
//! layer needs and nothing else does. Nothing else in this crate names any of them.

#[cfg(not(any(feature = "shuttle", feature = "loom")))]
mod chosen {
    #[allow(unused_imports, reason = "one list for the whole crate; not every part needs every kind")]
    pub(crate) use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
    #[allow(unused_imports, reason = "one list for the whole crate; not every part needs every kind")]
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

    pub(crate) use crate::spin_lock::{SpinGuard, SpinLock};

    /// What is made when it is first needed.
    pub(crate) type Late<T> = std::sync::OnceLock<T>;

    /// Words that are all 0. The system gives them without touching them.
    pub(crate) fn zeroed_words(count: usize) -> Box<[AtomicU64]> {
        bytemuck::allocation::zeroed_slice_box(count)
    }

    /// Gives way to whoever is in the middle of what this thread waits for. `tries` is how often it has waited already.
    #[inline]
    pub(crate) fn give_way(tries: u32) {
        /// Most waits are for a handful of instructions; after this many the other thread has likely lost its CPU.
        const SPINS: u32 = 64;
        if tries < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
    }

    /// A small number of this thread: the same for its whole life, dense from 0 among all threads that ever asked.
    #[inline]
    pub(crate) fn thread_number() -> usize {
        use std::cell::Cell;
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static NUMBER: Cell<usize> = const { Cell::new(usize::MAX) });
        // A thread whose locals are already gone gets number 0: the number is only ever a preference.
        NUMBER
            .try_with(|number| {
                if number.get() == usize::MAX {
                    // Relaxed: the number orders nothing.
                    number.set(NEXT.fetch_add(1, Ordering::Relaxed));
                }
                number.get()
            })
            .unwrap_or(0)
    }
}

#[cfg(all(feature = "shuttle", not(feature = "loom")))]
mod chosen {
    use std::sync::PoisonError;

    #[allow(unused_imports, reason = "one list for the whole crate; not every part needs every kind")]
    pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
    #[allow(unused_imports, reason = "one list for the whole crate; not every part needs every kind")]
    pub(crate) use shuttle::sync::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

    /// shuttle's mutex with parking_lot's face: no poisoning.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    #[allow(dead_code, reason = "parking_lot's face, of which not every part is used")]
    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }

        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock().ok()
        }

        pub(crate) fn into_inner(self) -> T {
            self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
        }
    }

    /// To shuttle's scheduler a lock is a lock.
    pub(crate) type SpinLock<T> = Mutex<T>;
    pub(crate) type SpinGuard<'l, T> = MutexGuard<'l, T>;

    /// shuttle's reader-writer lock with parking_lot's face: no poisoning.
    #[derive(Debug, Default)]
    #[allow(dead_code, reason = "parking_lot's face, of which not every part is used")]
    pub(crate) struct RwLock<T>(shuttle::sync::RwLock<T>);

    #[allow(dead_code, reason = "parking_lot's face, of which not every part is used")]
    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(shuttle::sync::RwLock::new(value))
        }

        pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().unwrap_or_else(PoisonError::into_inner)
        }

        pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().unwrap_or_else(PoisonError::into_inner)
        }
    }

    /// What is made when it is first needed.
    pub(crate) type Late<T> = std::sync::OnceLock<T>;

    /// Words that are all 0.
    pub(crate) fn zeroed_words(count: usize) -> Box<[AtomicU64]> {
        (0..count).map(|_| AtomicU64::new(0)).collect()
    }

    /// Gives way to whoever is in the middle of what this thread waits for.
    pub(crate) fn give_way(_tries: u32) {
        shuttle::thread::yield_now();
    }

    /// A small number of this thread, within one execution.
    pub(crate) fn thread_number() -> usize {
        shuttle::current::me().into()
    }
}

#[cfg(feature = "loom")]
#[path = "sync_loom.rs"]
mod chosen;

#[allow(unused_imports, reason = "one list for the whole crate; not every part needs every kind")]
pub(crate) use chosen::*;

/// Waits for `time`. Under shuttle time does not pass; giving way is all there is to do.
pub(crate) fn sleep(time: std::time::Duration) {
    #[cfg(any(not(feature = "shuttle"), feature = "loom"))]
    std::thread::sleep(time);
    #[cfg(all(feature = "shuttle", not(feature = "loom")))]
    {
        let _ = time;
        shuttle::thread::yield_now();
    }
}
