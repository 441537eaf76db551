//! What a verb answers when it does not simply succeed.
//!
//! Three kinds, never the same value: *transient* ([`Blocked::Busy`], [`Blocked::Held`]: nothing changed, ask again),
//! *refused* ([`Refused`]: nothing changed, and asking again will not help) and *torn* ([`Convert::Torn`]: partly done, every
//! frame in exactly one field). Offsets are bytes from the start of the allocation. Each answer has the errno that it becomes
//! over the C ABI.

use std::time::Duration;

use pageless_metadata::{FRAME_BYTES, HolderId, Intent, RunSet, Withdrawal};

use crate::ledger::LedgerError;
use crate::mapping::Refusal;
use crate::withdrawal::Lost;

/// Why a verb was refused for good. Nothing has changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// An offset or a length is not a multiple of 4 KiB, or of the block size that the verb needs.
    #[error("{value:#x} is not a multiple of {unit:#x} bytes")]
    Unaligned {
        /// The offset or length in bytes.
        value: u64,
        /// What it must be a multiple of, in bytes.
        unit: u64,
    },
    /// The range holds no byte.
    #[error("the range {start:#x}..{end:#x} is empty; its end must lie after its start")]
    Empty {
        /// Where it starts, in bytes.
        start: u64,
        /// Where it ends, in bytes.
        end: u64,
    },
    /// The range reaches beyond the allocation.
    #[error("the range {start:#x}..{end:#x} reaches beyond the allocation's {size:#x} bytes")]
    Outside {
        /// Where it starts, in bytes.
        start: u64,
        /// Where it ends, in bytes.
        end: u64,
        /// The allocation's size in bytes.
        size: u64,
    },
    /// The frames at this offset are not the allocation's.
    #[error("the frames at offset {offset:#x} do not belong to this allocation")]
    NotOwner {
        /// Bytes from the start of the allocation.
        offset: u64,
    },
    /// The frames at this offset have been released.
    #[error("the frames at offset {offset:#x} have been released")]
    Released {
        /// Bytes from the start of the allocation.
        offset: u64,
    },
    /// The range touches withdrawn frames.
    #[error("the {frames} frames at offset {offset:#x} are {state}")]
    Withdrawn {
        /// Bytes from the start of the allocation to the first of them.
        offset: u64,
        /// How many there are from there on.
        frames: u64,
        /// Quarantined or failed.
        state: Withdrawal,
    },
    /// The range touches poisoned frames.
    #[error("the {frames} frames at offset {offset:#x} are poisoned")]
    Poisoned {
        /// Bytes from the start of the allocation to the first of them.
        offset: u64,
        /// How many there are from there on.
        frames: u64,
    },
    /// The frame at this offset is not lost, so it cannot be replaced.
    #[error("the frame at offset {offset:#x} is sound; only a withdrawn one can be replaced")]
    NotLost {
        /// Bytes from the start of the allocation.
        offset: u64,
    },
    /// The block is not of one known shareability, or not contiguous, so it cannot be one leaf.
    #[error("the block of {bytes:#x} bytes at offset {offset:#x} cannot be one leaf: {why}")]
    NotOneLeaf {
        /// Bytes from the start of the allocation.
        offset: u64,
        /// Length in bytes.
        bytes: u64,
        /// Why not.
        why: &'static str,
    },
    /// A mapping did not prepare or promote.
    #[error("mapping {mapping:?} {refusal}")]
    Mapping {
        /// The name it was attached under.
        mapping: String,
        /// What it said.
        refusal: Refusal,
    },
    /// Only `share` and `unshare` are conversions that can be planned.
    #[error("{intent} is not a conversion; share and unshare are")]
    NotAConversion {
        /// The intent that was given.
        intent: Intent,
    },
    /// No mapping of this name is attached.
    #[error("no mapping named {name:?} is attached")]
    NoSuchMapping {
        /// The name that was given.
        name: String,
    },
    /// A mapping of this name is attached already.
    #[error("a mapping named {name:?} is attached already")]
    NameTaken {
        /// The name that was given.
        name: String,
    },
    /// A name is empty.
    #[error("a {what} needs a name, and the one given is empty")]
    NoName {
        /// What needs it.
        what: &'static str,
    },
    /// No memory for the pool's own metadata.
    #[error("no memory for metadata")]
    NoMemory,
    /// The range has withdrawn frames that the ledger does not have yet: they are not given up before it does.
    #[error("the {frames} withdrawn frames at offset {offset:#x} are not recorded yet, so they cannot be released")]
    Unrecorded {
        /// Bytes from the start of the allocation to the first of them.
        offset: u64,
        /// How many there are.
        frames: u64,
    },
    /// The ledger could not be written.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// No frame is left to put in the place of a lost one.
    #[error("no free frame is left to take the place of the one at offset {offset:#x}")]
    NoFrame {
        /// Bytes from the start of the allocation.
        offset: u64,
    },
}

impl Refused {
    /// The errno that it becomes over the C ABI (Linux numbers).
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self {
            Self::Unaligned { .. } | Self::Empty { .. } | Self::NoName { .. } | Self::NotAConversion { .. } => errno::EINVAL,
            Self::Outside { .. } => errno::ERANGE,
            Self::NotOwner { .. } => errno::EPERM,
            Self::Released { .. } | Self::NotLost { .. } | Self::NotOneLeaf { .. } => errno::ESTALE,
            Self::Withdrawn { .. } => errno::EUCLEAN,
            Self::Poisoned { .. } => errno::EHWPOISON,
            Self::Mapping { refusal: Refusal::NoMemory, .. } | Self::NoMemory | Self::NoFrame { .. } => errno::ENOMEM,
            Self::Mapping { .. } => errno::EOPNOTSUPP,
            Self::NoSuchMapping { .. } => errno::ENOENT,
            Self::NameTaken { .. } => errno::EEXIST,
            Self::Unrecorded { .. } => errno::EIO,
            Self::Ledger(error) => error.errno(),
        }
    }
}

/// Why a verb did nothing: not now, or not at all.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Blocked {
    /// Another operation is under way on the range, map guards were not dropped in time, or a mapping was busy.
    #[error("busy; try again after {after:?}")]
    Busy {
        /// How long to wait before trying again.
        after: Duration,
    },
    /// Somebody holds frames of the range.
    #[error("held by {holder} at offset {offset:#x}")]
    Held {
        /// Who.
        holder: HolderId,
        /// Bytes from the start of the allocation to the first held frame.
        offset: u64,
    },
    /// Refused for good.
    #[error(transparent)]
    Refused(#[from] Refused),
}

impl Blocked {
    /// The errno that it becomes over the C ABI (Linux numbers).
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self {
            Self::Busy { .. } => errno::EAGAIN,
            Self::Held { .. } => errno::EBUSY,
            Self::Refused(refused) => refused.errno(),
        }
    }
}

/// Why `share` or `unshare` did not convert the whole range.
#[derive(PartialEq, Eq, Debug, thiserror::Error)]
pub enum Convert {
    /// Nothing changed: another operation is under way on the range, or a map guard was not dropped in time.
    #[error("busy; try again after {after:?}")]
    Busy {
        /// How long to wait before trying again.
        after: Duration,
    },
    /// Nothing changed: somebody holds frames of the range.
    #[error("held by {holder} at offset {offset:#x}")]
    Held {
        /// Who.
        holder: HolderId,
        /// Bytes from the start of the allocation to the first held frame.
        offset: u64,
    },
    /// Some frames could not be proven unreachable. Every frame of the range is in exactly one of the two fields; only those
    /// that the owner gave up after the operation had been declared hung are in neither.
    #[error("{} of {} frames were lost, first {}", frames(.lost), frames(.lost) + .done.frames(), first(.lost))]
    Torn {
        /// The frames that are now as asked.
        done: RunSet,
        /// The frames that are withdrawn: receipts, which nothing turns back into memory.
        lost: Vec<Lost>,
    },
    /// The owner released the allocation, or died, while the operation ran: nothing was converted. What got stuck until
    /// then is listed; every other frame of the range is released.
    #[error("the allocation was released while it converted; {} frames were lost", frames(.lost))]
    OwnerGone {
        /// The frames that are withdrawn.
        lost: Vec<Lost>,
    },
    /// Nothing changed, and asking again will not help.
    #[error(transparent)]
    Refused(#[from] Refused),
}

impl Convert {
    /// The errno that it becomes over the C ABI (Linux numbers).
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self {
            Self::Busy { .. } => errno::EAGAIN,
            Self::Held { .. } => errno::EBUSY,
            Self::Torn { .. } => errno::EIO,
            Self::OwnerGone { .. } => errno::ESTALE,
            Self::Refused(refused) => refused.errno(),
        }
    }
}

impl From<Blocked> for Convert {
    fn from(blocked: Blocked) -> Self {
        match blocked {
            Blocked::Busy { after } => Self::Busy { after },
            Blocked::Held { holder, offset } => Self::Held { holder, offset },
            Blocked::Refused(refused) => Self::Refused(refused),
        }
    }
}

fn frames(lost: &[Lost]) -> u64 {
    lost.iter().map(|lost| lost.frames().frames()).sum()
}

fn first(lost: &[Lost]) -> String {
    lost.first().map_or_else(String::new, ToString::to_string)
}

/// A range of bytes of an allocation of `size` bytes, checked: aligned to `unit` bytes, not empty, not beyond the end.
pub(crate) fn checked_range(range: &std::ops::Range<u64>, size: u64, unit: u64) -> Result<(), Refused> {
    let (start, end) = (range.start, range.end);
    if let Some(value) = [start, end].into_iter().find(|value| value % unit != 0) {
        return Err(Refused::Unaligned { value, unit });
    }
    match () {
        () if end <= start => Err(Refused::Empty { start, end }),
        () if end > size => Err(Refused::Outside { start, end, size }),
        () => Ok(()),
    }
}

/// The block of `unit` bytes around a byte of an allocation of `size` bytes, which it may not reach beyond.
pub(crate) fn checked_block(offset: u64, unit: u64, size: u64) -> Result<std::ops::Range<u64>, Refused> {
    let start = offset - offset % unit;
    match start.checked_add(unit) {
        Some(end) if end <= size => Ok(start..end),
        end => Err(Refused::Outside { start, end: end.unwrap_or(u64::MAX), size }),
    }
}

/// Bytes in this many frames.
pub(crate) const fn bytes(frames: u64) -> u64 {
    frames * FRAME_BYTES
}

/// The Linux error numbers of the outcome table (asm-generic/errno.h), so that the library needs no libc.
mod errno {
    pub(super) const EPERM: i32 = 1;
    pub(super) const ENOENT: i32 = 2;
    pub(super) const EIO: i32 = 5;
    pub(super) const EAGAIN: i32 = 11;
    pub(super) const ENOMEM: i32 = 12;
    pub(super) const EBUSY: i32 = 16;
    pub(super) const EEXIST: i32 = 17;
    pub(super) const EINVAL: i32 = 22;
    pub(super) const ERANGE: i32 = 34;
    pub(super) const EOPNOTSUPP: i32 = 95;
    pub(super) const ESTALE: i32 = 116;
    pub(super) const EUCLEAN: i32 = 117;
    pub(super) const EHWPOISON: i32 = 133;
}
