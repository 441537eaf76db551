//! [`SealWitness`]: a mapping that translates to nothing and looks whether anybody else does.
//!
//! A conversion from shared to private takes the translations of every attached mapping away. Whoever got at a page by other
//! means while it was shared keeps it: a device's DMA pin, a splice, an io_uring buffer. `munmap` does not see those, and the
//! kernel would let the guest put secrets into a page that somebody still reads. The one question that the kernel answers
//! about this, for memfds of any user, is `F_ADD_SEALS(F_SEAL_WRITE)`.

use std::sync::Arc;

use pageless::{Backing, Contents, Intent, Mapping, Operation, Pfn, PfnRange, Refusal, RunSet, Stuck};
use parking_lot::Mutex;

use crate::{HostMemory, ProofMethod};

/// Attached last, it lets shared memory become private only when the kernel has proven that nobody else holds it.
///
/// **What its `Ok` to an unshare proves**: at the instant of the seal nobody mapped the segment writable and nobody held an
/// extra reference (pin) to a page of it; from then on the frames are other pages, fresh and zeroed, which nobody has seen. So
/// what it is blind to (read-only mappings made through a descriptor opened so, private mappings, splices made after the
/// seal) goes on reading the *old* pages, and never what the guest writes next.
///
/// **Granule**: the segment, since a file is sealed as a whole and the kernel does not say which page is pinned. A conversion
/// to private that does not cover whole segments is refused in prepare, and so is one of a segment that is shared in part only:
/// its private frames would lose their contents. One pin loses all of its segment. Build the memory with segments of the
/// size that guests convert.
///
/// **Not for** memory that must keep its contents ([`Contents::Keep`]), which is refused in prepare; and not for plain files
/// and guest_memfds, which take no seals. To all other intents it answers `Ok` at once: it translates to nothing, a share
/// takes nothing from the host, and a reclaim is proven by the memory itself.
#[derive(Clone, Debug)]
pub struct SealWitness {
    memory: HostMemory,
    /// What has become shared since the witness was attached, and not private or nobody's again.
    shared: Arc<Mutex<RunSet>>,
}

impl SealWitness {
    /// A witness for this memory. None if its proof is not [`ProofMethod::Seal`].
    #[must_use]
    pub fn of(memory: &HostMemory) -> Option<Arc<Self>> {
        (memory.proof_method() == ProofMethod::Seal).then(|| Arc::new(Self { memory: memory.clone(), shared: Arc::default() }))
    }

    /// The whole segments around `frames`.
    fn segments(&self, frames: PfnRange) -> PfnRange {
        let last = Pfn::new(frames.end().get().saturating_sub(1));
        self.memory.granule(frames.start()).hull(self.memory.granule(last))
    }

    /// Refuses a segment of `segments`, whole ones, of which only a part is shared.
    fn check_uniform(&self, segments: PfnRange) -> Result<(), Refusal> {
        let shared = self.shared.lock();
        let mixed = shared.clipped(segments).find_map(|run| {
            let edges = [run.start(), Pfn::new(run.end().get() - 1)].map(|pfn| self.memory.granule(pfn));
            edges.into_iter().find(|segment| !run.contains_range(*segment))
        });
        let Some(segment) = mixed else { return Ok(()) };
        let why = format!("of {segment} only a part is shared, and the kernel proves only whole segments");
        Err(Refusal::Other(why.into()))
    }
}

impl Mapping for SealWitness {
    fn prepare(&self, op: &Operation) -> Result<(), Refusal> {
        if op.intent != Intent::Unshare {
            return Ok(());
        }
        if op.contents == Contents::Keep {
            return Err(Refusal::Other("a seal gives the frames other pages, so their contents cannot be kept".into()));
        }
        let segments = self.segments(op.frames);
        if segments == op.frames {
            return self.check_uniform(segments);
        }
        let why = format!("{} are not whole segments, and the kernel proves only those: {segments}", op.frames);
        Err(Refusal::Other(why.into()))
    }

    /// Seals the segments and puts fresh memory in their place.
    fn invalidate(&self, op: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        match op.intent {
            Intent::Share => self.shared.lock().insert(frames),
            Intent::Unshare => {
                self.memory.exchange_segments(frames)?;
                self.shared.lock().remove(frames);
            }
            Intent::Reclaim => self.shared.lock().remove(frames),
            Intent::Detach | Intent::Resize => {}
        }
        Ok(())
    }
}
