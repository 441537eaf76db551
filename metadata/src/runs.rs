//! Run sets: several runs of frames, sorted and disjoint, with the algebra that the verbs are written in.
//!
//! A [`RunSet`] is always normalised: runs ascend, and neighbours that touch are one run. Two sets hold the same frames
//! exactly when they are equal.

use std::fmt;

use smallvec::SmallVec;

use crate::{Pfn, PfnRange};

/// Sorted, disjoint, non-touching runs of frames. May be empty.
#[derive(Clone, PartialEq, Eq, Default, Hash)]
pub struct RunSet {
    // One run inline: what nearly every answer holds, and every word more is one to write.
    runs: SmallVec<[PfnRange; 1]>,
}

impl RunSet {
    /// The set without frames.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is no frame.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The runs, ascending.
    #[must_use]
    pub fn runs(&self) -> &[PfnRange] {
        &self.runs
    }

    /// The number of frames in all runs together.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.runs.iter().map(|run| run.frames()).sum()
    }

    /// Whether `pfn` is in one of the runs.
    #[must_use]
    pub fn contains(&self, pfn: Pfn) -> bool {
        self.contains_range(PfnRange::single(pfn))
    }

    /// Whether all frames of `range` are in the set.
    #[must_use]
    pub fn contains_range(&self, range: PfnRange) -> bool {
        self.first_overlap(range).is_some_and(|at| self.runs[at].contains_range(range))
    }

    /// Whether the set and `range` share a frame.
    #[must_use]
    pub fn overlaps(&self, range: PfnRange) -> bool {
        self.first_overlap(range).is_some()
    }

    /// Adds the frames of `range`.
    pub fn insert(&mut self, range: PfnRange) {
        // Everything that overlaps or touches becomes one run.
        let from = self.runs.partition_point(|run| run.end() < range.start());
        let to = self.runs.partition_point(|run| run.start() <= range.end());
        let merged = self.runs[from..to].iter().fold(range, |hull, run| hull.hull(*run));
        if from == to {
            self.runs.insert(from, merged);
        } else {
            self.runs[from] = merged;
            self.runs.drain(from + 1..to);
        }
    }

    /// Takes the frames of `range` out.
    pub fn remove(&mut self, range: PfnRange) {
        let Some(from) = self.first_overlap(range) else { return };
        let to = self.runs.partition_point(|run| run.start() < range.end());
        let [before, _] = self.runs[from].subtract(range);
        let [_, after] = self.runs[to - 1].subtract(range);
        let kept: SmallVec<[PfnRange; 1]> = before.into_iter().chain(after).collect();
        self.runs.drain(from..to);
        self.runs.insert_many(from, kept);
    }

    /// The frames of either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let (mut large, small) = if self.runs.len() < other.runs.len() { (other.clone(), self) } else { (self.clone(), other) };
        small.runs.iter().for_each(|run| large.insert(*run));
        large
    }

    /// The frames of this set that `other` lacks.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let mut left = self.clone();
        other.runs.iter().for_each(|run| left.remove(*run));
        left
    }

    /// The frames of both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.runs.iter().flat_map(|run| other.clipped(*run)).collect()
    }

    /// The parts of the runs that lie in `range`, ascending.
    pub fn clipped(&self, range: PfnRange) -> impl Iterator<Item = PfnRange> + '_ {
        let from = self.runs.partition_point(|run| run.end() <= range.start());
        self.runs[from..].iter().map_while(move |run| run.intersect(range))
    }

    /// The runs of `range` that the set does not hold, ascending.
    #[must_use]
    pub fn gaps_in(&self, range: PfnRange) -> Self {
        Self::from(range).difference(&self.clipped(range).collect())
    }

    fn first_overlap(&self, range: PfnRange) -> Option<usize> {
        let at = self.runs.partition_point(|run| run.end() <= range.start());
        self.runs.get(at).filter(|run| run.overlaps(range)).map(|_| at)
    }
}

impl From<PfnRange> for RunSet {
    fn from(range: PfnRange) -> Self {
        Self { runs: SmallVec::from_buf([range]) }
    }
}

impl FromIterator<PfnRange> for RunSet {
    fn from_iter<I: IntoIterator<Item = PfnRange>>(ranges: I) -> Self {
        let mut set = Self::new();
        set.extend(ranges);
        set
    }
}

impl Extend<PfnRange> for RunSet {
    fn extend<I: IntoIterator<Item = PfnRange>>(&mut self, ranges: I) {
        ranges.into_iter().for_each(|range| self.insert(range));
    }
}

impl<'a> IntoIterator for &'a RunSet {
    type Item = PfnRange;
    type IntoIter = std::iter::Copied<std::slice::Iter<'a, PfnRange>>;

    fn into_iter(self) -> Self::IntoIter {
        self.runs.iter().copied()
    }
}

impl fmt::Display for RunSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Runs printed before the rest is only counted: an error message stays one line.
        const SHOWN: usize = 8;
        for (nth, run) in self.runs.iter().take(SHOWN).enumerate() {
            write!(f, "{}{run}", if nth == 0 { "" } else { ", " })?;
        }
        match self.runs.len() {
            0 => f.write_str("no frames"),
            n if n > SHOWN => write!(f, " and {} more runs ({} frames in all)", n - SHOWN, self.frames()),
            _ => write!(f, " ({} frames)", self.frames()),
        }
    }
}

impl fmt::Debug for RunSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(&self.runs).finish()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn arb_range() -> impl Strategy<Value = PfnRange> {
        (0u64..64, 1u64..12).prop_map(|(start, len)| PfnRange::from_len(Pfn::new(start), len).unwrap())
    }

    fn frames(set: &RunSet) -> BTreeSet<Pfn> {
        set.into_iter().flat_map(PfnRange::iter).collect()
    }

    fn normalised(set: &RunSet) -> bool {
        set.runs().windows(2).all(|pair| pair[0].end() < pair[1].start())
    }

    proptest! {
        #[test]
        fn a_run_set_equals_the_plain_set_of_its_frames(edits in prop::collection::vec((any::<bool>(), arb_range()), 0..40)) {
            let (mut set, mut plain) = (RunSet::new(), BTreeSet::new());
            for (add, range) in edits {
                if add { set.insert(range); plain.extend(range.iter()) } else { set.remove(range); plain.retain(|pfn| !range.contains(*pfn)) }
                prop_assert!(normalised(&set));
                prop_assert_eq!(frames(&set), plain.clone());
            }
        }

        #[test]
        fn the_algebra_equals_that_of_plain_sets(a in prop::collection::vec(arb_range(), 0..8), b in prop::collection::vec(arb_range(), 0..8)) {
            let (a, b): (RunSet, RunSet) = (a.into_iter().collect(), b.into_iter().collect());
            let (pa, pb) = (frames(&a), frames(&b));
            prop_assert_eq!(frames(&a.union(&b)), pa.union(&pb).copied().collect());
            prop_assert_eq!(frames(&a.difference(&b)), pa.difference(&pb).copied().collect());
            prop_assert_eq!(frames(&a.intersection(&b)), pa.intersection(&pb).copied().collect());
            prop_assert!(normalised(&a.union(&b)) && normalised(&a.difference(&b)) && normalised(&a.intersection(&b)));
        }
    }
}
