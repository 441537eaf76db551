//! An invalidation fails: the conversion is torn, and every frame is either done or lost.

use anyhow::bail;
use pageless::{Cause, Convert, FRAME_BYTES, HolderId, Lost, PfnRange, RunSet};

use super::answers::{expect_refusal, refused};
use super::boot::STAGE;
use super::guest::Guest;
use super::view::Fault;
use super::{Story, amount, place};
use crate::figures;

/// The device that keeps a frame for DMA, and does not let go.
const DEVICE: &str = "vfio-0000:3b:00.0";
/// Frames that the torn conversion asks for.
const FRAMES: u64 = 64;

/// Offsets of the frames that were lost, in bytes from the start of the guest's memory.
pub(super) struct Broken {
    /// Passes one day.
    pub(super) busy: u64,
    /// Never.
    pub(super) failed: u64,
}

/// Tears one conversion in three ways, poisons a frame, and shows what a VMM sees of both.
pub(super) fn tell(story: &mut Story<'_>, guest: &mut Guest) -> anyhow::Result<Broken> {
    story.tell.chapter("An unmap fails, and is not forgotten");
    let start = guest.ram.bytes() - STAGE + (2 << 20);
    let range = start..start + FRAMES * FRAME_BYTES;
    let mut drawn = story.draw.distinct(3, FRAMES - 1);
    let [Some(busy), Some(device), Some(failed)] =
        [drawn.pop(), drawn.pop(), drawn.pop()].map(|frame| frame.map(|at| start + at * FRAME_BYTES))
    else {
        bail!("three frames of {FRAMES} can be drawn");
    };
    story.tell.line(format!(
        "No TDX host is needed to see it: the guest's own view is a model whose removals fail where the seed {} says, with the status \
         words of the TDX module. The VMM asks to share {FRAMES} frames; three of them get stuck.",
        story.settings.seed
    ));
    guest.ept.break_at(guest.frame(busy)?, Fault::OperandBusy);
    guest.ept.break_at(guest.frame(device)?, Fault::Device(HolderId::new(DEVICE)));
    guest.ept.break_at(guest.frame(failed)?, Fault::MetadataIncorrect);
    let torn = expect_refusal(guest.ram.share(range.clone()))?;
    guest.conversions += 1;
    let Convert::Torn { done, lost } = &torn else { bail!("the conversion was not torn: {torn}") };
    let whole: u64 = done.frames() + lost.iter().map(|lost| lost.frames().frames()).sum::<u64>();
    if whole != FRAMES {
        bail!("a torn conversion of {FRAMES} frames accounts for {whole}: a bug of pageless");
    }
    let seen = format!("Torn {{ done: {} frames, lost: {} frames }}", done.frames(), whole - done.frames());
    story.outcome("three of 64 frames get stuck", seen, torn.errno(), "maps what is done, reports what is lost");
    let again = expect_refusal(guest.ram.share(range.clone()))?;
    refused(story, "the same range again", &again, "leaves those frames alone, or replaces them")?;
    machine_check(story, guest, start + (4 << 20))?;
    story.tell.line(format!("Every frame of the torn range is in exactly one place. Done: {}.", partition(done)));
    describe(lost).iter().for_each(|line| story.tell.line(line));
    story.losses.note(&story.pool);
    Ok(Broken { busy, failed })
}

/// The hardware reports an error in one frame.
fn machine_check(story: &mut Story<'_>, guest: &Guest, near: u64) -> anyhow::Result<()> {
    let offset = near + story.draw.below(512) * FRAME_BYTES;
    let frame = PfnRange::single(guest.frame(offset)?);
    let cause = Cause::new("machine check", 0xbd00_0000_0000_00c0, "uncorrectable memory error, reported by the tour");
    story.pool.poison(frame, cause);
    let told = expect_refusal(guest.ram.share(offset..offset + FRAME_BYTES))?;
    refused(story, "the hardware reported an error there", &told, "takes its machine-check path")
}

fn partition(done: &RunSet) -> String {
    let runs: Vec<String> = done.runs().iter().copied().map(place).collect();
    format!(
        "{} in {} ({})",
        figures::counted(done.frames(), "frame"),
        figures::counted(runs.len() as u64, "run"),
        runs.join(", ")
    )
}

/// Each lost run in a sentence. Runs that adjoin and were lost together are told as one.
pub(super) fn describe(lost: &[Lost]) -> Vec<String> {
    let alike = |a: &Lost, b: &Lost| a.frames().end() == b.frames().start() && a.state() == b.state() && a.cause() == b.cause();
    let whole = |runs: &[Lost]| runs.iter().map(Lost::frames).reduce(PfnRange::hull);
    lost.chunk_by(alike).filter_map(|runs| Some(sentence(runs.first()?, whole(runs)?))).collect()
}

fn sentence(lost: &Lost, frames: PfnRange) -> String {
    let size = if frames.frames() == 1 { "1 frame".to_owned() } else { amount(frames.frames()) };
    let then = match (lost.retry_after(), lost.holder()) {
        (_, Some(holder)) => format!("held by {holder}, until that lets go"),
        (Some(_), None) => "asked about again later".to_owned(),
        (None, None) => "for good".to_owned(),
    };
    format!("Lost: {}, {size}, {}, {then}: {}.", place(frames), lost.state(), lost.cause())
}
