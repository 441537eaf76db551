//! Values that stand for something that happened, a loss, a proof, a conversion, or for something that was checked, a range,
//! are made by pageless alone.

use std::sync::Arc;

use pageless::{Cause, Converted, Detached, Lost, Mapping, Pfn, PfnRange, RunSet, Withdrawal};

fn receipt(frames: PfnRange) -> Lost {
    Lost { frames, offset: 0, state: Withdrawal::Failed, retry_after: None, holder: None, cause: Cause::default(), recorded: true }
}

fn proof(mapping: Arc<dyn Mapping>) -> Detached {
    Detached { mapping, still_asked_about: RunSet::new() }
}

fn conversion() -> Converted {
    Converted { frames: RunSet::new(), changed: true }
}

fn empty_range() -> PfnRange {
    PfnRange { start: Pfn::new(7), end: Pfn::new(7) }
}

fn main() {}
