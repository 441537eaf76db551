//! What the guest_memfd of one virtual machine can do on this kernel.

use std::fmt;
use std::os::fd::AsFd;

use nix::errno::Errno;

use super::kvm;
use crate::HostError;

/// Where the shared side of a frame lies: what this process and devices may reach of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SharedSide {
    /// In the guest_memfd itself, which this process maps: one file, and one page for each frame.
    InPlace,
    /// In a memfd of the same length beside it, since the guest_memfd cannot be mapped: a frame is an offset in both files,
    /// and has its page in at most one of them.
    Beside,
}

impl fmt::Display for SharedSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InPlace => "in place",
            Self::Beside => "beside",
        })
    }
}

/// What KVM answers for one virtual machine. Other VMs of the same host, of another type, may get other answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestMemfdSupport {
    offered: bool,
    flags: u64,
}

impl GuestMemfdSupport {
    /// Asks KVM with `KVM_CHECK_EXTENSION` on the descriptor of a VM. Takes nothing.
    pub fn of(vm: impl AsFd) -> Result<Self, HostError> {
        let ask = |capability| kvm::check_extension(vm.as_fd(), capability).map_err(no_vm("KVM_CHECK_EXTENSION"));
        let offered = ask(kvm::CAP_GUEST_MEMFD)? > 0;
        Ok(Self { offered, flags: if offered { ask(kvm::CAP_GUEST_MEMFD_FLAGS)? } else { 0 } })
    }

    /// Whether the VM can have a guest_memfd at all.
    #[must_use]
    pub fn is_offered(self) -> bool {
        self.offered
    }

    /// The flags that `KVM_CREATE_GUEST_MEMFD` takes, as a mask: 1 `MMAP`, 2 `INIT_SHARED`. 0 before Linux 6.18.
    #[must_use]
    pub fn flags(self) -> u64 {
        self.flags
    }

    /// Where the shared side can lie: in place where KVM offers both flags, beside where it does not, and nowhere without a
    /// guest_memfd.
    #[must_use]
    pub fn shared_side(self) -> Option<SharedSide> {
        let in_place = kvm::FLAG_MMAP | kvm::FLAG_INIT_SHARED;
        match self.offered {
            false => None,
            true if self.flags & in_place == in_place => Some(SharedSide::InPlace),
            true => Some(SharedSide::Beside),
        }
    }
}

impl fmt::Display for GuestMemfdSupport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.shared_side() {
            None => f.write_str(
                "no guest_memfd: KVM_CAP_GUEST_MEMFD is 0 for this VM (its type has no private memory, or the kernel is old)",
            ),
            Some(SharedSide::InPlace) => write!(f, "guest_memfd that can be mapped and begins shared (flags {:#x})", self.flags),
            Some(SharedSide::Beside) if self.flags & kvm::FLAG_MMAP != 0 => {
                write!(f, "guest_memfd that begins private, so that touching a mapping is a SIGBUS (flags {:#x})", self.flags)
            }
            Some(SharedSide::Beside) => write!(f, "guest_memfd that cannot be mapped (flags {:#x})", self.flags),
        }
    }
}

/// A descriptor that is no VM's refuses KVM's ioctls with ENOTTY, and /dev/kvm those of a VM with EINVAL; everything else is
/// the kernel's own trouble.
pub(super) fn no_vm(step: &'static str) -> impl Fn(Errno) -> HostError {
    move |errno| match errno {
        Errno::ENOTTY | Errno::EINVAL => HostError::NotAVm { step, errno },
        errno => HostError::Os { step, errno },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_both_flags_together_make_a_file_that_can_be_touched() {
        let side = |offered, flags| GuestMemfdSupport { offered, flags }.shared_side();
        assert_eq!(side(false, 3), None);
        assert_eq!(side(true, 0), Some(SharedSide::Beside), "Linux 6.8 to 6.17");
        assert_eq!(side(true, kvm::FLAG_MMAP), Some(SharedSide::Beside), "a VM with private memory");
        assert_eq!(side(true, 3), Some(SharedSide::InPlace));
        assert_eq!(side(true, 7), Some(SharedSide::InPlace), "a flag of a newer kernel is not in the way");
    }

    #[test]
    fn every_answer_is_a_sentence_of_its_own() {
        let answers = [(false, 0), (true, 0), (true, 1), (true, 3)]
            .map(|(offered, flags)| GuestMemfdSupport { offered, flags }.to_string());
        assert!(answers.iter().enumerate().all(|(at, one)| !answers[..at].contains(one)), "{answers:?}");
    }

    #[test]
    fn a_descriptor_that_is_no_vm_is_named() {
        let file = std::fs::File::open("/dev/null");
        assert!(matches!(file.map(GuestMemfdSupport::of), Ok(Err(HostError::NotAVm { errno: Errno::ENOTTY, .. }))));
    }
}
