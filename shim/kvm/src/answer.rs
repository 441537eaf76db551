//! What a guest is told: every outcome of `share` and `unshare` as one number.
//!
//! | outcome | the frames | the vCPU | the guest gets |
//! |---|---|---|---|
//! | done, or so already | all as asked | goes on | 0 |
//! | busy; a mapping's `Busy` | unchanged | waits and asks again, up to the guest's patience | then -EAGAIN |
//! | held | unchanged | goes on: a hold may last | -EBUSY |
//! | torn | partly as asked, the rest withdrawn | goes on | -EIO: do not use the range, use other memory |
//! | refused: withdrawn frames | unchanged | goes on | -EIO |
//! | refused: poisoned frames | unchanged | goes on | -EHWPOISON |
//! | refused: unaligned, empty, outside; a bad request | unchanged | goes on | -EINVAL |
//! | refused: given up by a balloon, or not the guest's | unchanged | goes on | -EFAULT |
//! | refused: no memory for metadata or page tables | unchanged | goes on | -ENOMEM |
//! | refused: a mapping does not do this | unchanged | goes on | -EOPNOTSUPP |
//! | refused: the ledger, or a defect of the VMM | unchanged | goes on | -EIO |
//! | the owner is gone | released | stops | - |
//!
//! Linux's own hypercalls answer 0 or a negative errno (include/uapi/linux/kvm_para.h); -EAGAIN, -EBUSY, -EIO and -EHWPOISON
//! are errnos that no hypercall of KVM's gives, so a guest that knows none of this still sees an error. The guest is never
//! told why, nor which frames: that is the host's business.

use std::time::Duration;

use nix::errno::Errno;
use pageless::{Convert, Converted, Refusal, Refused};

use crate::request::BadRequest;

/// What the VMM does with a vCPU that asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// All of the range is as asked.
    Done {
        /// False when it was so before.
        changed: bool,
    },
    /// Nothing changed, and it will pass: ask again after this long.
    Again {
        /// How long to wait.
        after: Duration,
    },
    /// The guest gets this error.
    Error(Errno),
    /// The memory is not this guest's any more: stop the vCPU.
    Stop,
}

impl Answer {
    /// What `KVM_EXIT_HYPERCALL` gives back to the guest, as KVM puts it into a register.
    #[must_use]
    pub fn hypercall(self) -> u64 {
        match self {
            Self::Done { .. } => 0,
            Self::Again { .. } => negative(Errno::EAGAIN),
            Self::Error(errno) => negative(errno),
            Self::Stop => negative(Errno::EPERM),
        }
    }
}

fn negative(errno: Errno) -> u64 {
    i64::from(errno as i32).wrapping_neg().cast_unsigned()
}

impl From<&Result<Converted, Convert>> for Answer {
    fn from(outcome: &Result<Converted, Convert>) -> Self {
        match outcome {
            Ok(converted) => Self::Done { changed: converted.changed() },
            Err(Convert::Busy { after }) => Self::Again { after: *after },
            Err(Convert::Held { .. }) => Self::Error(Errno::EBUSY),
            Err(Convert::Torn { .. }) => Self::Error(Errno::EIO),
            Err(Convert::OwnerGone { .. }) => Self::Stop,
            Err(Convert::Refused(refused)) => Self::from(refused),
        }
    }
}

impl From<&Refused> for Answer {
    fn from(refused: &Refused) -> Self {
        Self::Error(match refused {
            Refused::Mapping { refusal: Refusal::Busy { after }, .. } => return Self::Again { after: *after },
            Refused::Unaligned { .. } | Refused::Empty { .. } | Refused::Outside { .. } => Errno::EINVAL,
            Refused::NotOwner { .. } | Refused::Released { .. } => Errno::EFAULT,
            Refused::Poisoned { .. } => Errno::EHWPOISON,
            Refused::Mapping { refusal: Refusal::NoMemory, .. } | Refused::NoMemory => Errno::ENOMEM,
            Refused::Mapping { .. } => Errno::EOPNOTSUPP,
            // Withdrawn frames, the ledger, and what neither verb answers.
            _ => Errno::EIO,
        })
    }
}

impl From<BadRequest> for Answer {
    fn from(_: BadRequest) -> Self {
        Self::Error(Errno::EINVAL)
    }
}
