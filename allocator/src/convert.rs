//! share and unshare: the verbs that pageless exists for.

use std::ops::Range;

use pageless_metadata::{Intent, PfnRange, RunSet};

use crate::allocation::Allocation;
use crate::asking::Losses;
use crate::at_once::{AtOnce, Snag, Stage};
use crate::extents::Runs;
use crate::mapping::Stuck;
use crate::mappings::Mappings;
use crate::operation::{Begun, OpenOperation, Partition};
use crate::outcome::{Blocked, Convert};

/// A conversion that succeeded for every frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Converted {
    frames: RunSet,
    changed: bool,
}

impl Converted {
    /// These frames, some of which had to change.
    #[inline(always)]
    pub(crate) fn changing(frames: PfnRange) -> Self {
        Self { frames: frames.into(), changed: true }
    }

    /// The frames of the range: all of them are now as asked.
    #[must_use]
    pub const fn frames(&self) -> &RunSet {
        &self.frames
    }

    /// False when every frame was as asked before, so that nothing had to be done.
    #[must_use]
    pub const fn changed(&self) -> bool {
        self.changed
    }
}

impl Allocation {
    /// Converts the range to shared: every mapping gives up the private frames, they are zeroed unless the owner keeps
    /// contents, and the host may reach them.
    ///
    /// `range` is in bytes from the start of the allocation, aligned to 4 KiB. Frames that are shared already are left alone.
    pub fn share(&self, range: Range<u64>) -> Result<Converted, Convert> {
        self.convert(range, Intent::Share)
    }

    /// Converts the range to private: every mapping gives up the shared frames, and only the guest may reach them.
    ///
    /// `range` is in bytes from the start of the allocation, aligned to 4 KiB. Frames that are private already are left alone.
    pub fn unshare(&self, range: Range<u64>) -> Result<Converted, Convert> {
        self.convert(range, Intent::Unshare)
    }

    /// Converts what cannot be converted [quickly](Self::convert).
    #[inline(never)]
    pub(crate) fn convert_looking(&self, range: Range<u64>, intent: Intent) -> Result<Converted, Convert> {
        match self.convert_at_once(&range, intent) {
            AtOnce::Done(run) => return Ok(Converted::changing(run.frames)),
            AtOnce::Snag(snag) => return Self::go_on_after(snag),
            AtOnce::Look => {}
        }
        let mut operation = match self.begin(|| Ok(self.runs(&range)?), intent)? {
            Begun::AlreadySo(runs) => {
                return Ok(Converted { frames: runs.iter().map(|run| run.frames).collect(), changed: false });
            }
            Begun::Open(operation) => operation,
        };
        // Read after the mark: see `Ownership::mappings`.
        let mappings = self.owned.mappings.load();
        operation.prepare(&mappings)?;
        go_on(operation, 0, None, &mappings)
    }

    /// Ends a conversion that did not end at once.
    #[cold]
    pub(crate) fn go_on_after(snag: Box<Snag<'_>>) -> Result<Converted, Convert> {
        let Snag { mut operation, stage, mappings } = *snag;
        match stage {
            Stage::Preparing { nth, mut refusal } => {
                operation.prepare_from(nth, &mut refusal, &mappings)?;
                go_on(operation, 0, None, &mappings)
            }
            Stage::Invalidating { nth, stuck } => go_on(operation, nth, stuck, &mappings),
            Stage::Proven => ended(operation.finish(Losses::default())),
        }
    }

    /// Begins an operation on the runs that `find` finds, anew for as long as others take their frames' place meanwhile: those may
    /// be released then, or behind other offsets.
    pub(crate) fn begin(&self, find: impl Fn() -> Result<Runs, Blocked>, intent: Intent) -> Result<Begun<'_>, Blocked> {
        loop {
            let generation = self.owned.extents.generation();
            let begun = OpenOperation::begin(&self.pool, &self.owned, find()?, intent);
            match begun {
                begun if generation == self.owned.extents.generation() => return begun,
                Ok(Begun::Open(mut operation)) => operation.cancel(),
                Ok(Begun::AlreadySo(_)) | Err(_) => {}
            }
        }
    }
}

/// Steps 3 and 4 of a conversion: from the `nth` mapping on, which has given its `first` answer already; after the last
/// mapping comes the backing.
fn go_on(operation: OpenOperation<'_>, nth: usize, mut first: Option<Stuck>, mappings: &Mappings) -> Result<Converted, Convert> {
    let mut losses = Losses::default();
    operation.invalidate_from(nth, &mut first, mappings, &mut losses);
    operation.scrub(&mut first, &mut losses);
    ended(operation.finish(losses))
}

fn ended(ended: Partition) -> Result<Converted, Convert> {
    match (ended.lost.is_empty(), ended.released.is_empty()) {
        (true, true) => Ok(Converted { frames: ended.done, changed: true }),
        (_, false) if ended.done.is_empty() => Err(Convert::OwnerGone { lost: ended.lost }),
        // Declared hung, then proven by a retry, and a part given up before the operation came back.
        _ => Err(Convert::Torn { done: ended.done, lost: ended.lost }),
    }
}
