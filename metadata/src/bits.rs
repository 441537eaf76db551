//! Ranges of bits in arrays of 64-bit words: the arithmetic that both planes and their leaves are written in.

/// 512 bits: one per 2 MiB block of a GiB, or one per frame of a block.
pub(crate) type Bits512 = [u64; 8];

/// The words that hold the bits `from..to`, each with the mask of those bits in it. Nothing when the range is empty.
#[inline]
pub(crate) fn word_masks(from: u32, to: u32) -> impl Iterator<Item = (usize, u64)> {
    let words = if from < to { from / 64..to.div_ceil(64) } else { 0..0 };
    words.map(move |word| {
        let low = u64::MAX << from.saturating_sub(word * 64);
        let high = u64::MAX >> ((word + 1) * 64).saturating_sub(to);
        (word as usize, low & high)
    })
}

/// The word that holds `bit`, and the bit's mask in it.
pub(crate) const fn place(bit: u32) -> (usize, u64) {
    ((bit / 64) as usize, 1 << (bit % 64))
}

/// Whether `bit` is set.
#[inline]
pub(crate) const fn has(bits: &Bits512, bit: u32) -> bool {
    let (word, mask) = place(bit);
    bits[word] & mask != 0
}

/// Whether a bit of `from..to` is set.
pub(crate) fn any(bits: &Bits512, from: u32, to: u32) -> bool {
    word_masks(from, to).any(|(word, mask)| bits[word] & mask != 0)
}

/// Writes `value` to the bits `from..to`, and counts those that had the other value.
#[inline]
pub(crate) fn fill(bits: &mut Bits512, from: u32, to: u32, value: bool) -> u32 {
    // One bit, the commonest case, needs no masks and no count of ones.
    if to - from == 1 {
        let (word, mask) = place(from);
        let changed = (bits[word] & mask != 0) != value;
        bits[word] ^= if changed { mask } else { 0 };
        return u32::from(changed);
    }
    let mut changed = 0;
    for (word, mask) in word_masks(from, to) {
        let old = bits[word];
        bits[word] = if value { old | mask } else { old & !mask };
        changed += (old ^ bits[word]).count_ones();
    }
    changed
}

/// The value that all bits of `from..to` have, unless both occur.
#[inline]
pub(crate) fn same(bits: &Bits512, from: u32, to: u32) -> Option<bool> {
    let first = has(bits, from);
    if to - from == 1 {
        return Some(first);
    }
    let all = if first { u64::MAX } else { 0 };
    word_masks(from, to).all(|(word, mask)| (bits[word] ^ all) & mask == 0).then_some(first)
}

/// The first bit at or after `from` that has `value`.
pub(crate) fn seek(bits: &Bits512, from: u32, value: bool) -> Option<u32> {
    word_masks(from, 512).find_map(|(word, mask)| {
        let found = if value { bits[word] } else { !bits[word] } & mask;
        // A word's number is below eight.
        #[allow(clippy::cast_possible_truncation)]
        (found != 0).then(|| word as u32 * 64 + found.trailing_zeros())
    })
}

/// The first and one past the last bit that is `value`, if those between them are too: none where there is no such bit, or more
/// than one run.
pub(crate) fn only_run(bits: &Bits512, value: bool) -> Option<(u32, u32)> {
    // From here on the bits that are looked for are ones.
    let words = bits.map(|word| if value { word } else { !word });
    let first = words.iter().position(|word| *word != 0)?;
    let last = words.iter().rposition(|word| *word != 0)?;
    let (low, high) = (words[first], words[last]);
    let one_run = match last - first {
        0 => low >> low.trailing_zeros() & (low >> low.trailing_zeros()).wrapping_add(1) == 0,
        _ => {
            // Ones up to the end of the first word, ones from the start of the last, and nothing else between.
            low | (low - 1) == u64::MAX
                && high & high.wrapping_add(1) == 0
                && words[first + 1..last].iter().all(|word| *word == u64::MAX)
        }
    };
    // A word's number is below eight.
    #[allow(clippy::cast_possible_truncation)]
    let (first, last) = (first as u32 * 64, last as u32 * 64);
    one_run.then(|| (first + low.trailing_zeros(), last + 64 - high.leading_zeros()))
}

/// The only bit that is set: none where there is none, or more than one. Without a branch for each word.
pub(crate) fn only_one(bits: &Bits512) -> Option<u32> {
    let all = bits.iter().fold(0, |all, word| all | word);
    if !all.is_power_of_two() {
        return None;
    }
    // Each word holds that one bit or nothing.
    let bit = all.trailing_zeros();
    let (mut words, mut last) = (0, 0);
    for (nth, word) in (0..).zip(bits) {
        let held = u32::from(word >> bit != 0);
        (words, last) = (words + held, last + held * nth);
    }
    (words == 1).then_some(last * 64 + bit)
}

/// The numbers of the bits that are set in `word`, which is the word with number `nth`.
#[inline]
pub(crate) fn ones(nth: usize, mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let low = (word != 0).then(|| word.trailing_zeros())?;
        word &= word - 1;
        // A word's number is below eight.
        #[allow(clippy::cast_possible_truncation)]
        Some(nth as u32 * 64 + low)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_name_exactly_the_bits_of_the_range() {
        for (from, to) in [(0, 1), (63, 64), (63, 65), (0, 512), (1, 511), (64, 128), (100, 100), (130, 131), (448, 512)] {
            let named: Vec<u32> = word_masks(from, to).flat_map(|(word, mask)| ones(word, mask)).collect();
            assert_eq!(named, (from..to).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_only_run_is_found_and_two_are_none() {
        for (from, to) in [(0, 1), (511, 512), (0, 512), (63, 65), (100, 300), (64, 128)] {
            let mut bits = [0; 8];
            fill(&mut bits, from, to, true);
            assert_eq!(only_run(&bits, true), Some((from, to)));
            assert_eq!(only_run(&bits.map(|word| !word), false), Some((from, to)));
            for hole in [from + 1, (from + to) / 2, to.saturating_sub(2)].into_iter().filter(|hole| from < *hole && hole + 1 < to)
            {
                fill(&mut bits, hole, hole + 1, false);
                assert_eq!(only_run(&bits, true), None, "{from}..{to} without {hole}");
                fill(&mut bits, hole, hole + 1, true);
            }
        }
        assert_eq!((only_run(&[0; 8], true), only_run(&[u64::MAX; 8], false)), (None, None));
    }

    #[test]
    fn the_only_bit_is_found_and_two_are_none() {
        for one in 0..512 {
            let mut bits = [0; 8];
            fill(&mut bits, one, one + 1, true);
            assert_eq!(only_one(&bits), Some(one));
            for other in (0..512).filter(|other| *other != one) {
                let mut two = bits;
                fill(&mut two, other, other + 1, true);
                assert_eq!(only_one(&two), None, "{one} and {other}");
            }
        }
        assert_eq!((only_one(&[0; 8]), only_one(&[u64::MAX; 8]), only_one(&[1; 8])), (None, None, None));
    }

    #[test]
    fn filling_counts_what_changed_and_seeking_finds_it() {
        let mut bits = [0; 8];
        assert_eq!(fill(&mut bits, 60, 70, true), 10);
        assert_eq!(fill(&mut bits, 50, 65, true), 10);
        assert_eq!((seek(&bits, 0, true), seek(&bits, 55, false)), (Some(50), Some(70)));
        assert_eq!(fill(&mut bits, 0, 512, false), 20);
        assert_eq!(seek(&bits, 0, true), None);
    }
}
