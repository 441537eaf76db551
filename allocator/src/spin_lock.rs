//! The lock of a GiB's record: held for a few dozen nanoseconds, and given back by a plain store.
//!
//! Other locks give theirs back by a second read-modify-write, which waits until every store before it has left the core: two
//! of those were a third of a conversion (ADR 0008). What such a lock cannot do is wake whoever waits, so the wait ends in naps.

use std::time::Duration;

use spin::mutex::{SpinMutex, SpinMutexGuard};

pub(crate) type SpinGuard<'l, T> = SpinMutexGuard<'l, T>;

/// The lock.
#[derive(Debug, Default)]
pub(crate) struct SpinLock<T>(SpinMutex<T>);

impl<T> SpinLock<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(SpinMutex::new(value))
    }

    #[inline]
    pub(crate) fn lock(&self) -> SpinGuard<'_, T> {
        self.0.try_lock().unwrap_or_else(|| self.wait())
    }

    /// Spins, then yields, then sleeps: whoever holds the lock may have lost its CPU, and may run below this thread's
    /// priority, so that it gets none while this thread does not sleep.
    #[cold]
    fn wait(&self) -> SpinGuard<'_, T> {
        /// Pauses between two looks: about as long as the holder needs for a few critical sections. Whoever looks more often
        /// takes the line away from the holder each time, and both get less done.
        const PAUSES: u32 = 64;
        /// Looks before others on this CPU get a turn, and before a nap.
        const SPINS: u32 = 16;
        const YIELDS: u32 = 32;
        const NAP: Duration = Duration::from_micros(20);
        let mut looks = 0;
        loop {
            // Looked at before it is written to, for the same reason.
            if !self.0.is_locked()
                && let Some(guard) = self.0.try_lock()
            {
                return guard;
            }
            looks += 1;
            match () {
                () if looks < SPINS => (0..PAUSES).for_each(|_| std::hint::spin_loop()),
                () if looks < YIELDS => std::thread::yield_now(),
                () => std::thread::sleep(NAP),
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn one_at_a_time_and_nothing_is_lost() {
        let sum = Arc::new(SpinLock::new(0_u64));
        let add = |sum: Arc<SpinLock<u64>>| std::thread::spawn(move || (0..10_000).for_each(|_| *sum.lock() += 1));
        let threads: Vec<_> = (0..4).map(|_| add(Arc::clone(&sum))).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(*sum.lock(), 40_000);
    }

    #[test]
    fn a_holder_that_sleeps_is_waited_for() {
        let (lock, done) = (Arc::new(SpinLock::new(())), Arc::new(AtomicBool::new(false)));
        let held = lock.lock();
        let waiter = std::thread::spawn({
            let (lock, done) = (Arc::clone(&lock), Arc::clone(&done));
            move || {
                let _held = lock.lock();
                assert!(done.load(Ordering::SeqCst), "the lock was had by two");
            }
        });
        std::thread::sleep(Duration::from_millis(20));
        done.store(true, Ordering::SeqCst);
        drop(held);
        waiter.join().unwrap();
    }
}
