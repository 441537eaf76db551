//! Contents that say which page they belong to, so that a page found in another place is noticed.

/// Bytes of a page.
const PAGE: usize = 4096;

/// What a guest writes into its page `page` of the set `seed`: the two numbers, over and over.
#[must_use]
pub fn pattern(seed: u64, page: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(PAGE);
    for word in 0..PAGE as u64 / 32 {
        for number in [seed, page, word, !seed] {
            bytes.extend(number.to_le_bytes());
        }
    }
    bytes
}

/// What the owner of the memory writes there in return.
#[must_use]
pub fn answer(seed: u64, page: u64) -> Vec<u8> {
    pattern(!seed, page)
}
