//! The contract with everything that translates to an allocation's frames.
//!
//! A [`Mapping`] is an IOMMU domain, a guest's stage 2, this process's page table, another process. pageless asks it to
//! make frames unreachable *and to prove it*; a proof that does not come is an answer too ([`Stuck`]), with a verdict that
//! says whether asking again makes sense. A transient verdict and a permanent one are never the same value.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use pageless_metadata::{AllocationId, HolderId, Intent, OperationId, PfnRange};

/// Something that translates to an allocation's frames. Attached to the allocation by name, asked in order of attachment.
///
/// A mapping establishes a translation only under a [`MapGuard`](crate::MapGuard) of the frames. It may be called from many
/// threads at once, for disjoint frames. No lock of pageless is held during a call, so it may block, and may call the pool.
pub trait Mapping: Send + Sync {
    /// Demotes the leaves that straddle the edges of `op.frames` and reserves what `invalidate` will need. It may refuse;
    /// nothing reachable changes either way.
    fn prepare(&self, op: &Operation) -> Result<(), Refusal>;

    /// Makes `frames`, a run of `op.frames`, unreachable through this mapping, and returns only when that is proven. On
    /// [`Stuck`] every frame before `stuck.at` is proven and every frame after it is untouched.
    fn invalidate(&self, op: &Operation, frames: PfnRange) -> Result<(), Stuck>;

    /// Maps an aligned, uniform block with one larger leaf. It may refuse at no cost.
    fn promote(&self, block: PfnRange) -> Result<(), Refusal> {
        let _ = block;
        Err(Refusal::Unsupported)
    }
}

/// What pageless is doing to a run of frames, told to every mapping it asks. The runs of one verb share an id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operation {
    /// Unique among all operations of the pool's life.
    pub id: OperationId,
    /// Why the frames must become unreachable.
    pub intent: Intent,
    /// Whether what the frames hold must survive.
    pub contents: Contents,
    /// Whose frames they are.
    pub allocation: AllocationId,
    /// The run: contiguous both in the pool and in the guest.
    pub frames: PfnRange,
    /// Where the run begins in the allocation, in bytes.
    pub guest_offset: u64,
}

/// Whether an operation may lose what the frames hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Contents {
    /// The backing zeroes private frames before they become shared: nothing private leaks to the host. The default.
    #[default]
    Zero,
    /// The frames keep what they hold through a conversion, as pKVM and software-protected VMs expect.
    Keep,
}

/// Why a mapping did not prepare or promote. Nothing has changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// Not now: ask again after this long.
    #[error("busy for the next {after:?}")]
    Busy {
        /// How long to wait.
        after: Duration,
    },
    /// The mapping could not reserve what the operation needs.
    #[error("no memory for page tables")]
    NoMemory,
    /// The mapping does not do this.
    #[error("not supported by this mapping")]
    Unsupported,
    /// The mapping will not, for this reason.
    #[error("refused: {0}")]
    Other(Cow<'static, str>),
}

/// An invalidation that ended without proof.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{at} stayed reachable: {cause} ({verdict})")]
pub struct Stuck {
    /// The frames without proof. Everything before them is proven, everything after them untouched.
    pub at: PfnRange,
    /// Whether asking again makes sense.
    pub verdict: Verdict,
    /// What the platform said.
    pub cause: Cause,
}

/// Whether a stuck invalidation can still succeed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Transient: ask again after this long.
    Retry {
        /// How long to wait before asking again.
        after: Duration,
    },
    /// Somebody legitimately uses the frames, for instance a device's DMA pin: ask again when they are done.
    Held {
        /// Who.
        by: HolderId,
    },
    /// Permanent: the frames can never be proven unreachable on this boot of the platform.
    Never,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Retry { after } => write!(f, "transient, again after {after:?}"),
            Self::Held { by } => write!(f, "held by {by}"),
            Self::Never => f.write_str("permanent"),
        }
    }
}

/// Why an invalidation failed, in the words and numbers of the platform.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cause {
    /// The mapping that failed, by the name it was attached under. pageless fills it in.
    pub mapping: Cow<'static, str>,
    /// The step that failed, for instance `TDH.MEM.PAGE.REMOVE` or `F_ADD_SEALS(F_SEAL_WRITE)`.
    pub step: Cow<'static, str>,
    /// The raw status word of that step, or the errno; 0 where there is none.
    pub status: u64,
    /// What it means, for a human; may be empty.
    pub meaning: Cow<'static, str>,
}

impl Cause {
    /// A failure of `step` with the platform's `status` word.
    #[must_use]
    pub fn new(step: impl Into<Cow<'static, str>>, status: u64, meaning: impl Into<Cow<'static, str>>) -> Self {
        Self { mapping: Cow::Borrowed(""), step: step.into(), status, meaning: meaning.into() }
    }

    /// The same failure, seen at the mapping attached under this name.
    #[must_use]
    pub fn at_mapping(mut self, name: &str) -> Self {
        self.mapping = Cow::Owned(name.to_owned());
        self
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.mapping.is_empty() {
            write!(f, "{}: ", self.mapping)?;
        }
        write!(f, "{} gave {:#x}", self.step, self.status)?;
        if self.meaning.is_empty() { Ok(()) } else { write!(f, ", {}", self.meaning) }
    }
}
