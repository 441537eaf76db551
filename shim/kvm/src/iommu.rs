//! [`IommuMapping`]: any device table behind two calls.
//!
//! VFIO, iommufd, a vhost-user back end's own table, a device model's: whatever maps and unmaps I/O addresses and says what
//! became of it is an [`Iommu`]. The mapping over it keeps what is mapped and believes nothing but a full answer: a table that
//! unmapped less than it was asked for is stuck at exactly the frame where it stopped.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use pageless::{Cause, FRAME_BYTES, MapGuard, Mapping, Operation, Pfn, PfnRange, Refusal, RunSet, Stuck, Verdict};
use pageless_host::{HostBacking, SegmentHandle};
use parking_lot::Mutex;

/// A table that translates I/O addresses. Calls come from many threads at once, for disjoint frames.
pub trait Iommu: Send + Sync {
    /// Maps `bytes` bytes of memory, which lie in `memory` from its offset on, at `iova`. On an error nothing of them is mapped.
    fn map(&self, iova: u64, bytes: u64, memory: &SegmentHandle) -> Result<(), IommuFault>;

    /// Unmaps `bytes` bytes at `iova`, flushes, and answers how many bytes *from the start* are gone, as
    /// `VFIO_IOMMU_UNMAP_DMA` and `IOMMU_IOAS_UNMAP` do.
    fn unmap(&self, iova: u64, bytes: u64) -> Result<u64, IommuFault>;
}

/// What the table said when it did not do as it was asked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{step} gave {status:#x}: {meaning}")]
pub struct IommuFault {
    /// The step that failed, for instance `VFIO_IOMMU_UNMAP_DMA`.
    pub step: Cow<'static, str>,
    /// Its status word, or the errno.
    pub status: u64,
    /// What it means, for a human.
    pub meaning: Cow<'static, str>,
    /// How many bytes from the start are gone all the same.
    pub unmapped: u64,
    /// Whether asking again makes sense.
    pub verdict: Verdict,
}

/// Why frames were not mapped for a device.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum IommuError {
    /// The memory has no descriptor behind the frames.
    #[error("no memory has been committed behind {frames}")]
    NotCommitted {
        /// The frames.
        frames: PfnRange,
    },
    /// The frames would lie beyond the last I/O address.
    #[error("{bytes:#x} bytes at offset {offset:#x} end beyond the last I/O address: the table's base is {base:#x}")]
    TooHigh {
        /// Where the allocation begins in the table, in bytes.
        base: u64,
        /// Where the frames begin in the allocation, in bytes.
        offset: u64,
        /// Their length in bytes.
        bytes: u64,
    },
    /// The table refused.
    #[error(transparent)]
    Table(#[from] IommuFault),
}

/// A device's table as a mapping of one allocation: I/O addresses are `base` plus the offset in the allocation.
pub struct IommuMapping<I> {
    table: I,
    base: u64,
    mapped: Mutex<RunSet>,
}

impl<I: Iommu> IommuMapping<I> {
    /// The offsets of the allocation begin at `base` in the table. Nothing is mapped yet.
    pub fn new(table: I, base: u64) -> Self {
        Self { table, base, mapped: Mutex::default() }
    }

    /// The table.
    pub fn table(&self) -> &I {
        &self.table
    }

    /// The frames that the device may reach now.
    #[must_use]
    pub fn mapped(&self) -> RunSet {
        self.mapped.lock().clone()
    }

    /// Lets the device reach what `guard` permits and is not mapped yet, one call for each run of one file. On an error the
    /// runs before stay mapped.
    pub fn map(&self, guard: &MapGuard<'_>, memory: &dyn HostBacking) -> Result<(), IommuError> {
        // Held while the table is asked, so that two faults on one frame do not map it twice.
        let mut mapped = self.mapped.lock();
        for extent in guard.extents() {
            for gap in mapped.gaps_in(extent.frames).runs() {
                let mut rest = Some(*gap);
                while let Some(run) = rest {
                    let handle = memory.segment(run.start()).ok_or(IommuError::NotCommitted { frames: run })?;
                    let (piece, after) = run.split_at(handle.frames().frames());
                    if let Some(piece) = piece {
                        let iova = self.iova(extent.offset_of(piece.start()), piece.bytes())?;
                        // In the books before the table has it: one that panics half way is asked to unmap it.
                        mapped.insert(piece);
                        self.table.map(iova, piece.bytes(), &handle).inspect_err(|_| mapped.remove(piece))?;
                    }
                    rest = after;
                }
            }
        }
        Ok(())
    }

    fn iova(&self, offset: u64, bytes: u64) -> Result<u64, IommuError> {
        let iova = self.base.checked_add(offset).filter(|iova| iova.checked_add(bytes).is_some());
        iova.ok_or(IommuError::TooHigh { base: self.base, offset, bytes })
    }

    fn unmap_run(&self, op: &Operation, run: PfnRange) -> Result<(), Stuck> {
        let iova = self.base.saturating_add(crate::stage2::offset_of(op, run.start()));
        let (gone, said) = match self.table.unmap(iova, run.bytes()) {
            Ok(gone) => (gone, None),
            Err(fault) => (fault.unmapped.min(run.bytes().saturating_sub(1)), Some(fault)),
        };
        if gone == run.bytes() {
            self.mapped.lock().remove(run);
            return Ok(());
        }
        if gone > run.bytes() {
            let meaning = format!("{gone} bytes unmapped of {} asked for: the table and its books disagree", run.bytes());
            return Err(Stuck { at: run, verdict: Verdict::Never, cause: Cause::new("unmap", gone, meaning) });
        }
        // A frame that went in part has not gone.
        let whole = gone / FRAME_BYTES;
        if let Some(before) = run.sub(0, whole) {
            self.mapped.lock().remove(before);
        }
        let at = PfnRange::single(Pfn::new(run.start().get() + whole));
        Err(match said {
            Some(fault) => Stuck { at, verdict: fault.verdict, cause: Cause::new(fault.step, fault.status, fault.meaning) },
            None => {
                let meaning = format!("only {gone} of {} bytes unmapped, without a reason", run.bytes());
                Stuck { at, verdict: Verdict::Retry { after: RETRY_AFTER }, cause: Cause::new("unmap", gone, meaning) }
            }
        })
    }
}

const RETRY_AFTER: Duration = Duration::from_millis(10);

impl<I> fmt::Debug for IommuMapping<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IommuMapping").field("base", &self.base).field("mapped", &*self.mapped.lock()).finish_non_exhaustive()
    }
}

impl<I: Iommu> Mapping for IommuMapping<I> {
    /// Nothing is reserved: a table that must cut a leaf to unmap says so when it is asked.
    fn prepare(&self, _op: &Operation) -> Result<(), Refusal> {
        Ok(())
    }

    /// Unmaps what is mapped of `frames`, run by run, in order.
    fn invalidate(&self, op: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        let mapped: Vec<PfnRange> = self.mapped.lock().clipped(frames).collect();
        mapped.into_iter().try_for_each(|run| self.unmap_run(op, run))
    }
}
