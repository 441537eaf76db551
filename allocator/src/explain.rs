//! "What happened to this frame?", answered at 3 a.m.

use std::fmt;
use std::sync::Arc;

use pageless_metadata::{AllocationId, FrameState, Occupancy, Pfn, PfnRange};

use crate::journal::{Event, EventKind};
use crate::pool::Pool;
use crate::withdrawal::Withdrawn;

/// Everything that the pool knows of one frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Explanation {
    /// The frame.
    pub pfn: Pfn,
    /// Its NUMA node.
    pub node: u32,
    /// Its state on every axis.
    pub state: FrameState,
    /// The allocation that has it, or had it last if it is released.
    pub allocation: Option<AllocationId>,
    /// The name of that allocation's owner.
    pub owner: Option<Arc<str>>,
    /// Where in the allocation it lies, in bytes.
    pub offset: Option<u64>,
    /// Its marks, with their causes.
    pub marks: Vec<Withdrawn>,
    /// What happened to it, oldest first, as far back as the journal reaches.
    pub history: Vec<Event>,
}

impl Pool {
    /// State, owner, cause and history of one frame; none for a frame that is not the pool's.
    #[must_use]
    pub fn explain(&self, pfn: Pfn) -> Option<Explanation> {
        let pool = &self.0;
        let frame = PfnRange::single(pfn);
        let node = pool.records.node_of(pfn)?;
        let piece = pool.records.pieces(frame).next()?;
        let (mut state, tenant, marks) = {
            let gib = pool.records.record(piece.record).lock();
            let marks: Vec<Withdrawn> = pool.registry.lock().covering(frame).into_iter().map(|entry| entry.told).collect();
            (gib.state(piece.span.start()), gib.tenants(piece.span).next().map(|(_, tenant)| tenant), marks)
        };
        if state.quarantined.is_some() {
            state.quarantined = marks.iter().find_map(|mark| mark.intent).or(state.quarantined);
        }
        let owned = tenant.and_then(|tenant| pool.owners.lock().get(&tenant.allocation).cloned());
        Some(Explanation {
            pfn,
            node: node.number,
            state,
            allocation: tenant.map(|tenant| tenant.allocation),
            owner: owned.as_ref().map(|owned| Arc::clone(&owned.owner)),
            offset: owned.map(|owned| owned.origin_of(frame)),
            marks,
            history: pool.journal.about(frame),
        })
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on node {}: ", self.pfn, self.node)?;
        match (self.state.occupancy, &self.owner) {
            (Occupancy::Free, _) => write!(f, "nobody has it")?,
            (occupancy, owner) => {
                let (verb, owner) =
                    (if occupancy == Occupancy::Allocated { "allocated to" } else { "released by" }, owner.as_deref());
                write!(
                    f,
                    "{verb} {:?} at offset {:#x}, {:?}",
                    owner.unwrap_or("?"),
                    self.offset.unwrap_or(0),
                    self.state.shareability
                )?;
            }
        }
        for mark in &self.marks {
            write!(f, "; {} ({})", mark.state, mark.cause)?;
        }
        for event in &self.history {
            write!(f, "\n  {} {}", event.frames, event.kind)?;
        }
        Ok(())
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allocated { owner } => write!(f, "allocated to {owner:?}"),
            Self::Released => f.write_str("released"),
            Self::Reclaimed => f.write_str("reclaimed"),
            Self::Withdrawn { state, cause } => write!(f, "{state}: {cause}"),
            Self::Recovered => f.write_str("recovered by a later proof"),
            Self::Replaced { by } => write!(f, "replaced by {by}"),
            Self::Held { holder } => write!(f, "held by {holder}"),
            Self::Unheld { holder } => write!(f, "no longer held, last by {holder}"),
            Self::PlatformReset { evidence } => write!(f, "platform reset: {evidence}"),
            Self::HardwareReplaced { evidence } => write!(f, "hardware replaced: {evidence}"),
            Self::Missed { events } => write!(f, "{events} events were missed"),
        }
    }
}
