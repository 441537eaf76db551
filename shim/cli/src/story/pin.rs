//! A guest goes, and one of its pages is really still in use: the kernel itself refuses the proof. On memory without
//! struct pages it refuses the pin instead.

use anyhow::{Context, bail};
use nix::errno::Errno;
use pageless::{FRAME_BYTES, Lost, PfnRange, Reclaimed, Request, WaitingFor};
use pageless_host::MapError;
use pageless_host::pin::KernelPin;

use super::guest::{FRAME, Guest};
use super::torn::describe;
use super::view::Fault;
use super::{Story, amount, place};
use crate::figures;

/// What is left of a guest after its reclaim.
pub(super) struct Pinned {
    /// Nothing where memory cannot be pinned.
    pub(super) pin: Option<KernelPin>,
    /// What the guest wrote to the pinned page.
    pub(super) pattern: [u8; FRAME],
    /// What the kernel refused to prove; nothing where the proof does not look for pins.
    pub(super) segment: Option<PfnRange>,
    /// The frame whose removal failed for good; nothing where the guest is one segment, and that is pinned.
    pub(super) failed: Option<PfnRange>,
}

/// Pins a page of the guest, breaks another, and reclaims its memory.
pub(super) fn tell(story: &mut Story<'_>, guest: Guest) -> anyhow::Result<Pinned> {
    story.tell.chapter(if story.ground.has_struct_pages {
        "A guest goes, but a page of it is really pinned"
    } else {
        "A guest goes, and no page of it can be pinned"
    });
    let (pinned, failed) = two_places(story, &guest)?;
    guest.write(pinned)?;
    story.written.insert(PfnRange::single(guest.frame(pinned)?));
    let pin = try_to_pin(story, &guest, pinned)?;
    let failed = failed.map(|offset| guest.frame(offset)).transpose()?.map(PfnRange::single);
    let also = failed.map_or_else(String::new, |frame: PfnRange| format!("The removal of {} will fail for good.", place(frame)));
    failed.iter().for_each(|frame| guest.ept.break_at(frame.start(), Fault::EntryStateIncorrect));
    story
        .tell
        .line(format!("{also} Now vm-b gives up its {}: released, which is not free.", figures::bytes(guest.ram.bytes())).trim());
    story.note_guest(&guest);
    let pattern = guest.pattern();
    drop((guest.ept, guest.host));
    let released = guest.ram.release()?;
    let waiting = story.tell.spinner("asking every mapping, and the kernel, for proof");
    let reclaimed = story.pool.reclaim();
    drop(waiting);
    story.losses.note(&story.pool);
    let (freed, all) = (figures::count(reclaimed.freed.frames()), figures::count(released.frames()));
    story.tell.line(format!("reclaim() proved and freed {freed} of its {all} frames."));
    describe(&reclaimed.lost).iter().for_each(|line| story.tell.line(line));
    tell_waiting(story, &reclaimed);
    let segment = if pin.is_some() { refused_by_kernel(story, &reclaimed)? } else { None };
    ask_for_everything(story)?;
    let (moment, caption) = match (&pin, segment) {
        (Some(_), Some(_)) => (
            "while the pin holds",
            "vm-b is gone. What was proven unreachable is free; the pinned segment is quarantined as a whole, because the kernel does not \
             say which page of it is pinned.",
        ),
        (Some(_), None) => {
            ("while the pin holds", "vm-b is gone. What was proven unreachable is free; the proof did not look for pins.")
        }
        (None, _) => ("after vm-b", "vm-b is gone. What was proven unreachable is free: every frame but the one that failed."),
    };
    story.snapshot(moment, caption.to_owned())?;
    Ok(Pinned { pin, pattern, segment, failed })
}

/// Pins a page by `vmsplice`. Memory that the kernel keeps no `struct page` for cannot be: then the attempt is told.
fn try_to_pin(story: &mut Story<'_>, guest: &Guest, offset: u64) -> anyhow::Result<Option<KernelPin>> {
    let frame = guest.frame(offset)?;
    match KernelPin::vmsplice(&guest.ept.mapping, offset, FRAME) {
        Ok(pin) => {
            story
                .tell
                .line(format!("A pipe holds one page of vm-b by reference (vmsplice, as a device or io_uring would): {frame}."));
            Ok(Some(pin))
        }
        Err(MapError::Os { step, errno }) if errno == Errno::EFAULT && !story.ground.has_struct_pages => {
            let said = format!("{step} of {frame}: {errno}");
            story.outcome("a page of vm-b shall be held by reference", said, errno as i32, "nothing: no reference, no pin");
            story.tell.line(
                "The kernel keeps no struct page for this memory (VM_PFNMAP), so it can take no reference to a page of it: not for a \
                 pipe, not for io_uring, not for a device. What is unmapped here is out of this process's reach.",
            );
            Ok(None)
        }
        Err(other) => Err(other).context("a page could not be pinned"),
    }
}

/// Two offsets in different proof granules, where the guest has two.
fn two_places(story: &mut Story<'_>, guest: &Guest) -> anyhow::Result<(u64, Option<u64>)> {
    let (backing, frames) = (story.pool.backing(), guest.ram.bytes() / FRAME_BYTES);
    let first = story.draw.below(frames) * FRAME_BYTES;
    for _ in 0..1000 {
        let second = story.draw.below(frames) * FRAME_BYTES;
        if first != second && backing.granule(guest.frame(first)?) != backing.granule(guest.frame(second)?) {
            return Ok((first, Some(second)));
        }
    }
    Ok((first, None))
}

fn tell_waiting(story: &mut Story<'_>, reclaimed: &Reclaimed) {
    let frames: u64 = reclaimed.waiting.iter().map(|waiting| waiting.frames.frames()).sum();
    let granule = reclaimed.waiting.iter().find_map(|waiting| match waiting.why {
        WaitingFor::Granule { granule } => Some(granule),
        _ => None,
    });
    if let Some(granule) = granule {
        story.tell.line(format!(
            "{} of the {} beside the failed frame stay released and wait for ever: {} proves only whole segments, and this one holds a \
             frame that never can be. That is the price of this memory; on a physical window the frame alone would be lost.",
            figures::counted(frames, "frame"),
            amount(granule.frames()),
            story.ground.name
        ));
    }
}

/// Somebody asks for all that is free while the pin holds, and gives it back.
fn ask_for_everything(story: &mut Story<'_>) -> anyhow::Result<()> {
    let free = story.pool.stats().free;
    let waiting = story.tell.spinner("handing out everything that is free");
    let greedy = story.pool.allocate(Request::bytes(free * FRAME_BYTES).owner("vm-greedy"))?;
    drop(waiting);
    let extents: Vec<PfnRange> = greedy.extents().iter().map(|extent| extent.frames).collect();
    let before = story.losses.reassigned;
    story.losses.look(&story.pool, &extents);
    story.tell.line(format!(
        "Meanwhile somebody asks for everything that is free and gets {} frames; withdrawn ones among them: {}.",
        figures::count(free),
        figures::count(story.losses.reassigned - before),
    ));
    drop(greedy);
    let waiting = story.tell.spinner("taking it back");
    // What shares a segment with vm-a's replaced frame waits until vm-a goes.
    let _reclaimed = story.pool.reclaim();
    drop(waiting);
    Ok(())
}

/// What the kernel refused to seal. With a proof by seal there must be something.
fn refused_by_kernel(story: &mut Story<'_>, reclaimed: &Reclaimed) -> anyhow::Result<Option<PfnRange>> {
    let refused = reclaimed.lost.iter().filter(|lost| lost.cause().step.contains("F_SEAL_WRITE"));
    let segment = refused.map(Lost::frames).reduce(PfnRange::hull);
    let sealed = story.pool.backing().proof().method.contains("F_SEAL_WRITE");
    if sealed && segment.is_none() {
        bail!("a page is pinned, and the kernel sealed its segment all the same: this kernel's seals prove nothing");
    }
    if !sealed && story.ground.window.is_some() {
        story
            .tell
            .line("This memory has struct pages and no file that could be sealed: its proof does not see pins, and says so.");
    } else if !sealed {
        story.tell.line("This proof does not look for pins, so nothing is quarantined for it: one more thing that --without-zeroing gives up.");
    }
    Ok(segment)
}
