//! The guest GiBs of an allocation that are whole GiBs of the pool: the way from a guest offset to a record without a search.
//!
//! An allocation of whole GiBs, which is what a host of confidential VMs hands out, has nothing else. Everything else is found
//! through the extents.

use pageless_metadata::{Order, Pfn, PfnRange, Span};

use crate::extents::Extent;
use crate::record::Records;

/// A guest GiB that is one GiB of the pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WholeGib {
    /// Index of its record; [`NONE`] where the guest GiB is made of parts.
    record: u32,
    /// Its frames.
    frames: PfnRange,
}

const NONE: u32 = u32::MAX;

impl WholeGib {
    /// Index of its record, past all records where the guest GiB is made of parts.
    #[inline]
    pub(crate) const fn record(self) -> usize {
        self.record as usize
    }

    /// The frames of it that lie in `span`.
    #[inline]
    pub(crate) fn part(self, span: Span) -> Option<PfnRange> {
        self.frames.sub(u64::from(span.start()), u64::from(span.frames()))
    }
}

/// What is behind each guest GiB that the extents cover to its end, in guest order.
pub(crate) fn whole_gibs(records: &Records, extents: &[Extent]) -> Box<[WholeGib]> {
    let none = WholeGib { record: NONE, frames: PfnRange::single(Pfn::new(0)) };
    let gibs = extents.last().map_or(0, |last| last.end() / Order::GIB1.bytes());
    let mut found = vec![none; usize::try_from(gibs).unwrap_or(0)].into_boxed_slice();
    for (extent, piece) in extents.iter().flat_map(|extent| records.pieces(extent.frames).map(move |piece| (extent, piece))) {
        let offset = extent.offset_of(piece.frames.start());
        let place = usize::try_from(offset / Order::GIB1.bytes()).ok().and_then(|nth| found.get_mut(nth));
        if let Some(place) = place
            && piece.span.is_whole()
            && offset.is_multiple_of(Order::GIB1.bytes())
        {
            *place = WholeGib { record: u32::try_from(piece.record).unwrap_or(NONE), frames: piece.frames };
        }
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::backing::NodeFrames;

    const GIB: u64 = Order::GIB1.frames();

    fn frames(start: u64, frames: u64) -> PfnRange {
        PfnRange::from_len(Pfn::new(start), frames).unwrap()
    }

    #[test]
    fn a_gib_is_whole_where_guest_and_pool_are_aligned_alike_in_one_node() {
        let nodes = [(0, frames(4 * GIB, 8 * GIB)), (1, frames(12 * GIB, 4 * GIB))];
        let records = Records::new(&nodes.map(|(node, frames)| NodeFrames { node, frames }));
        // One aligned GiB; then one half of a GiB, which shifts the next two; then a half that ends it; then a GiB and a bit.
        let runs =
            [(6 * GIB, GIB), (8 * GIB, GIB / 2), (9 * GIB, 2 * GIB), (11 * GIB, GIB / 2), (14 * GIB, GIB), (12 * GIB, 512)];
        let mut offset = 0;
        let extents: Vec<Extent> = runs
            .iter()
            .map(|(start, length)| {
                let extent = Extent { offset, frames: frames(*start, *length) };
                offset = extent.end();
                extent
            })
            .collect();
        let found = whole_gibs(&records, &extents);
        let whole: Vec<Option<(usize, u64)>> =
            found.iter().map(|gib| (gib.record != NONE).then(|| (gib.record(), gib.frames.start().get() / GIB))).collect();
        assert_eq!(whole, [Some((2, 6)), None, None, None, Some((10, 14))]);
        assert!(records.get(found[1].record()).is_none());
    }
}
