//! The pin drains: what was quarantined comes back by proof, and what failed never does.

use anyhow::bail;
use pageless::PfnRange;
use pageless_host::pin::KernelPin;

use super::guest::Guest;
use super::pin::Pinned;
use super::torn::Broken;
use super::{Story, amount, place};

/// Lets the pin go, and asks about everything again.
pub(super) fn tell(story: &mut Story<'_>, guest: &Guest, pinned: Pinned, broken: &Broken) -> anyhow::Result<()> {
    story.tell.chapter(match pinned.pin {
        Some(_) => "The pin drains: proof brings back what it can",
        None => "Proof brings back what it can",
    });
    if let Some(pin) = pinned.pin {
        drain(story, pin, &pinned.pattern)?;
    }
    if let Some(segment) = pinned.segment {
        let freed = story.pool.retry(segment).freed;
        if !freed.contains_range(segment) {
            bail!("the pin of {segment} has drained, and the kernel still refuses to seal it");
        }
        story.tell.line(format!(
            "retry(): the kernel seals the segment now. Its {} are free, with fresh pages.",
            amount(freed.frames())
        ));
    }
    if let Some(failed) = pinned.failed {
        explain(story, failed)?;
    }
    let busy = PfnRange::single(guest.frame(broken.busy)?);
    guest.ept.mend(busy.start());
    let recovered = story.pool.retry(busy).recovered;
    story.tell.line(format!(
        "The TD of vm-a is not busy any more, so the pool's retry proves {} as well: {} conversion is completed later. The device still has \
         its frame.",
        place(busy),
        if recovered.overlaps(busy) { "its" } else { "no" }
    ));
    Ok(())
}

/// Reads what the pin has kept. On a window it is the frame itself, which has been zeroed meanwhile.
fn drain(story: &mut Story<'_>, pin: KernelPin, pattern: &[u8]) -> anyhow::Result<()> {
    let bytes = pin.drain()?;
    let same = bytes == pattern;
    if story.ground.window.is_some() {
        let what = if same { "what vm-b wrote" } else { "what was written since" };
        story
            .tell
            .line(format!("The pipe is read. It held {} bytes, {what}: a pin reads the frame, whoever has it.", bytes.len()));
        return Ok(());
    }
    story.tell.line(format!(
        "The pipe is read. It held {} bytes, {} what vm-b wrote: all that time the page was nobody else's.",
        bytes.len(),
        if same { "exactly" } else { "but not" }
    ));
    if !same {
        bail!("a pinned page changed under the pin: somebody else had it, which is a bug of pageless");
    }
    Ok(())
}

/// A frame that failed does not come back, and the pool can say why.
fn explain(story: &mut Story<'_>, failed: PfnRange) -> anyhow::Result<()> {
    if story.pool.retry(failed).freed.overlaps(failed) {
        bail!("the failed frame {failed} was freed: a bug of pageless");
    }
    story.tell.line(format!("The failed frame {} stays lost. \"What happened to it?\" explain() answers:", place(failed)));
    if let Some(explained) = story.pool.explain(failed.start()) {
        explained.to_string().lines().for_each(|line| story.tell.line(line));
    }
    Ok(())
}
