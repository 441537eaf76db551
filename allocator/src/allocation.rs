//! The handle of what one owner got. Its verbs live in files of their own (`convert`, `attach`, `hold`, `guard`, `resize`,
//! `release`, `replace`, `plan`).

use std::ops::Range;
use std::sync::Arc;

use pageless_metadata::{AllocationId, FRAME_BYTES, Order, Pfn, PfnRange, Shareability, Span, Summary};

use crate::extents::{Extent, Runs};
use crate::locked::Locked;
use crate::operation::pieces_of;
use crate::outcome::{Refused, checked_block, checked_range};
use crate::ownership::Ownership;
use crate::pool::Inner;
use crate::record::{Piece, Pieces, Record};
use crate::whole_gibs::ShortWay;

/// What one owner got: the only handle through which its frames can be used. Dropping it releases them.
///
/// Ranges are bytes from the start of the allocation, aligned to 4 KiB. All verbs take `&self` and may run concurrently.
#[must_use = "dropping an allocation releases its frames"]
pub struct Allocation {
    pub(crate) owned: Arc<Ownership>,
    pub(crate) pool: Arc<Inner>,
    pub(crate) way: ShortWay,
}

impl Allocation {
    /// The handle of `owned`, which has no other.
    pub(crate) fn new(owned: Arc<Ownership>, pool: &Arc<Inner>) -> Self {
        Self { way: ShortWay::new(&pool.records, &owned), owned, pool: Arc::clone(pool) }
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> AllocationId {
        self.owned.id
    }

    /// The owner's name.
    #[must_use]
    pub fn owner(&self) -> &str {
        &self.owned.owner
    }

    /// Its size in bytes. Releasing a part does not change it: offsets keep their meaning.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.owned.bytes
    }

    /// Where its frames are, in guest-offset order. Parts that have been released are still listed; a replaced frame is not.
    #[must_use]
    pub fn extents(&self) -> Vec<Extent> {
        self.owned.extents.with(<[Extent]>::to_vec)
    }

    /// The frame behind an offset.
    pub fn frame(&self, offset: u64) -> Result<Pfn, Refused> {
        self.run_at(offset - offset % FRAME_BYTES).map(|run| run.frames.start())
    }

    /// Who may reach the frame behind an offset.
    #[inline]
    pub fn shareability(&self, offset: u64) -> Result<Shareability, Refused> {
        match self.way.in_a_row(offset).and_then(|(_, record, _)| record.summary().shareability(self.way.key())) {
            Some(shareability) => Ok(shareability),
            None => self.look_up_shareability(offset),
        }
    }

    #[inline(never)]
    fn look_up_shareability(&self, offset: u64) -> Result<Shareability, Refused> {
        if let Some(shareability) = self.summary_at(offset).shareability(self.way.key()) {
            return Ok(shareability);
        }
        let pfn = self.frame(offset)?;
        let piece = self.pool.records.pieces(PfnRange::single(pfn)).next().ok_or(Refused::NotOwner { offset })?;
        Ok(self.pool.records.record(piece.record).lock().shareability(pfn.in_gib()))
    }

    /// The largest leaf that may map the byte at `offset` now, for a guest whose memory begins at an address aligned to that
    /// leaf: sound, uniform, unheld, contiguous, equally aligned in guest and pool, and not demoted.
    #[inline]
    pub fn max_mapping_order(&self, offset: u64) -> Result<Order, crate::Blocked> {
        match self.way.in_a_row(offset) {
            Some((_, record, _)) if record.summary().is_one_leaf(self.way.key()) => Ok(Order::GIB1),
            _ => self.largest_leaf(offset),
        }
    }

    #[inline(never)]
    fn largest_leaf(&self, offset: u64) -> Result<Order, crate::Blocked> {
        if self.summary_at(offset).is_one_leaf(self.way.key()) {
            return Ok(Order::GIB1);
        }
        let start = offset - offset % FRAME_BYTES;
        let run = self.run_at(start)?;
        let pfn = run.frames.start();
        let piece = self.piece(run)?;
        let gib = self.pool.records.record(piece.record).lock();
        let Some(order) = gib.max_order(pfn.in_gib(), self.owned.id) else {
            let obstacle = gib.obstacle(piece.span, self.owned.id, pageless_metadata::Purpose::Use);
            drop(gib);
            return Err(match obstacle {
                Some(obstacle) => self.pool.blocked_by(&self.owned, piece, obstacle),
                None => Refused::NotOwner { offset }.into(),
            });
        };
        drop(gib);
        let sizes = Order::DESCENDING.into_iter().filter(|size| *size <= order);
        Ok(sizes.into_iter().find(|size| self.block_run(start, *size).is_some()).unwrap_or(Order::BASE))
    }

    /// What the record of the guest GiB around `offset` says, if guest and pool have that whole.
    pub(crate) fn summary_at(&self, offset: u64) -> Summary {
        self.way.find(offset).map_or(Summary::NOTHING, |(_, record, _)| record.summary())
    }

    /// The run and the piece behind `range`, if there is one of each, and the record: the usual case. The range need not have
    /// been checked: a bad one has none. They may be from before a frame was replaced: whoever locks the record asks the extents.
    pub(crate) fn sole_piece(&self, range: &Range<u64>) -> Option<(Extent, Piece, &Record)> {
        // An end before the start makes a length that no GiB has.
        let span = Span::of_bytes(range.start % Order::GIB1.bytes(), range.end.wrapping_sub(range.start));
        if let (Some((index, record, frame)), Some(span)) = (self.way.find(range.start), span) {
            let frames = span.in_gib_of(frame);
            return Some((Extent { offset: range.start, frames }, Piece { record: index, span, frames }, record));
        }
        self.searched_piece(range)
    }

    #[cold]
    fn searched_piece(&self, range: &Range<u64>) -> Option<(Extent, Piece, &Record)> {
        let run = self.owned.extents.single(range)?;
        let piece = self.pool.records.single(run.frames)?;
        Some((run, piece, self.pool.records.record(piece.record)))
    }

    /// The runs behind `range`, after checking it, with their pieces and those pieces' records locked.
    ///
    /// A frame that takes another's place does so under its record's lock, after the extents say so. So whoever has the lock and
    /// finds the extents as they were has found what is behind the range.
    pub(crate) fn lock_runs(&self, range: &Range<u64>) -> Result<(Runs, Pieces, Locked<'_>), Refused> {
        loop {
            let generation = self.owned.extents.generation();
            let runs = self.runs(range)?;
            let pieces = pieces_of(&self.pool, &runs);
            let locked = self.pool.records.lock(&pieces);
            if generation == self.owned.extents.generation() {
                return Ok((runs, pieces, locked));
            }
        }
    }

    /// The runs behind `range`, after checking it.
    pub(crate) fn runs(&self, range: &Range<u64>) -> Result<Runs, Refused> {
        checked_range(range, self.owned.bytes, FRAME_BYTES)?;
        Ok(self.owned.extents.translate(range))
    }

    /// The one-frame run at `offset`, which is aligned.
    pub(crate) fn run_at(&self, offset: u64) -> Result<Extent, Refused> {
        let frame = checked_block(offset, FRAME_BYTES, self.owned.bytes)?;
        self.runs(&frame)?.first().copied().ok_or(Refused::NotOwner { offset })
    }

    pub(crate) fn piece(&self, run: Extent) -> Result<Piece, Refused> {
        self.pool.records.pieces(run.frames).next().ok_or(Refused::NotOwner { offset: run.offset })
    }

    /// The block of `order` around `offset`, if it is one contiguous run, aligned alike in guest and pool.
    pub(crate) fn block_run(&self, offset: u64, order: Order) -> Option<Extent> {
        let block = checked_block(offset, order.bytes(), self.owned.bytes).ok()?;
        let runs = self.runs(&block).ok()?;
        let [run] = runs[..] else { return None };
        (run.frames.start().is_aligned(order) && run.frames.frames() == order.frames()).then_some(run)
    }
}

impl std::fmt::Debug for Allocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {:?}, {} bytes", self.owned.id, self.owned.owner, self.owned.bytes)
    }
}
