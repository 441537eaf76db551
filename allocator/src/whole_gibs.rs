//! The guest GiBs of an allocation that are whole GiBs of the pool: the way from a guest offset to a record without a search.
//!
//! An allocation of whole GiBs, which is what a host of confidential VMs hands out, has nothing else, and mostly in a row: then
//! its handle finds a record by one addition. Everything else is found through the extents.

use std::sync::Arc;

use pageless_metadata::{FRAME_BYTES, Order, Pfn, SummaryKey};

use crate::extents::Extent;
use crate::ownership::Ownership;
use crate::record::{Record, Records};
use crate::sync::{AtomicU64, Ordering};

/// What a handle knows by heart: where the guest's whole GiBs are, and what their summaries are compared with.
pub(crate) struct ShortWay {
    records: Arc<[Record]>,
    /// Bytes of the GiBs in a row that the allocation begins with: an offset below lies in one of them.
    in_a_row: u64,
    /// The first of them.
    first: WholeGib,
    /// What is behind each guest GiB, where not all are in that row.
    others: Box<[WholeGib]>,
    /// The owner's key until a frame is replaced, and nobody's from then on: where the GiBs were, another may be.
    key: AtomicU64,
}

/// A guest GiB that is one GiB of the pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct WholeGib {
    /// Index of its record; [`NONE`] where the guest GiB is made of parts.
    record: u32,
    /// Its first frame.
    start: Pfn,
}

const NONE: u32 = u32::MAX;
const NO_GIB: WholeGib = WholeGib { record: NONE, start: Pfn::new(0) };

impl WholeGib {
    /// The GiB that is `nth` after it in the pool.
    fn next(self, nth: u64) -> Self {
        let record = u64::from(self.record) + nth;
        Self { record: u32::try_from(record).unwrap_or(NONE), start: self.start.add(nth * Order::GIB1.frames()) }
    }
}

impl ShortWay {
    /// The way of a handle of `owned`.
    pub(crate) fn new(records: &Records, owned: &Ownership) -> Self {
        let key = if owned.extents.generation() == 0 { SummaryKey::new(owned.id) } else { SummaryKey::NOBODY };
        let (first, row, others) =
            owned.extents.with(|extents| one_row(records, extents).unwrap_or_else(|| rows(records, extents)));
        Self { records: records.all(), in_a_row: row * Order::GIB1.bytes(), first, others, key: AtomicU64::new(key.word()) }
    }

    /// The record of the guest GiB around `offset`, in bytes, if it is one of those in a row, with its index and the frame at
    /// `offset`: no search. It counts only as long as the summaries are the [key](Self::key)'s.
    #[inline(always)]
    pub(crate) fn in_a_row(&self, offset: u64) -> Option<(usize, &Record, Pfn)> {
        if offset >= self.in_a_row {
            return None;
        }
        // At most the number of records.
        #[allow(clippy::cast_possible_truncation)]
        let index = self.first.record as usize + (offset / Order::GIB1.bytes()) as usize;
        // Of the pool, so it is a frame number.
        let frame = Pfn::new(self.first.start.get() + offset / FRAME_BYTES);
        self.records.get(index).map(|record| (index, record, frame))
    }

    /// The same, also where guest and pool have the GiB whole beside that row.
    #[inline]
    pub(crate) fn find(&self, offset: u64) -> Option<(usize, &Record, Pfn)> {
        self.in_a_row(offset).or_else(|| {
            let gib = self.others.get(usize::try_from(offset / Order::GIB1.bytes()).ok()?)?;
            let frame = gib.start.add(offset % Order::GIB1.bytes() / FRAME_BYTES);
            self.records.get(gib.record as usize).map(|record| (gib.record as usize, record, frame))
        })
    }

    /// What the summaries of these GiBs are compared with.
    #[inline(always)]
    pub(crate) fn key(&self) -> SummaryKey {
        // Acquire: whoever is told that a frame was replaced sees it.
        SummaryKey::from_word(self.key.load(Ordering::Acquire))
    }

    /// A frame is being replaced: from now on everything is found through the extents.
    pub(crate) fn close(&self) {
        self.key.store(SummaryKey::NOBODY.word(), Ordering::Release);
    }
}

/// The first of the GiBs in a row that an allocation begins with, how many they are, and every guest GiB where that is not all.
type Rows = (WholeGib, u64, Box<[WholeGib]>);

/// The rows of an allocation that is one run of one node, which most are.
fn one_row(records: &Records, extents: &[Extent]) -> Option<Rows> {
    let [Extent { offset: 0, frames }] = *extents else { return None };
    let in_one_node = records.node_of(frames.start())?.span().contains_range(frames);
    let first = records.pieces(frames).next()?;
    let gibs = frames.frames() / Order::GIB1.frames();
    let start = frames.start();
    let first = WholeGib { record: u32::try_from(first.record).ok()?, start };
    (in_one_node && start.is_aligned(Order::GIB1) && gibs > 0).then(|| (first, gibs, Box::default()))
}

/// The rows of any allocation.
fn rows(records: &Records, extents: &[Extent]) -> Rows {
    let gibs = whole_gibs(records, extents);
    let first = gibs.first().copied().unwrap_or(NO_GIB);
    let row = (0..).zip(&gibs).take_while(|(nth, gib)| **gib == first.next(*nth) && gib.record != NONE).count();
    (first, row as u64, if row == gibs.len() { Box::default() } else { gibs.into_boxed_slice() })
}

/// What is behind each guest GiB that the extents cover to its end, in guest order.
fn whole_gibs(records: &Records, extents: &[Extent]) -> Vec<WholeGib> {
    let gibs = extents.last().map_or(0, |last| last.end() / Order::GIB1.bytes());
    let mut found = vec![NO_GIB; usize::try_from(gibs).unwrap_or(0)];
    for (extent, piece) in extents.iter().flat_map(|extent| records.pieces(extent.frames).map(move |piece| (extent, piece))) {
        let offset = extent.offset_of(piece.frames.start());
        let place = usize::try_from(offset / Order::GIB1.bytes()).ok().and_then(|nth| found.get_mut(nth));
        if let Some(place) = place
            && piece.span.is_whole()
            && offset.is_multiple_of(Order::GIB1.bytes())
        {
            *place = WholeGib { record: u32::try_from(piece.record).unwrap_or(NONE), start: piece.frames.start() };
        }
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use pageless_metadata::PfnRange;

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
        let whole: Vec<Option<(u32, u64)>> =
            found.iter().map(|gib| (gib.record != NONE).then(|| (gib.record, gib.start.get() / GIB))).collect();
        assert_eq!(whole, [Some((2, 6)), None, None, None, Some((10, 14))]);
    }

    #[test]
    fn one_run_is_the_row_that_a_search_finds() {
        let nodes = [(0, frames(4 * GIB, 8 * GIB)), (1, frames(12 * GIB, 4 * GIB))];
        let records = Records::new(&nodes.map(|(node, frames)| NodeFrames { node, frames }));
        let of = |start, length| [Extent { offset: 0, frames: frames(start, length) }];
        for extents in [of(6 * GIB, GIB), of(4 * GIB, 8 * GIB), of(6 * GIB, 2 * GIB + 512), of(12 * GIB, 4 * GIB)] {
            assert_eq!(one_row(&records, &extents), Some(rows(&records, &extents)), "{extents:?}");
        }
        // Too short, not aligned, over two nodes: these are searched.
        for extents in [of(6 * GIB, 512), of(6 * GIB + 512, GIB), of(10 * GIB, 4 * GIB)] {
            assert_eq!(one_row(&records, &extents), None, "{extents:?}");
        }
    }
}
