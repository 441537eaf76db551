//! What to do when `KVM_RUN` fails with EFAULT and does not say where.
//!
//! Linux up to at least 6.12 answers so when a vCPU touches shared memory whose host address is not mapped, whatever
//! `KVM_CAP_MEMORY_FAULT_INFO` says (`kvm_handle_error_pfn`, arch/x86/kvm/mmu/mmu.c): that capability speaks of private memory.
//! Either the place was never mapped, or it converts just now. So everything is mapped that can be.

use std::ops::Range;
use std::time::Duration;

use pageless::{Blocked, FRAME_BYTES, Order, Shareability};

use crate::guest::{FaultError, Guest};
use crate::stage2::Privacy;

/// What a look over all of a guest's memory came to.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Missing {
    /// Bytes that were not mapped for the guest and are now.
    pub mapped: u64,
    /// Some of it converts: it is there again after about this long.
    pub busy: Option<Duration>,
}

impl Guest {
    /// Maps for the guest whatever it may have and has not. What is withdrawn or given up stays away.
    ///
    /// For `KVM_RUN` that fails with EFAULT: call this, wait for `busy`, and run the vCPU again. When nothing was missing the
    /// place may have come back between the two, so give up only after some time of such answers in a row.
    pub fn map_missing(&self) -> Missing {
        let (mut missing, bytes) = (Missing::default(), self.ram().bytes());
        let step = self.stage2().view().page().bytes().max(Order::MIB2.bytes());
        let mut start = 0;
        while start < bytes {
            let block = start..start.saturating_add(step).min(bytes);
            start = block.end;
            if !self.stage2().view().is_mapped_at(block.start, block.end - block.start) {
                self.map_missing_in(block, &mut missing);
            }
        }
        missing
    }

    /// Frame by frame, since parts of the block may be mapped, private, converting or lost.
    fn map_missing_in(&self, block: Range<u64>, missing: &mut Missing) {
        let page = self.stage2().view().page().bytes().max(FRAME_BYTES);
        let mut at = block.start;
        while at < block.end {
            let place = at..at.saturating_add(page).min(block.end);
            at = place.end;
            if !self.lacks(&place) {
                continue;
            }
            match self.map_for_guest(place.clone()) {
                Ok(()) => missing.mapped += place.end - place.start,
                Err(FaultError::Blocked(Blocked::Busy { after })) => missing.busy = missing.busy.max(Some(after)),
                Err(error) => tracing::debug!(offset = place.start, %error, "stays away from the guest"),
            }
        }
    }

    /// Whether the guest should have the place through its view and has not: private memory comes from the guest_memfd where
    /// there are attributes.
    fn lacks(&self, place: &Range<u64>) -> bool {
        let is_by_file = matches!(self.stage2().privacy(), Privacy::Attributes { .. })
            && self.ram().shareability(place.start) == Ok(Shareability::Private);
        !is_by_file && !self.stage2().view().is_mapped_at(place.start, place.end - place.start)
    }
}
