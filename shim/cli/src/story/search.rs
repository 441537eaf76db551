//! The search for bytes of an earlier owner: every look is counted, and every byte that is not zero.

/// What was searched, and what was found.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Search {
    pub(crate) checked: u64,
    pub(crate) stale: u64,
}

impl Search {
    /// Looks at memory that must be empty: new to its owner, or new to the host.
    pub(crate) fn look(&mut self, bytes: &[u8]) {
        self.checked += bytes.len() as u64;
        self.stale += bytes.iter().filter(|byte| **byte != 0).count() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_that_is_not_zero_is_found() {
        let mut search = Search::default();
        search.look(&[0; 4096]);
        search.look(b"\0vm-a\0");
        assert_eq!((search.checked, search.stale), (4102, 4));
    }
}
