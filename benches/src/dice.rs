//! Random numbers that are the same in every run: splitmix64, with Vigna's constants.

/// A stream of numbers.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The stream of this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    #[inline]
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not 0. Uniform but for 2^-40 of a bias at the sizes used here.
    #[inline]
    pub fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound.max(1)
    }

    /// The numbers below `bound`, each with this probability, ascending.
    pub fn pick(mut self, bound: u64, probability: f64) -> impl Iterator<Item = u64> {
        let (mut at, log) = (0_u64, (1.0 - probability).ln());
        std::iter::from_fn(move || {
            // Geometric gaps: one number rolled for each that is picked.
            #[allow(clippy::cast_precision_loss)]
            let uniform = ((self.roll() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let gap = (uniform.ln() / log) as u64;
            let picked = at.checked_add(if probability > 0.0 { gap } else { bound })?;
            at = picked.checked_add(1)?;
            (picked < bound).then_some(picked)
        })
    }

    /// The values in another order, each equally likely.
    pub fn shuffle<T>(&mut self, values: &mut [T]) {
        for nth in (1..values.len()).rev() {
            let other = usize::try_from(self.below(nth as u64 + 1)).unwrap_or(0);
            values.swap(nth, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_picked_as_were_asked_for_and_all_are_within_the_bound() {
        let picked: Vec<u64> = Dice::new(1).pick(1_000_000, 0.1).collect();
        assert!((97_000..103_000).contains(&picked.len()), "{}", picked.len());
        assert!(picked.is_sorted_by(|a, b| a < b) && picked.iter().all(|&picked| picked < 1_000_000));
        assert_eq!(Dice::new(1).pick(1_000_000, 0.0).count(), 0);
    }

    #[test]
    fn shuffling_keeps_every_value() {
        let mut values: Vec<u32> = (0..1000).collect();
        Dice::new(2).shuffle(&mut values);
        assert!(!values.is_sorted());
        values.sort_unstable();
        assert_eq!(values, (0..1000).collect::<Vec<_>>());
    }
}
