//! Holds segments with withdrawn pages for the rest of the process (invariant I12).
//!
//! Closing the last descriptor of a file without a name gives its pages back to the kernel, which may hand the very page
//! that could not be proven unreachable to somebody else. So when memory goes away while marks stand, the files under those
//! marks are put here, and nothing takes them out again: only the end of the process closes them. (The end of the process
//! is a proof of its own for what was reachable through it, and not for what lay outside it: see docs/CAVEATS.md.)

use std::os::fd::AsFd;
use std::sync::Arc;

use pageless::PfnRange;
use parking_lot::Mutex;

type Kept = Arc<dyn AsFd + Send + Sync>;

static KEPT: Mutex<Vec<Kept>> = Mutex::new(Vec::new());

/// Keeps `file`, in which `frames` lie, open until the process ends.
pub(crate) fn keep(file: Arc<dyn AsFd + Send + Sync>, frames: PfnRange) {
    tracing::error!(%frames, "memory dropped with withdrawn frames; its descriptor is kept for the rest of the process");
    KEPT.lock().push(file);
}

/// How many files are being kept: descriptors that stay open until the process ends.
#[must_use]
pub fn held() -> usize {
    KEPT.lock().len()
}
