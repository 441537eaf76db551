//! The story of the tour, chapter by chapter, over a real pool on real memory.
//!
//! Read [`perform`], then the chapters in its order. `view` and `guest` are the cast, `search` and `losses` what is counted.

mod answers;
mod boot;
mod comparison;
mod drain;
mod draw;
mod ground;
mod guest;
pub(crate) mod killed;
mod losses;
mod picture;
mod pin;
mod pressure;
mod replace;
mod search;
mod torn;
mod view;

use std::time::{Duration, Instant};

use anyhow::bail;
use pageless::{AllocationId, FRAME_BYTES, PfnRange, Pool, RunSet};

use crate::args::{TourSettings, Zeroing};
use crate::figures;
use crate::narrate::Narrator;
use crate::refcount::{Comparison, STRUCT_PAGE_BYTES};
use crate::report::{CheckNs, GuestNote, Outcome, ProofNote, Snapshot, TourReport};
use draw::Draw;
use ground::Ground;
use guest::Guest;
use losses::Losses;
use search::Search;

/// What all chapters share.
struct Story<'n> {
    settings: TourSettings,
    tell: &'n mut Narrator,
    draw: Draw,
    ground: Ground,
    pool: Pool,
    search: Search,
    losses: Losses,
    /// Frames that some guest wrote to.
    written: RunSet,
    /// The allocations that have names on the map.
    named: Vec<(AllocationId, &'static str)>,
    notes: Vec<GuestNote>,
    snapshots: Vec<Snapshot>,
}

/// Makes the tour and says what happened.
pub(crate) fn perform(settings: &TourSettings, narrator: &mut Narrator) -> anyhow::Result<TourReport> {
    let begun = Instant::now();
    let ground = ground::choose(settings)?;
    let pool = Pool::builder().backing(ground.memory.clone()).build()?;
    let mut story = Story {
        settings: settings.clone(),
        tell: narrator,
        draw: Draw::new(settings.seed),
        ground,
        pool,
        search: Search::default(),
        losses: Losses::default(),
        written: RunSet::new(),
        named: Vec::new(),
        notes: Vec::new(),
        snapshots: Vec::new(),
    };
    boot::memory(&mut story);
    let (mut first, mut second) = boot::arrive(&mut story)?;
    boot::boot(&mut story, [&mut first, &mut second])?;
    answers::tell(&mut story, &mut first)?;
    let broken = torn::tell(&mut story, &mut first)?;
    replace::tell(&mut story, &mut first, broken.failed)?;
    let pinned = pin::tell(&mut story, second)?;
    drain::tell(&mut story, &first, pinned, &broken)?;
    let last = pressure::tell(&mut story, first)?;
    let comparison = comparison::tell(&mut story, &last)?;
    let killed = killed::tell(&mut story)?;
    story.check_books()?;
    Ok(story.report(comparison, &killed, begun.elapsed()))
}

impl Story<'_> {
    /// Adds a row to the table of what a VMM is told.
    fn outcome(&mut self, situation: &str, vmm_sees: impl Into<String>, errno: i32, vmm_does: &str) {
        self.tell.outcome(Outcome {
            situation: situation.to_owned(),
            vmm_sees: vmm_sees.into(),
            errno: errno_name(errno).to_owned(),
            vmm_does: vmm_does.to_owned(),
        });
    }

    /// Draws the pool as it is.
    fn snapshot(&mut self, title: &str, caption: String) -> anyhow::Result<()> {
        let map = picture::draw(&self.pool, &self.named)?;
        self.snapshots.push(Snapshot { title: title.to_owned(), caption, map });
        Ok(())
    }

    /// Notes a guest for the report when its part is over.
    fn note_guest(&mut self, guest: &Guest) {
        let (name, bytes, conversions) = (guest.name.to_owned(), guest.ram.bytes(), guest.conversions);
        self.notes.push(GuestNote { name, bytes, conversions });
    }

    /// The pool's own check of every count against every bitmap.
    fn check_books(&self) -> anyhow::Result<()> {
        let verified = self.pool.verify();
        if !verified.is_sound() {
            bail!("the pool's books do not agree, which is a bug of pageless: {}", verified.faults.join("; "));
        }
        Ok(())
    }

    fn report(mut self, comparison: Comparison, killed: &killed::Found, elapsed: Duration) -> TourReport {
        let proof = self.pool.backing().proof();
        self.notes.sort_by(|a, b| a.name.cmp(&b.name));
        TourReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: kernel(),
            backing: self.ground.name.to_owned(),
            backing_reason: self.ground.reason.clone(),
            window: self.ground.window.clone(),
            kernel_has_struct_pages: self.ground.has_struct_pages,
            proof: ProofNote {
                identity: self.pool.backing().identity().to_string(),
                method: proof.method.into_owned(),
                covers: proof.covers.into_owned(),
                blind_to: proof.blind_to.into_owned(),
                granule_bytes: proof.granule_frames * FRAME_BYTES,
            },
            pool_bytes: self.ground.bytes,
            seed: self.settings.seed,
            zeroing: self.settings.zeroing == Zeroing::On,
            elapsed_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            conversions: self.notes.iter().map(|guest| guest.conversions).sum(),
            guests: self.notes,
            withdrawn: self.losses.report(&self.pool),
            reassigned_withdrawn_frames: self.losses.reassigned,
            reopened_withdrawn_frames: killed.reopened_withdrawn_frames,
            lost_after_crash: killed.lost_after_crash,
            stale_bytes_seen: self.search.stale,
            bytes_checked: self.search.checked,
            metadata_bytes: self.pool.footprint().total() as u64,
            struct_page_bytes: self.ground.bytes / FRAME_BYTES * STRUCT_PAGE_BYTES,
            check_1g_ns: CheckNs::from(&comparison),
            comparison,
            steps: Vec::new(),
            snapshots: self.snapshots,
            html: None,
        }
    }
}

/// Release of the running kernel.
fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// The names of the error numbers that pageless uses.
fn errno_name(errno: i32) -> &'static str {
    match errno {
        0 => "0",
        5 => "EIO",
        11 => "EAGAIN",
        14 => "EFAULT",
        16 => "EBUSY",
        22 => "EINVAL",
        34 => "ERANGE",
        116 => "ESTALE",
        117 => "EUCLEAN",
        133 => "EHWPOISON",
        _ => "other",
    }
}

/// Where frames are: one by its number, several as a range.
fn place(frames: PfnRange) -> String {
    if frames.frames() == 1 { frames.start().to_string() } else { frames.to_string() }
}

/// Frames as an amount of memory.
fn amount(frames: u64) -> String {
    figures::bytes(frames * FRAME_BYTES)
}
