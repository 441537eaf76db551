//! Everything that is left is handed out, down to the last frame: no withdrawn one may be among it.

use anyhow::bail;
use pageless::{AllocateError, FRAME_BYTES, Order, PfnRange, Request, RunSet};

use super::guest::{FRAME, Guest};
use super::losses::standing;
use super::{Story, amount};
use crate::figures;

/// Reclaims the other guest too, and gives all that there is to a third one.
pub(super) fn tell(story: &mut Story<'_>, guest: Guest) -> anyhow::Result<Guest> {
    story.tell.chapter("Everything else is handed out");
    story.note_guest(&guest);
    guest.ram.release()?;
    let waiting = story.tell.spinner("proving vm-a's memory");
    let reclaimed = story.pool.reclaim();
    drop(waiting);
    story.losses.note(&story.pool);
    let stats = story.pool.stats();
    let still = reclaimed.waiting.iter().map(|waiting| waiting.frames.frames()).sum::<u64>();
    story.tell.line(format!(
        "vm-a goes too, and {} frames are freed. Of {} frames {} are free now, {} are withdrawn, and {} wait beside them.",
        figures::count(reclaimed.freed.frames()),
        figures::count(stats.frames),
        figures::count(stats.free),
        figures::count(standing(&story.pool).frames()),
        figures::count(still),
    ));
    let all = Request::bytes(stats.free * FRAME_BYTES).owner("vm-c");
    let waiting = story.tell.spinner("handing out everything that is free");
    let last = Guest::with(&story.ground.memory, "vm-c", story.pool.allocate(all)?)?;
    drop(waiting);
    story.named.push((last.ram.id(), "vm-c"));
    match story.pool.allocate(Request::bytes(FRAME_BYTES).owner("vm-d")) {
        Err(AllocateError::NotEnough { .. }) => {}
        Err(other) => return Err(other.into()),
        Ok(more) => bail!("{more:?} was handed out after everything: a bug of pageless"),
    }
    let extents: Vec<PfnRange> = last.ram.extents().iter().map(|extent| extent.frames).collect();
    story.losses.look(&story.pool, &extents);
    let (frames, runs) = (figures::count(stats.free), figures::counted(extents.len() as u64, "run"));
    story.tell.line(format!("vm-c asks for all {frames} free frames and gets them, in {runs}. One frame more is refused."));
    let found = story.losses.reassigned;
    story.tell.line(format!("Withdrawn frames among what was handed out: {}.", figures::count(found)));
    tell_neighbours(story, &extents);
    search(story, &last)?;
    let caption = "Everything that is sound has an owner. Only withdrawn frames, and what can be proven only together with them, were left out.";
    story.snapshot("at the end", caption.to_owned())?;
    Ok(last)
}

/// How much of the GiBs around the withdrawn frames was handed out.
fn tell_neighbours(story: &mut Story<'_>, extents: &[PfnRange]) {
    let gibs: RunSet = standing(&story.pool).into_iter().map(|run| PfnRange::block(run.start(), Order::GIB1)).collect();
    let pool: RunSet = story.pool.nodes().iter().map(|node| node.frames).collect();
    let gibs = gibs.intersection(&pool);
    let used: u64 = extents.iter().flat_map(|run| gibs.clipped(*run)).map(PfnRange::frames).sum();
    if gibs.is_empty() {
        return;
    }
    let granule = story.pool.backing().proof().granule_frames;
    let price = match granule {
        1 => "a bad frame costs itself and nothing else".to_owned(),
        frames if frames < Order::GIB1.frames() => format!("a bad frame costs its segment of {}, not its GiB", amount(frames)),
        frames => format!("a bad frame costs its segment, and on this memory and in this size that is {}", amount(frames)),
    };
    let (all, used) = (figures::count(gibs.frames()), figures::count(used));
    let whose = figures::counted(gibs.runs().iter().map(|run| run.frames().div_ceil(Order::GIB1.frames())).sum(), "GiB");
    story.tell.line(format!("The withdrawn frames lie in {whose}. Of the {all} frames there {used} were handed out: {price}."));
}

/// Reads every frame that somebody wrote to before and that vm-c has now.
fn search(story: &mut Story<'_>, last: &Guest) -> anyhow::Result<()> {
    last.map(0..last.ram.bytes())?;
    let written = story.written.clone();
    let progress = story.tell.progress("looking for bytes of earlier owners", written.frames());
    let (before, mut bytes) = (story.search, [0; FRAME]);
    for extent in last.ram.extents() {
        for frame in written.clipped(extent.frames).flat_map(PfnRange::iter) {
            last.ept.mapping.read(extent.offset_of(frame), &mut bytes)?;
            story.search.look(&bytes);
            progress.advance(1);
        }
    }
    drop(progress);
    story.tell.line(format!(
        "vm-c read {} that earlier guests had written to, and found {} of theirs.",
        figures::bytes(story.search.checked - before.checked),
        figures::counted(story.search.stale - before.stale, "byte")
    ));
    Ok(())
}
