//! Every contender's bytes, counted in one way: the counting allocator of the tests, which here counts only when asked to, so
//! that it does not show in what is timed.

use pageless_tests::counting::Counting;
pub use pageless_tests::counting::{Counted, count};

/// The allocator of every program that links this crate.
#[global_allocator]
static COUNTING: Counting = Counting::WHEN_ASKED;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_and_what_was_there_at_once_are_counted_and_nothing_else() {
        let before = vec![1_u8; 1 << 20];
        let (kept, counted) = count(|| {
            drop(std::hint::black_box(vec![0_u8; 1 << 26]));
            let mut grown = vec![1_u8; 1 << 10];
            grown.resize(1 << 25, 1);
            grown
        });
        drop((std::hint::black_box(before), vec![1_u8; 1 << 20]));
        assert_eq!(counted, Counted { live: 1 << 25, peak: 1 << 26 });
        drop(kept);
    }
}
