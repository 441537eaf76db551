//! Holds: a registered use by a named holder, which forbids conversion, release and reclaim of a range while it lasts.

use std::ops::Range;
use std::sync::Arc;

use pageless_metadata::{HoldId, HolderId, Purpose, Span};

use crate::allocation::Allocation;
use crate::journal::EventKind;
use crate::ledger::{Entry, HoldRow};
use crate::outcome::{Blocked, Refused};
use crate::ownership::Ownership;
use crate::pool::Inner;
use crate::record::{Piece, Pieces};

/// A hold. Ends when it is dropped, which may be after the allocation is gone.
#[must_use = "dropping a hold ends it"]
pub struct Hold {
    pool: Arc<Inner>,
    owned: Arc<Ownership>,
    id: HoldId,
    holder: HolderId,
    pieces: Pieces,
}

impl Allocation {
    /// Registers `holder` as a user of the range, in bytes, aligned to 4 KiB. Several holders may hold the same frames.
    ///
    /// Refused as busy while a frame of the range converts, and for good where the frames are withdrawn or released.
    pub fn hold(&self, range: Range<u64>, holder: impl Into<HolderId>) -> Result<Hold, Blocked> {
        let holder = holder.into();
        if holder.name().is_empty() {
            return Err(Refused::NoName { what: "holder" }.into());
        }
        let (_, pieces, mut locked) = self.lock_runs(&range)?;
        self.pool.unobstructed(&self.owned, &pieces, &mut locked, Purpose::Use)?;
        let id = self.pool.next_hold();
        for piece in &pieces {
            let edges = locked.gib(piece.record).hold(id, piece.span, holder.clone());
            self.pool.tell_edges(&self.owned, *piece, &edges, || EventKind::Held { holder: holder.clone() });
        }
        drop(locked);
        let frames = || pieces.iter().map(|piece| piece.frames).collect();
        let row = || HoldRow { id, allocation: self.owned.id, frames: frames(), holder: holder.clone() };
        if let Err(error) = self.pool.commit_entries(|| vec![Entry::Held(row())]) {
            self.pool.end_hold(&self.owned, id, &holder, &pieces);
            return Err(Refused::Ledger(error).into());
        }
        Ok(Hold { pool: Arc::clone(&self.pool), owned: Arc::clone(&self.owned), id, holder, pieces })
    }
}

impl Hold {
    /// Who holds.
    #[must_use]
    pub const fn holder(&self) -> &HolderId {
        &self.holder
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.pool.end_hold(&self.owned, self.id, &self.holder, &self.pieces);
    }
}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "hold of {} by {}", self.owned.id, self.holder)
    }
}

impl Inner {
    pub(crate) fn end_hold(&self, owned: &Ownership, id: HoldId, holder: &HolderId, pieces: &[Piece]) {
        for piece in pieces {
            let edges = self.records.record(piece.record).lock().unhold(id);
            self.tell_edges(owned, *piece, &edges, || EventKind::Unheld { holder: holder.clone() });
        }
        self.submit_entry(|| Entry::Unheld { hold: id });
    }

    fn tell_edges(&self, owned: &Ownership, piece: Piece, edges: &[Span], kind: impl Fn() -> EventKind) {
        for edge in edges {
            self.journal.write(edge.in_gib_of(piece.frames.start()), Some(owned.id), kind());
        }
    }
}
