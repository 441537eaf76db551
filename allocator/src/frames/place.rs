//! Where a frame's bit is: group, GiB, lane, block, word. All numbers count from the span's first GiB boundary.

use pageless_metadata::Order;

/// Words in a leaf.
pub(super) const LEAF_WORDS: usize = 8;
/// Lanes (of 64 blocks, 128 MiB) in a GiB.
pub(super) const GIB_LANES: usize = 8;
/// log2 of the frames in a GiB.
pub(super) const GIB_LOG2: u32 = 18;
/// log2 of the frames in a lane.
pub(super) const LANE_LOG2: u32 = 15;
/// log2 of the frames in a group.
pub(super) const GROUP_LOG2: u32 = 24;

/// A frame, counted from the GiB boundary at or below the span's start, so that alignment is that of the frame number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Place(pub(super) u64);

#[allow(clippy::cast_possible_truncation, reason = "each is masked to a few bits, or counts things that are in memory")]
impl Place {
    /// The group of 64 GiBs.
    #[inline]
    pub(super) fn group(self) -> usize {
        (self.0 >> GROUP_LOG2) as usize
    }

    /// The GiB within its group.
    #[inline]
    pub(super) fn gib(self) -> u32 {
        (self.0 >> GIB_LOG2) as u32 & 63
    }

    /// The lane within its group.
    #[inline]
    pub(super) fn lane_of_group(self) -> usize {
        (self.0 >> LANE_LOG2) as usize & (64 * GIB_LANES - 1)
    }

    /// The 2 MiB block within its lane.
    #[inline]
    pub(super) fn block(self) -> u32 {
        (self.0 >> 9) as u32 & 63
    }

    /// The word within its leaf.
    #[inline]
    pub(super) fn word(self) -> usize {
        (self.0 >> 6) as usize & (LEAF_WORDS - 1)
    }

    /// The leaf word within its group.
    #[inline]
    pub(super) fn leaf_word(self) -> usize {
        (self.0 >> 6) as usize & ((1 << (GROUP_LOG2 - 6)) - 1)
    }

    /// The bit within its word.
    #[inline]
    pub(super) fn bit(self) -> u32 {
        self.0 as u32 & 63
    }

    /// The first frame of the GiB with this number.
    pub(super) fn of_gib(group: usize, gib: u32) -> Self {
        Self(((group as u64) << GROUP_LOG2) | (u64::from(gib) << GIB_LOG2))
    }

    /// The first frame of the block with this number in the lane that starts here.
    #[inline]
    pub(super) fn block_of_lane(self, block: u32) -> Self {
        Self(self.0 | (u64::from(block) << 9))
    }

    /// The first frames of the lanes of the GiB that starts here.
    pub(super) fn lanes(self) -> impl Iterator<Item = Self> {
        (0..GIB_LANES as u64).map(move |nth| Self(self.0 + (nth << LANE_LOG2)))
    }

    /// The first frame of the lane around this one.
    #[inline]
    pub(super) fn align_down_to_lane(self) -> Self {
        Self(self.0 & !((1 << LANE_LOG2) - 1))
    }

    /// The first frame of the aligned block of `order` around this one.
    pub(super) fn align_down(self, order: Order) -> Self {
        Self(self.0 & !(order.frames() - 1))
    }
}

/// `count` ones from bit `from` on; `from + count` is at most 64.
#[inline]
pub(super) fn ones(from: u32, count: u32) -> u64 {
    if count >= 64 { !0 } else { ((1 << count) - 1) << from }
}

/// The numbers of the one bits, ascending.
pub(super) fn each_bit(mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros())?;
        word &= word - 1;
        Some(bit)
    })
}

/// Which kind of word speaks for a piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Level {
    /// Whole GiBs: a bit each in the group's word.
    Gibs,
    /// Whole 2 MiB blocks: a bit each in the lane's word.
    Blocks,
    /// Frames: a bit each in a leaf's word.
    Frames,
}

impl Level {
    /// log2 of the frames that one bit speaks for.
    #[inline]
    pub(super) fn log2(self) -> u32 {
        match self {
            Self::Gibs => 18,
            Self::Blocks => 9,
            Self::Frames => 0,
        }
    }
}

/// Part of a run that one word speaks for: `mask` in the word of `level` that holds `start`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) level: Level,
    pub(super) start: Place,
    pub(super) mask: u64,
}

impl Piece {
    /// How many frames it has.
    #[inline]
    pub(super) fn frames(&self) -> u64 {
        u64::from(self.mask.count_ones()) << self.level.log2()
    }

    /// The first frame of `bit` of the mask's word.
    #[inline]
    pub(super) fn of_bit(&self, bit: u32) -> Place {
        let log2 = self.level.log2();
        Place((self.start.0 & !((64u64 << log2) - 1)) | (u64::from(bit) << log2))
    }
}

/// The first of [`pieces`]; `at` is before `end`.
#[inline]
pub(super) fn first_piece(at: u64, end: u64) -> Piece {
    let left = end - at;
    let level = match left {
        _ if at.is_multiple_of(1 << 18) && left >= 1 << 18 => Level::Gibs,
        _ if at.is_multiple_of(512) && left >= 512 => Level::Blocks,
        _ => Level::Frames,
    };
    let log2 = level.log2();
    let from = (at >> log2) & 63;
    let count = (left >> log2).min(64 - from);
    #[allow(clippy::cast_possible_truncation, reason = "both are at most 64")]
    let mask = ones(from as u32, count as u32);
    Piece { level, start: Place(at), mask }
}

/// The run from `at` to `end` cut into pieces, ascending, each at the largest level that fits.
#[inline]
pub(super) fn pieces(mut at: u64, end: u64) -> impl Iterator<Item = Piece> {
    std::iter::from_fn(move || {
        let piece = (at < end).then(|| first_piece(at, end))?;
        at += piece.frames();
        Some(piece)
    })
}

/// [`pieces`] of a run of whole GiBs.
#[inline]
pub(super) fn each_piece_of_gibs(mut at: u64, end: u64) -> impl Iterator<Item = Piece> {
    std::iter::from_fn(move || {
        let start = Place(at);
        let left = (at < end).then(|| (end - at) >> GIB_LOG2)?;
        #[allow(clippy::cast_possible_truncation, reason = "at most 64")]
        let count = left.min(64 - u64::from(start.gib())) as u32;
        at += u64::from(count) << GIB_LOG2;
        Some(Piece { level: Level::Gibs, start, mask: ones(start.gib(), count) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_run_once_and_name_their_bits() {
        let gibs = [(0, 1), (0, 64), (63, 65), (7, 300), (128, 192)].map(|(at, end)| (at << GIB_LOG2, end << GIB_LOG2));
        for (at, end) in gibs {
            let places = |piece: Piece| (piece.level, piece.start, piece.mask);
            assert!(each_piece_of_gibs(at, end).map(places).eq(pieces(at, end).map(places)));
        }
        for (at, end) in [(0, 1), (63, 65), (500, 1030), (511, (3 << 18) + 513), (62 << 18, 67 << 18), (1, (1 << 18) - 1)] {
            let mut next = at;
            for piece in pieces(at, end) {
                assert_eq!(piece.start, Place(next));
                for bit in each_bit(piece.mask) {
                    assert_eq!(piece.of_bit(bit), Place(next), "{piece:?}");
                    next += 1 << piece.level.log2();
                }
            }
            assert_eq!(next, end);
        }
    }
}
