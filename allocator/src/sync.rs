//! The one place that chooses locks and atomics: std's atomics and parking_lot's locks, or, under the feature `shuttle`,
//! shuttle's, so that its scheduler can explore interleavings. Nothing else in this crate names either.

#[cfg(not(feature = "shuttle"))]
mod chosen {
    #[allow(unused_imports, reason = "one list for the whole crate; not every part needs every kind")]
    pub(crate) use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
    #[allow(unused_imports, reason = "one list for the whole crate; not every part needs every kind")]
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

    pub(crate) type SpinGuard<'l, T> = spin::mutex::SpinMutexGuard<'l, T>;

    /// A lock for critical sections of a few dozen nanoseconds, given back by a plain store. Other locks give theirs back by a
    /// second read-modify-write, which waits until every store before it has left the core: that was a third of a conversion.
    #[derive(Debug, Default)]
    pub(crate) struct SpinLock<T>(spin::mutex::SpinMutex<T>);

    impl<T> SpinLock<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self(spin::mutex::SpinMutex::new(value))
        }

        #[inline]
        pub(crate) fn lock(&self) -> SpinGuard<'_, T> {
            self.0.try_lock().unwrap_or_else(|| self.wait())
        }

        /// Spins, then yields, then sleeps: whoever holds the lock may have lost its CPU, and may run below this thread's
        /// priority, so that it gets none while this thread does not sleep.
        #[cold]
        fn wait(&self) -> SpinGuard<'_, T> {
            const NAP: std::time::Duration = std::time::Duration::from_micros(20);
            let backoff = crossbeam::utils::Backoff::new();
            loop {
                if !self.0.is_locked()
                    && let Some(guard) = self.0.try_lock()
                {
                    return guard;
                }
                if backoff.is_completed() { std::thread::sleep(NAP) } else { backoff.snooze() }
            }
        }
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

#[cfg(feature = "shuttle")]
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

    /// Gives way to whoever is in the middle of what this thread waits for.
    pub(crate) fn give_way(_tries: u32) {
        shuttle::thread::yield_now();
    }

    /// A small number of this thread, within one execution.
    pub(crate) fn thread_number() -> usize {
        shuttle::current::me().into()
    }
}

#[allow(unused_imports, reason = "one list for the whole crate; not every part needs every kind")]
pub(crate) use chosen::*;

/// Waits for `time`. Under shuttle time does not pass; giving way is all there is to do.
pub(crate) fn sleep(time: std::time::Duration) {
    #[cfg(not(feature = "shuttle"))]
    std::thread::sleep(time);
    #[cfg(feature = "shuttle")]
    {
        let _ = time;
        shuttle::thread::yield_now();
    }
}
