//! A live guest gets another frame in the place of a lost one.

use anyhow::Context;
use pageless::{FRAME_BYTES, PfnRange};

use super::Story;
use super::guest::Guest;

/// Replaces the frame that failed, and lets the guest use the new one.
pub(super) fn tell(story: &mut Story<'_>, guest: &mut Guest, offset: u64) -> anyhow::Result<()> {
    story.tell.chapter("A lost frame is replaced under the live guest");
    let replaced = guest.ram.replace(offset).context("the lost frame was not replaced")?;
    let told =
        format!("At offset {offset:#x} of vm-a {} takes the place of {}, which stays failed.", replaced.frame, replaced.lost);
    story.tell.line(told);
    story.losses.look(&story.pool, &[PfnRange::single(replaced.frame)]);
    if story.ground.memory.page().is_huge() {
        story.tell.line(
            "A huge page is mapped as a whole, so this process cannot show the new frame at its place; a guest's stage 2 can.",
        );
        return Ok(());
    }
    guest.ept.mapping.replaced(offset, replaced.frame)?;
    guest.host.mapping.replaced(offset, replaced.frame)?;
    story.search.look(&guest.read(offset)?);
    guest.write(offset)?;
    let kept = guest.read(offset)? == guest.pattern();
    guest.ram.share(offset..offset + FRAME_BYTES)?;
    guest.show_host(offset..offset + FRAME_BYTES)?;
    guest.conversions += 1;
    story.search.look(&guest.read_as_host(offset)?);
    story.written.insert(PfnRange::single(replaced.frame));
    story.tell.line(format!(
        "The guest found it empty, wrote to it and read {} back; then it shared it, and the host found it empty again.",
        if kept { "the same" } else { "something else" }
    ));
    Ok(())
}
