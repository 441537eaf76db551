//! Holds: registered uses by a named holder, which forbid conversion, release and reclaim while they last.
//!
//! Several holders may hold the same frames. Adding and removing a hold reports the edges, the frames that became held
//! (0 to 1) and those that no longer are (1 to 0), so that nobody ever scans.

use crate::{HolderId, Span};

/// The number of a hold, given out by the pool.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HoldId(pub u64);

#[derive(Clone, Debug)]
struct Hold {
    id: HoldId,
    span: Span,
    holder: HolderId,
}

/// The holds on one GiB. Few and long, so a plain list.
#[derive(Debug, Default)]
pub struct Holds(Vec<Hold>);

impl Holds {
    /// Whether nobody holds anything.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A holder of frames in `span`, with the frames of it that are held: the lowest such hold.
    #[must_use]
    pub fn overlap(&self, span: Span) -> Option<(Span, &HolderId)> {
        self.in_span(span).min_by_key(|(part, _)| part.start())
    }

    /// Every hold on frames of `span`, with those frames, in no particular order.
    pub fn in_span(&self, span: Span) -> impl Iterator<Item = (Span, &HolderId)> {
        self.0.iter().filter_map(move |hold| Some((hold.span.intersect(span)?, &hold.holder)))
    }

    /// Adds a hold, and returns the frames that were not held before, ascending.
    pub fn add(&mut self, id: HoldId, span: Span, holder: HolderId) -> Vec<Span> {
        let edges = self.unheld(span);
        self.0.push(Hold { id, span, holder });
        edges
    }

    /// Ends the hold with this number, and returns the frames that nobody holds any more, ascending.
    pub fn remove(&mut self, id: HoldId) -> Vec<Span> {
        let Some(at) = self.0.iter().position(|hold| hold.id == id) else { return Vec::new() };
        let span = self.0.swap_remove(at).span;
        if self.0.is_empty() {
            self.0 = Vec::new();
        }
        self.unheld(span)
    }

    /// Bytes on the heap, names not counted: they are shared between all GiBs that the hold touches.
    #[must_use]
    pub const fn heap_bytes(&self) -> usize {
        self.0.capacity() * size_of::<Hold>()
    }

    fn unheld(&self, span: Span) -> Vec<Span> {
        self.0
            .iter()
            .fold(vec![span], |left, hold| left.into_iter().flat_map(|part| part.subtract(hold.span)).flatten().collect())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn span(start: u32, end: u32) -> Span {
        Span::new(start, end).unwrap()
    }

    #[test]
    fn only_the_first_and_the_last_hold_of_a_frame_are_edges() {
        let mut holds = Holds::default();
        assert_eq!(holds.add(HoldId(1), span(0, 10), "vfio".into()), [span(0, 10)]);
        assert_eq!(holds.add(HoldId(2), span(5, 20), "migration".into()), [span(10, 20)]);
        assert_eq!(holds.add(HoldId(3), span(2, 4), "debugger".into()), []);
        assert_eq!(holds.overlap(span(12, 30)).unwrap().1.name(), "migration");
        assert_eq!(holds.remove(HoldId(1)), [span(0, 2), span(4, 5)]);
        assert_eq!(holds.remove(HoldId(1)), []);
        assert_eq!(holds.remove(HoldId(2)), [span(5, 20)]);
        assert_eq!(holds.remove(HoldId(3)), [span(2, 4)]);
        assert!(holds.is_empty() && holds.heap_bytes() == 0);
    }
}
