//! The model twin: the pool's verbs written the dumb way, for the tests to compare the pool with.
//!
//! One [`FrameState`] per frame in an ordered map, moved only by [`FrameState::after`]; beside it who has the frame, who holds
//! it, how many map guards are out on it and which operation marked it. Every question is answered by looking at every frame.
//! Nothing here is fast, concurrent or bounded, and nothing is shared with the planes: where the two disagree, one is wrong.
//!
//! Use it like this: call the model's verb, call the pool's, compare. What mappings and the backing answer comes from an
//! [`Oracle`], which must give the model and the pool the same answers. A verb that asks mappings has two halves,
//! [`Model::begin`] and [`Model::end`], so that other verbs can meet it half-way; [`Model::reclaim`] runs in one go.
//!
//! The model panics when it is asked for something that the transition table forbids: then the model itself is wrong.
#![allow(clippy::expect_used, reason = "a model that was asked for the impossible must not go on; only tests use it")]

mod leaf;
mod obstacle;
mod operation;
mod oracle;
mod owner;
mod reclaim;
mod supply;

use std::collections::{BTreeMap, BTreeSet};

pub use leaf::PlannedCuts;
pub use obstacle::Refused;
pub use operation::{Begun, Ended, OpenOperation};
pub use oracle::{Answer, NoProof, Oracle, Prepared};
pub use reclaim::{Reclaimed, Waiting};
pub use supply::{Demand, FromNode};

use crate::{AllocationId, FrameEvent, FrameState, HoldId, HolderId, Occupancy, Order, Pfn, PfnRange, RunSet, Withdrawal};

/// All that the model knows of one frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ModelFrame {
    /// Its state on every axis.
    pub state: FrameState,
    /// Who has it, or had it last if it is released.
    pub tenant: Option<AllocationId>,
    /// Where it is, or was, in that allocation, in frames.
    pub offset: u64,
    /// Who holds it.
    pub holds: Vec<(HoldId, HolderId)>,
    /// How many map guards are out on it.
    pub guards: u32,
    /// The operation that marked it.
    operation: Option<u64>,
}

/// One allocation: which frame is behind each offset.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Held {
    owner: String,
    live: bool,
    /// Private frames are not zeroed when they become shared.
    keeps_contents: bool,
    /// The frame behind every 4 KiB, and whether an extent begins there.
    places: Vec<Place>,
    /// How often a frame was replaced.
    replaced: u64,
    mappings: Vec<Attached>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    pfn: Pfn,
    begins: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Attached {
    name: String,
    /// What the oracle knows the mapping by.
    slot: usize,
    /// Detached while these frames were released or withdrawn: still asked about them.
    retired: Option<BTreeSet<Pfn>>,
}

impl Attached {
    fn is_needed(&self, pfn: Pfn) -> bool {
        self.retired.as_ref().is_none_or(|rest| rest.contains(&pfn))
    }
}

/// A frame and where it is in its allocation, in frames.
type Spot = (u64, Pfn);

/// The model of a pool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Model {
    nodes: Vec<(u32, PfnRange)>,
    frames: BTreeMap<Pfn, ModelFrame>,
    allocations: BTreeMap<AllocationId, Held>,
    /// Frames that the backing proves together.
    granule: u64,
    begun: u64,
    /// The operations under way, by number.
    open: BTreeMap<u64, OpenOperation>,
    /// 1 GiB leaves that are cut, by node and number.
    cut_gibs: BTreeSet<(u32, u64)>,
    /// 2 MiB leaves that are cut, by node and number.
    cut_blocks: BTreeSet<(u32, u64)>,
}

/// The counts that a pool can be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Free and sound.
    pub free: u64,
    /// Have an owner.
    pub allocated: u64,
    /// Given up and not proven.
    pub released: u64,
    /// Shared.
    pub shared: u64,
    /// Of unknown shareability.
    pub unknown: u64,
    /// Under an operation.
    pub converting: u64,
    /// Quarantined.
    pub quarantined: u64,
    /// Failed.
    pub failed: u64,
    /// Poisoned.
    pub poisoned: u64,
    /// 2 MiB leaves that are cut.
    pub broken_2m: u64,
    /// 1 GiB leaves that are cut.
    pub demoted_1g: u64,
    /// Free aligned blocks of 1 GiB and of 2 MiB.
    pub buildable: (u64, u64),
    /// Allocations whose owner lives.
    pub allocations: u64,
}

impl Model {
    /// A pool of these nodes, all frames free, over a backing that proves `granule` frames together (aligned to `granule`).
    #[must_use]
    pub fn new(nodes: &[(u32, PfnRange)], granule: u64) -> Self {
        let fresh =
            ModelFrame { state: FrameState::FREE, tenant: None, offset: 0, holds: Vec::new(), guards: 0, operation: None };
        Self {
            nodes: nodes.to_vec(),
            frames: nodes.iter().flat_map(|(_, span)| span.iter()).map(|pfn| (pfn, fresh.clone())).collect(),
            allocations: BTreeMap::new(),
            granule: granule.max(1),
            begun: 0,
            open: BTreeMap::new(),
            cut_gibs: BTreeSet::new(),
            cut_blocks: BTreeSet::new(),
        }
    }

    /// What is known of a frame; none for one that is not the pool's.
    #[must_use]
    pub fn frame(&self, pfn: Pfn) -> Option<&ModelFrame> {
        self.frames.get(&pfn)
    }

    /// Every frame, ascending.
    pub fn frames(&self) -> impl Iterator<Item = (Pfn, &ModelFrame)> {
        self.frames.iter().map(|(pfn, frame)| (*pfn, frame))
    }

    /// The frames with this mark.
    #[must_use]
    pub fn marked(&self, mark: Withdrawal) -> RunSet {
        self.set(|frame| match mark {
            Withdrawal::Quarantined => frame.state.quarantined.is_some(),
            Withdrawal::Failed => frame.state.failed,
            Withdrawal::Poisoned => frame.state.poisoned,
        })
    }

    /// The frames that can be handed out.
    #[must_use]
    pub fn free(&self) -> RunSet {
        self.set(|frame| frame.state.assignable())
    }

    /// Every count, counted.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let count = |wanted: &dyn Fn(&FrameState) -> bool| self.frames.values().filter(|f| wanted(&f.state)).count() as u64;
        Counts {
            free: count(&|s| s.assignable()),
            allocated: count(&|s| s.occupancy == Occupancy::Allocated),
            released: count(&|s| s.occupancy == Occupancy::Released),
            shared: count(&|s| s.shareability == crate::Shareability::Shared),
            unknown: count(&|s| s.shareability == crate::Shareability::Unknown),
            converting: count(&|s| s.converting.is_some()),
            quarantined: count(&|s| s.quarantined.is_some()),
            failed: count(&|s| s.failed),
            poisoned: count(&|s| s.poisoned),
            broken_2m: self.cut_blocks.len() as u64,
            demoted_1g: self.cut_gibs.len() as u64,
            buildable: (self.free_blocks(Order::GIB1, None), self.free_blocks(Order::MIB2, None)),
            allocations: self.live(),
        }
    }

    /// The hardware reported an error; returns the frames of the pool that were not poisoned before.
    pub fn poison(&mut self, frames: PfnRange) -> RunSet {
        let fresh: Vec<Pfn> = self.in_range(frames).filter(|pfn| !self.frames[pfn].state.poisoned).collect();
        fresh.iter().for_each(|pfn| self.step(*pfn, FrameEvent::Poison));
        to_set(fresh)
    }

    /// Lifts every failed mark; none while an allocation is live.
    pub fn platform_reset(&mut self) -> Option<RunSet> {
        self.lift(|state| state.failed, FrameEvent::PlatformReset)
    }

    /// Lifts the poisoned marks in `frames`; none while an allocation is live.
    pub fn hardware_replaced(&mut self, frames: PfnRange) -> Option<RunSet> {
        let inside: BTreeSet<Pfn> = self.in_range(frames).collect();
        let lifted: Vec<Pfn> = inside.into_iter().filter(|pfn| self.frames[pfn].state.poisoned).collect();
        (self.live() == 0).then_some(())?;
        lifted.iter().for_each(|pfn| self.step(*pfn, FrameEvent::HardwareReplaced));
        Some(to_set(lifted))
    }

    /// Allocations whose owner lives.
    #[must_use]
    pub fn live(&self) -> u64 {
        self.allocations.values().filter(|held| held.live).count() as u64
    }

    fn lift(&mut self, marked: fn(&FrameState) -> bool, event: FrameEvent) -> Option<RunSet> {
        (self.live() == 0).then_some(())?;
        let lifted: Vec<Pfn> = self.frames.iter().filter(|(_, f)| marked(&f.state)).map(|(pfn, _)| *pfn).collect();
        lifted.iter().for_each(|pfn| self.step(*pfn, event));
        Some(to_set(lifted))
    }

    /// The only way in which a frame's state changes.
    fn step(&mut self, pfn: Pfn, event: FrameEvent) {
        let frame = self.frames.get_mut(&pfn).expect("a frame of the pool");
        frame.state = frame.state.after(event).expect("an event that the table allows");
        if frame.state.occupancy == Occupancy::Free {
            frame.tenant = None;
        }
        if frame.state.converting.is_none() {
            frame.operation = None;
        }
    }

    fn in_range(&self, range: PfnRange) -> impl Iterator<Item = Pfn> + '_ {
        self.frames.range(range.start()..range.end()).map(|(pfn, _)| *pfn)
    }

    fn set(&self, wanted: impl Fn(&ModelFrame) -> bool) -> RunSet {
        to_set(self.frames.iter().filter(|(_, frame)| wanted(frame)).map(|(pfn, _)| *pfn))
    }

    fn node_of(&self, pfn: Pfn) -> u32 {
        self.nodes.iter().find(|(_, span)| span.contains(pfn)).map_or(u32::MAX, |(number, _)| *number)
    }

    fn is_mine(&self, pfn: Pfn, id: AllocationId) -> bool {
        self.frames.get(&pfn).is_some_and(|frame| frame.tenant == Some(id))
    }

    fn is_live(&self, pfn: Pfn, id: AllocationId) -> bool {
        self.is_mine(pfn, id) && self.frames[&pfn].state.occupancy == Occupancy::Allocated
    }
}

fn to_set(frames: impl IntoIterator<Item = Pfn>) -> RunSet {
    frames.into_iter().map(PfnRange::single).collect()
}
