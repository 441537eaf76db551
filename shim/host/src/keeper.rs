//! Holds segments with withdrawn pages for the rest of the process (invariant I12).
//!
//! Closing the last descriptor of a memfd gives its pages back to the kernel, which may hand the very page that could not
//! be proven unreachable to somebody else. So when a [`HostMemory`](crate::HostMemory) goes away while marks stand, the
//! files under those marks are put here, and nothing takes them out again: only the end of the process closes them. (The
//! end of the process is a proof of its own for what was reachable through it, and not for what lay outside it: see
//! docs/CAVEATS.md.)

use std::sync::Arc;

use parking_lot::Mutex;

use crate::segment::SegmentFile;

static KEPT: Mutex<Vec<Arc<SegmentFile>>> = Mutex::new(Vec::new());

/// Keeps `file` open until the process ends.
pub(crate) fn keep(file: Arc<SegmentFile>) {
    tracing::error!(frames = %file.frames(), "memory dropped with withdrawn frames; its descriptor is kept for the rest of the process");
    KEPT.lock().push(file);
}

/// How many segments are being kept: descriptors that stay open until the process ends.
#[must_use]
pub fn held() -> usize {
    KEPT.lock().len()
}
