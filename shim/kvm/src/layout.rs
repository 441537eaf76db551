//! Where an allocation's bytes lie in guest-physical addresses, as a pure function.
//!
//! An allocation has offsets from 0 on without gaps; a guest's memory has holes, such as the one below 4 GiB where a PC keeps
//! its devices. A [`Layout`] is the one table between the two, and everything a guest says about addresses goes through
//! [`Layout::offsets`], which refuses whatever is not memory.

use std::ops::Range;

use pageless::{FRAME_BYTES, Pfn};

/// Where a PC keeps its devices below 4 GiB: what rust-vmm's VMMs and QEMU's microvm leave free, in bytes.
pub const PC_HOLE: Range<u64> = (3 << 30)..(4 << 30);

/// A run that is contiguous both in the allocation and in the guest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Piece {
    /// Where the guest sees it, in bytes of guest-physical address.
    pub gpa: u64,
    /// Where it begins in the allocation, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

/// The pieces of a guest's memory, by guest-physical address. Two that touch there touch in the allocation too and are one:
/// so a contiguous range of a guest's memory is one range of the allocation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    pieces: Vec<Piece>,
}

/// Why there is no such layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LayoutError {
    /// It has no byte.
    #[error("a layout needs at least one piece with at least one byte")]
    Empty,
    /// A number is no multiple of 4 KiB.
    #[error("{what} {value:#x} is no multiple of 4 KiB")]
    Unaligned {
        /// Which number: `gpa`, `offset`, `bytes` or `hole`.
        what: &'static str,
        /// Its value in bytes.
        value: u64,
    },
    /// A piece ends beyond the last address that pageless has numbers for.
    #[error("a piece of {bytes:#x} bytes at {at:#x} ends beyond {limit:#x}")]
    TooHigh {
        /// Where it begins, in bytes.
        at: u64,
        /// Its length in bytes.
        bytes: u64,
        /// The first address beyond.
        limit: u64,
    },
    /// Two pieces share addresses or offsets.
    #[error("the pieces at {first:#x} and {second:#x} overlap, in guest-physical addresses or in offsets")]
    Overlap {
        /// One piece's guest-physical address.
        first: u64,
        /// The other's.
        second: u64,
    },
    /// Two pieces touch in the guest and are apart in the allocation: a request over both would be two operations.
    #[error("the pieces at {first:#x} and {second:#x} touch in the guest but not in the allocation; leave a hole between them")]
    TouchingApart {
        /// The lower piece's guest-physical address.
        first: u64,
        /// The higher one's.
        second: u64,
    },
}

/// A guest named a range that is not its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{bytes:#x} bytes at guest-physical {gpa:#x} are not all memory")]
pub struct NotMemory {
    /// Where the range begins.
    pub gpa: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

impl Layout {
    /// Guest-physical addresses end here, as frame numbers do: 4 PiB.
    pub const LIMIT: u64 = Pfn::LIMIT.get() * FRAME_BYTES;

    /// These pieces, in any order. Those that continue each other in both numbers become one.
    pub fn new(pieces: impl IntoIterator<Item = Piece>) -> Result<Self, LayoutError> {
        let mut given: Vec<Piece> = pieces.into_iter().filter(|piece| piece.bytes > 0).collect();
        given.iter().try_for_each(check)?;
        given.sort_unstable_by_key(|piece| piece.offset);
        if let Some(pair) = given.windows(2).find(|pair| pair[0].offset + pair[0].bytes > pair[1].offset) {
            return Err(LayoutError::Overlap { first: pair[0].gpa, second: pair[1].gpa });
        }
        given.sort_unstable_by_key(|piece| piece.gpa);
        let mut pieces: Vec<Piece> = Vec::with_capacity(given.len());
        for next in given {
            let Some(last) = pieces.last_mut() else {
                pieces.push(next);
                continue;
            };
            let (end, end_offset) = (last.gpa + last.bytes, last.offset + last.bytes);
            match () {
                () if end > next.gpa => return Err(LayoutError::Overlap { first: last.gpa, second: next.gpa }),
                () if end < next.gpa => pieces.push(next),
                () if end_offset == next.offset => last.bytes += next.bytes,
                () => return Err(LayoutError::TouchingApart { first: last.gpa, second: next.gpa }),
            }
        }
        if pieces.is_empty() { Err(LayoutError::Empty) } else { Ok(Self { pieces }) }
    }

    /// `bytes` bytes from guest-physical 0 on, continued behind `hole`; an empty hole is none. For a PC: [`PC_HOLE`].
    pub fn around(bytes: u64, hole: Range<u64>) -> Result<Self, LayoutError> {
        if let Some(value) = [hole.start, hole.end].into_iter().find(|value| !value.is_multiple_of(FRAME_BYTES)) {
            return Err(LayoutError::Unaligned { what: "hole", value });
        }
        let below = if hole.is_empty() { bytes } else { bytes.min(hole.start) };
        Self::new([Piece { gpa: 0, offset: 0, bytes: below }, Piece { gpa: hole.end, offset: below, bytes: bytes - below }])
    }

    /// The pieces, by guest-physical address.
    #[must_use]
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Bytes of memory in all pieces.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.bytes).sum()
    }

    /// One past the last offset that it lays out.
    #[must_use]
    pub fn end_offset(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.offset + piece.bytes).max().unwrap_or(0)
    }

    /// The allocation's offsets behind `bytes` bytes at `gpa`: all of them memory, or an error. Any numbers may be asked for.
    pub fn offsets(&self, gpa: u64, bytes: u64) -> Result<Range<u64>, NotMemory> {
        let found = self.pieces.partition_point(|piece| piece.gpa <= gpa).checked_sub(1).map(|at| self.pieces[at]);
        let offsets = found.and_then(|piece| {
            let into = gpa - piece.gpa;
            let fits = bytes > 0 && into < piece.bytes && bytes <= piece.bytes - into;
            fits.then(|| piece.offset + into..piece.offset + into + bytes)
        });
        offsets.ok_or(NotMemory { gpa, bytes })
    }

    /// Where the guest sees `offsets` of the allocation: one range for each piece that they touch, by address. Offsets that the
    /// layout leaves out have none.
    pub fn addresses(&self, offsets: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        self.pieces.iter().filter_map(move |piece| {
            let (from, to) = (offsets.start.max(piece.offset), offsets.end.min(piece.offset + piece.bytes));
            (from < to).then(|| piece.gpa + (from - piece.offset)..piece.gpa + (to - piece.offset))
        })
    }
}

fn check(piece: &Piece) -> Result<(), LayoutError> {
    for (what, value) in [("gpa", piece.gpa), ("offset", piece.offset), ("bytes", piece.bytes)] {
        if !value.is_multiple_of(FRAME_BYTES) {
            return Err(LayoutError::Unaligned { what, value });
        }
    }
    for at in [piece.gpa, piece.offset] {
        if at.checked_add(piece.bytes).is_none_or(|end| end > Layout::LIMIT) {
            return Err(LayoutError::TooHigh { at, bytes: piece.bytes, limit: Layout::LIMIT });
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: u64 = FRAME_BYTES;

    #[test]
    fn memory_goes_around_the_hole_below_4_gib() {
        let small = Layout::around(1 << 30, PC_HOLE).unwrap();
        assert_eq!(small.pieces(), [Piece { gpa: 0, offset: 0, bytes: 1 << 30 }]);
        let large = Layout::around(16 << 30, PC_HOLE).unwrap();
        let above = Piece { gpa: 4 << 30, offset: 3 << 30, bytes: 13 << 30 };
        assert_eq!(large.pieces(), [Piece { gpa: 0, offset: 0, bytes: 3 << 30 }, above]);
        assert_eq!(large.offsets((3 << 30) - PAGE, PAGE), Ok((3 << 30) - PAGE..3 << 30));
        assert!(large.offsets((3 << 30) - PAGE, 2 * PAGE).is_err(), "the hole is not memory");
        assert_eq!(large.offsets(4 << 30, PAGE), Ok(3 << 30..(3 << 30) + PAGE));
    }

    #[test]
    fn wrong_layouts_are_refused_by_name() {
        let piece = |gpa, offset, bytes| Piece { gpa: gpa * PAGE, offset: offset * PAGE, bytes: bytes * PAGE };
        let refused = |pieces: &[Piece]| Layout::new(pieces.iter().copied()).unwrap_err();
        assert_eq!(refused(&[]), LayoutError::Empty);
        assert_eq!(refused(&[piece(5, 0, 0)]), LayoutError::Empty);
        assert_eq!(refused(&[Piece { gpa: 1, offset: 0, bytes: PAGE }]), LayoutError::Unaligned { what: "gpa", value: 1 });
        assert!(matches!(refused(&[piece(0, 0, 2), piece(1, 8, 2)]), LayoutError::Overlap { .. }));
        assert!(matches!(refused(&[piece(0, 0, 2), piece(9, 1, 2)]), LayoutError::Overlap { .. }));
        assert!(matches!(refused(&[piece(0, 0, 2), piece(2, 9, 2)]), LayoutError::TouchingApart { .. }));
        let high = Piece { gpa: u64::MAX - PAGE + 1, offset: 0, bytes: PAGE };
        assert!(matches!(refused(&[high]), LayoutError::TooHigh { .. }));
        assert!(matches!(Layout::around(PAGE, 1..PAGE), Err(LayoutError::Unaligned { what: "hole", .. })));
    }

    fn layouts() -> impl Strategy<Value = Layout> {
        let piece = (1_u64..4, 1_u64..9, 0_u64..2);
        (prop::collection::vec(piece, 1..6), any::<bool>()).prop_map(|(pieces, backwards)| {
            let (mut gpa, mut offset, mut all) = (0, 0, Vec::new());
            for (hole, bytes, gap) in pieces {
                gpa += hole * PAGE;
                offset += gap * PAGE;
                all.push(Piece { gpa, offset, bytes: bytes * PAGE });
                gpa += bytes * PAGE;
                offset += bytes * PAGE;
            }
            if backwards {
                all.reverse();
            }
            Layout::new(all).unwrap()
        })
    }

    proptest! {
        /// Against a table of single pages: every range is translated exactly when each of its pages is memory.
        #[test]
        fn every_range_is_translated_as_its_pages_are(layout in layouts(), first in 0_u64..64, count in 1_u64..12) {
            let page_of = |gpa: u64| layout.pieces().iter().find_map(|p| (p.gpa..p.gpa + p.bytes).contains(&gpa).then(|| p.offset + gpa - p.gpa));
            let pages: Option<Vec<u64>> = (first..first + count).map(|page| page_of(page * PAGE)).collect();
            match (layout.offsets(first * PAGE, count * PAGE), pages) {
                (Ok(offsets), Some(pages)) => {
                    prop_assert_eq!(pages, (0..count).map(|page| offsets.start + page * PAGE).collect::<Vec<_>>());
                    let back: Vec<_> = layout.addresses(offsets).collect();
                    prop_assert_eq!(back, vec![first * PAGE..(first + count) * PAGE]);
                }
                (Err(_), None) => {}
                (got, want) => prop_assert!(false, "{got:?} for {want:?}"),
            }
        }

        #[test]
        fn nothing_that_a_guest_names_can_panic(layout in layouts(), gpa: u64, bytes: u64) {
            if let Ok(offsets) = layout.offsets(gpa, bytes) {
                prop_assert!(offsets.end <= layout.end_offset() && offsets.end - offsets.start == bytes);
            }
        }

        #[test]
        fn around_a_hole_nothing_is_lost_and_nothing_lies_in_it(pages in 1_u64..64, start in 0_u64..32, length in 0_u64..32) {
            let hole = start * PAGE..(start + length) * PAGE;
            let layout = Layout::around(pages * PAGE, hole.clone()).unwrap();
            prop_assert_eq!(layout.bytes(), pages * PAGE);
            prop_assert_eq!(layout.end_offset(), pages * PAGE);
            prop_assert!(layout.pieces().iter().all(|piece| piece.gpa + piece.bytes <= hole.start || piece.gpa >= hole.end || hole.is_empty()));
        }
    }
}
