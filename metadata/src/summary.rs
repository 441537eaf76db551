//! What can be said of a whole GiB in one word, for those who ask without the GiB's lock.
//!
//! Most GiBs of most hosts are one owner's, sound, unheld, of one shareability, with nothing under way. Then everything that
//! a page-fault path wants to know fits a word, which the GiB's user writes under the lock whenever it changed something, and
//! reads without it. The word says so, or it says nothing: then the answer is under the lock.

use crate::{AllocationId, Gib, Shareability, Span};

/// One GiB in a word.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Summary(u64);

const SHARED: u64 = 1;
const DEMOTED: u64 = 2;
const OWNER_SHIFT: u32 = 2;

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

    /// Whether all of the GiB belongs to `allocation` and could be mapped by one leaf: sound, of one known shareability, no
    /// hold, nothing converting. False also where the word says nothing.
    #[must_use]
    #[inline]
    pub const fn could_be_one_leaf(self, allocation: AllocationId) -> bool {
        // An id of 0 or past 62 bits is never written, and never equal to what is.
        self.0 >> OWNER_SHIFT == allocation.get() && self.0 != 0
    }

    /// Whether one leaf may map all of it now: [`could_be_one_leaf`](Self::could_be_one_leaf), and not demoted.
    #[must_use]
    #[inline]
    pub const fn is_one_leaf(self, allocation: AllocationId) -> bool {
        self.could_be_one_leaf(allocation) && self.0 & DEMOTED == 0
    }

    /// Who may reach every frame of it, if all of it is `allocation`'s.
    #[must_use]
    #[inline]
    pub const fn shareability(self, allocation: AllocationId) -> Option<Shareability> {
        match (self.could_be_one_leaf(allocation), self.0 & SHARED) {
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
        let Some(shared) = self.share.whole() else { return Summary::NOTHING };
        let Some(owner) = self.tenure.live_owner_of_all() else { return Summary::NOTHING };
        let plain = self.converting.is_empty() && self.rare.as_ref().is_none_or(|rare| rare.is_empty());
        if !plain || owner.get() >> (u64::BITS - OWNER_SHIFT) != 0 {
            return Summary::NOTHING;
        }
        let demoted = if self.demoted.is_gib_demoted() { DEMOTED } else { 0 };
        Summary(owner.get() << OWNER_SHIFT | demoted | if shared { SHARED } else { 0 })
    }

    /// Whether the stored `summary` says nothing but what is so.
    ///
    /// # Errors
    ///
    /// What it should say.
    pub fn check_summary(&self, summary: Summary) -> Result<(), String> {
        let now = self.summary();
        if now == summary {
            return Ok(());
        }
        Err(format!("the summary of {:?} says {summary:?}, the planes say {now:?}", Span::WHOLE))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{Ending, HoldId, HolderId, Intent, Order};

    const ID: AllocationId = AllocationId::new(7);

    fn owned() -> Gib {
        let mut gib = Gib::new();
        gib.allocate(Span::WHOLE, ID, Shareability::Private);
        gib
    }

    /// What the word says is what the planes say; where they say yes, the word may say nothing only for a reason.
    fn agree(gib: &Gib) -> bool {
        let summary = gib.summary();
        let (one_leaf, order) = (gib.could_be_one_leaf(Span::WHOLE, ID), gib.max_order(0, ID));
        assert_eq!(summary.could_be_one_leaf(ID), one_leaf, "{gib:?}");
        assert_eq!(summary.is_one_leaf(ID), order == Some(Order::GIB1), "{gib:?}");
        assert!(summary.shareability(ID).is_none_or(|shareability| shareability == gib.shareability(12)));
        assert!(!summary.could_be_one_leaf(AllocationId::new(8)));
        one_leaf
    }

    #[test]
    fn an_empty_gib_says_nothing_even_to_nobody() {
        assert_eq!(Gib::new().summary(), Summary::NOTHING);
        assert!(!Summary::NOTHING.could_be_one_leaf(AllocationId::new(0)));
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
            assert_eq!(gib.summary(), Summary::NOTHING, "{name}");
        }
    }

    #[test]
    fn a_lost_frame_silences_the_word_and_a_demotion_is_in_it() {
        let mut gib = owned();
        let (operation, _) = gib.begin_at_once(Span::WHOLE, ID, Intent::Share, 0).unwrap();
        assert!(gib.flip(operation, Span::WHOLE, Intent::Share));
        assert!(agree(&gib));
        assert_eq!(gib.summary().shareability(ID), Some(Shareability::Shared));
        gib.demote(Span::block(3));
        assert!(agree(&gib) && !gib.summary().is_one_leaf(ID));
        gib.promote(Span::WHOLE);
        assert!(agree(&gib) && gib.summary().is_one_leaf(ID));
        let (operation, _) = gib.begin_at_once(Span::single(9), ID, Intent::Unshare, 0).unwrap();
        gib.finish(operation, Span::single(9), Ending::Fail);
        assert!(!agree(&gib));
    }
}
