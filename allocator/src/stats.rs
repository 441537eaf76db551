//! Numbers about a pool: frames by state, what can really be built, and what the bookkeeping costs.

use pageless_metadata::{Pfn, PfnRange, Span};

use crate::frames::Buildable;
use crate::pool::Pool;

/// Frames by state. Withdrawn frames are also counted under who has them, if somebody does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// All frames of the pool.
    pub frames: u64,
    /// Free and sound: what an allocation can get.
    pub free: u64,
    /// Have an owner.
    pub allocated: u64,
    /// Given up and not proven unreachable yet.
    pub released: u64,
    /// Shared, of the frames whose shareability is known.
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
    /// 2 MiB blocks that are mapped by 4 KiB leaves; each costs a TDX platform 8 KiB of metadata.
    pub broken_2m: u64,
    /// 1 GiB leaves that have been cut.
    pub demoted_1g: u64,
    /// What could be handed out now, after all losses; each order counted for itself.
    pub buildable: Buildable,
    /// Allocations whose owner lives.
    pub allocations: u64,
}

/// Bytes that the pool keeps for itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Footprint {
    /// One record for each GiB, with the planes that hang on it: shareability, withdrawals, tenants, demotions.
    pub records: usize,
    /// The frame layers: which frames are free.
    pub frame_layers: usize,
    /// Owners, extents and the history of events.
    pub owners_and_history: usize,
}

impl Footprint {
    /// All of it.
    #[must_use]
    pub const fn total(&self) -> usize {
        self.records + self.frame_layers + self.owners_and_history
    }
}

/// What is known of a run of frames that are all alike: for maps of a pool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stretch {
    /// The frames.
    pub frames: PfnRange,
    /// The state of each of them.
    pub state: pageless_metadata::FrameState,
    /// The allocation that has them, or had them last.
    pub allocation: Option<pageless_metadata::AllocationId>,
    /// Whether they can be handed out now.
    pub free: bool,
}

impl Pool {
    /// Frames by state. Each GiB is counted at one instant; all of them are not.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let pool = &self.0;
        let mut stats =
            Stats { allocations: pool.owners.lock().values().filter(|owned| owned.is_live()).count() as u64, ..Stats::default() };
        for node in pool.records.nodes() {
            let buildable = node.frames.buildable();
            stats.frames += node.span().frames();
            stats.free += buildable.base;
            stats.buildable.gib1 += buildable.gib1;
            stats.buildable.mib2 += buildable.mib2;
            stats.buildable.base += buildable.base;
        }
        for index in pool.records.indices() {
            let gib = pool.records.record(index).lock();
            let (counts, (broken, demoted)) = (gib.counts(), gib.demotions());
            drop(gib);
            stats.allocated += u64::from(counts.allocated);
            stats.released += u64::from(counts.released);
            stats.shared += u64::from(counts.shared);
            stats.unknown += u64::from(counts.unknown);
            stats.converting += u64::from(counts.converting);
            stats.quarantined += u64::from(counts.quarantined);
            stats.failed += u64::from(counts.failed);
            stats.poisoned += u64::from(counts.poisoned);
            stats.broken_2m += u64::from(broken);
            stats.demoted_1g += u64::from(demoted);
        }
        stats
    }

    /// Bytes that the pool keeps for itself: live bytes on the heap and the records, without the allocator's own overhead.
    #[must_use]
    pub fn footprint(&self) -> Footprint {
        let pool = &self.0;
        let (records, frame_layers) = pool.records.footprint();
        let owners: usize = pool.owners.lock().values().map(|owned| size_of_val(&**owned) + owned.extents.heap_bytes()).sum();
        Footprint { records, frame_layers, owners_and_history: owners + pool.journal.heap_bytes() }
    }

    /// Whether `pfn` is free: nobody has it, and it can be handed out.
    #[must_use]
    pub fn is_free(&self, pfn: Pfn) -> bool {
        self.0.records.node_of(pfn).is_some_and(|node| node.frames.is_free(pfn))
    }

    /// The NUMA nodes, each with its frames, ascending.
    #[must_use]
    pub fn nodes(&self) -> Vec<crate::NodeFrames> {
        let nodes = self.0.records.nodes();
        nodes.iter().map(|node| crate::NodeFrames { node: node.number, frames: node.span() }).collect()
    }

    /// The pool as runs of frames that are alike, ascending and without gaps: the data of a map.
    #[must_use]
    pub fn stretches(&self) -> Vec<Stretch> {
        let mut all: Vec<Stretch> = Vec::new();
        for index in self.0.records.indices() {
            let Some(frames) = self.0.records.frames_of(index) else { continue };
            let gib = self.0.records.record(index).lock();
            let mut rest = Some(Span::head_of(frames));
            while let Some(span) = rest {
                let run = gib.alike(span);
                let state = gib.state(run.start());
                let allocation = gib.tenants(Span::single(run.start())).next().map(|(_, tenant)| tenant.allocation);
                let frames = run.in_gib_of(frames.start());
                let free = allocation.is_none() && self.is_free(frames.start());
                let stretch = Stretch { frames, state, allocation, free };
                match all.last_mut() {
                    Some(last) if last.frames.end() == frames.start() && Stretch { frames, ..last.clone() } == stretch => {
                        last.frames = last.frames.hull(frames);
                    }
                    _ => all.push(stretch),
                }
                rest = Span::new(run.end(), span.end());
            }
        }
        all
    }
}
