//! A record's lock while it is held, and what it leaves behind: the summary that others read without it.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use pageless_metadata::{Gib, Intent, OperationId, Shape, Span, Summary, SummaryKey};
use smallvec::SmallVec;

use crate::mappings::Mappings;
use crate::record::Kept;
use crate::sync::{AtomicU64, Ordering, SpinGuard};

/// One GiB's facts, locked. When they were changed, the record's summary is written before the lock is given back: whoever
/// reads it without the lock is told what was so at some instant between two changes.
pub(crate) struct RecordGuard<'p> {
    kept: SpinGuard<'p, Kept>,
    summary: &'p AtomicU64,
    changed: bool,
}

impl<'p> RecordGuard<'p> {
    #[inline]
    pub(crate) const fn new(kept: SpinGuard<'p, Kept>, summary: &'p AtomicU64) -> Self {
        Self { kept, summary, changed: false }
    }

    /// Whether the summary as it was last written says what is so.
    pub(crate) fn check_summary(&self) -> Result<(), String> {
        self.kept.gib.check_summary(said(self.summary))
    }

    /// Takes the list of mappings that the last conversion left here.
    #[inline]
    pub(crate) fn take_list(&mut self) -> Left {
        self.kept.list.take()
    }

    /// Leaves it to the next one. What was here is for the caller to drop, without the lock.
    #[inline]
    pub(crate) fn leave_list(&mut self, list: Arc<Mappings>) -> Left {
        self.kept.list.replace(list)
    }
}

impl Deref for RecordGuard<'_> {
    type Target = Gib;

    #[inline]
    fn deref(&self) -> &Gib {
        &self.kept.gib
    }
}

impl DerefMut for RecordGuard<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Gib {
        self.changed = true;
        &mut self.kept.gib
    }
}

impl Drop for RecordGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        if !self.changed {
            return;
        }
        let now = self.kept.gib.summary();
        // Not written where it stays.
        if said(self.summary) != now {
            say(self.summary, now);
        }
    }
}

/// The same lock for those who do nothing but begin and end conversions in quiet, and say so themselves: nothing is left to do
/// when it is given back.
pub(crate) struct QuickGuard<'p> {
    kept: SpinGuard<'p, Kept>,
    summary: &'p AtomicU64,
}

impl<'p> QuickGuard<'p> {
    #[inline(always)]
    pub(crate) const fn new(kept: SpinGuard<'p, Kept>, summary: &'p AtomicU64) -> Self {
        Self { kept, summary }
    }

    /// Begins a conversion as [`Gib::begin_quickly`] does, if the summary says that the GiB is quiet and all this owner's.
    /// Returns the list of mappings too that the last conversion left here.
    #[inline(always)]
    pub(crate) fn begin(mut self, shape: Shape, intent: Intent, gib: u64, owner: SummaryKey) -> Option<(OperationId, Left)> {
        if !said(self.summary).is_quiet(owner) {
            return None;
        }
        let operation = self.kept.gib.begin_quickly(shape, intent, gib)?;
        say(self.summary, Summary::alone(operation));
        Some((operation, self.kept.list.take()))
    }

    /// The same for any span of which one run changes, as [`Gib::begin_in_quiet`] does: returns that run too.
    pub(crate) fn begin_run(
        mut self,
        span: Span,
        intent: Intent,
        gib: u64,
        owner: SummaryKey,
    ) -> Option<(OperationId, Span, Left)> {
        if !said(self.summary).is_quiet(owner) {
            return None;
        }
        let (operation, changes) = self.kept.gib.begin_in_quiet(span, intent, gib)?;
        say(self.summary, Summary::alone(operation));
        Some((operation, changes, self.kept.list.take()))
    }

    /// Ends a conversion that began so, if nothing has changed since, and leaves `list` to the next one. Returns what is for the
    /// caller to drop, without the lock; or the list, and nothing has happened.
    #[inline(always)]
    pub(crate) fn flip(
        mut self,
        shape: Option<Shape>,
        (operation, span, intent): (OperationId, Span, Intent),
        owner: SummaryKey,
        list: Arc<Mappings>,
    ) -> Result<Left, Arc<Mappings>> {
        // Whoever changed something has said something else.
        if said(self.summary) != Summary::alone(operation) {
            return Err(list);
        }
        if !shape.is_some_and(|shape| self.kept.gib.flip_quickly(shape, intent)) {
            self.kept.gib.flip_in_quiet(operation, span, intent, shape.is_some());
        }
        say(self.summary, self.kept.gib.quiet_summary(owner));
        Ok(self.kept.list.replace(list))
    }
}

/// A list of mappings that a conversion left in a record.
pub(crate) type Left = Option<Arc<Mappings>>;

/// The summary as it was last written.
#[inline(always)]
fn said(summary: &AtomicU64) -> Summary {
    // Relaxed: written under the lock, which is held.
    Summary::from_word(summary.load(Ordering::Relaxed))
}

#[inline(always)]
fn say(summary: &AtomicU64, now: Summary) {
    // Release: pairs with the load in `Record::summary`.
    summary.store(now.word(), Ordering::Release);
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

    /// Takes the lists of mappings that conversions left in these records: the caller drops them without the locks.
    #[must_use]
    pub(crate) fn take_lists(&mut self) -> Lists {
        self.records.iter_mut().filter_map(|(_, record)| record.take_list()).collect()
    }
}

/// Lists that were taken from records.
pub(crate) type Lists = SmallVec<[Arc<Mappings>; 1]>;
