//! Which blocks of a GiB are mapped by smaller leaves than they could be.
//!
//! A GiB starts with one leaf of 1 GiB. A conversion demotes only the leaves that straddle its edges: the GiB into 2 MiB
//! leaves, and the block at the head and at the tail into 4 KiB leaves. The interior is never touched.

use crate::bits::{self, Bits512};
use crate::span::Shape;
use crate::{BLOCK_FRAMES, GIB_BLOCKS, Order, Span};

/// The demotions of one GiB.
#[derive(Debug, Default)]
pub struct Demoted {
    // Boxed and absent while no block is broken: most GiBs of most hosts. The GiB is cut whenever a block is broken.
    blocks: Option<Box<Bits512>>,
    /// Two facts, because a GiB's record has no room for another word: the top bit says that the 1 GiB leaf is cut, the rest
    /// counts the operations that began in the GiB.
    word: u64,
}

/// The top bit of the word.
const CUT: u64 = 1 << 63;

/// What a demotion would add: the cost that `plan` reports.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct NewDemotions {
    /// Whether the 1 GiB leaf is cut into 2 MiB leaves.
    pub gib: bool,
    /// The 2 MiB blocks that are cut into 4 KiB leaves: at most the head's and the tail's.
    pub blocks: [Option<u32>; 2],
}

impl Demoted {
    /// One leaf of 1 GiB.
    #[must_use]
    pub const fn new() -> Self {
        Self { blocks: None, word: 0 }
    }

    /// The largest leaf that maps `frame` now.
    #[must_use]
    pub fn leaf(&self, frame: u32) -> Order {
        match (self.is_gib_demoted(), self.is_broken(frame / BLOCK_FRAMES)) {
            (_, true) => Order::BASE,
            (true, false) => Order::MIB2,
            (false, false) => Order::GIB1,
        }
    }

    /// What making the edges of `span` leaf edges would demote anew.
    #[must_use]
    #[inline]
    pub fn would_demote(&self, span: Span) -> NewDemotions {
        if span.is_whole() {
            return NewDemotions::default();
        }
        let blocks = span.partial_blocks().map(|block| block.filter(|&block| !self.is_broken(block)));
        NewDemotions { gib: !self.is_gib_demoted(), blocks }
    }

    /// Whether nothing straddles the edges of `span`, which lies in one block, because that block is broken already.
    #[inline]
    pub(crate) fn is_broken_at(&self, span: Span) -> bool {
        span.is_in_one_block() && self.is_broken(span.start() / BLOCK_FRAMES)
    }

    /// [`demote`](Self::demote) of a usual span, where that allocates nothing; false, and nothing done, where it would.
    #[inline(always)]
    pub(crate) fn demote_quickly(&mut self, shape: Shape) -> bool {
        match shape {
            Shape::Whole => true,
            Shape::Block(_) => {
                self.word |= CUT;
                true
            }
            Shape::Frame(frame) => self.is_broken(frame / BLOCK_FRAMES),
        }
    }

    /// [`demote`](Self::demote) for whom it mostly is nothing new.
    #[inline(always)]
    pub(crate) fn demote_again(&mut self, span: Span) {
        if span.is_whole() || self.is_broken_at(span) {
            return;
        }
        if span.is_made_of_blocks() {
            // Only the GiB's leaf straddles its edges.
            self.word |= CUT;
            return;
        }
        self.demote(span);
    }

    /// Demotes the leaves that straddle the edges of `span`.
    pub fn demote(&mut self, span: Span) -> NewDemotions {
        let new = self.would_demote(span);
        self.word |= if new.gib { CUT } else { 0 };
        for block in new.blocks.into_iter().flatten() {
            bits::fill(self.blocks.get_or_insert_default(), block, block + 1, true);
        }
        new
    }

    /// One 2 MiB leaf maps the block again.
    pub fn promote_block(&mut self, block: u32) {
        if let Some(blocks) = &mut self.blocks {
            let block = block.min(GIB_BLOCKS - 1);
            bits::fill(blocks, block, block + 1, false);
            if **blocks == [0; 8] {
                self.blocks = None;
            }
        }
    }

    /// One 1 GiB leaf maps everything again.
    pub fn promote_gib(&mut self) {
        (self.blocks, self.word) = (None, self.word & !CUT);
    }

    /// Whether the 1 GiB leaf has been cut.
    #[must_use]
    #[inline]
    pub const fn is_gib_demoted(&self) -> bool {
        self.word & CUT != 0
    }

    /// One more operation began in the GiB: how many that makes.
    #[inline]
    pub(crate) fn next_turn(&mut self) -> u64 {
        self.word += 1;
        self.word & !CUT
    }

    /// The number of 2 MiB blocks that are mapped by 4 KiB leaves.
    #[must_use]
    pub fn broken_blocks(&self) -> u32 {
        self.blocks.as_ref().map_or(0, |blocks| blocks.iter().map(|word| word.count_ones()).sum())
    }

    /// Bytes on the heap.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.blocks.as_ref().map_or(0, |_| size_of::<Bits512>())
    }

    #[inline]
    fn is_broken(&self, block: u32) -> bool {
        self.blocks.as_ref().is_some_and(|blocks| bits::has(blocks, block.min(GIB_BLOCKS - 1)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_the_edges_of_a_range_are_demoted() {
        let mut demoted = Demoted::new();
        assert_eq!(demoted.demote(Span::WHOLE), NewDemotions::default());
        assert_eq!(demoted.leaf(0), Order::GIB1);
        let long = Span::new(100, 5 * 512 + 7).unwrap();
        assert_eq!(demoted.demote(long), NewDemotions { gib: true, blocks: [Some(0), Some(5)] });
        assert_eq!(demoted.demote(long), NewDemotions::default());
        assert_eq!(
            [0, 512, 5 * 512, 6 * 512].map(|frame| demoted.leaf(frame)),
            [Order::BASE, Order::MIB2, Order::BASE, Order::MIB2]
        );
        assert_eq!(demoted.broken_blocks(), 2);
        demoted.promote_block(0);
        demoted.promote_block(5);
        assert_eq!((demoted.broken_blocks(), demoted.heap_bytes(), demoted.leaf(0)), (0, 0, Order::MIB2));
    }
}
