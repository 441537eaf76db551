//! Taking particular frames: all of a run or nothing.

use smallvec::SmallVec;

use super::Frames;
use super::place::{LEAF_WORDS, Level, Piece, Place, each_bit, ones, pieces};
use super::store::{Supply, take_all};

/// Pieces claimed so far, to be put back if a later one is missing.
type Claimed = SmallVec<[Piece; 8]>;

impl Frames {
    /// Takes the frames from `at` to `end` if all are free. A failure may be due to another move under way: only
    /// [`Moves::settled`](super::moves::Moves::settled) makes it an answer. Ascending, so that of two claims that meet the
    /// one further on is not held up.
    pub(super) fn claim(&self, at: u64, end: u64) -> bool {
        let _move = self.moves.begin();
        let mut claimed = Claimed::new();
        let complete = pieces(at, end).all(|piece| self.claim_piece(piece, &mut claimed));
        if !complete {
            for piece in claimed {
                // Nobody else can have put what we took, unless it is a double free of theirs; then it is free either way.
                let _ = self.publish(piece);
            }
        }
        // Only the GiBs at the ends can have become fuller without being gone.
        for place in [Place(at), Place(end - 1)] {
            if complete && Supply::Blocks.in_group(&self.groups[place.group()]) >> place.gib() & 1 == 1 {
                self.classify(place.group(), place.gib());
            }
        }
        complete
    }

    fn claim_piece(&self, piece: Piece, claimed: &mut Claimed) -> bool {
        let (at, group) = (piece.start, &self.groups[piece.start.group()]);
        let missing = match piece.level {
            Level::Gibs => self.claim_word(&group.whole, piece, claimed),
            Level::Blocks => {
                self.cut_gib_around(at);
                self.claim_word(&self.lane(at).whole, piece, claimed)
            }
            Level::Frames => return self.claim_frames(piece, claimed),
        };
        each_bit(missing).all(|bit| self.claim_parts(piece.level, piece.of_bit(bit), claimed))
    }

    fn claim_frames(&self, piece: Piece, claimed: &mut Claimed) -> bool {
        let at = piece.start;
        self.cut_gib_around(at);
        let lane = self.lane(at);
        let took = if take_all(&lane.whole, ones(at.block(), 1)).is_ok() {
            self.cut_block(lane, at, piece.mask);
            true
        } else {
            take_all(&self.leaf(at).0[at.word()], piece.mask).is_ok()
        };
        if took {
            claimed.push(piece);
        }
        took
    }

    /// Takes those of the piece's bits that are set; the others.
    fn claim_word(&self, word: &crate::sync::AtomicU64, piece: Piece, claimed: &mut Claimed) -> u64 {
        let mut mask = piece.mask;
        while let Err(missing) = take_all(word, mask) {
            mask &= !missing;
        }
        if mask != 0 {
            claimed.push(Piece { mask, ..piece });
        }
        piece.mask & !mask
    }

    /// Takes a GiB block by block, or a block word by word.
    fn claim_parts(&self, level: Level, at: Place, claimed: &mut Claimed) -> bool {
        let (level, step, parts) = match level {
            Level::Gibs => (Level::Blocks, 1 << super::place::LANE_LOG2, super::place::GIB_LANES),
            _ => (Level::Frames, 64, LEAF_WORDS),
        };
        (0..parts as u64)
            .all(|nth| self.claim_piece(Piece { level, start: Place(at.0 + nth * step), mask: ones(0, 64) }, claimed))
    }
}
