//! What the model can hand out: whether a request can be met, and whether what the pool chose was its to choose.

use super::{Held, Model};
use crate::{AllocationId, FrameEvent, Order, Pfn, PfnRange, Shareability};

/// Which node the frames come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FromNode {
    /// Any.
    Any,
    /// This one if it has enough.
    Prefer(u32),
    /// This one or none.
    Require(u32),
}

/// What somebody asks for.
#[derive(Clone, Debug)]
pub struct Demand {
    /// Frames; a positive multiple of the order's.
    pub frames: u64,
    /// The smallest block that may be used.
    pub order: Order,
    /// One run.
    pub contiguous: bool,
    /// Where from.
    pub node: FromNode,
    /// Whose.
    pub owner: String,
    /// How the frames start.
    pub starts: Shareability,
    /// Not zeroed when shared.
    pub keeps_contents: bool,
}

impl Model {
    /// Whether the demand can be met now.
    #[must_use]
    pub fn can_allocate(&self, demand: &Demand) -> bool {
        let only = if let FromNode::Require(node) = demand.node { Some(node) } else { None };
        if demand.contiguous {
            return self.has_run(demand, only);
        }
        self.free_blocks(demand.order, only) * demand.order.frames() >= demand.frames
    }

    /// Gives `runs`, which the pool chose in guest order, to the owner, or says why it must not have chosen them.
    pub fn allocate(&mut self, id: AllocationId, demand: &Demand, runs: &[PfnRange]) -> Result<(), String> {
        self.check_choice(demand, runs)?;
        for (offset, pfn) in (0..).zip(runs.iter().flat_map(|run| run.iter())) {
            self.hand_out(pfn, id, offset, demand.starts);
        }
        runs.iter().for_each(|run| self.map_afresh(*run));
        let held = Held {
            owner: demand.owner.clone(),
            live: true,
            replaced: 0,
            keeps_contents: demand.keeps_contents,
            places: Self::places(runs),
            mappings: Vec::new(),
        };
        self.allocations.insert(id, held);
        Ok(())
    }

    pub(super) fn hand_out(&mut self, pfn: Pfn, id: AllocationId, offset: u64, starts: Shareability) {
        self.step(pfn, FrameEvent::Allocate(starts));
        let frame = self.frames.get_mut(&pfn).expect("a frame of the pool");
        (frame.tenant, frame.offset) = (Some(id), offset);
    }

    fn check_choice(&self, demand: &Demand, runs: &[PfnRange]) -> Result<(), String> {
        let frames: Vec<Pfn> = runs.iter().flat_map(|run| run.iter()).collect();
        let distinct: std::collections::BTreeSet<&Pfn> = frames.iter().collect();
        let sound = |pfn: &&Pfn| self.frames.get(pfn).is_some_and(|frame| frame.state.assignable());
        if let Some(pfn) = frames.iter().find(|pfn| !sound(pfn)) {
            return Err(format!("{pfn} is not assignable"));
        }
        if distinct.len() != frames.len() || frames.len() as u64 != demand.frames {
            return Err(format!("{} frames, {} of them distinct, for {demand:?}", frames.len(), distinct.len()));
        }
        let in_blocks = |run: &&PfnRange| run.start().is_aligned(demand.order) && run.end().is_aligned(demand.order);
        if let Some(run) = runs.iter().find(|run| !in_blocks(run)) {
            return Err(format!("{run} is not made of blocks of {}", demand.order));
        }
        if demand.contiguous && runs.len() != 1 {
            return Err(format!("{runs:?} is not one run"));
        }
        let home = match demand.node {
            FromNode::Any => None,
            FromNode::Require(node) => Some(node),
            FromNode::Prefer(node) => {
                self.can_allocate(&Demand { node: FromNode::Require(node), ..demand.clone() }).then_some(node)
            }
        };
        match home.and_then(|home| frames.iter().find(|pfn| self.node_of(**pfn) != home)) {
            Some(pfn) => Err(format!("{pfn} is on node {}, for {demand:?}", self.node_of(*pfn))),
            None => Ok(()),
        }
    }

    /// Free aligned blocks, of one node or of all.
    pub(super) fn free_blocks(&self, order: Order, only: Option<u32>) -> u64 {
        let nodes = self.nodes.iter().filter(|(number, _)| only.is_none_or(|only| only == *number));
        nodes.map(|(_, span)| span.whole_blocks(order).map_or(0, |whole| self.free_blocks_in(whole, order))).sum()
    }

    fn free_blocks_in(&self, whole: PfnRange, order: Order) -> u64 {
        let is_free = |block: &PfnRange| block.iter().all(|pfn| self.frames[&pfn].state.assignable());
        whole.pieces(order).filter(is_free).count() as u64
    }

    fn has_run(&self, demand: &Demand, only: Option<u32>) -> bool {
        self.nodes.iter().filter(|(number, _)| only.is_none_or(|only| only == *number)).any(|(_, span)| {
            let mut free = 0;
            // Backwards, so that `free` is how many free frames begin here.
            span.iter().collect::<Vec<_>>().into_iter().rev().any(|pfn| {
                free = if self.frames[&pfn].state.assignable() { free + 1 } else { 0 };
                free >= demand.frames && pfn.is_aligned(demand.order)
            })
        })
    }
}
