//! Choosing frames for a request: as few and as large runs as the pool allows, and whole GiBs kept whole.

use pageless_metadata::{Order, Pfn, PfnRange};

use crate::frames::{Buildable, Frames};
use crate::record::{Node, Records};
use crate::request::{AllocateError, NodeChoice, Request};

/// Takes frames for `request` out of the frame layers: runs in guest order, largest blocks first.
pub(crate) fn take(records: &Records, request: &Request) -> Result<Vec<PfnRange>, AllocateError> {
    let nodes = candidates(records, request.node)?;
    let (frames, order) = (request.frames(), request.order);
    // One node that has everything, before several that have parts: remote memory is slow.
    for node in &nodes {
        if let Some(runs) = take_from(records, &node.frames, frames, order, request.contiguous) {
            return Ok(runs);
        }
    }
    // Nobody takes what cannot be enough: others would find it missing meanwhile.
    let free: u64 = nodes.iter().map(|node| node.frames.free_frames()).sum();
    if !request.contiguous && nodes.len() > 1 && free >= frames {
        let mut left = frames;
        let taken: Vec<PfnRange> = nodes.iter().flat_map(|node| take_blocks(&node.frames, &mut left, order)).collect();
        if left == 0 {
            return Ok(merged(taken, records));
        }
        put_back(records, &taken);
    }
    Err(not_enough(&nodes, request))
}

/// Puts runs that nobody has had back into their frame layers, except what was withdrawn while it was out.
pub(crate) fn put_back(records: &Records, runs: &[PfnRange]) {
    for piece in runs.iter().flat_map(|run| records.pieces(*run)) {
        let gib = records.record(piece.record).lock();
        for span in gib.sound_runs(piece.span) {
            put(records, span.in_gib_of(piece.frames.start()));
        }
    }
}

/// Puts frames back that this pool took. A refusal means that a frame would have had two owners: it is logged and the frames
/// stay out.
pub(crate) fn put(records: &Records, frames: PfnRange) {
    let Some(node) = records.node_of(frames.start()) else { return };
    if let Err(error) = node.frames.put(frames) {
        tracing::error!(%frames, %error, "frames were free already; they stay out of the pool");
        debug_assert!(false, "put {frames}: {error}");
    }
}

fn candidates(records: &Records, choice: NodeChoice) -> Result<Vec<&Node>, AllocateError> {
    let nodes = records.nodes();
    let wanted = match choice {
        NodeChoice::Any => return Ok(nodes.iter().collect()),
        NodeChoice::Prefer(node) | NodeChoice::Require(node) => node,
    };
    if !nodes.iter().any(|node| node.number == wanted) {
        return Err(AllocateError::NoSuchNode { node: wanted, known: nodes.iter().map(|node| node.number).collect() });
    }
    let (mut first, mut rest): (Vec<&Node>, Vec<&Node>) = nodes.iter().partition(|node| node.number == wanted);
    if matches!(choice, NodeChoice::Prefer(_)) {
        first.append(&mut rest);
    }
    Ok(first)
}

fn take_from(records: &Records, layer: &Frames, frames: u64, order: Order, contiguous: bool) -> Option<Vec<PfnRange>> {
    let align = order.max(Order::largest_fit(Pfn::new(0), frames));
    let run = if align.frames() == frames {
        layer.take(align).map(|start| PfnRange::block(start, align))
    } else {
        layer.take_run(frames, align)
    };
    if let Some(run) = run {
        return Some(vec![run]);
    }
    if contiguous {
        // The start need not be aligned to more than was asked for.
        return layer.take_run(frames, order).map(|run| vec![run]);
    }
    if layer.free_frames() < frames {
        return None;
    }
    let mut left = frames;
    let taken = take_blocks(layer, &mut left, order);
    if left > 0 {
        put_back(records, &taken);
        return None;
    }
    Some(touching_merged(taken))
}

/// Takes blocks of at least `order`, the largest first, until `left` frames are found or none are left to find.
fn take_blocks(layer: &Frames, left: &mut u64, order: Order) -> Vec<PfnRange> {
    let mut taken = Vec::new();
    for size in Order::DESCENDING.into_iter().filter(|size| *size >= order) {
        while *left >= size.frames() {
            let Some(start) = layer.take(size) else { break };
            taken.push(PfnRange::block(start, size));
            *left -= size.frames();
        }
    }
    taken
}

/// Runs of one node that touch, in guest order, become one extent.
fn touching_merged(runs: Vec<PfnRange>) -> Vec<PfnRange> {
    runs.into_iter().fold(Vec::new(), |mut merged: Vec<PfnRange>, run| {
        match merged.last_mut() {
            Some(last) if last.end() == run.start() => *last = last.hull(run),
            _ => merged.push(run),
        }
        merged
    })
}

/// The same for runs of several nodes: an extent never spans two.
fn merged(runs: Vec<PfnRange>, records: &Records) -> Vec<PfnRange> {
    touching_merged(runs)
        .into_iter()
        .flat_map(|run| records.nodes().iter().filter_map(move |node| node.span().intersect(run)))
        .collect()
}

fn not_enough(nodes: &[&Node], request: &Request) -> AllocateError {
    let buildable = nodes.iter().map(|node| node.frames.buildable()).fold(Buildable::default(), |sum, part| Buildable {
        gib1: sum.gib1 + part.gib1,
        mib2: sum.mib2 + part.mib2,
        base: sum.base + part.base,
    });
    AllocateError::NotEnough { bytes: request.bytes, order: request.order, contiguous: request.contiguous, buildable }
}
