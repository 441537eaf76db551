//! What can be said of a whole GiB in one word, for those who ask without the GiB's lock.
//!
//! Most GiBs of most hosts are one owner's, sound and unheld, with nothing under way. Then everything that a page-fault path
//! wants to know fits a word, which the GiB's user writes under the lock whenever it changed something, and reads without it.
//! The word says so, or it says nothing: then the answer is under the lock.
//!
//! A word is asked by comparing it with the asker's [`SummaryKey`]: one exclusive or, and the difference tells all.

use crate::{AllocationId, Gib, OperationId, Shareability, Span};

/// One GiB in a word: an owner's key and what is so of its GiB, or one operation that is under way alone, or nothing.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Summary(u64);

/// What one owner's summaries are compared with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SummaryKey(u64);

// In this order, because the difference between a word and its owner's key is compared with them.
const SHARED: u64 = 1;
const DEMOTED: u64 = 2;
const MIXED: u64 = 4;
/// More than any difference that says something.
const DIFFERENT: u64 = 8;
const OWNER_SHIFT: u32 = 3;
/// The top bit, which no key has. The rest is the number of the operation, whose own top bit is a part of the GiB's and alike for
/// all operations in it.
const ALONE: u64 = 1 << 63;

impl SummaryKey {
    /// The key that no GiB's word has.
    pub const NOBODY: Self = Self(ALONE - DIFFERENT);

    /// The key of an allocation; nobody's for a number that fits no key, which is 0 or has more than 60 bits.
    #[must_use]
    pub const fn new(allocation: AllocationId) -> Self {
        let number = allocation.get();
        if number == 0 || number >= Self::NOBODY.0 >> OWNER_SHIFT { Self::NOBODY } else { Self(number << OWNER_SHIFT) }
    }

    /// The key as it is stored.
    #[must_use]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// The stored key.
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }
}

impl Summary {
    /// Says nothing.
    pub const NOTHING: Self = Self(0);

    /// The word as it is stored.
    #[must_use]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// What a stored word says.
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// Says that this operation is the only thing under way in a GiB that was quiet before.
    #[must_use]
    #[inline]
    pub const fn alone(operation: OperationId) -> Self {
        Self(operation.get() | ALONE)
    }

    /// Whether all of the GiB is the owner's and sound, no frame of it is held, guarded or of unknown shareability, and nothing
    /// is under way. False also where the word says nothing.
    #[must_use]
    #[inline]
    pub const fn is_quiet(self, owner: SummaryKey) -> bool {
        self.0 ^ owner.0 < DIFFERENT
    }

    /// Whether all of the GiB could be mapped by one leaf: quiet, and all private or all shared.
    #[must_use]
    #[inline]
    pub const fn could_be_one_leaf(self, owner: SummaryKey) -> bool {
        self.0 ^ owner.0 < MIXED
    }

    /// Whether one leaf may map all of it now: [`could_be_one_leaf`](Self::could_be_one_leaf), and not demoted.
    #[must_use]
    #[inline]
    pub const fn is_one_leaf(self, owner: SummaryKey) -> bool {
        self.0 ^ owner.0 < DEMOTED
    }

    /// Who may reach every frame of it, if all of it is the owner's and alike.
    #[must_use]
    #[inline]
    pub const fn shareability(self, owner: SummaryKey) -> Option<Shareability> {
        match (self.could_be_one_leaf(owner), self.0 & SHARED) {
            (false, _) => None,
            (true, 0) => Some(Shareability::Private),
            (true, _) => Some(Shareability::Shared),
        }
    }
}

impl Gib {
    /// The GiB in a word.
    #[must_use]
    #[inline]
    pub fn summary(&self) -> Summary {
        // In this order, because the first answers for most GiBs that say nothing.
        if !self.converting.is_empty() || self.rare.as_ref().is_some_and(|rare| !rare.is_empty()) {
            return Summary::NOTHING;
        }
        match self.tenure.live_owner_of_all().map(SummaryKey::new) {
            Some(owner) if owner != SummaryKey::NOBODY => self.quiet_summary(owner),
            _ => Summary::NOTHING,
        }
    }

    /// The word of a GiB that is quiet, and all this owner's.
    #[must_use]
    #[inline]
    pub fn quiet_summary(&self, owner: SummaryKey) -> Summary {
        let demoted = if self.demoted.is_gib_demoted() { DEMOTED } else { 0 };
        let share = match self.share.whole() {
            Some(false) => 0,
            Some(true) => SHARED,
            None => MIXED,
        };
        Summary(owner.0 | demoted | share)
    }

    /// Whether the stored `summary` says nothing but what is so.
    ///
    /// # Errors
    ///
    /// What it should say.
    pub fn check_summary(&self, summary: Summary) -> Result<(), String> {
        let now = self.summary();
        let mut marks = self.marks();
        let alone = marks.next().is_some_and(|mark| summary == Summary::alone(mark.operation)) && marks.next().is_none();
        if now == summary || (alone && self.is_quiet_but_for_marks()) {
            return Ok(());
        }
        Err(format!("the summary of {:?} says {summary:?}, the planes say {now:?}", Span::WHOLE))
    }

    fn is_quiet_but_for_marks(&self) -> bool {
        self.rare.as_ref().is_none_or(|rare| rare.is_empty()) && self.tenure.live_owner_of_all().is_some()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{Ending, HoldId, HolderId, Intent, Order};

    const ID: AllocationId = AllocationId::new(7);
    const KEY: SummaryKey = SummaryKey::new(ID);

    fn owned() -> Gib {
        let mut gib = Gib::new();
        gib.allocate(Span::WHOLE, ID, Shareability::Private);
        gib
    }

    /// What the word says is what the planes say; where they say yes, the word may say nothing only for a reason.
    fn agree(gib: &Gib) -> bool {
        let summary = gib.summary();
        let (one_leaf, order) = (gib.could_be_one_leaf(Span::WHOLE, ID), gib.max_order(0, ID));
        assert_eq!(summary.could_be_one_leaf(KEY), one_leaf, "{gib:?}");
        assert_eq!(summary.is_one_leaf(KEY), order == Some(Order::GIB1), "{gib:?}");
        assert!(summary.shareability(KEY).is_none_or(|shareability| shareability == gib.shareability(12)));
        assert!(!summary.is_quiet(SummaryKey::new(AllocationId::new(8))));
        one_leaf
    }

    #[test]
    fn an_empty_gib_says_nothing_even_to_nobody() {
        assert_eq!(Gib::new().summary(), Summary::NOTHING);
        for number in [0, 1, 2, 7, (1 << 60) - 1, 1 << 60, 1 << 62, u64::MAX] {
            assert!(!Summary::NOTHING.is_quiet(SummaryKey::new(AllocationId::new(number))), "{number}");
        }
    }

    #[test]
    fn every_fact_that_stands_in_the_way_silences_the_word() {
        type Step = fn(&mut Gib, Span);
        let frame = Span::single(5);
        let steps: [(&str, Step); 6] = [
            ("converting", |gib, frame| {
                gib.begin_at_once(frame, ID, Intent::Share, 0).unwrap();
            }),
            ("shared", |gib, frame| gib.set_shareability(frame, Shareability::Shared)),
            ("unknown", |gib, frame| gib.set_shareability(frame, Shareability::Unknown)),
            ("poisoned", |gib, frame| {
                gib.poison(frame);
            }),
            ("held", |gib, frame| {
                gib.hold(HoldId(1), frame, HolderId::new("dma"));
            }),
            ("released", |gib, frame| {
                gib.release(frame, ID);
            }),
        ];
        for (name, step) in steps {
            let mut gib = owned();
            assert!(agree(&gib), "{name}");
            step(&mut gib, frame);
            assert!(!agree(&gib), "{name}");
            // What a conversion has done is no obstacle to the next one.
            assert_eq!(gib.summary().is_quiet(KEY), name == "shared", "{name}");
            assert_eq!(gib.summary() == Summary::NOTHING, name != "shared", "{name}");
        }
    }

    #[test]
    fn a_lost_frame_silences_the_word_and_a_demotion_is_in_it() {
        let mut gib = owned();
        let (operation, _) = gib.begin_at_once(Span::WHOLE, ID, Intent::Share, 0).unwrap();
        assert!(gib.flip(operation, Span::WHOLE, Intent::Share));
        assert!(agree(&gib));
        assert_eq!(gib.summary().shareability(KEY), Some(Shareability::Shared));
        gib.demote(Span::block(3));
        assert!(agree(&gib) && !gib.summary().is_one_leaf(KEY));
        gib.promote(Span::WHOLE);
        assert!(agree(&gib) && gib.summary().is_one_leaf(KEY));
        let (operation, _) = gib.begin_at_once(Span::single(9), ID, Intent::Unshare, 0).unwrap();
        gib.finish(operation, Span::single(9), Ending::Fail);
        assert!(!agree(&gib));
    }

    #[test]
    fn a_word_that_says_what_is_not_so_is_found() {
        let mut gib = owned();
        let other = Summary(SummaryKey::new(AllocationId::new(8)).word());
        for wrong in
            [Summary::NOTHING, other, Summary(KEY.word() | SHARED), Summary(KEY.word() | DEMOTED), Summary(KEY.word() | MIXED)]
        {
            gib.check_summary(wrong).unwrap_err();
        }
        gib.check_summary(gib.summary()).unwrap();
        let quiet = gib.summary();
        let (first, _) = gib.begin_at_once(Span::single(5), ID, Intent::Share, 0).unwrap();
        let alone = Summary::alone(first);
        gib.check_summary(alone).unwrap();
        gib.check_summary(Summary::NOTHING).unwrap();
        gib.check_summary(quiet).unwrap_err();
        gib.check_summary(Summary::alone(OperationId::new(0, 99))).unwrap_err();
        // Not alone any more: poison, and another operation.
        gib.poison(Span::single(9));
        gib.check_summary(alone).unwrap_err();
        let mut gib = owned();
        let (first, _) = gib.begin_at_once(Span::single(5), ID, Intent::Share, 0).unwrap();
        gib.begin_at_once(Span::single(6), ID, Intent::Share, 0).unwrap();
        gib.check_summary(Summary::alone(first)).unwrap_err();
    }
}
