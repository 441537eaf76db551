//! The model's leaves: which of them are cut, and what could be one leaf.

use super::{Model, OpenOperation, Refused, Spot, operation::Begun};
use crate::{AllocationId, FRAME_BYTES, Intent, Order, Pfn, PfnRange, Purpose, Shareability};

/// The leaves that a conversion would cut.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PlannedCuts {
    /// Leaves of 1 GiB.
    pub gibs: Vec<PfnRange>,
    /// Leaves of 2 MiB.
    pub blocks: Vec<PfnRange>,
}

impl Model {
    /// The leaves that a conversion of the range would cut now.
    pub fn would_cut(&self, id: AllocationId, range: &std::ops::Range<u64>) -> Result<PlannedCuts, Refused> {
        let spots = self.spots(id, range)?;
        let mut after = self.clone();
        after.cut_around(id, &spots);
        let block = |number: u64, order: Order| PfnRange::block(Pfn::new(number * order.frames()), order);
        let mut cuts = PlannedCuts {
            gibs: after.cut_gibs.difference(&self.cut_gibs).map(|(_, number)| block(*number, Order::GIB1)).collect(),
            blocks: after.cut_blocks.difference(&self.cut_blocks).map(|(_, number)| block(*number, Order::MIB2)).collect(),
        };
        // Two nodes may share a GiB.
        for blocks in [&mut cuts.gibs, &mut cuts.blocks] {
            blocks.sort_unstable();
            blocks.dedup();
        }
        Ok(cuts)
    }

    /// Begins `demote`: the leaves around the block at `offset` are cut until `to` is the largest.
    pub fn begin_demote(&mut self, id: AllocationId, offset: u64, to: Order) -> Result<OpenOperation, Refused> {
        let start = offset - offset % FRAME_BYTES;
        let frame = self.spots(id, &(start..start.saturating_add(FRAME_BYTES)))?;
        let spots = self.block(id, start, to).unwrap_or(frame);
        self.resize(id, spots)
    }

    /// Begins `promote`, and says which block it is about.
    pub fn begin_promote(&mut self, id: AllocationId, offset: u64, order: Order) -> Result<(OpenOperation, PfnRange), Refused> {
        self.promotable(id, offset, order)?;
        let start = offset - offset % order.bytes();
        let spots = self.block(id, start, order).ok_or(Refused::NotOneLeaf { offset: start, order })?;
        let block = PfnRange::block(spots[0].1, order);
        Ok((self.resize(id, spots)?, block))
    }

    fn resize(&mut self, id: AllocationId, spots: Vec<Spot>) -> Result<OpenOperation, Refused> {
        match self.begin_on(id, spots, Intent::Resize, None)? {
            Begun::Open(operation) => Ok(operation),
            Begun::AlreadySo => Err(Refused::Empty),
        }
    }

    /// Every mapping has cut the leaves around these frames of the allocation.
    pub fn demoted(&mut self, id: AllocationId, frames: &[Pfn]) {
        let spots: Vec<Spot> = self.all_spots(id).into_iter().filter(|(_, pfn)| frames.contains(pfn)).collect();
        self.cut_around(id, &spots);
    }

    /// Every mapping has made one leaf of the block.
    pub fn promoted(&mut self, block: PfnRange) {
        let node = self.node_of(block.start());
        if block.frames() == Order::GIB1.frames() {
            self.cut_gibs.remove(&(node, number(block.start(), Order::GIB1)));
            self.cut_blocks.retain(|(on, at)| *on != node || !block.contains(Pfn::new(at * Order::MIB2.frames())));
        } else if block.frames() == Order::MIB2.frames() {
            self.cut_blocks.remove(&(node, number(block.start(), Order::MIB2)));
        }
    }

    /// The frames of the block that `demote` of `offset` would work on.
    #[must_use]
    pub fn demotes(&self, id: AllocationId, offset: u64, to: Order) -> Vec<Pfn> {
        let start = offset - offset % FRAME_BYTES;
        let one = self.spots(id, &(start..start.saturating_add(FRAME_BYTES))).unwrap_or_default();
        self.block(id, start, to).unwrap_or(one).into_iter().map(|(_, pfn)| pfn).collect()
    }

    /// Whether the block around `offset` could be one leaf.
    pub fn promotable(&self, id: AllocationId, offset: u64, order: Order) -> Result<(), Refused> {
        let start = offset - offset % order.bytes();
        self.spots(id, &(start..start.saturating_add(order.bytes())))?;
        let not_one = Refused::NotOneLeaf { offset: start, order };
        let spots = self.block(id, start, order).ok_or(not_one.clone())?;
        self.obstacle(id, &spots, Purpose::Change)?;
        if self.uniform(&spots) { Ok(()) } else { Err(not_one) }
    }

    /// The largest leaf that may map `offset` now.
    pub fn max_mapping_order(&self, id: AllocationId, offset: u64) -> Result<Order, Refused> {
        let start = offset - offset % FRAME_BYTES;
        let spots = self.spots(id, &(start..start.saturating_add(FRAME_BYTES)))?;
        self.obstacle(id, &spots, Purpose::Use)?;
        let (node, pfn) = (self.node_of(spots[0].1), spots[0].1);
        let whole = !self.cut_gibs.contains(&(node, number(pfn, Order::GIB1)));
        let block = !self.cut_blocks.contains(&(node, number(pfn, Order::MIB2)));
        let uncut = |order: Order| match order {
            Order::GIB1 => whole && block,
            Order::MIB2 => block,
            _ => true,
        };
        let fits = |order: &Order| *order == Order::BASE || (uncut(*order) && self.promotable(id, start, *order).is_ok());
        Ok(Order::DESCENDING.into_iter().find(fits).unwrap_or(Order::BASE))
    }

    fn uniform(&self, spots: &[Spot]) -> bool {
        let first = self.frames[&spots[0].1].state.shareability;
        first != Shareability::Unknown && spots.iter().all(|(_, pfn)| self.frames[pfn].state.shareability == first)
    }

    /// The block of `order` around `offset`, if it is one run, aligned alike in guest and pool.
    fn block(&self, id: AllocationId, offset: u64, order: Order) -> Option<Vec<Spot>> {
        let start = offset - offset % order.bytes();
        let spots = self.spots(id, &(start..start.saturating_add(order.bytes()))).ok()?;
        let joined = spots.windows(2).all(|pair| self.is_joined(id, pair[0], pair[1]));
        (joined && spots[0].1.is_aligned(order)).then_some(spots)
    }

    /// Nothing is cut any more where a new owner got whole leaves.
    pub(super) fn map_afresh(&mut self, run: PfnRange) {
        for order in [Order::GIB1, Order::MIB2] {
            let whole = run.whole_blocks(order).into_iter().flat_map(|whole| whole.pieces(order)).collect::<Vec<_>>();
            whole.into_iter().for_each(|block| self.promoted(block));
        }
    }

    /// Cuts the leaves that straddle the edges of every run of the spots, in each GiB and node.
    pub(super) fn cut_around(&mut self, id: AllocationId, spots: &[Spot]) {
        let cuts: Vec<(u32, Pfn, Pfn)> = spots
            .chunk_by(|one, next| self.is_joined(id, *one, *next))
            .map(|run| (self.node_of(run[0].1), run[0].1, run[run.len() - 1].1.add(1)))
            .collect();
        for (node, start, end) in cuts {
            if start.is_aligned(Order::GIB1) && end.is_aligned(Order::GIB1) {
                continue;
            }
            self.cut_gibs.insert((node, number(start, Order::GIB1)));
            for edge in [start, end] {
                if !edge.is_aligned(Order::MIB2) {
                    self.cut_blocks.insert((node, number(edge, Order::MIB2)));
                }
            }
        }
    }
}

const fn number(pfn: Pfn, order: Order) -> u64 {
    pfn.get() >> order.log2()
}
