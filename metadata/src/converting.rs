//! Which frames of a GiB are under an operation right now.
//!
//! A handful of intervals, two of them inline: marking and clearing an interval costs a few loads where a bitmap would cost
//! 20 to 70 ns more. A mark carries its operation, and only that operation clears it.

use crate::{GIB_FRAMES, Intent, OperationId, Span};

/// One operation's mark on some frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    /// The frames.
    pub span: Span,
    /// The operation that marked them, and alone may clear them.
    pub operation: OperationId,
    /// What the operation is for.
    pub intent: Intent,
}

/// A mark in 16 bytes: start, length and intent share a word. A length of zero is an empty place.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Packed {
    word: u64,
    operation: u64,
}

const LENGTH_SHIFT: u32 = 18;
const INTENT_SHIFT: u32 = 40;
const INTENTS: [Intent; 5] = [Intent::Share, Intent::Unshare, Intent::Reclaim, Intent::Detach, Intent::Resize];

impl Packed {
    #[inline]
    fn new(mark: Mark) -> Self {
        let word =
            u64::from(mark.span.start()) | u64::from(mark.span.frames()) << LENGTH_SHIFT | (mark.intent as u64) << INTENT_SHIFT;
        Self { word, operation: mark.operation.get() }
    }

    fn mark(self) -> Option<Mark> {
        let (start, frames) = (low(self.word, GIB_FRAMES - 1), low(self.word >> LENGTH_SHIFT, 2 * GIB_FRAMES - 1));
        let intent = *INTENTS.get((self.word >> INTENT_SHIFT) as usize)?;
        let operation = OperationId::from_raw(self.operation);
        Span::new(start, start + frames).map(|span| Mark { span, operation, intent })
    }
}

#[allow(clippy::cast_possible_truncation)] // the mask has 19 bits
const fn low(word: u64, mask: u32) -> u32 {
    word as u32 & mask
}

/// The marks on one GiB.
#[derive(Debug, Default)]
pub struct Converting {
    inline: [Packed; 2],
    // Boxed, so that a GiB without a third concurrent operation pays one word.
    #[allow(clippy::box_collection)]
    more: Option<Box<Vec<Packed>>>,
}

impl Converting {
    /// No marks.
    #[must_use]
    pub const fn new() -> Self {
        let empty = Packed { word: 0, operation: 0 };
        Self { inline: [empty, empty], more: None }
    }

    /// Whether no operation is under way.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.inline[0].word == 0 && self.inline[1].word == 0 && self.more.is_none()
    }

    /// The marks, in no particular order.
    pub fn marks(&self) -> impl Iterator<Item = Mark> + '_ {
        self.inline.iter().chain(self.more.iter().flat_map(|more| more.iter())).filter_map(|packed| packed.mark())
    }

    /// A mark that shares a frame with `span`.
    #[must_use]
    #[inline]
    pub fn overlap(&self, span: Span) -> Option<Mark> {
        if self.is_empty() { None } else { self.marks().find(|mark| mark.span.overlaps(span)) }
    }

    /// Sets a mark. The caller has checked that nothing overlaps it.
    #[inline]
    pub fn mark(&mut self, mark: Mark) {
        let packed = Packed::new(mark);
        match self.inline.iter_mut().find(|place| place.word == 0) {
            Some(place) => *place = packed,
            None => self.more.get_or_insert_default().push(packed),
        }
    }

    /// Marks frames where nothing is marked: [`mark`](Self::mark) without a search.
    #[inline]
    pub(crate) fn mark_first(&mut self, mark: Mark) {
        debug_assert!(self.is_empty(), "{mark:?} is not the first");
        self.inline[0] = Packed::new(mark);
    }

    /// Whether that mark stands where [`mark_first`](Self::mark_first) set it.
    pub(crate) fn is_first(&self, mark: Mark) -> bool {
        self.inline[0] == Packed::new(mark)
    }

    /// Clears the mark that [`mark_first`](Self::mark_first) made, where nothing was marked or cleared since.
    #[inline]
    pub(crate) const fn clear_first(&mut self) {
        self.inline[0] = Packed { word: 0, operation: 0 };
    }

    /// Clears what `operation` marked within `span`, and says which frames that were: none where the mark was taken away
    /// meanwhile. A mark that is only partly within `span` keeps the rest.
    pub fn clear(&mut self, operation: OperationId, span: Span) -> Option<Span> {
        let found = self.marks().find(|mark| mark.operation == operation && mark.span.overlaps(span))?;
        let cleared = found.span.intersect(span)?;
        self.remove(found);
        for rest in found.span.subtract(cleared).into_iter().flatten() {
            self.mark(Mark { span: rest, ..found });
        }
        Some(cleared)
    }

    /// Clears `mark`, if it is there just as it was set.
    #[inline]
    pub fn clear_exact(&mut self, mark: Mark) -> bool {
        let packed = Packed::new(mark);
        if let Some(place) = self.inline.iter_mut().find(|place| **place == packed) {
            *place = Packed::default();
            return true;
        }
        let found = self.more.as_ref().is_some_and(|more| more.contains(&packed));
        if found {
            self.remove(mark);
        }
        found
    }

    /// Bytes on the heap.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let each = size_of::<Packed>();
        self.more.as_ref().map_or(0, |more| size_of::<Vec<Packed>>() + more.capacity() * each)
    }

    fn remove(&mut self, mark: Mark) {
        let packed = Packed::new(mark);
        if let Some(place) = self.inline.iter_mut().find(|place| **place == packed) {
            *place = Packed::default();
        } else if let Some(more) = &mut self.more {
            more.retain(|other| *other != packed);
            if more.is_empty() {
                self.more = None;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn mark(start: u32, end: u32, turn: u64) -> Mark {
        Mark { span: Span::new(start, end).unwrap(), operation: OperationId::new(3, turn), intent: Intent::Resize }
    }

    #[test]
    fn a_mark_survives_packing() {
        for case in [mark(0, GIB_FRAMES, 1), mark(GIB_FRAMES - 1, GIB_FRAMES, u64::MAX >> 30), mark(0, 1, 0)] {
            assert_eq!(Packed::new(case).mark(), Some(case));
        }
    }

    #[test]
    fn only_the_operation_that_marked_clears() {
        let mut converting = Converting::new();
        (0..5).for_each(|n| converting.mark(mark(n * 10, n * 10 + 5, u64::from(n))));
        assert_eq!(converting.clear(OperationId::new(3, 9), Span::WHOLE), None);
        assert_eq!(converting.overlap(Span::single(44)).unwrap().operation, OperationId::new(3, 4));
        for n in 0..5 {
            assert_eq!(converting.clear(OperationId::new(3, u64::from(n)), Span::WHOLE), Span::new(n * 10, n * 10 + 5));
        }
        assert!(converting.is_empty());
        assert_eq!(converting.heap_bytes(), 0);
    }

    #[test]
    fn clearing_a_part_keeps_the_rest_marked() {
        let mut converting = Converting::new();
        converting.mark(mark(0, 100, 1));
        assert_eq!(converting.clear(OperationId::new(3, 1), Span::new(10, 20).unwrap()), Span::new(10, 20));
        assert!(converting.overlap(Span::new(10, 20).unwrap()).is_none());
        assert!(converting.overlap(Span::single(9)).is_some() && converting.overlap(Span::single(20)).is_some());
    }
}
