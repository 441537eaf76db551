//! A device that never lets go of one frame.

use pageless::{Cause, Mapping, Operation, Pfn, PfnRange, Refusal, Stuck, Verdict};

/// Its table, as a mapping.
pub(crate) struct Device {
    /// The frame.
    pub(crate) clings_to: Pfn,
}

impl Mapping for Device {
    fn prepare(&self, _op: &Operation) -> Result<(), Refusal> {
        Ok(())
    }

    fn invalidate(&self, _op: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        if !frames.contains(self.clings_to) {
            return Ok(());
        }
        let cause = Cause::new("IOTLB invalidation", 0xdead, "the device does not answer");
        Err(Stuck { at: PfnRange::single(self.clings_to), verdict: Verdict::Never, cause })
    }
}
