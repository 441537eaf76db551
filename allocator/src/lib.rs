//! pageless: a PFN range allocator for confidential-VM memory.
#![forbid(unsafe_code)]

mod backing;
pub mod frames;
mod mapping;
mod sync;

use std::fmt;

pub use backing::{Backing, Identity, MetadataOnly, NodeFrames, ProofScope, Shortage};
pub use frames::{Buildable, Frames, PutError, TakeAtError};
pub use mapping::{Cause, Contents, HolderId, Intent, Mapping, Operation, OperationId, Refusal, Stuck, Verdict};
pub use pageless_metadata as metadata;
pub use pageless_metadata::{FRAME_BYTES, InvalidRange, Order, Pfn, PfnRange, RunSet};

/// The number of an allocation. Never used twice in a pool's life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AllocationId(u64);

impl fmt::Display for AllocationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "alloc:{}", self.0)
    }
}

impl fmt::Debug for AllocationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Stands in until the allocation exists: the right to establish translations to some frames now.
pub struct MapGuard;
