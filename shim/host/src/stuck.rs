//! What a proof or a zeroing that did not come says: the step, the kernel's word, and when to ask again.

use std::time::Duration;

use nix::errno::Errno;
use pageless::{Cause, PfnRange, RunSet, Stuck, Verdict};

use crate::holes::{PUNCH, Refused};

/// When to ask again for a proof that a mapping or a pin prevented.
pub(crate) const RETRY_AFTER: Duration = Duration::from_millis(300);

/// The part of `frames` before the first withdrawn one, and that one's run. The part must be dealt with before the mark is
/// answered as stuck, since a [`Stuck`] says that everything before it is proven.
pub(crate) fn before_mark(withdrawn: &RunSet, frames: PfnRange) -> (Option<PfnRange>, Option<PfnRange>) {
    match withdrawn.clipped(frames).next() {
        Some(marked) => (PfnRange::new(frames.start(), marked.start()).ok(), Some(marked)),
        None => (Some(frames), None),
    }
}

/// The kernel refused a step.
pub(crate) fn refused(refused: Refused, at: PfnRange) -> Stuck {
    // It passes where memory to split a large page is short. A file that somebody sealed, or frames that cannot be pages of
    // the file, stay what they are.
    let never = matches!(refused.errno, Errno::EPERM | Errno::EINVAL | Errno::EOPNOTSUPP);
    let verdict = if never { Verdict::Never } else { Verdict::Retry { after: RETRY_AFTER } };
    Stuck { at, verdict, cause: Cause::new(refused.step, refused.errno as u64, refused.errno.desc()) }
}

/// The mark on a frame must be lifted first.
pub(crate) fn withdrawn(step: &'static str, at: PfnRange) -> Stuck {
    let meaning = "withdrawn: its page is kept shut until the mark is lifted";
    Stuck { at, verdict: Verdict::Retry { after: RETRY_AFTER }, cause: Cause::new(step, 0, meaning) }
}

/// A mapping of this process still translates to some of the frames.
pub(crate) fn mapped(frames: u64, at: PfnRange) -> Stuck {
    let meaning = format!("{frames} frames are still mapped by a HostMapping of this process");
    let cause = Cause::new("unmap", Errno::EBUSY as u64, meaning);
    Stuck { at, verdict: Verdict::Retry { after: RETRY_AFTER }, cause }
}

/// The page was zeroed and could not be taken out of its file.
pub(crate) fn unsplit(at: PfnRange) -> Stuck {
    let meaning = "zeroed, but a page stays in its file: it is part of a large folio that the kernel cannot split, as while any \
                   page of it is pinned (splice, io_uring, a device)";
    let cause = Cause::new(PUNCH, Errno::EBUSY as u64, meaning);
    Stuck { at, verdict: Verdict::Retry { after: RETRY_AFTER }, cause }
}
