//! Holding the pool's answers and its whole state against the model's.

use std::collections::BTreeMap;

use pageless::metadata::Occupancy;
use pageless::metadata::model::{
    Model, ModelFrame, Reclaimed as ModelReclaimed, Refused as ModelRefused, Waiting as ModelWaiting,
};
use pageless::{
    Allocation, Blocked, FRAME_BYTES, Lost, Order, Pfn, PfnRange, Pool, Reclaimed, Refused, RunSet, Waiting, WaitingFor,
    Withdrawal,
};

/// The pool's answer says what the model's says.
pub(crate) fn same_refusal(blocked: &Blocked, expected: &ModelRefused) {
    let same = match (blocked, expected) {
        (Blocked::Busy { .. }, ModelRefused::Busy) => true,
        (Blocked::Held { holder, offset }, ModelRefused::Held { offset: at, holders }) => {
            offset == at && holders.contains(holder)
        }
        (Blocked::Refused(refused), expected) => same_refused(refused, expected),
        _ => false,
    };
    assert!(same, "the pool says {blocked:?}, the model {expected:?}");
}

fn same_refused(refused: &Refused, expected: &ModelRefused) -> bool {
    use {ModelRefused as M, Refused as P};
    match (refused, expected) {
        (P::Unaligned { .. }, M::Unaligned) | (P::Empty { .. }, M::Empty) | (P::Outside { .. }, M::Outside) => true,
        (P::NotOwner { offset }, M::NotOwner { offset: at })
        | (P::Released { offset }, M::Released { offset: at })
        | (P::NotLost { offset }, M::NotLost { offset: at })
        | (P::NoFrame { offset }, M::NoFrame { offset: at }) => offset == at,
        (P::Withdrawn { offset, frames, state }, M::Withdrawn { offset: at, frames: many, state: mark }) => {
            (offset, frames, state) == (at, many, mark)
        }
        (P::Poisoned { offset, frames }, M::Poisoned { offset: at, frames: many }) => (offset, frames) == (at, many),
        (P::NotOneLeaf { offset, bytes, .. }, M::NotOneLeaf { offset: at, order }) => offset == at && *bytes == order.bytes(),
        (P::Mapping { mapping, .. }, M::Mapping { name }) => mapping.trim_end_matches(" (detached)") == name,
        (P::NoSuchMapping { .. }, M::NoSuchMapping) | (P::NameTaken { .. }, M::NameTaken) => true,
        _ => false,
    }
}

/// Frames and marks of receipts; each frame once.
pub(crate) fn lost_frames(lost: &[Lost]) -> BTreeMap<Pfn, Withdrawal> {
    let mut all = BTreeMap::new();
    for receipt in lost {
        assert_eq!(receipt.retry_after().is_some(), receipt.state() == Withdrawal::Quarantined, "{receipt}");
        for pfn in receipt.frames().iter() {
            assert_eq!(all.insert(pfn, receipt.state()), None, "{pfn} is lost twice in {lost:?}");
        }
    }
    all
}

/// A pass of reclaim did what the model's did.
pub(crate) fn same_reclaimed(told: &Reclaimed, expected: &ModelReclaimed) {
    assert_eq!(told.freed, expected.freed, "freed, in {told:?}");
    assert_eq!(told.recovered, expected.recovered, "recovered");
    assert_eq!(lost_frames(&told.lost), expected.lost, "lost");
    assert_eq!(told.withdrawn, expected.withdrawn, "withdrawn");
    let mut waiting = BTreeMap::new();
    for Waiting { frames, why } in &told.waiting {
        let why = match why {
            WaitingFor::Holder(_) => ModelWaiting::Holder,
            WaitingFor::Operation => ModelWaiting::Operation,
            WaitingFor::Mapping { .. } => ModelWaiting::Mapping,
            WaitingFor::Granule { .. } => ModelWaiting::Granule,
            // This pool has none.
            WaitingFor::Ledger { .. } => unreachable!("{why:?}"),
        };
        for pfn in frames.iter() {
            assert_eq!(waiting.insert(pfn, why), None, "{pfn} waits twice in {told:?}");
        }
    }
    assert!(waiting.keys().eq(expected.waiting.keys()), "waiting: {waiting:?} and {:?}", expected.waiting);
    for (pfn, why) in waiting {
        assert!(expected.waiting[&pfn].contains(&why), "{pfn} waits for {why:?}, not {:?}", expected.waiting[&pfn]);
    }
}

/// Everything that can be asked of a pool equals the model.
pub(crate) fn same_state(pool: &Pool, model: &Model, handles: &[&Allocation]) {
    same_stretches(pool, model);
    same_counts(pool, model);
    let withdrawn = pool.withdrawn();
    for mark in [Withdrawal::Quarantined, Withdrawal::Failed, Withdrawal::Poisoned] {
        let of_mark = withdrawn.iter().filter(|run| run.state == mark).map(|run| run.frames);
        assert_eq!(of_mark.clone().collect::<RunSet>(), model.marked(mark), "{mark}");
        assert_eq!(of_mark.map(PfnRange::frames).sum::<u64>(), model.marked(mark).frames(), "{mark} twice in {withdrawn:?}");
    }
    let verified = pool.verify();
    assert!(verified.is_sound(), "{:#?}", verified.faults);
    for handle in handles {
        let names: Vec<String> = handle.mappings().iter().map(ToString::to_string).collect();
        assert_eq!(names, model.mappings(handle.id()), "mappings of {handle:?}");
        same_leaves(handle, model);
    }
}

fn same_stretches(pool: &Pool, model: &Model) {
    let small = model.frames().count() <= 300;
    let mut frames = model.frames();
    for stretch in pool.stretches() {
        for pfn in stretch.frames.iter() {
            let (at, frame) = frames.next().unwrap();
            assert_eq!(at, pfn);
            let mut expected = frame.state;
            let mut state = stretch.state;
            // A stretch does not know what a quarantine is for; `explain` does.
            (expected.quarantined, state.quarantined) =
                (expected.quarantined.map(|_| pageless::Intent::Reclaim), state.quarantined.map(|_| pageless::Intent::Reclaim));
            assert_eq!(state, expected, "{pfn} in {stretch:?}");
            assert_eq!(stretch.allocation, frame.tenant, "{pfn}");
            assert_eq!((stretch.free, pool.is_free(pfn)), (frame.state.assignable(), frame.state.assignable()), "{pfn} free?");
            let edge = pfn == stretch.frames.start() || pfn.add(1) == stretch.frames.end();
            if small || edge {
                same_explanation(pool, pfn, frame);
            }
        }
    }
    assert!(frames.next().is_none());
}

fn same_explanation(pool: &Pool, pfn: Pfn, frame: &ModelFrame) {
    let explained = pool.explain(pfn).unwrap();
    assert_eq!(explained.state, frame.state, "{pfn}: {explained}");
    assert_eq!(explained.allocation, frame.tenant, "{pfn}");
    assert_eq!(explained.owner.is_some(), frame.tenant.is_some(), "{pfn}: {explained:?}");
    if frame.state.occupancy != Occupancy::Free {
        assert_eq!(explained.offset, Some(frame.offset * FRAME_BYTES), "{pfn}: {explained:?}");
    }
    let marks = [frame.state.quarantined.is_some(), frame.state.failed, frame.state.poisoned];
    assert_eq!(explained.marks.len(), marks.into_iter().filter(|mark| *mark).count(), "{pfn}: {:?}", explained.marks);
}

fn same_counts(pool: &Pool, model: &Model) {
    let (stats, counts) = (pool.stats(), model.counts());
    assert_eq!(stats.frames, model.frames().count() as u64);
    let of_pool = [
        stats.free,
        stats.allocated,
        stats.released,
        stats.shared,
        stats.unknown,
        stats.converting,
        stats.quarantined,
        stats.failed,
        stats.poisoned,
        stats.broken_2m,
        stats.demoted_1g,
        stats.buildable.gib1,
        stats.buildable.mib2,
        stats.buildable.base,
        stats.allocations,
    ];
    let of_model = [
        counts.free,
        counts.allocated,
        counts.released,
        counts.shared,
        counts.unknown,
        counts.converting,
        counts.quarantined,
        counts.failed,
        counts.poisoned,
        counts.broken_2m,
        counts.demoted_1g,
        counts.buildable.0,
        counts.buildable.1,
        counts.free,
        counts.allocations,
    ];
    assert_eq!(of_pool, of_model, "{stats:?} and {counts:?}");
}

/// A few offsets of an allocation: the largest leaf, and whether blocks can be promoted.
fn same_leaves(handle: &Allocation, model: &Model) {
    let frames = handle.bytes() / FRAME_BYTES;
    for at in [0, frames / 2, frames - 1] {
        let offset = at * FRAME_BYTES;
        same_result(handle.max_mapping_order(offset), model.max_mapping_order(handle.id(), offset));
        for order in Order::DESCENDING {
            same_result(handle.promotable(offset, order), model.promotable(handle.id(), offset, order));
        }
        if let Ok(pfn) = handle.frame(offset) {
            assert_eq!(handle.shareability(offset).unwrap(), model.shareability(pfn), "{pfn}");
        }
    }
}

pub(crate) fn same_result<T: PartialEq + std::fmt::Debug>(answer: Result<T, Blocked>, expected: Result<T, ModelRefused>) {
    match (answer, expected) {
        (Ok(one), Ok(other)) => assert_eq!(one, other),
        (Err(blocked), Err(refused)) => same_refusal(&blocked, &refused),
        (answer, expected) => panic!("the pool says {answer:?}, the model {expected:?}"),
    }
}
