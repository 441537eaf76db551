//! Looking at all frames: free runs, counts, audits. Nothing here is on a hot path, and nothing keeps a counter.

use std::ops::ControlFlow;

use pageless_metadata::{Order, PfnRange};

use super::Frames;
use super::hints::top_bit;
use super::place::{Place, each_bit};
use super::store::{Group, Spot, Supply, has};
use crate::sync::Ordering;

/// Told a free run by its first frame and the frame after its last, counted as [`Place`] counts.
type See<'a> = &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>;

impl Frames {
    /// Shows `see` the maximal free runs in ascending order; with `uncut` false, as if whole GiBs were not there.
    pub(super) fn each_run(&self, uncut: bool, mut see: impl FnMut(u64, u64) -> ControlFlow<()>) {
        let mut run = (0, 0);
        let mut join = |start: u64, end: u64| {
            if start == run.1 {
                run.1 = end;
                return ControlFlow::Continue(());
            }
            let before = std::mem::replace(&mut run, (start, end));
            if before.0 < before.1 { see(before.0, before.1) } else { ControlFlow::Continue(()) }
        };
        let stopped = (0..self.groups.len()).try_for_each(|index| self.each_part(index, uncut, &mut join)).is_break();
        if !stopped && run.0 < run.1 {
            let _ = see(run.0, run.1);
        }
    }

    fn each_part(&self, index: usize, uncut: bool, see: See<'_>) -> ControlFlow<()> {
        let group = &self.groups[index];
        let whole = group.whole.load(Ordering::SeqCst);
        let cut = Supply::Some.in_group(group) | Supply::Blocks.in_group(group);
        each_bit(whole | cut).try_for_each(|gib| self.each_part_of_gib(index, gib, uncut, see))
    }

    fn each_part_of_gib(&self, index: usize, gib: u32, uncut: bool, see: See<'_>) -> ControlFlow<()> {
        let group = &self.groups[index];
        let start = Place::of_gib(index, gib).0;
        if group.whole.load(Ordering::SeqCst) >> gib & 1 == 0 {
            for (start, lane) in group.lanes_of(Place(start)) {
                each_part_of_lane(lane, start.0, see)?;
            }
        } else if uncut {
            see(start, start + Order::GIB1.frames())?;
        }
        ControlFlow::Continue(())
    }

    /// Shows `see` the free runs in the GiB that holds `place`, ascending; neighbours may come apart.
    pub(super) fn each_run_of_gib(&self, place: Place, mut see: impl FnMut(u64, u64)) {
        let _ended = self.each_part_of_gib(place.group(), place.gib(), true, &mut |start, end| {
            see(start, end);
            ControlFlow::Continue(())
        });
    }

    /// The first free run of `frames` frames that starts at a multiple of `align`: where it starts. Runs within GiBs that are
    /// cut already are preferred to whole GiBs.
    pub(super) fn find_run(&self, frames: u64, align: Order) -> Option<u64> {
        if frames >= Order::GIB1.frames() {
            // Most such requests are for whole GiBs, and those are a few words.
            if let Some(found) = self.find_gibs(frames.div_ceil(Order::GIB1.frames())) {
                return Some(found);
            }
        } else if let Some(found) = self.find_among_runs(frames, align, false) {
            return Some(found);
        }
        self.find_among_runs(frames, align, true)
    }

    fn find_among_runs(&self, frames: u64, align: Order, uncut: bool) -> Option<u64> {
        let mut found = None;
        self.each_run(uncut, |start, end| {
            let start = start.next_multiple_of(align.frames());
            if start.checked_add(frames).is_some_and(|last| last <= end) {
                found = Some(start);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        found
    }

    /// See [`Frames::check`].
    pub(super) fn audit(&self) -> Result<(), String> {
        if !self.moves.idle() {
            return Err("a structural move is under way".to_owned());
        }
        let mut outside = None;
        self.each_run(true, |start, end| match self.run(start, end).filter(|run| self.span.contains_range(*run)) {
            Some(_) => ControlFlow::Continue(()),
            None => {
                outside = Some(format!("frames {start:#x}..{end:#x} from {} are free outside {}", self.origin, self.span));
                ControlFlow::Break(())
            }
        });
        if let Some(outside) = outside {
            return Err(outside);
        }
        for (index, group) in self.groups.iter().enumerate() {
            for supply in Supply::ALL {
                let told = has(self.top(index).word(supply), top_bit(index));
                claims(told || supply.in_group(group) == 0, || format!("group {index} hides {supply:?} from the top"))?;
            }
            for gib in 0..64 {
                self.audit_gib(index, group, gib)?;
            }
        }
        Ok(())
    }

    fn audit_gib(&self, index: usize, group: &Group, gib: u32) -> Result<(), String> {
        let name = || self.range_of(Place::of_gib(index, gib), Order::GIB1);
        for (start, lane) in group.lanes_of(Place::of_gib(index, gib)) {
            let whole = lane.whole.load(Ordering::SeqCst);
            claims(whole == 0 || has(&group.blocks, gib), || format!("{} hides whole blocks", name()))?;
            for block in 0..64 {
                let at = start.block_of_lane(block);
                let some = lane.leaf(block).is_some_and(|leaf| !leaf.is_empty());
                let uncut = whole >> block & 1 == 1;
                let block_name = || self.range_of(at, Order::MIB2);
                claims(!(uncut && some), || format!("{} is free uncut and as frames", block_name()))?;
                claims(!(has(&group.whole, gib) && (uncut || some)), || format!("{} is free twice", block_name()))?;
                let told = has(&lane.some, block) && has(&group.some, gib);
                claims(!some || told, || format!("{} hides free frames", block_name()))?;
                let told = has(&lane.full, block) && has(&group.blocks, gib);
                claims(!lane.leaf_is_full(block) || told, || format!("{} hides that it is whole again", block_name()))?;
            }
        }
        claims(!group.may_be_full(Place::of_gib(index, gib)) || has(&group.full, gib), || {
            format!("{} hides that it is whole again", name())
        })
    }

    fn range_of(&self, at: Place, order: Order) -> PfnRange {
        PfnRange::block(self.pfn(at), order)
    }
}

fn claims(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

fn each_part_of_lane(lane: Spot<'_>, start: u64, see: See<'_>) -> ControlFlow<()> {
    let whole = lane.whole.load(Ordering::SeqCst);
    if whole == !0 {
        return see(start, start + 64 * Order::MIB2.frames());
    }
    for block in each_bit(whole | lane.some.load(Ordering::SeqCst)) {
        let start = start + u64::from(block) * Order::MIB2.frames();
        if whole >> block & 1 == 1 {
            see(start, start + Order::MIB2.frames())?;
        } else if let Some(leaf) = lane.leaf(block) {
            for (nth, word) in leaf.0.iter().enumerate() {
                each_part_of_word(word.load(Ordering::SeqCst), start + 64 * nth as u64, see)?;
            }
        }
    }
    ControlFlow::Continue(())
}

fn each_part_of_word(mut word: u64, mut start: u64, see: See<'_>) -> ControlFlow<()> {
    while word != 0 {
        let skip = word.trailing_zeros();
        let ones = (word >> skip).trailing_ones();
        start += u64::from(skip);
        see(start, start + u64::from(ones))?;
        start += u64::from(ones);
        word = if skip + ones >= 64 { 0 } else { word >> skip >> ones };
    }
    ControlFlow::Continue(())
}
