//! What a VMM is told while everything is well, or only occupied: done, already so, busy, held, and its own mistakes.

use std::sync::mpsc::{Receiver, Sender};

use anyhow::{Context, bail};
use pageless::{Convert, FRAME_BYTES, HolderId, Refused};

use super::Story;
use super::boot::STAGE;
use super::guest::{EPT, Guest};
use super::view::PATIENCE;

/// The range that is asked about: 256 KiB at the start of the quiet part of the guest.
const LENGTH: u64 = 64 * FRAME_BYTES;

/// Asks for the same small range in every situation that changes nothing.
pub(super) fn tell(story: &mut Story<'_>, guest: &mut Guest) -> anyhow::Result<()> {
    story.tell.chapter("What the VMM is told");
    story.tell.line(
        "The VMM of vm-a asks for 256 KiB again and again, in different situations. \"Not now\" and \"never\" are different answers, \
         and a refusal has changed nothing.",
    );
    let start = guest.ram.bytes() - STAGE;
    let range = start..start + LENGTH;
    guest.write(start)?;

    let shared = guest.ram.share(range.clone())?;
    guest.map(range.clone())?;
    guest.show_host(range.clone())?;
    story.search.look(&guest.read_as_host(start)?);
    let seen = format!("Ok({} frames, changed: {})", shared.frames().frames(), shared.changed());
    story.outcome("nothing in the way", seen, 0, "answers the guest");

    let again = guest.ram.share(range.clone())?;
    story.outcome("shared already", format!("Ok(64 frames, changed: {})", again.changed()), 0, "answers the guest");
    guest.ram.unshare(range.clone())?;
    guest.conversions += 3;

    let busy = while_converting(guest, start)?;
    refused(story, "another vCPU's thread converts the range", &busy, "asks again, after that long")?;
    guest.conversions += 1;
    guest.ram.unshare(range.clone())?;

    let guard = guest.ram.map_guard(EPT, range.clone())?;
    let busy = expect_refusal(guest.ram.share(range.clone()))?;
    drop(guard);
    refused(story, "a page fault maps the range right now", &busy, "asks again, after that long")?;

    let hold = guest.ram.hold(range.clone(), "vhost-net")?;
    let held = expect_refusal(guest.ram.share(range.clone()))?;
    drop(hold);
    refused(story, "a back end uses the range", &held, "asks the holder to let go")?;

    let crooked = expect_refusal(guest.ram.share(start + 1..start + LENGTH))?;
    refused(story, "the range begins inside a frame", &crooked, "fixes its bug")?;
    let outside = expect_refusal(guest.ram.share(start..start + 2 * STAGE))?;
    refused(story, "the range ends beyond the guest's memory", &outside, "fixes its bug")
}

/// What a second thread is told while the first one converts the range.
fn while_converting(guest: &Guest, start: u64) -> anyhow::Result<Convert> {
    let range = start..start + LENGTH;
    let (begun, go) = guest.ept.pause_at(guest.frame(start)?);
    let wait = |begun: Receiver<()>, go: Sender<()>| {
        begun.recv_timeout(PATIENCE).context("the first conversion did not begin")?;
        let told = expect_refusal(guest.ram.share(range.clone()));
        go.send(()).context("the first conversion did not wait")?;
        told
    };
    std::thread::scope(|scope| {
        let first = scope.spawn(|| guest.ram.share(range.clone()));
        let told = wait(begun, go);
        match first.join() {
            Ok(done) => done.context("the first conversion")?,
            Err(_) => bail!("the thread of the first conversion panicked"),
        };
        told
    })
}

/// The refusal that must come here.
pub(super) fn expect_refusal<T: std::fmt::Debug>(result: Result<T, Convert>) -> anyhow::Result<Convert> {
    match result {
        Err(refusal) => Ok(refusal),
        Ok(done) => bail!("a conversion that had to be refused was done: {done:?}; a bug of pageless"),
    }
}

/// A row about a refusal, in the words of the Rust API.
pub(super) fn refused(story: &mut Story<'_>, situation: &str, told: &Convert, does: &str) -> anyhow::Result<()> {
    let seen = match told {
        Convert::Busy { after } => format!("Busy {{ after: {after:?} }}"),
        Convert::Held { holder, .. } => format!("Held {{ holder: {:?} }}", HolderId::name(holder)),
        Convert::Refused(Refused::Unaligned { .. }) => "Refused(Unaligned)".to_owned(),
        Convert::Refused(Refused::Outside { .. }) => "Refused(Outside)".to_owned(),
        Convert::Refused(Refused::Withdrawn { offset, frames, state }) => {
            format!("Refused(Withdrawn {{ offset: {offset:#x}, frames: {frames}, {state} }})")
        }
        Convert::Refused(Refused::Poisoned { offset, frames }) => {
            format!("Refused(Poisoned {{ offset: {offset:#x}, frames: {frames} }})")
        }
        other => bail!("{situation}: an answer that does not belong here: {other}"),
    };
    story.outcome(situation, seen, told.errno(), does);
    Ok(())
}
