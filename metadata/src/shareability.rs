//! Which frames of one GiB are shared with the host: a plane that is uniform, at rest, or open.
//!
//! *Uniform* has nothing on the heap. The first conversion that makes the GiB mixed *opens* it into leaves, where every
//! operation is a few words' work whatever a guest chooses. [`SharePlane::compact`] puts it to *rest* in a roaring bitmap
//! where that is smaller. At every step, the one between two forms included, a plane has at most [`PLANE_BYTES_MAX`]
//! bytes on the heap.

use std::fmt;

use roaring::RoaringBitmap;

use crate::at_rest::{self, PLANE_BYTES_MAX, REST_BYTES_MAX};
use crate::leaves::Leaves;
use crate::span::{BLOCK_FRAMES, GIB_FRAMES, Shape, Span};
use crate::try_box::{NoMemory, TryBox};

/// What the frames of a span have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Uniformity {
    /// All are private.
    AllPrivate,
    /// All are shared.
    AllShared,
    /// There are both.
    Mixed,
}

impl Uniformity {
    const fn of(shared: Option<bool>) -> Self {
        match shared {
            Some(false) => Self::AllPrivate,
            Some(true) => Self::AllShared,
            None => Self::Mixed,
        }
    }
}

/// The shareability of the frames of one GiB.
pub struct SharePlane {
    form: Form,
    /// Frames that are shared.
    shared: u32,
    /// Reservations that were not undone: while there are any, the plane stays open.
    reserved: u32,
}

enum Form {
    Uniform(bool),
    /// Not empty, not whole, no capacity to spare, and at most [`REST_BYTES_MAX`] bytes.
    Rest(Box<RoaringBitmap>),
    Open(TryBox<Leaves>),
}

// It lives in the 128-byte record of a GiB.
const _: () = assert!(size_of::<SharePlane>() <= 24);
const _: () = assert!(Leaves::MAX_BYTES + REST_BYTES_MAX <= PLANE_BYTES_MAX);

impl SharePlane {
    /// All frames private.
    #[must_use]
    pub const fn new() -> Self {
        Self { form: Form::Uniform(false), shared: 0, reserved: 0 }
    }

    /// How many frames are shared: 0 to 262,144. One load.
    #[must_use]
    pub const fn shared_frames(&self) -> u32 {
        self.shared
    }

    /// Whether all frames are shared (true), or private (false); none where there are both. One load.
    #[must_use]
    #[inline]
    pub const fn whole(&self) -> Option<bool> {
        match self.shared {
            0 => Some(false),
            GIB_FRAMES => Some(true),
            _ => None,
        }
    }

    /// Whether `frame`, counted from the start of the GiB, is shared.
    #[must_use]
    pub fn is_shared(&self, frame: u32) -> bool {
        match &self.form {
            Form::Uniform(shared) => *shared,
            Form::Rest(frames) => frames.contains(frame),
            Form::Open(leaves) => frame < GIB_FRAMES && leaves.contains(frame),
        }
    }

    /// What the frames of `span` have in common. Looks into leaves only of blocks that are mixed.
    #[must_use]
    #[inline]
    pub fn uniformity(&self, span: Span) -> Uniformity {
        let whole = self.whole();
        if whole.is_some() || span.is_whole() {
            return Uniformity::of(whole);
        }
        Uniformity::of(match &self.form {
            Form::Uniform(shared) => Some(*shared),
            Form::Rest(frames) => at_rest::same(frames, span),
            Form::Open(leaves) => leaves.same(span),
        })
    }

    /// Makes sure that a later [`Self::set_reserved`] of `span` allocates nothing, whatever is set in between. Reservations
    /// are counted: each is undone by one [`Self::unreserve`] or [`Self::set_reserved`] of the same span. The whole GiB needs
    /// none.
    ///
    /// # Errors
    ///
    /// [`NoMemory`], and then nothing is reserved and no frame has changed.
    #[inline]
    pub fn reserve(&mut self, span: Span) -> Result<(), NoMemory> {
        if span.is_whole() {
            return Ok(());
        }
        let reserved = self.reserved.checked_add(1).ok_or(NoMemory { bytes: 0 })?;
        self.opened()?.promise(span)?;
        self.reserved = reserved;
        Ok(())
    }

    /// [`Self::reserve_change`] of a usual span, where that is a matter of looking at a few words; false, and nothing done, where
    /// it is not.
    #[inline(always)]
    pub fn reserve_quickly(&mut self, shape: Shape, shared: bool) -> bool {
        let reserved = match (shape, &mut self.form) {
            (Shape::Whole, _) => return self.whole() == Some(!shared),
            (Shape::Frame(frame), Form::Open(leaves)) => leaves.promise_frame(frame, !shared),
            (Shape::Block(block), Form::Open(leaves)) => leaves.is_uniform_block(block, !shared),
            _ => false,
        };
        self.reserved += reserved as u32;
        reserved
    }

    /// Reserves `span` if what changes in it when it becomes `shared` (or private) is one run, and returns that run. None, and
    /// nothing done, where it is no run or several, or where the memory is not there.
    #[inline]
    pub fn reserve_change(&mut self, span: Span, shared: bool) -> Option<Span> {
        if span.shape().is_some_and(|shape| self.reserve_quickly(shape, shared)) {
            return Some(span);
        }
        self.reserve_only_run(span, shared)
    }

    #[inline(never)]
    fn reserve_only_run(&mut self, span: Span, shared: bool) -> Option<Span> {
        let run = self.only_run(span, !shared)?;
        self.reserve(span).is_ok().then_some(run)
    }

    /// Undoes one [`Self::reserve`] of the same span.
    pub fn unreserve(&mut self, span: Span) {
        self.redeem(span);
        if let Form::Open(leaves) = &mut self.form {
            leaves.tidy();
        }
    }

    /// [`Self::set_reserved`] of a usual span, where that is a matter of writing a few words; false, and nothing done, where it is
    /// not.
    #[inline(always)]
    pub fn set_quickly(&mut self, shape: Shape, shared: bool) -> bool {
        let (set, frames) = match (shape, &mut self.form) {
            (Shape::Whole, form) if self.shared.is_multiple_of(GIB_FRAMES) => {
                match form {
                    Form::Uniform(all) => *all = shared,
                    Form::Open(leaves) => leaves.fill_all(shared),
                    Form::Rest(_) => return false,
                }
                self.shared = if shared { GIB_FRAMES } else { 0 };
                return true;
            }
            (Shape::Frame(frame), Form::Open(leaves)) => (leaves.redeem_frame(frame, shared), 1),
            (Shape::Block(block), Form::Open(leaves)) => (leaves.flip_block(block, shared), BLOCK_FRAMES),
            _ => return false,
        };
        if !set {
            return false;
        }
        self.reserved = self.reserved.saturating_sub(1);
        self.shared = if shared { self.shared + frames } else { self.shared - frames };
        true
    }

    /// As [`Self::set`], and undoes one [`Self::reserve`] of the same span, thanks to which this allocates nothing.
    #[inline]
    pub fn set_reserved(&mut self, span: Span, shared: bool) -> u32 {
        let before = self.shared;
        if !span.shape().is_some_and(|shape| self.set_quickly(shape, shared)) {
            self.set_reserved_slowly(span, shared);
        }
        // All that changed, changed alike.
        self.shared.abs_diff(before)
    }

    /// [`Self::set_reserved`] for whom it [could not be done quickly](Self::set_quickly).
    #[inline(never)]
    pub(crate) fn set_reserved_slowly(&mut self, span: Span, shared: bool) {
        if let (Some(Shape::Frame(frame)), Form::Open(leaves)) = (span.shape(), &mut self.form)
            && leaves.redeem_edge_frame(frame, shared)
        {
            self.reserved = self.reserved.saturating_sub(1);
            self.shared = if shared { self.shared + 1 } else { self.shared - 1 };
            return;
        }
        self.redeem(span);
        self.set(span, shared);
        if let Form::Open(leaves) = &mut self.form {
            leaves.tidy();
        }
    }

    /// Ends a reservation, and leaves what was reserved where it is.
    #[inline]
    fn redeem(&mut self, span: Span) {
        if span.is_whole() {
            return;
        }
        debug_assert!(self.reserved > 0, "{span:?} is unreserved more often than reserved");
        self.reserved = self.reserved.saturating_sub(1);
        if let Form::Open(leaves) = &mut self.form {
            leaves.redeem(span);
        }
    }

    /// Makes all frames of `span` shared, or private, and returns how many were not so before. Allocates nothing when
    /// `span` is the whole GiB, or is so already. Otherwise it may, and ends the process if memory is out.
    ///
    /// Leaves stay open, also when all frames become alike: whoever makes a GiB mixed again at once does not pay for them.
    #[inline]
    pub fn set(&mut self, span: Span, shared: bool) -> u32 {
        let all = if shared { GIB_FRAMES } else { 0 };
        if self.shared == all {
            return 0;
        }
        if span.is_whole() {
            return self.set_whole(shared);
        }
        let changed = match &mut self.form {
            Form::Open(leaves) => leaves.set(span, shared),
            _ => self.opened().unwrap_or_else(|refused| refused.abort()).set(span, shared),
        };
        self.shared = if shared { self.shared + changed } else { self.shared - changed };
        changed
    }

    /// Makes all frames shared, or private, and returns how many were not so before.
    #[inline]
    fn set_whole(&mut self, shared: bool) -> u32 {
        let all = if shared { GIB_FRAMES } else { 0 };
        match &mut self.form {
            Form::Uniform(now) => *now = shared,
            Form::Open(leaves) => leaves.set_all(shared),
            form @ Form::Rest(_) => *form = Form::Uniform(shared),
        }
        std::mem::replace(&mut self.shared, all).abs_diff(all)
    }

    /// The one run within `span` of frames that are shared (or private): none where there is no such frame, or more than one run.
    #[must_use]
    pub fn only_run(&self, span: Span, shared: bool) -> Option<Span> {
        // What is mostly asked for needs no search.
        match (span.shape(), &self.form) {
            (Some(Shape::Frame(frame)), _) => return (self.is_shared(frame) == shared).then_some(span),
            (Some(Shape::Block(block)), Form::Open(leaves)) => return leaves.only_run_in_block(block, shared),
            (Some(Shape::Whole), Form::Open(leaves)) => {
                if let Some(block) = leaves.only_block(shared) {
                    return leaves.only_run_in_block(block, shared);
                }
            }
            _ => {}
        }
        let run = self.next_run(span, shared)?;
        let all = if shared { self.shared } else { GIB_FRAMES - self.shared };
        // The count of the GiB often knows that these are all.
        let only =
            run.frames() == all || Span::new(run.end(), span.end()).is_none_or(|rest| self.next_run(rest, shared).is_none());
        only.then_some(run)
    }

    /// The first run within `span` of frames that are shared (or private), as long as it can be.
    #[must_use]
    pub fn next_run(&self, span: Span, shared: bool) -> Option<Span> {
        match &self.form {
            Form::Uniform(all) => (*all == shared).then_some(span),
            Form::Rest(frames) => at_rest::next_run(frames, span, shared),
            Form::Open(leaves) => leaves.next_run(span, shared),
        }
    }

    /// Takes less memory, where that is possible: uniform where all frames are alike, at rest where that is smaller.
    /// Does nothing while anything is reserved. Returns whether something changed.
    pub fn compact(&mut self) -> bool {
        let Form::Open(leaves) = &mut self.form else { return false };
        if self.reserved > 0 {
            return false;
        }
        if self.shared.is_multiple_of(GIB_FRAMES) {
            self.form = Form::Uniform(self.shared > 0);
            return true;
        }
        let trimmed = leaves.trim();
        let mut flat = [0; GIB_FRAMES as usize / 8];
        leaves.copy_to(&mut flat);
        let rest = at_rest::planned_bytes(&flat);
        if rest > REST_BYTES_MAX || rest >= size_of::<Leaves>() + leaves.heap_bytes() {
            return trimmed;
        }
        // The leaves go first: `flat` lies on the stack, so the two forms are never on the heap together.
        self.form = Form::Uniform(false);
        self.form = Form::Rest(Box::new(at_rest::packed(&flat)));
        true
    }

    /// The shared frames, counted from the start of the GiB.
    #[must_use]
    pub fn to_roaring(&self) -> RoaringBitmap {
        match &self.form {
            Form::Uniform(false) => RoaringBitmap::new(),
            Form::Uniform(true) => at_rest::whole(),
            Form::Rest(frames) => (**frames).clone(),
            Form::Open(leaves) => {
                let mut flat = [0; GIB_FRAMES as usize / 8];
                leaves.copy_to(&mut flat);
                at_rest::packed(&flat)
            }
        }
    }

    /// The bytes on the heap, as asked of the allocator.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        match &self.form {
            Form::Uniform(_) => 0,
            Form::Rest(frames) => size_of::<RoaringBitmap>() + at_rest::heap_bytes(frames),
            Form::Open(leaves) => size_of::<Leaves>() + leaves.heap_bytes(),
        }
    }

    /// Whether every count and map equals what the bits of the frames say.
    ///
    /// # Errors
    ///
    /// What disagrees, with both numbers.
    pub fn check(&self) -> Result<(), String> {
        let bits = match &self.form {
            Form::Uniform(shared) => u64::from(*shared) * u64::from(GIB_FRAMES),
            Form::Rest(frames) => frames.len(),
            Form::Open(leaves) => u64::from(leaves.check()?),
        };
        if bits != u64::from(self.shared) {
            return Err(format!("{} frames are counted as shared, {bits} are", self.shared));
        }
        if self.reserved > 0 && !matches!(self.form, Form::Open(_)) {
            return Err(format!("{} reservations are outstanding on a plane that is not open", self.reserved));
        }
        Ok(())
    }

    /// The leaves, opened if need be. On an error the plane is as it was.
    #[inline]
    fn opened(&mut self) -> Result<&mut Leaves, NoMemory> {
        if !matches!(self.form, Form::Open(_)) {
            self.open()?;
        }
        match &mut self.form {
            Form::Open(leaves) => Ok(leaves),
            // Just opened.
            _ => Err(NoMemory { bytes: 0 }),
        }
    }

    #[cold]
    fn open(&mut self) -> Result<(), NoMemory> {
        self.form = Form::Open(match &self.form {
            Form::Open(_) => return Ok(()),
            Form::Uniform(shared) => TryBox::new(Leaves::uniform(*shared))?,
            Form::Rest(frames) => woken(frames)?,
        });
        Ok(())
    }
}

/// The leaves of a plane at rest. Apart from its callers because the bits lie flat on the stack meanwhile.
#[inline(never)]
fn woken(frames: &RoaringBitmap) -> Result<TryBox<Leaves>, NoMemory> {
    Leaves::try_from_flat(&at_rest::flat(frames))
}

impl Default for SharePlane {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SharePlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = match self.form {
            Form::Uniform(_) => "uniform",
            Form::Rest(_) => "at rest",
            Form::Open(_) => "open",
        };
        write!(f, "{form}, {} of {GIB_FRAMES} frames shared, {} reservations", self.shared, self.reserved)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A plane whose block 1 is mixed: all of it is `shared` but `frame`.
    fn all_but(frame: u32, shared: bool) -> SharePlane {
        let mut plane = SharePlane::new();
        plane.set(Span::WHOLE, shared);
        plane.set(Span::single(frame), !shared);
        plane
    }

    #[test]
    fn one_reserved_frame_changes_what_it_changes_and_no_more() {
        for shared in [false, true] {
            let mut plane = all_but(700, shared);
            for (frame, changes) in [(701, 0), (700, 1), (700, 0)] {
                plane.reserve(Span::single(frame)).unwrap();
                let before = plane.shared_frames();
                assert_eq!(plane.set_reserved(Span::single(frame), shared), changes, "{frame}");
                assert_eq!(plane.shared_frames().abs_diff(before), changes, "{frame}");
                plane.check().unwrap();
            }
            assert_eq!(plane.whole(), Some(shared), "the last frame that differed is as the others");
        }
    }

    #[test]
    fn a_change_of_one_frame_is_reserved_where_it_is_one() {
        for shared in [false, true] {
            let mut plane = all_but(700, shared);
            assert_eq!(plane.reserve_change(Span::single(701), shared), None, "it is so already");
            assert_eq!(plane.reserve_change(Span::single(700), !shared), None, "it is so already");
            for (frame, shared) in [(700, shared), (701, !shared)] {
                assert_eq!(plane.reserve_change(Span::single(frame), shared), Some(Span::single(frame)));
            }
            assert!(!plane.compact(), "two changes are reserved");
            plane.unreserve(Span::single(700));
            assert_eq!(plane.set_reserved(Span::single(701), !shared), 1);
            plane.check().unwrap();
        }
    }
}
