//! The backing's part of a reclaim: proving granules.
//!
//! Where granules are single frames, every proven run is asked about as it is. Where they are huge pages or segments, a granule
//! is asked about only when each of its frames is proven by its mappings in this pass, or free; free ones are taken out of
//! the frame layer meanwhile, so that nobody can be given a page whose file is being sealed.

use std::collections::BTreeSet;

use pageless_metadata::{PfnRange, RunSet};

use crate::asking::{Asked, Losses};
use crate::extents::Extent;
use crate::mapping::{Operation, Verdict};
use crate::operation::OpenOperation;
use crate::placement;
use crate::pool::Inner;
use crate::recall::{Recall, ask_backing};
use crate::reclaim::{Reclaimed, Waiting, WaitingFor};

/// Asks about runs of single frames.
pub(crate) fn prove_frames(pool: &Inner, open: &mut [(OpenOperation<'_>, Losses)], recalls: &mut [Recall]) {
    let asked = Asked { name: "backing", policy: &pool.policy.retry };
    for (operation, losses) in open {
        for run in operation.runs() {
            let op = operation.describe(*run);
            losses.ask(&asked, run.frames, |frames| {
                operation.still_marked(frames)?;
                ask_backing(frames, || pool.backing.prove(&op, frames))
            });
        }
    }
    for recall in recalls {
        let op = recall.op;
        pool.lift_to_ask(recall, op.frames);
        recall.losses.ask(&asked, op.frames, |frames| ask_backing(frames, || pool.backing.prove(&op, frames)));
        pool.shut_again(recall, op.frames);
    }
}

/// Asks about whole granules.
pub(crate) fn prove_whole(pool: &Inner, open: &mut [(OpenOperation<'_>, Losses)], recalls: &mut [Recall], told: &mut Reclaimed) {
    let mut proven = RunSet::new();
    for (operation, losses) in &*open {
        operation.runs().iter().for_each(|run| proven.extend(losses.survivors(run.frames)));
    }
    recalls.iter().for_each(|recall| proven.extend(recall.proven()));
    for granule in granules(pool, &proven) {
        let Some(op) = describe(granule, open, recalls) else { continue };
        // Looked at before each granule, because the one before may have taken long.
        let marked = open.iter().try_for_each(|(operation, losses)| still_marked(operation, losses, granule));
        let proof = match marked {
            Ok(()) => prove_one(pool, granule, &proven, &op, recalls),
            Err(hung) => Proof::Stuck(hung),
        };
        match proof {
            Proof::Proven => {}
            Proof::Incomplete => set_aside(pool, granule, open, recalls, told),
            Proof::Stuck(stuck) => {
                lose(granule, &stuck, open, recalls);
                recalls.iter().for_each(|recall| pool.shut_again(recall, granule));
            }
        }
    }
}

/// Whether the operation still has its marks on those frames of the granule that its mappings proved.
fn still_marked(operation: &OpenOperation<'_>, losses: &Losses, granule: PfnRange) -> Result<(), Losses> {
    let runs = operation.runs().iter().filter_map(|run| run.frames.intersect(granule));
    let hung = runs.flat_map(|run| losses.survivors(run)).find_map(|run| operation.still_marked(run).err());
    hung.map_or(Ok(()), |stuck| {
        let mut losses = Losses::default();
        losses.add(granule, stuck.verdict, stuck.cause);
        Err(losses)
    })
}

enum Proof {
    Proven,
    /// Some of the granule is somebody's, or withdrawn.
    Incomplete,
    Stuck(Losses),
}

fn prove_one(pool: &Inner, granule: PfnRange, proven: &RunSet, op: &Operation, recalls: &mut [Recall]) -> Proof {
    let members: RunSet = pool.records.pieces(granule).map(|piece| piece.frames).collect();
    let others: Vec<PfnRange> = members.difference(proven).into_iter().collect();
    let Ok(claimed) = pool.transit.enter(|| claim(pool, &others)) else { return Proof::Incomplete };
    let mut within: Vec<&mut Recall> = recalls.iter_mut().filter(|recall| recall.op.frames.overlaps(granule)).collect();
    let mut sound = true;
    for recall in &mut within {
        sound &= pool.lift_to_ask(recall, granule);
    }
    let mut losses = Losses::default();
    if sound {
        let asked = Asked { name: "backing", policy: &pool.policy.retry };
        losses.ask(&asked, granule, |frames| ask_backing(frames, || pool.backing.prove(op, frames)));
    } else {
        within.iter().filter_map(|recall| recall.op.frames.intersect(granule)).for_each(|run| pool.backing.keep_shut(run));
    }
    // Free frames were proven when they became free, and nobody has had them since.
    pool.transit.leave(&claimed, || placement::put_back(&pool.records, &claimed));
    match (sound, losses.runs().is_empty()) {
        (false, _) => Proof::Incomplete,
        (true, true) => Proof::Proven,
        (true, false) => Proof::Stuck(losses),
    }
}

/// Takes exactly these runs out of the frame layers, or none.
fn claim(pool: &Inner, runs: &[PfnRange]) -> Result<Vec<PfnRange>, ()> {
    let pieces: Vec<PfnRange> = runs.iter().flat_map(|run| pool.records.pieces(*run)).map(|piece| piece.frames).collect();
    for (nth, piece) in pieces.iter().enumerate() {
        let taken = pool.records.node_of(piece.start()).is_some_and(|node| node.frames.take_at(*piece).is_ok());
        if !taken {
            placement::put_back(&pool.records, &pieces[..nth]);
            return Err(());
        }
    }
    Ok(pieces)
}

/// The granules that hold a proven frame, ascending.
fn granules(pool: &Inner, proven: &RunSet) -> Vec<PfnRange> {
    let mut found: BTreeSet<PfnRange> = BTreeSet::new();
    for run in proven {
        let mut at = run.start();
        while at < run.end() {
            let granule = pool.backing.granule(at);
            found.insert(granule);
            // A granule that does not reach past its own frame would never end this loop.
            at = granule.end().max(at.add(1));
        }
    }
    found.into_iter().collect()
}

/// The operation that a granule is asked about in: that of one of its runs.
fn describe(granule: PfnRange, open: &[(OpenOperation<'_>, Losses)], recalls: &[Recall]) -> Option<Operation> {
    let marked = open.iter().find_map(|(operation, _)| {
        let run: Extent = operation.runs().iter().find_map(|run| run.clipped(granule))?;
        Some(operation.describe(run))
    });
    marked.or_else(|| recalls.iter().find(|recall| recall.op.frames.overlaps(granule)).map(|recall| recall.op))
}

/// The granule is not complete: its frames stay released, or quarantined.
fn set_aside(
    pool: &Inner,
    granule: PfnRange,
    open: &mut [(OpenOperation<'_>, Losses)],
    recalls: &mut [Recall],
    told: &mut Reclaimed,
) {
    for (operation, losses) in open {
        let runs: Vec<PfnRange> = operation.runs().iter().filter_map(|run| run.frames.intersect(granule)).collect();
        for frames in runs.iter().flat_map(|run| losses.survivors(*run)).collect::<Vec<_>>() {
            operation.set_aside(frames);
            told.waiting.push(Waiting { frames, why: WaitingFor::Granule { granule } });
        }
    }
    for recall in recalls.iter_mut() {
        let Some(frames) = recall.op.frames.intersect(granule) else { continue };
        let cause = recall.entry.told.cause.clone();
        // What a mapping has just refused keeps its own reason, and counts as an attempt.
        recall.aside.extend(recall.losses.survivors(frames).collect::<Vec<_>>());
        pool.lose_rest(&mut recall.losses, frames, &cause);
    }
}

/// The backing could not prove the granule: every frame of it that this pass asked about is lost.
fn lose(granule: PfnRange, stuck: &Losses, open: &mut [(OpenOperation<'_>, Losses)], recalls: &mut [Recall]) {
    let Some(first) = stuck.runs().first() else { return };
    // A granule is proven whole or not at all, so the worst verdict on a part is the verdict on all of it.
    let worst = stuck.runs().iter().find(|loss| loss.verdict == Verdict::Never).unwrap_or(first);
    let add = |losses: &mut Losses, frames: PfnRange| {
        for part in losses.survivors(frames).collect::<Vec<_>>() {
            losses.add(part, worst.verdict.clone(), worst.cause.clone());
        }
    };
    for (operation, losses) in open {
        operation.runs().iter().filter_map(|run| run.frames.intersect(granule)).for_each(|frames| add(losses, frames));
    }
    for recall in recalls {
        recall.op.frames.intersect(granule).into_iter().for_each(|frames| add(&mut recall.losses, frames));
    }
}
