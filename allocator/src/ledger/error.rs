//! Why a ledger could not be written or opened: each reason by its name, with what to do about it.

use std::time::Duration;

/// Why a ledger refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// No space is left for it.
    #[error("the ledger {place} is full: {why}; make space, then try again")]
    Full {
        /// Where it is kept.
        place: String,
        /// What the system said.
        why: String,
    },
    /// It could not be read or written.
    #[error("the ledger {place} could not be read or written: {why}; look at the disk, then try again")]
    Io {
        /// Where it is kept.
        place: String,
        /// What the system said.
        why: String,
    },
    /// It may only be read.
    #[error("the ledger {place} is read-only: {why}; make it writable, or give the pool another")]
    ReadOnly {
        /// Where it is kept.
        place: String,
        /// What the system said.
        why: String,
    },
    /// Somebody else has it open.
    #[error("the ledger {place} is open already, in another process or pool; only one may write it: end that one first")]
    Busy {
        /// Where it is kept.
        place: String,
    },
    /// It did not answer in time.
    #[error("the ledger {place} did not answer within {bound:?}; the write may still succeed")]
    TimedOut {
        /// Where it is kept.
        place: String,
        /// How long was waited.
        bound: Duration,
    },
    /// There is none.
    #[error("there is no ledger at {place}")]
    Missing {
        /// Where it was looked for.
        place: String,
    },
    /// It is something else.
    #[error("{place} is not a ledger of pageless: {found}; give the path of a ledger, or move this file away")]
    Foreign {
        /// Where it is.
        place: String,
        /// What it is instead.
        found: String,
    },
    /// It was written by a version that this one does not read.
    #[error("the ledger {place} has format {found}; this version reads {known}: use the version of pageless that wrote it")]
    Version {
        /// Where it is kept.
        place: String,
        /// The format it has.
        found: u32,
        /// The formats that can be read.
        known: &'static str,
    },
    /// It is damaged. Nothing of it was used, and nothing was dropped to make it open.
    #[error("the ledger {place} is damaged: {damage}")]
    Damaged {
        /// Where it is kept.
        place: String,
        /// What and where.
        damage: Damage,
    },
    /// It belongs to a pool of another shape.
    #[error("the ledger {place} was written for a pool of {recorded}; this one has {given}")]
    OtherPool {
        /// Where it is kept.
        place: String,
        /// What is recorded.
        recorded: String,
        /// What the pool is.
        given: String,
    },
    /// It contradicts itself, or the pool.
    #[error("the ledger {place} cannot be so: {why}")]
    Inconsistent {
        /// Where it is kept.
        place: String,
        /// What cannot be.
        why: String,
    },
    /// An earlier withdrawal is still not recorded, so nothing may be handed out.
    #[error("{frames} withdrawn frames are not recorded yet, because {why}")]
    Unrecorded {
        /// How many.
        frames: u64,
        /// Why the last attempt failed.
        why: Box<LedgerError>,
    },
}

/// What is wrong with a ledger, where, and what can be done.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what}, at {at}; {remedy}")]
pub struct Damage {
    /// What is wrong.
    pub what: String,
    /// Where: a byte offset, a table and key.
    pub at: String,
    /// What can be done.
    pub remedy: String,
}

impl LedgerError {
    /// The errno that it becomes over the C ABI (Linux numbers).
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self {
            Self::Full { .. } => 28,
            Self::Io { .. } | Self::TimedOut { .. } | Self::Damaged { .. } | Self::Inconsistent { .. } => 5,
            Self::ReadOnly { .. } => 30,
            Self::Busy { .. } => 16,
            Self::Missing { .. } => 2,
            Self::Foreign { .. } | Self::Version { .. } | Self::OtherPool { .. } => 22,
            Self::Unrecorded { why, .. } => why.errno(),
        }
    }
}
