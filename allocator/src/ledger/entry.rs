//! What a ledger keeps, and what it is told.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use pageless_metadata::{AllocationId, HoldId, HolderId, Pfn, PfnRange, RunSet, Withdrawal};

use super::error::LedgerError;
use crate::backing::{Identity, NodeFrames};
use crate::extents::Extent;
use crate::mapping::{Cause, Contents};
use crate::withdrawal::Withdrawn;

/// A number by which a caller names one request, so that asking again after a lost reply gets the same allocation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId(pub u128);

/// What proves that somebody is the owner of an allocation after the pool was reopened. Not to be shown to others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token {
    /// The allocation.
    pub allocation: AllocationId,
    /// What cannot be guessed.
    pub secret: u128,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a token of {}", self.allocation)
    }
}

/// A pool, as far as its ledger must know it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolFacts {
    /// The nodes and their frames.
    pub nodes: Vec<NodeFrames>,
    /// What the frame numbers mean.
    pub identity: Identity,
    /// Names the very memory behind the frames: see [`Backing::instance`](crate::Backing::instance).
    pub instance: Option<String>,
}

impl PoolFacts {
    /// The shape in a few words.
    #[must_use]
    pub fn geometry(&self) -> String {
        let nodes: Vec<String> = self.nodes.iter().map(|node| format!("node {} with {}", node.node, node.frames)).collect();
        format!("{} {}", self.identity, nodes.join(", "))
    }

    /// The frames of all nodes.
    #[must_use]
    pub fn frames(&self) -> RunSet {
        self.nodes.iter().map(|node| node.frames).collect()
    }

    /// Whether this pool may go on with a ledger that was `recorded` for a pool. Another geometry is refused. `Some` when it
    /// is synthetic and its memory is another: then every mark and allocation ended with the old one, which is named.
    pub fn memory_gone(&self, recorded: &Self, place: &str) -> Result<Option<String>, LedgerError> {
        let other = |recorded: String, given: String| LedgerError::OtherPool { place: place.to_owned(), recorded, given };
        if (&recorded.nodes, recorded.identity) != (&self.nodes, self.identity) {
            return Err(other(recorded.geometry(), self.geometry()));
        }
        match (&recorded.instance, &self.instance) {
            (Some(old), Some(new)) if old != new && self.identity == Identity::Synthetic => Ok(Some(old.clone())),
            (Some(old), Some(new)) if old != new => {
                Err(other(format!("{} of {old}", recorded.geometry()), format!("{} of {new}", self.geometry())))
            }
            // Nobody knows that the memory is gone, so it is not.
            _ => Ok(None),
        }
    }
}

/// One allocation that has a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AllocationRow {
    /// Its number.
    pub id: AllocationId,
    /// Its owner's name.
    pub owner: Arc<str>,
    /// Its size in bytes.
    pub bytes: u64,
    /// Whether conversions keep contents.
    pub contents: Contents,
    /// The request that made it, if that had a name.
    pub request: Option<RequestId>,
    /// The secret of its [`Token`].
    pub secret: u128,
    /// Where its frames are, or were, in guest-offset order.
    pub extents: Vec<Extent>,
    /// The frames that it has.
    pub live: RunSet,
    /// What it has given up and is not proven yet, where that was in the guest.
    pub released: Vec<Extent>,
    /// The mappings that were ever attached and are still needed for a proof.
    pub mappings: Vec<Arc<str>>,
}

/// One hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HoldRow {
    /// Its number.
    pub id: HoldId,
    /// Whose frames are held.
    pub allocation: AllocationId,
    /// The frames.
    pub frames: Vec<PfnRange>,
    /// Who holds them.
    pub holder: HolderId,
}

/// One withdrawn run, and the boot in which its mark was set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MarkRow {
    /// What the pool says of it.
    pub told: Withdrawn,
    /// The boot id of the host at that time. Filled in by the ledger.
    pub boot: Arc<str>,
}

/// Quarantined and failed runs never overlap; poisoned runs may overlap both.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum MarkKind {
    /// Quarantined or failed.
    Unproven,
    /// Poisoned.
    Poisoned,
}

impl MarkKind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Unproven, Self::Poisoned];

    /// The table that a withdrawal belongs to.
    #[must_use]
    pub const fn of(state: Withdrawal) -> Self {
        match state {
            Withdrawal::Poisoned => Self::Poisoned,
            Withdrawal::Quarantined | Withdrawal::Failed => Self::Unproven,
        }
    }
}

/// A mark that ended by proof. A ledger keeps the last so many.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PastMark {
    /// What it was.
    pub mark: MarkRow,
    /// When it ended.
    pub until: SystemTime,
}

/// An event for all time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Landmark {
    /// When.
    pub at: SystemTime,
    /// The boot id of the host at that time.
    pub boot: Arc<str>,
    /// What.
    pub kind: LandmarkKind,
}

/// Which event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LandmarkKind {
    /// A pool opened the ledger.
    Opened,
    /// The memory behind a synthetic backing was gone, and its marks and allocations with it.
    MemoryGone {
        /// Which memory that was.
        instance: String,
        /// How many withdrawn frames it took along.
        withdrawn: u64,
    },
    /// A platform reset lifted failed marks.
    PlatformReset {
        /// The frames.
        frames: RunSet,
        /// The evidence.
        evidence: Arc<str>,
    },
    /// Replaced hardware lifted poisoned marks.
    HardwareReplaced {
        /// The frames.
        frames: RunSet,
        /// The evidence.
        evidence: Arc<str>,
    },
}

/// What a ledger is told.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Entry {
    /// An owner gets frames.
    Allocated(AllocationRow),
    /// The owners of all allocations with numbers below this one are dead: what they had is released, and no token brings it
    /// back.
    OwnersDead {
        /// The first number that is not meant.
        below: u64,
    },
    /// The allocation never came to be: as if it had not been recorded, whether or not it was.
    Undone {
        /// Which.
        allocation: AllocationId,
    },
    /// A sound frame takes the place of a withdrawn one, which is released.
    Replaced {
        /// Whose.
        allocation: AllocationId,
        /// Where in the allocation, in bytes.
        offset: u64,
        /// The withdrawn frame.
        lost: Pfn,
        /// The frame that takes its place.
        by: Pfn,
    },
    /// Frames are given up.
    Released {
        /// Whose.
        allocation: AllocationId,
        /// Which.
        frames: RunSet,
    },
    /// Released frames are proven unreachable and become free. Withdrawn ones among them do not.
    Reclaimed {
        /// Whose they were.
        allocation: AllocationId,
        /// Which.
        frames: RunSet,
    },
    /// Frames are withdrawn.
    Withdrawn(Withdrawn),
    /// A later proof lifts a quarantine: a live owner's frames are its own again, released ones become free.
    Proven {
        /// Which.
        frames: PfnRange,
        /// Whether they become free.
        freed: bool,
    },
    /// A quarantined run was asked about again, without success.
    Retried {
        /// Which.
        frames: PfnRange,
        /// How often by now.
        attempts: u32,
        /// What was said this time.
        cause: Cause,
    },
    /// Somebody holds frames.
    Held(HoldRow),
    /// A hold is over.
    Unheld {
        /// Which.
        hold: HoldId,
    },
    /// A mapping is attached.
    Attached {
        /// To which allocation.
        allocation: AllocationId,
        /// Under which name.
        mapping: Arc<str>,
    },
    /// A mapping was detached, with its proof for everything.
    Detached {
        /// From which allocation.
        allocation: AllocationId,
        /// Under which name it was attached.
        mapping: Arc<str>,
    },
    /// A platform reset, with its evidence, ends failed marks.
    PlatformReset {
        /// Whose marks.
        frames: RunSet,
        /// The evidence.
        evidence: Arc<str>,
    },
    /// Replaced hardware, with its evidence, ends poisoned marks.
    HardwareReplaced {
        /// Whose marks.
        frames: RunSet,
        /// The evidence.
        evidence: Arc<str>,
    },
}
