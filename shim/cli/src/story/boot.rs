//! The memory, the two guests, and their boot: what every confidential guest does before its first log line.

use anyhow::bail;
use pageless::{FRAME_BYTES, Identity, PfnRange};

use super::guest::Guest;
use super::{Story, ground};
use crate::figures;
use crate::narrate::Progress;

/// A Linux guest's bounce buffer: 6 % of its memory, within these bounds in bytes.
const BOUNCE: (u64, u64) = (64 << 20, 1 << 30);
/// Scattered single-frame conversions of each guest, at most: each shared frame costs the host's view a mapping of its own, of
/// which a process has 65,530.
const SCATTERED: u64 = 4000;
/// Frames that a guest writes to in its bounce buffer, at most, and elsewhere.
const SAMPLES: u64 = 4096;
/// The end of a guest's memory, kept quiet at boot for the chapters that follow.
pub(super) const STAGE: u64 = 16 << 20;

/// What the pool is made of.
pub(super) fn memory(story: &mut Story<'_>) {
    let (memory, ground) = (story.ground.bytes, &story.ground);
    let (identity, proof) = (story.pool.backing().identity(), story.pool.backing().proof());
    let numbers = match identity {
        Identity::Physical => "those of the host's own frames. Nothing is written before it is allocated.",
        Identity::Synthetic if ground.memory.page().is_huge() => {
            "offsets in files whose pages the kernel chooses. No page is taken before it is allocated."
        }
        Identity::Synthetic => "offsets in files whose pages the kernel chooses. No page is taken before it is touched.",
    };
    let lines = [
        format!("The pool has {} of {}: {}.", figures::bytes(memory), ground.name, ground.reason),
        format!("Its frame numbers are {identity}: {numbers}"),
        format!(
            "Proof that released memory is out of everybody's reach: {}. It is made for {} at a time.",
            proof.method,
            figures::bytes(proof.granule_frames * FRAME_BYTES)
        ),
    ];
    let available = ground::available();
    let from_host = identity == Identity::Synthetic && !ground.memory.page().is_huge();
    let scarce = (from_host && available > 0 && available < memory).then(|| {
        format!("This host has {} available, less than the pool; the tour touches a small part.", figures::bytes(available))
    });
    story.tell.chapter("The memory");
    lines.iter().chain(&scarce).for_each(|line| story.tell.line(line));
}

/// Two guests get memory.
pub(super) fn arrive(story: &mut Story<'_>) -> anyhow::Result<(Guest, Guest)> {
    let memory = story.ground.bytes;
    let unit = (story.pool.backing().proof().granule_frames * FRAME_BYTES).max(story.ground.memory.page().bytes()).max(2 << 20);
    let share = |eighths: u64| (memory / 8 * eighths / unit * unit).max(unit);
    story.tell.chapter("Two guests get memory");
    let mut guests = Vec::new();
    for (name, bytes) in [("vm-a", share(2)), ("vm-b", share(3))] {
        let waiting = story.tell.spinner(&format!("taking memory for {name}"));
        let guest = Guest::arrive(&story.pool, &story.ground.memory, name, bytes)?;
        drop(waiting);
        story.named.push((guest.ram.id(), name));
        let runs = figures::counted(guest.ram.extents().len() as u64, "run");
        story.tell.line(format!(
            "{name} got {} in {runs} of frames. All of it is private: out of the host's reach.",
            figures::bytes(bytes)
        ));
        guests.push(guest);
    }
    let [Some(second), Some(first)] = [guests.pop(), guests.pop()] else { bail!("there are two guests") };
    Ok((first, second))
}

/// Both guests boot.
pub(super) fn boot(story: &mut Story<'_>, guests: [&mut Guest; 2]) -> anyhow::Result<()> {
    story.tell.chapter("They boot, and share memory with the host");
    story.tell.line(
        "A guest shares one buffer for all its I/O at boot, and then single frames wherever a driver wants one. Each time every \
         view of the frames is really unmapped, they are zeroed, and only then mapped for the host.",
    );
    for guest in guests {
        let before = story.search;
        let plan = Plan::draw(story, guest);
        let progress = story.tell.progress(&format!("{} boots", guest.name), plan.scattered.len() as u64 + 1);
        write_secrets(story, guest, &plan)?;
        share_bounce(story, guest, &plan)?;
        progress.advance(1);
        let shared = scatter(story, guest, &plan, &progress)?;
        drop(progress);
        check_host(guest, &plan, shared)?;
        let (checked, stale) = (story.search.checked - before.checked, story.search.stale - before.stale);
        story.tell.line(format!(
            "{} shared a bounce buffer of {} and converted {} scattered frames, one by one; {} of them are shared now. The host read \
             {} of what it was shown and found {} of the guest's.",
            guest.name,
            figures::bytes(plan.bounce.end - plan.bounce.start),
            figures::count(plan.scattered.len() as u64),
            figures::count(shared),
            figures::bytes(checked),
            figures::counted(stale, "byte"),
        ));
    }
    story.snapshot(
        "after boot",
        "Both guests run. Most of their memory is private; the bounce buffers and scattered frames are shared with the host."
            .into(),
    )
}

/// What a guest does at boot, in bytes from the start of its memory.
struct Plan {
    bounce: std::ops::Range<u64>,
    /// Offsets that are converted one by one.
    scattered: Vec<u64>,
    /// Offsets that it writes its secrets to.
    secrets: Vec<u64>,
}

impl Plan {
    fn draw(story: &mut Story<'_>, guest: &Guest) -> Self {
        let (size, page) = (guest.ram.bytes(), story.ground.memory.page().bytes());
        // Whole pages where a page is not larger than the buffer itself.
        let unit = if page <= BOUNCE.0 { page } else { FRAME_BYTES };
        let length = (size / 100 * 6).clamp(BOUNCE.0, BOUNCE.1).next_multiple_of(unit);
        let start = (size / 8).next_multiple_of(unit);
        let bounce = start..start + length;
        let quiet = size - STAGE;
        let outside = |offset: &u64| *offset < quiet && !bounce.contains(offset);
        let mut draw = |count: u64| -> Vec<u64> {
            let drawn = story.draw.distinct(count, size / FRAME_BYTES);
            drawn.into_iter().map(|frame| frame * FRAME_BYTES).filter(outside).collect()
        };
        let (scattered, elsewhere) = (draw(SCATTERED), draw(SAMPLES));
        let stride = (length / SAMPLES).next_multiple_of(FRAME_BYTES).max(FRAME_BYTES);
        let inside = bounce.clone().step_by(usize::try_from(stride).unwrap_or(usize::MAX));
        let secrets = inside.chain(scattered.iter().copied()).chain(elsewhere).collect();
        Self { bounce, scattered, secrets }
    }
}

/// The guest maps all of its memory and writes to parts of it.
fn write_secrets(story: &mut Story<'_>, guest: &Guest, plan: &Plan) -> anyhow::Result<()> {
    guest.map(0..guest.ram.bytes())?;
    for &offset in &plan.secrets {
        guest.write(offset)?;
    }
    let frames: Result<Vec<PfnRange>, _> = plan.secrets.iter().map(|offset| guest.frame(*offset).map(PfnRange::single)).collect();
    let mut frames = frames?;
    frames.sort_unstable();
    story.written = story.written.union(&frames.into_iter().collect());
    Ok(())
}

fn share_bounce(story: &mut Story<'_>, guest: &mut Guest, plan: &Plan) -> anyhow::Result<()> {
    guest.ram.share(plan.bounce.clone())?;
    guest.conversions += 1;
    guest.map(plan.bounce.clone())?;
    guest.show_host(plan.bounce.clone())?;
    for &offset in plan.secrets.iter().filter(|offset| plan.bounce.contains(offset)) {
        story.search.look(&guest.read_as_host(offset)?);
    }
    Ok(())
}

/// Shares single frames, and takes every fourth back. Returns how many are shared in the end.
fn scatter(story: &mut Story<'_>, guest: &mut Guest, plan: &Plan, progress: &Progress) -> anyhow::Result<u64> {
    let mut shared = 0;
    for (nth, &offset) in plan.scattered.iter().enumerate() {
        let range = offset..offset + FRAME_BYTES;
        guest.ram.share(range.clone())?;
        guest.map(range.clone())?;
        guest.show_host(range.clone())?;
        story.search.look(&guest.read_as_host(offset)?);
        guest.conversions += 1;
        if nth % 4 == 3 {
            guest.ram.unshare(range)?;
            guest.conversions += 1;
            guest.write(offset)?;
        } else {
            shared += 1;
        }
        progress.advance(1);
    }
    Ok(shared)
}

/// The host's view must translate to exactly the shared frames.
fn check_host(guest: &Guest, plan: &Plan, scattered: u64) -> anyhow::Result<()> {
    let (seen, shared) = (guest.frames_of_host(), (plan.bounce.end - plan.bounce.start) / FRAME_BYTES + scattered);
    if guest.host_sees_frames() && seen != shared {
        bail!("the host's view of {} translates {seen} frames, and {shared} are shared: a bug of pageless", guest.name);
    }
    Ok(())
}
