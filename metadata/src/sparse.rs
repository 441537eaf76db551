//! A plane that is normally empty: the unknown, quarantined, failed or poisoned frames of one GiB.
//!
//! Empty, it is one null pointer. Otherwise one bit per 2 MiB block stands in front, so that asking about a frame whose
//! block has no mark ends in one load. Behind it, few marks are a list of runs, many are leaves, and a GiB that is marked
//! as a whole needs neither. At every step a plane has at most [`PLANE_BYTES_MAX`](crate::PLANE_BYTES_MAX) bytes on the
//! heap. (Roaring bitmaps, which the algebra over whole pools speaks, could not promise that: a container at its
//! threshold is held twice while it changes form, and run containers grow to 16 times a plain bitmap.)

use std::fmt;

use roaring::RoaringBitmap;

use crate::at_rest::PLANE_BYTES_MAX;
use crate::bits::{self, Bits512};
use crate::leaves::Leaves;
use crate::run_list::RunList;
use crate::span::{BLOCK_FRAMES, GIB_BLOCKS, GIB_FRAMES, Span};

/// Runs that a list holds; the next one opens leaves. 2 KiB, and 3 KiB while the list grows.
const LIST_RUNS: usize = 256;
/// Marked frames, or unmarked ones, down to which leaves become a list again: far below the number of runs that opened
/// them, so that nobody can toggle between the two with a few frames.
const LIST_FRAMES: u32 = 64;

/// The frames of one GiB that carry a mark. One pointer; nothing on the heap while there are none.
#[derive(Default)]
pub struct SparsePlane(Option<Box<Marked>>);

struct Marked {
    /// Blocks with a marked frame.
    filter: Bits512,
    /// Frames that are marked: never 0.
    frames: u32,
    body: Body,
}

enum Body {
    /// All frames are marked: exactly then this form is used.
    Whole,
    Runs(RunList),
    Leaves(Box<Leaves>),
}

const _: () = assert!(size_of::<SparsePlane>() == 8);
// While a list becomes leaves, both are alive.
const _: () = assert!(size_of::<Marked>() + LIST_RUNS * size_of::<Span>() + Leaves::MAX_BYTES <= PLANE_BYTES_MAX);

impl SparsePlane {
    /// No frame is marked.
    #[must_use]
    pub const fn new() -> Self {
        Self(None)
    }

    /// Whether no frame is marked.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// How many frames are marked: 0 to 262,144.
    #[must_use]
    pub fn frames(&self) -> u32 {
        self.0.as_ref().map_or(0, |marked| marked.frames)
    }

    /// Whether `frame`, counted from the start of the GiB, is marked.
    #[must_use]
    pub fn contains(&self, frame: u32) -> bool {
        match &self.0 {
            Some(marked) if frame < GIB_FRAMES && bits::has(&marked.filter, frame / BLOCK_FRAMES) => {
                marked.body.next_run(Span::single(frame), true).is_some()
            }
            _ => false,
        }
    }

    /// Whether a frame of `span` is marked.
    #[must_use]
    pub fn overlaps(&self, span: Span) -> bool {
        self.first_run_in(span).is_some()
    }

    /// Whether all frames of `span` are marked.
    #[must_use]
    pub fn covers(&self, span: Span) -> bool {
        self.0.as_ref().is_some_and(|marked| marked.body.next_run(span, false).is_none())
    }

    /// The first run within `span` of marked frames, as long as it can be.
    #[must_use]
    pub fn first_run_in(&self, span: Span) -> Option<Span> {
        let marked = self.0.as_ref()?;
        let blocks = span.blocks();
        if bits::any(&marked.filter, blocks.start, blocks.end) { marked.body.next_run(span, true) } else { None }
    }

    /// Marks the frames of `span`, and returns how many were not.
    pub fn insert(&mut self, span: Span) -> u32 {
        let marked =
            self.0.get_or_insert_with(|| Box::new(Marked { filter: [0; 8], frames: 0, body: Body::Runs(RunList::default()) }));
        let changed = marked.body.set(span, true);
        marked.frames += changed;
        bits::fill(&mut marked.filter, span.blocks().start, span.blocks().end, true);
        marked.settle();
        changed
    }

    /// Takes the marks off the frames of `span`, and returns how many had one.
    pub fn remove(&mut self, span: Span) -> u32 {
        let Some(marked) = &mut self.0 else { return 0 };
        let changed = marked.body.set(span, false);
        marked.frames -= changed;
        if marked.frames == 0 {
            self.0 = None;
            return changed;
        }
        bits::fill(&mut marked.filter, span.blocks().start, span.blocks().end, false);
        // Blocks at the edges may have marks outside the span.
        for block in span.partial_blocks().into_iter().flatten() {
            let left = marked.body.next_run(Span::block(block), true).is_some();
            bits::fill(&mut marked.filter, block, block + 1, left);
        }
        marked.settle();
        changed
    }

    /// The runs of marked frames, each as long as it can be, ascending.
    pub fn runs(&self) -> impl Iterator<Item = Span> + '_ {
        self.0.iter().flat_map(|marked| marked.body.runs())
    }

    /// The marked frames, counted from the start of the GiB.
    #[must_use]
    pub fn to_roaring(&self) -> RoaringBitmap {
        let mut frames = RoaringBitmap::new();
        for run in self.runs() {
            frames.insert_range(run.start()..run.end());
        }
        frames.optimize();
        frames
    }

    /// The bytes on the heap, as asked of the allocator.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let Some(marked) = &self.0 else { return 0 };
        size_of::<Marked>()
            + match &marked.body {
                Body::Whole => 0,
                Body::Runs(list) => list.heap_bytes(),
                Body::Leaves(leaves) => size_of::<Leaves>() + leaves.heap_bytes(),
            }
    }

    /// Whether the count, the filter and the form equal what the marks of the frames say.
    ///
    /// # Errors
    ///
    /// What disagrees, with both numbers.
    pub fn check(&self) -> Result<(), String> {
        let Some(marked) = &self.0 else { return Ok(()) };
        if let Body::Leaves(leaves) = &marked.body {
            leaves.check()?;
        }
        let (mut frames, mut filter, mut end) = (0, [0; 8], None);
        for run in self.runs() {
            if end.is_some_and(|end| end >= run.start()) {
                return Err(format!("the run {run:?} begins at or before the end of the one before it, {end:?}"));
            }
            end = Some(run.end());
            frames += run.frames();
            bits::fill(&mut filter, run.blocks().start, run.blocks().end, true);
        }
        if frames != marked.frames || frames == 0 {
            return Err(format!("{} frames are counted as marked, {frames} are", marked.frames));
        }
        if filter != marked.filter {
            return Err(format!("the filter says {:x?}, the marks say {filter:x?}", marked.filter));
        }
        if (frames == GIB_FRAMES) != matches!(marked.body, Body::Whole) {
            return Err(format!("{frames} of {GIB_FRAMES} frames are marked, in the wrong form"));
        }
        Ok(())
    }
}

impl Marked {
    /// Takes the form that suits the number of marks.
    fn settle(&mut self) {
        if self.frames == GIB_FRAMES {
            self.body = Body::Whole;
        } else if let Body::Leaves(_) = self.body
            && self.frames.min(GIB_FRAMES - self.frames) <= LIST_FRAMES
        {
            let mut list = RunList::default();
            self.body.runs().for_each(|run| {
                list.insert(run);
            });
            self.body = Body::Runs(list);
        }
    }
}

impl Body {
    /// Marks the frames of `span` or takes their marks off, and counts those that changed.
    fn set(&mut self, span: Span, value: bool) -> u32 {
        match self {
            Self::Whole if value => return 0,
            Self::Whole => {
                let mut list = RunList::default();
                span_rest(span).for_each(|part| {
                    list.insert(part);
                });
                *self = Self::Runs(list);
                return span.frames();
            }
            // One operation adds at most one run.
            Self::Runs(list) if list.len() == LIST_RUNS => {
                let mut leaves = Box::new(Leaves::uniform(false));
                list.runs().iter().for_each(|run| {
                    leaves.set(*run, true);
                });
                *self = Self::Leaves(leaves);
            }
            _ => {}
        }
        match self {
            Self::Whole => 0,
            Self::Runs(list) if value => list.insert(span),
            Self::Runs(list) => list.remove(span),
            Self::Leaves(leaves) => leaves.set(span, value),
        }
    }

    fn next_run(&self, span: Span, within: bool) -> Option<Span> {
        match self {
            Self::Whole => within.then_some(span),
            Self::Runs(list) => list.next_run(span, within),
            Self::Leaves(leaves) => leaves.next_run(span, within),
        }
    }

    fn runs(&self) -> impl Iterator<Item = Span> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let run = self.next_run(Span::new(at, GIB_FRAMES)?, true)?;
            at = run.end();
            Some(run)
        })
    }
}

/// The frames of the GiB before and after `span`.
fn span_rest(span: Span) -> impl Iterator<Item = Span> {
    Span::WHOLE.subtract(span).into_iter().flatten()
}

impl fmt::Debug for SparsePlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Runs shown before the rest is only counted.
        const SHOWN: usize = 8;
        write!(f, "{} of {} blocks, {} frames marked: ", self.marked_blocks(), GIB_BLOCKS, self.frames())?;
        f.debug_set().entries(self.runs().take(SHOWN)).finish()
    }
}

impl SparsePlane {
    fn marked_blocks(&self) -> u32 {
        self.0.as_ref().map_or(0, |marked| marked.filter.iter().map(|word| word.count_ones()).sum())
    }
}
