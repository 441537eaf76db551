//! Map guards: the right to establish a translation now (invariant I11).
//!
//! A mapping maps frames only while it has a guard of them. A range that converts or is withdrawn gives no guards, and an
//! operation that has marked its range waits until the guards that are out are dropped before it invalidates anything. So
//! nobody can map a frame that is being made unreachable.

use std::ops::Range;

use pageless_metadata::{PfnRange, Purpose};

use crate::allocation::Allocation;
use crate::extents::{Extent, Runs};
use crate::outcome::{Blocked, Refused};
use crate::record::Pieces;

/// The right to establish translations to some frames through one mapping. Drop it as soon as they stand: an operation on the
/// range waits for that.
#[must_use = "a map guard grants nothing once it is dropped"]
pub struct MapGuard<'a> {
    allocation: &'a Allocation,
    runs: Runs,
    pieces: Pieces,
}

impl Allocation {
    /// The right to map the range, in bytes, aligned to 4 KiB, through the mapping attached under this name.
    ///
    /// Refused as busy while a frame of the range converts, and for good where one is withdrawn or released, or where no such
    /// mapping is attached.
    pub fn map_guard(&self, mapping: &str, range: Range<u64>) -> Result<MapGuard<'_>, Blocked> {
        let (runs, pieces, mut locked) = self.lock_runs(&range)?;
        self.pool.unobstructed(&self.owned, &pieces, &mut locked, Purpose::Use)?;
        pieces.iter().for_each(|piece| locked.gib(piece.record).guard(piece.span));
        drop(locked);
        let guard = MapGuard { allocation: self, runs, pieces };
        // Looked up after the guard is out: a detach that began earlier has removed the name, one that begins later waits.
        if self.owned.mappings.load().iter().any(|attached| &*attached.name == mapping && attached.is_attached()) {
            Ok(guard)
        } else {
            Err(Refused::NoSuchMapping { name: mapping.to_owned() }.into())
        }
    }
}

impl MapGuard<'_> {
    /// The runs that may be mapped, in guest-offset order.
    #[must_use]
    pub fn extents(&self) -> &[Extent] {
        &self.runs
    }

    /// Whether every frame of `frames` may be mapped.
    #[must_use]
    pub fn covers(&self, frames: PfnRange) -> bool {
        self.runs.iter().any(|run| run.frames.contains_range(frames))
    }
}

impl Drop for MapGuard<'_> {
    fn drop(&mut self) {
        for piece in &self.pieces {
            self.allocation.pool.records.record(piece.record).lock().unguard(piece.span);
        }
    }
}
