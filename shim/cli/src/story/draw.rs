//! Everything that is drawn by lot: one seed, one tour.

use std::collections::BTreeSet;

/// Numbers that follow from a seed (splitmix64, Vigna's constants).
#[derive(Clone, Debug)]
pub(crate) struct Draw(u64);

impl Draw {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`, which is at least 1.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound.max(1)
    }

    /// Up to `count` different numbers below `bound`, in the order drawn; fewer where there are not twice as many.
    pub(crate) fn distinct(&mut self, count: u64, bound: u64) -> Vec<u64> {
        let (count, mut seen) = (count.min(bound / 2), BTreeSet::new());
        let mut drawn = Vec::new();
        while (drawn.len() as u64) < count {
            let number = self.below(bound);
            if seen.insert(number) {
                drawn.push(number);
            }
        }
        drawn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_the_same_numbers_and_another_seed_others() {
        let drawn = |seed| Draw::new(seed).distinct(50, 1000);
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
        assert_eq!(drawn(7).iter().collect::<BTreeSet<_>>().len(), 50);
        assert!(drawn(7).iter().all(|number| *number < 1000));
        assert_eq!(Draw::new(1).distinct(10, 4).len(), 2);
        assert_eq!(Draw::new(1).below(0), 0);
    }
}
