//! Other pages behind live frames: the proof of a conversion, for [`SealWitness`](crate::SealWitness).

use nix::errno::Errno;
use pageless::{Cause, PfnRange, Shortage, Stuck, Verdict};

use super::HostMemory;
use super::proof::SEAL;
use crate::stuck::RETRY_AFTER;

impl HostMemory {
    /// Proves by a seal that nobody maps or pins `segments`, whole ones whose contents are not wanted any more, and puts fresh
    /// memory in their place. Unlike [`Self::prove_granules`] it may be asked while marks stand: the old file then stays open
    /// until they are lifted (I12), and the fresh one comes with the next use.
    pub(crate) fn exchange_segments(&self, segments: PfnRange) -> Result<(), Stuck> {
        self.by_slot(segments, |slot, run| {
            if run != slot.frames {
                let meaning = format!("the kernel proves only whole segments, here {}", slot.frames);
                let cause = Cause::new(SEAL, Errno::EINVAL as u64, meaning);
                return Err(Stuck { at: run, verdict: Verdict::Retry { after: RETRY_AFTER }, cause });
            }
            let mut state = slot.state.lock();
            let old = state.file.clone();
            self.prove_by_seal(slot, &mut state)?;
            state.renew |= old.is_some();
            if !state.withdrawn.is_empty() {
                state.shut.extend(old);
                return Ok(());
            }
            drop((old, state)); // its pages go back first: there may be no others
            if let Err(shortage) = self.renew(run) {
                tracing::debug!(%shortage, "no fresh memory yet; asked for again at the next use");
            }
            Ok(())
        })
    }

    /// Makes memory anew where a conversion's proof took it away.
    pub(super) fn renew(&self, frames: PfnRange) -> Result<(), Shortage> {
        self.by_slot(frames, |slot, run| {
            let state = slot.state.lock();
            let wanted = state.renew && state.file.is_none();
            drop(state);
            if wanted { self.take(run) } else { Ok(()) }
        })
    }
}
