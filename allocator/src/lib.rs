//! pageless: a PFN range allocator for confidential-VM memory.
//!
//! A [`Pool`] owns the frames of a [`Backing`]. It hands them to owners as [`Allocation`]s, whose frames are converted
//! between private and shared while every [`Mapping`] proves what it gave up; a proof that does not come is a state of the
//! frames, recorded and told, and such frames are never handed out again.
//!
//! Read in this order: the two contracts ([`mapping`](Mapping), [`backing`](Backing)), what verbs answer ([`Blocked`],
//! [`Convert`]), then one conversion through `operation`, one reclaim through `reclaim`. [`frames`] is the layer below, for
//! those who bring their own bookkeeping.
#![forbid(unsafe_code)]

mod allocation;
mod asking;
mod at_once;
mod attach;
mod backing;
mod builder;
mod convert;
mod explain;
mod extents;
pub mod frames;
mod granule;
mod guard;
mod hold;
mod hung;
mod journal;
pub mod ledger;
mod locked;
mod mapping;
mod mappings;
mod operation;
mod outcome;
mod ownership;
mod placement;
mod plan;
mod poison;
mod pool;
mod quick;
mod recall;
mod reclaim;
mod record;
mod release;
mod replace;
mod request;
mod resize;
#[cfg(any(not(feature = "shuttle"), feature = "loom"))]
mod spin_lock;
mod stats;
mod sync;
mod verify;
mod whole_gibs;
mod withdrawal;

pub use allocation::Allocation;
pub use attach::{Detach, Detached};
pub use backing::{Backing, Identity, MetadataOnly, NodeFrames, ProofScope, Shortage};
pub use builder::{BuildError, PoolBuilder};
pub use convert::Converted;
pub use explain::Explanation;
pub use extents::Extent;
pub use frames::{Buildable, Frames, PutError, TakeAtError};
pub use guard::MapGuard;
pub use hold::Hold;
pub use journal::{Event, EventKind, HISTORY, SUBSCRIBER_QUEUE};
pub use mapping::{Cause, Contents, Mapping, Operation, Refusal, Stuck, Verdict};
pub use outcome::{Blocked, Convert, Refused};
pub use pageless_metadata as metadata;
pub use pageless_metadata::{
    AllocationId, FRAME_BYTES, HolderId, Intent, InvalidRange, OperationId, Order, Pfn, PfnRange, RunSet, Shareability,
    Withdrawal,
};
pub use plan::{PAMT_BYTES_PER_BROKEN_2M, Plan};
pub use poison::LiftRefused;
pub use pool::{Policy, Pool};
pub use reclaim::{Reclaimed, Waiting, WaitingFor};
pub use release::ReleaseRefused;
pub use replace::Replaced;
pub use request::{AllocateError, NodeChoice, Request};
pub use stats::{Footprint, Stats, Stretch};
pub use verify::Verified;
pub use withdrawal::{Lost, RetryPolicy, Withdrawn};
