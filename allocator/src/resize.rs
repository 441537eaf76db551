//! Demote and promote: the size of the leaves that map a block.
//!
//! A demotion costs the platform metadata and TLB reach, and is never wrong; a promotion needs one owner, one known
//! shareability, soundness and no hold, which the record answers without scanning a refcount.

use pageless_metadata::{FRAME_BYTES, Intent, Order, Purpose, Span};
use smallvec::smallvec;

use crate::allocation::Allocation;
use crate::extents::{Extent, Runs};
use crate::operation::{Begun, pieces_of, refused_by};
use crate::outcome::{Blocked, Refused, checked_block};
use crate::record::Piece;

impl Allocation {
    /// Makes `to` the largest leaf that maps the byte at `offset`: larger leaves around it are cut.
    ///
    /// Every mapping prepares for it. Does nothing where the leaf is not larger.
    pub fn demote(&self, offset: u64, to: Order) -> Result<(), Blocked> {
        let start = offset - offset % FRAME_BYTES;
        let find = || -> Result<Runs, Blocked> {
            let run = self.run_at(start)?;
            Ok(smallvec![self.block_run(start, to).unwrap_or(run)])
        };
        let Begun::Open(mut operation) = self.begin(find, Intent::Resize)? else { return Ok(()) };
        operation.prepare(&self.owned.mappings.load())?;
        for piece in pieces_of(&self.pool, operation.runs()) {
            self.pool.records.record(piece.record).lock().demote(piece.span);
        }
        operation.finish(crate::asking::Losses::default());
        Ok(())
    }

    /// Whether the block of `order` around `offset` could be mapped by one leaf: one owner, aligned alike in guest and pool,
    /// sound, one known shareability, no hold, nothing converting.
    #[inline]
    pub fn promotable(&self, offset: u64, order: Order) -> Result<(), Blocked> {
        match self.way.in_a_row(offset) {
            // What could be one leaf of 1 GiB could be smaller ones.
            Some((_, record, _)) if record.summary().could_be_one_leaf(self.way.key()) => Ok(()),
            _ => self.look_whether_promotable(offset, order),
        }
    }

    #[inline(never)]
    fn look_whether_promotable(&self, offset: u64, order: Order) -> Result<(), Blocked> {
        if self.summary_at(offset).could_be_one_leaf(self.way.key()) {
            return Ok(());
        }
        let (block, piece) = self.block(offset, order)?;
        let gib = self.pool.records.record(piece.record).lock();
        let obstacle = gib.obstacle(piece.span, self.owned.id, Purpose::Change);
        let uniform = gib.is_uniform(piece.span);
        drop(gib);
        match obstacle {
            Some(obstacle) => Err(self.pool.blocked_by(&self.owned, piece, obstacle)),
            None if uniform => Ok(()),
            None => Err(not_one_leaf(block.offset, order, "its frames are not all private or all shared")),
        }
    }

    /// Maps the block of `order` around `offset` by one leaf, through every mapping. Refused, at no cost, where it is not
    /// [promotable](Self::promotable) or a mapping will not.
    pub fn promote(&self, offset: u64, order: Order) -> Result<(), Blocked> {
        self.promotable(offset, order)?;
        let find = || -> Result<Runs, Blocked> { Ok(smallvec![self.block(offset, order)?.0]) };
        let Begun::Open(mut operation) = self.begin(find, Intent::Resize)? else { return Ok(()) };
        // The one that is marked now.
        let Some((block, piece)) =
            operation.runs().first().and_then(|block| Some((*block, self.pool.records.single(block.frames)?)))
        else {
            operation.cancel();
            return Ok(());
        };
        // Looked at again under the mark: a conversion may have come between.
        if !self.pool.records.record(piece.record).lock().is_uniform(piece.span) {
            operation.cancel();
            return Err(not_one_leaf(block.offset, order, "its frames are not all private or all shared"));
        }
        for attached in self.owned.mappings.load().iter().filter(|attached| attached.is_attached()) {
            if let Err(refusal) = attached.mapping.promote(block.frames) {
                operation.cancel();
                return Err(refused_by(&attached.name, refusal));
            }
        }
        promote_span(&mut self.pool.records.record(piece.record).lock(), piece.span);
        operation.finish(crate::asking::Losses::default());
        Ok(())
    }

    fn block(&self, offset: u64, order: Order) -> Result<(Extent, Piece), Blocked> {
        let start = checked_block(offset, order.bytes(), self.owned.bytes)?.start;
        let why = "it is not contiguous, or not aligned alike in guest and pool";
        let block = self.block_run(offset, order).ok_or_else(|| not_one_leaf(start, order, why))?;
        Ok((block, self.piece(block)?))
    }
}

/// A frame is one leaf already; a block or a GiB becomes one.
fn promote_span(gib: &mut pageless_metadata::Gib, span: Span) {
    if span.frames() > 1 {
        gib.promote(span);
    }
}

fn not_one_leaf(offset: u64, order: Order, why: &'static str) -> Blocked {
    Refused::NotOneLeaf { offset, bytes: order.bytes(), why }.into()
}
