//! Exits of a vCPU that concern memory, carried out.
//!
//! What comes depends on KVM. A hypercall is one everywhere. A touch of memory that is not mapped is `KVM_EXIT_MEMORY_FAULT`
//! where `KVM_CAP_MEMORY_FAULT_INFO` is filled in, a bare EFAULT of `KVM_RUN` on older kernels, an MMIO exit where KVM emulates
//! the instruction and cannot copy to the host's address (KVM_PVM does that; the VMM then carries the access out), and an
//! internal error where it could not fetch the instruction itself. All of them end the same way: mapped under a guard, and on.

use kvm_ioctls::{VcpuExit, VcpuFd};
use nix::errno::Errno;
use pageless::{Blocked, Convert, Converted, FRAME_BYTES, Refused, Shareability};

use crate::answer::Answer;
use crate::guest::{FaultError, Guest};
use crate::request::{BadRequest, HYPERCALL_MAP_GPA_RANGE, Request};
use crate::stage2::Privacy;
use crate::vm::errno;

/// What became of an exit.
#[derive(Debug)]
pub enum Handled {
    /// The vCPU goes on: call `KVM_RUN` again.
    Resume,
    /// A conversion was asked for and answered: call `KVM_RUN` again, unless the answer says stop.
    Converted {
        /// What the guest is told.
        answer: Answer,
        /// What became of the frames, with the receipts of those that were lost; nothing for a bad request.
        outcome: Option<Result<Converted, Convert>>,
    },
    /// The guest touched memory that it cannot have: withdrawn, poisoned, given up, converting for longer than the guest's
    /// patience, or of the other kind and not to be converted. What a real machine does is a machine check; what the VMM does is its own decision.
    Lost {
        /// The guest-physical address.
        gpa: u64,
        /// Why.
        error: FaultError,
    },
    /// Not about this memory: the VMM's own.
    NotMemory,
}

impl Guest {
    /// Carries out an exit if it is about memory. [`Handled::NotMemory`] leaves it untouched.
    pub fn handle(&self, exit: &mut VcpuExit<'_>) -> Handled {
        match exit {
            VcpuExit::Hypercall(call) if call.nr == HYPERCALL_MAP_GPA_RANGE => {
                let [gpa, pages, attributes, ..] = call.args;
                let (answer, outcome) = self.map_gpa_range(gpa, pages, attributes);
                *call.ret = answer.hypercall();
                Handled::Converted { answer, outcome }
            }
            VcpuExit::MemoryFault { flags, gpa, size } => self.memory_fault(*flags, *gpa, *size),
            VcpuExit::MmioWrite(gpa, bytes) => self.access(*gpa, bytes.len(), |offset| self.finish_write(offset, bytes)),
            VcpuExit::MmioRead(gpa, bytes) => {
                let length = bytes.len();
                self.access(*gpa, length, |offset| self.finish_read(offset, bytes))
            }
            _ => Handled::NotMemory,
        }
    }

    /// Carries out `KVM_HC_MAP_GPA_RANGE`, however its arguments came.
    pub fn map_gpa_range(&self, gpa: u64, pages: u64, attributes: u64) -> (Answer, Option<Result<Converted, Convert>>) {
        match Request::map_gpa_range(self.stage2().layout(), gpa, pages, attributes) {
            Ok(request) => {
                let (answer, outcome) = self.convert(&request);
                (answer, Some(outcome))
            }
            Err(bad) => (self.refuse(bad), None),
        }
    }

    fn refuse(&self, bad: BadRequest) -> Answer {
        tracing::debug!(owner = self.ram().owner(), %bad, "a guest's request is refused");
        Answer::from(bad)
    }

    /// A touch of memory as private or as shared. Where KVM tells the two apart and the guest means the other one than it has,
    /// that is a request to convert; otherwise the frame is mapped.
    fn memory_fault(&self, flags: u64, gpa: u64, bytes: u64) -> Handled {
        let request = match Request::memory_fault(self.stage2().layout(), flags, gpa, bytes) {
            Ok(request) => request,
            Err(BadRequest::NotMemory(_)) => return Handled::NotMemory,
            Err(bad) => return Handled::Converted { answer: self.refuse(bad), outcome: None },
        };
        let frames = request.offsets.clone().step_by(usize::try_from(FRAME_BYTES).unwrap_or(usize::MAX));
        let tells_apart = self.stage2().privacy() == Privacy::Attributes { faults_convert: true };
        let means_other = |offset: u64| self.ram().shareability(offset).is_ok_and(|have| have != request.to);
        if tells_apart && frames.clone().any(means_other) {
            let (answer, outcome) = self.convert(&request);
            // Nobody can be told an error here, and a vCPU that runs on comes back with the same fault.
            return match outcome {
                Err(Convert::Busy { after }) => Handled::Lost { gpa, error: Blocked::Busy { after }.into() },
                Err(Convert::Held { holder, offset }) => Handled::Lost { gpa, error: Blocked::Held { holder, offset }.into() },
                Err(Convert::Refused(refused)) => Handled::Lost { gpa, error: refused.into() },
                outcome => Handled::Converted { answer, outcome: Some(outcome) },
            };
        }
        for offset in frames {
            if let Err(error) = self.fault(offset) {
                return Handled::Lost { gpa, error };
            }
        }
        Handled::Resume
    }

    fn access(&self, gpa: u64, bytes: usize, finish: impl FnOnce(u64) -> Result<(), FaultError>) -> Handled {
        let Ok(offsets) = self.stage2().offsets(gpa, bytes as u64) else { return Handled::NotMemory };
        match finish(offsets.start) {
            Ok(()) => Handled::Resume,
            Err(error) => Handled::Lost { gpa, error },
        }
    }

    /// KVM could not fetch or emulate the instruction (`KVM_EXIT_INTERNAL_ERROR`): maps the code of this vCPU, if that is what
    /// was missing. [`Handled::NotMemory`] when it was mapped all along, so that a vCPU which really cannot go on is not run
    /// for ever.
    pub fn handle_unfetched(&self, vcpu: &VcpuFd) -> Handled {
        let Ok(gpa) = next_instruction(vcpu) else { return Handled::NotMemory };
        let Ok(offsets) = self.stage2().offsets(gpa, 1) else { return Handled::NotMemory };
        // An instruction is at most 15 bytes long, so it may reach into the next page.
        let mut missing = [offsets.start, offsets.start.saturating_add(14)].into_iter().filter(|at| {
            self.stage2().offsets(gpa + (at - offsets.start), 1).is_ok() && !self.stage2().view().is_mapped_at(*at, 1)
        });
        let Some(first) = missing.next() else { return Handled::NotMemory };
        match std::iter::once(first).chain(missing).try_for_each(|offset| self.fault(offset)) {
            Ok(()) => Handled::Resume,
            Err(error) => Handled::Lost { gpa, error },
        }
    }

    /// Whether the guest has this memory as `shareability`: for a VMM that must know before it touches it.
    #[must_use]
    pub fn is(&self, shareability: Shareability, gpa: u64) -> bool {
        self.stage2().offsets(gpa, 1).is_ok_and(|offsets| self.ram().shareability(offsets.start) == Ok(shareability))
    }
}

/// The guest-physical address of the instruction that the vCPU stands at.
fn next_instruction(vcpu: &VcpuFd) -> Result<u64, Errno> {
    let linear = vcpu.get_sregs().map_err(errno)?.cs.base.wrapping_add(vcpu.get_regs().map_err(errno)?.rip);
    let translated = vcpu.translate_gva(linear).map_err(errno)?;
    if translated.valid == 0 { Err(Errno::EFAULT) } else { Ok(translated.physical_address) }
}

impl FaultError {
    /// Whether the frames will be there after a while: they convert.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Blocked(Blocked::Busy { .. } | Blocked::Held { .. }))
    }

    /// The refusal, if the pool will never let the guest have the frames as they are.
    #[must_use]
    pub fn refused(&self) -> Option<&Refused> {
        if let Self::Blocked(Blocked::Refused(refused)) = self { Some(refused) } else { None }
    }
}
