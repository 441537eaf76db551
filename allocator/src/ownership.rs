//! An allocation as the pool knows it: what its handle, its holds and its released frames all point at.
//!
//! It outlives the handle: as long as one frame is released and not proven, the mappings that were ever attached are needed.

use std::sync::Arc;

use pageless_metadata::{AllocationId, PfnRange};

use crate::extents::{Extent, Extents};
use crate::mapping::Contents;
use crate::mappings::MappingList;
use crate::request::Request;
use crate::sync::{AtomicBool, Mutex, Ordering};

/// One allocation.
pub(crate) struct Ownership {
    pub(crate) id: AllocationId,
    pub(crate) owner: Arc<str>,
    pub(crate) bytes: u64,
    /// What its owner shows after a reopening; 0 without a ledger.
    pub(crate) secret: u128,
    pub(crate) contents: Contents,
    pub(crate) extents: Extents,
    /// Read after marking: a mapping attached before the mark is in the list, and one attached later can establish nothing on
    /// the marked frames.
    pub(crate) mappings: MappingList,
    /// Serialises changes of the list of mappings and of the extents, and the end of the owner. Taken before the gate of
    /// frames in transit and before GiB locks, never during a mapping's call.
    pub(crate) editing: Mutex<()>,
    /// What is released and not yet proven, where it was in the guest. Ascending by frame.
    pub(crate) released: Mutex<Vec<Extent>>,
    live: AtomicBool,
}

impl Ownership {
    pub(crate) fn new(id: AllocationId, request: &Request, extents: Vec<Extent>) -> Self {
        Self {
            id,
            owner: Arc::clone(&request.owner),
            bytes: request.bytes,
            secret: 0,
            contents: request.contents,
            extents: Extents::new(extents),
            mappings: MappingList::new(),
            editing: Mutex::new(()),
            released: Mutex::new(Vec::new()),
            live: AtomicBool::new(true),
        }
    }

    /// Whether the owner still has it.
    pub(crate) fn is_live(&self) -> bool {
        // Relaxed: a hint. Who has a frame is decided under the frame's lock.
        self.live.load(Ordering::Relaxed)
    }

    /// Marks the owner as gone; false if it was gone already.
    pub(crate) fn end(&self) -> bool {
        self.live.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn add_released(&self, extent: Extent) {
        let mut released = self.released.lock();
        let at = released.partition_point(|other| other.frames < extent.frames);
        // What is given up piece by piece is mostly one run in the end.
        match at.checked_sub(1).and_then(|before| released[before].joined(extent)) {
            Some(joined) => released[at - 1] = joined,
            None => released.insert(at, extent),
        }
    }

    /// Takes frames off the list of released ones: they are free.
    pub(crate) fn remove_released(&self, frames: PfnRange) {
        let mut released = self.released.lock();
        if let [only] = &released[..]
            && frames.contains_range(only.frames)
        {
            released.clear();
            return;
        }
        let from = released.partition_point(|extent| extent.frames.end() <= frames.start());
        let to = released.partition_point(|extent| extent.frames.start() < frames.end());
        let rest: Vec<Extent> = released[from..to]
            .iter()
            .flat_map(|extent| extent.frames.subtract(frames).into_iter().flatten().filter_map(|part| extent.clipped(part)))
            .collect();
        released.splice(from..to, rest);
    }

    /// The offset at which the allocation lists the first of `frames`, in bytes: where a caller finds them.
    pub(crate) fn offset_of(&self, frames: PfnRange) -> u64 {
        self.extents.find(frames.start()).map_or_else(|| self.origin_of(frames), |extent| extent.offset_of(frames.start()))
    }

    /// Where in the allocation `frames` begin, or began until they were released, in bytes.
    pub(crate) fn origin_of(&self, frames: PfnRange) -> u64 {
        let released = self.released.lock().iter().find(|extent| extent.frames.contains(frames.start())).copied();
        let found = released.or_else(|| self.extents.find(frames.start()));
        found.map_or(0, |extent| extent.offset_of(frames.start()))
    }
}
