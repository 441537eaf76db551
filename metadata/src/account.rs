//! Counting a GiB: how many frames are in which state, how many bytes that costs, and whether the counts agree (I10).

use crate::{BLOCK_FRAMES, GIB_BLOCKS, Gib, Span, SparsePlane, Tenant};

/// Frames of one GiB, or of one 2 MiB block, by state. The states of different axes overlap.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FrameCounts {
    /// Have an owner.
    pub allocated: u32,
    /// Given up, and not proven unreachable yet.
    pub released: u32,
    /// Shared, of those whose shareability is known.
    pub shared: u32,
    /// Of unknown shareability.
    pub unknown: u32,
    /// Under an operation.
    pub converting: u32,
    /// Quarantined.
    pub quarantined: u32,
    /// Failed.
    pub failed: u32,
    /// Poisoned.
    pub poisoned: u32,
}

impl Gib {
    /// The counts of the whole GiB. Costs a walk over the tenants; the planes keep theirs.
    #[must_use]
    pub fn counts(&self) -> FrameCounts {
        let (allocated, released) = self.tenure.counts();
        let [unknown, quarantined, failed, poisoned] =
            self.rare.as_ref().map_or([0; 4], |rare| rare.planes().map(SparsePlane::frames));
        let converting = self.converting.marks().map(|mark| mark.span.frames()).sum();
        FrameCounts {
            allocated,
            released,
            shared: self.share.shared_frames(),
            unknown,
            converting,
            quarantined,
            failed,
            poisoned,
        }
    }

    /// The counts of one 2 MiB block, 0 to 511.
    #[must_use]
    pub fn block_counts(&self, block: u32) -> FrameCounts {
        let span = Span::block(block);
        let [unknown, quarantined, failed, poisoned] =
            self.rare.as_ref().map_or([0; 4], |rare| rare.planes().map(|plane| frames_in(span, |rest| plane.first_run_in(rest))));
        let tenants = |released| {
            let matching = self.tenure.in_span(span).filter(|(_, tenant): &(Span, Tenant)| tenant.released == released);
            matching.map(|(part, _)| part.frames()).sum()
        };
        FrameCounts {
            allocated: tenants(false),
            released: tenants(true),
            shared: frames_in(span, |rest| self.share.next_run(rest, true)),
            unknown,
            converting: self.converting.marks().filter_map(|mark| mark.span.intersect(span)).map(Span::frames).sum(),
            quarantined,
            failed,
            poisoned,
        }
    }

    /// The number of 2 MiB blocks that 4 KiB leaves map, and whether the 1 GiB leaf has been cut.
    #[must_use]
    pub fn demotions(&self) -> (u32, bool) {
        (self.demoted.broken_blocks(), self.demoted.is_gib_demoted())
    }

    /// Bytes on the heap. Exact for the planes that a guest can make grow; the tenants' ordered map is estimated.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let rare = self.rare.as_ref().map_or(0, |rare| {
            let planes: usize = rare.planes().iter().map(|plane| plane.heap_bytes()).sum();
            size_of_val(&**rare) + planes + rare.holds.heap_bytes() + rare.guards.capacity() * size_of::<Span>()
        });
        rare + self.share.heap_bytes() + self.tenure.heap_bytes() + self.converting.heap_bytes() + self.demoted.heap_bytes()
    }

    /// Whether every count equals what the bitmaps say, and the planes agree with each other. Says what does not.
    pub fn check(&self) -> Result<(), String> {
        self.share.check().map_err(|why| format!("shareability: {why}"))?;
        let blocks: u32 = (0..GIB_BLOCKS).map(|block| self.block_counts(block).shared).sum();
        if blocks != self.share.shared_frames() {
            return Err(format!("the blocks hold {blocks} shared frames, the GiB counts {}", self.share.shared_frames()));
        }
        self.check_marks()?;
        let Some(rare) = &self.rare else { return Ok(()) };
        for (plane, name) in rare.planes().into_iter().zip(["unknown", "quarantined", "failed", "poisoned"]) {
            plane.check().map_err(|why| format!("{name}: {why}"))?;
        }
        for (plane, name) in [(&rare.quarantined, "quarantined"), (&rare.failed, "failed")] {
            let orphan = plane.runs().find(|run| frames_of(self.tenure.in_span(*run).map(|(part, _)| part)) != run.frames());
            if let Some(run) = orphan {
                return Err(format!("{run:?} is {name}, and a frame of it has never had an owner"));
            }
        }
        Ok(())
    }

    fn check_marks(&self) -> Result<(), String> {
        let mut marks: Vec<Span> = self.converting.marks().map(|mark| mark.span).collect();
        marks.sort_unstable();
        if let Some(pair) = marks.windows(2).find(|pair| pair[0].overlaps(pair[1])) {
            return Err(format!("two operations have marked frames of {:?} and {:?}", pair[0], pair[1]));
        }
        // Poison may strike frames under an operation; the other marks are what operations leave behind.
        let Some(rare) = &self.rare else { return Ok(()) };
        match marks.iter().find(|mark| rare.quarantined.overlaps(**mark) || rare.failed.overlaps(**mark)) {
            Some(mark) => Err(format!("an operation is under way on withdrawn frames of {mark:?}")),
            None => Ok(()),
        }
    }
}

fn frames_of(parts: impl Iterator<Item = Span>) -> u32 {
    parts.map(Span::frames).sum()
}

/// How many frames the runs found by `next` in `span` have together.
fn frames_in(span: Span, next: impl Fn(Span) -> Option<Span>) -> u32 {
    let runs = std::iter::successors(next(span), |run| next(Span::new(run.end(), span.end())?));
    debug_assert!(BLOCK_FRAMES <= span.frames());
    frames_of(runs)
}
