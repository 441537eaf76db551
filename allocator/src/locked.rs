//! A record's lock while it is held, and what it leaves behind: the summary that others read without it.

use std::ops::{Deref, DerefMut};

use pageless_metadata::{Gib, Summary};
use smallvec::SmallVec;

use crate::sync::{AtomicU64, Ordering, SpinGuard};

/// One GiB's facts, locked. When they were changed, the record's summary is written before the lock is given back: whoever
/// reads it without the lock is told what was so at some instant between two changes.
pub(crate) struct RecordGuard<'p> {
    gib: SpinGuard<'p, Gib>,
    summary: &'p AtomicU64,
    changed: bool,
}

impl<'p> RecordGuard<'p> {
    #[inline]
    pub(crate) const fn new(gib: SpinGuard<'p, Gib>, summary: &'p AtomicU64) -> Self {
        Self { gib, summary, changed: false }
    }

    /// Whether the summary as it was last written says what is so.
    pub(crate) fn check_summary(&self) -> Result<(), String> {
        // Relaxed: written under the lock, which is held.
        self.gib.check_summary(Summary::from_word(self.summary.load(Ordering::Relaxed)))
    }
}

impl Deref for RecordGuard<'_> {
    type Target = Gib;

    #[inline]
    fn deref(&self) -> &Gib {
        &self.gib
    }
}

impl DerefMut for RecordGuard<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Gib {
        self.changed = true;
        &mut self.gib
    }
}

impl Drop for RecordGuard<'_> {
    // Always: the usual drop is a handful of instructions, twice per conversion.
    #[inline(always)]
    fn drop(&mut self) {
        if !self.changed {
            return;
        }
        let now = self.gib.summary().word();
        // Relaxed: written under the lock, which is held. Not written where it stays, which is the usual case in a mixed GiB.
        if self.summary.load(Ordering::Relaxed) != now {
            // Release: pairs with the load in `Record::summary`.
            self.summary.store(now, Ordering::Release);
        }
    }
}

/// Several locked records, by index, ascending.
pub(crate) struct Locked<'p> {
    records: SmallVec<[(usize, RecordGuard<'p>); 1]>,
    /// Where the last one was found: who asks goes through them in order.
    last: usize,
}

impl<'p> Locked<'p> {
    pub(crate) const fn new(records: SmallVec<[(usize, RecordGuard<'p>); 1]>) -> Self {
        Self { records, last: 0 }
    }

    /// The facts of the GiB with this record index, which must be one of those locked.
    #[inline]
    pub(crate) fn gib(&mut self, record: usize) -> &mut Gib {
        let is_at = |at: usize| self.records.get(at).is_some_and(|(index, _)| *index == record);
        if !is_at(self.last) {
            let next = self.last + 1;
            self.last = if is_at(next) { next } else { self.records.partition_point(|(index, _)| *index < record) };
        }
        debug_assert_eq!(self.records[self.last].0, record, "this record is not locked");
        &mut self.records[self.last].1
    }
}
