//! What the verbs of the frame layer answer when they cannot do what they were asked.

use pageless_metadata::{Pfn, PfnRange};

/// How many blocks of each order could be taken now. Each order is counted for itself: one free GiB is also 512 free 2 MiB
/// blocks and 262,144 free frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Buildable {
    /// Free aligned blocks of 1 GiB.
    pub gib1: u64,
    /// Free aligned blocks of 2 MiB.
    pub mib2: u64,
    /// Free frames of 4 KiB.
    pub base: u64,
}

/// Why exactly these frames could not be taken. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TakeAtError {
    /// A frame is taken already.
    #[error("{pfn} is not free")]
    NotFree {
        /// The first such frame.
        pfn: Pfn,
    },
    /// A frame does not belong to this layer.
    #[error("{pfn} lies outside {span}")]
    Outside {
        /// The first such frame.
        pfn: Pfn,
        /// The frames that do belong to it.
        span: PfnRange,
    },
}

/// Why frames could not be put back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PutError {
    /// A frame is free already: a double free. Nothing has changed.
    #[error("{pfn} is free already")]
    AlreadyFree {
        /// The first such frame.
        pfn: Pfn,
    },
    /// A frame does not belong to this layer. Nothing has changed.
    #[error("{pfn} lies outside {span}")]
    Foreign {
        /// The first such frame.
        pfn: Pfn,
        /// The frames that do belong to it.
        span: PfnRange,
    },
    /// Somebody else put a frame while this call was putting it: a double free by two threads at once. The frames before
    /// `from` have been put, `from` and those after it have not. A run is put in ascending order; of a batch of up to 64
    /// frames, in the order in which they were named, of a larger one in ascending order.
    #[error("{pfn} was put by two callers at once; the frames before {from} have been put, the rest not")]
    Raced {
        /// The first frame that both put.
        pfn: Pfn,
        /// The first frame that this call did not put.
        from: Pfn,
    },
}

/// The first frame of `range` that lies outside `span`.
pub(crate) fn first_outside(span: PfnRange, range: PfnRange) -> Option<Pfn> {
    range.subtract(span).into_iter().flatten().map(PfnRange::start).min()
}
