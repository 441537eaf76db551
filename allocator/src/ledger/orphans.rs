//! What a reopened pool waits for: owners that may come back with their token, and holders that confirm or are dead.

use std::fmt;
use std::sync::Arc;

use pageless_metadata::{AllocationId, HoldId, HolderId, PfnRange};

use super::entry::{RequestId, Token};
use crate::allocation::Allocation;
use crate::mapping::{Cause, Mapping, Operation, Refusal, Stuck, Verdict};
use crate::mappings::{Attached, Mappings};
use crate::ownership::Ownership;
use crate::pool::{Inner, Pool};
use crate::record::Pieces;

/// A hold of an earlier life of the pool. It blocks until its holder confirms that it no longer uses the frames, or is dead.
#[derive(Clone)]
pub struct OrphanedHold {
    pub(crate) id: HoldId,
    pub(crate) holder: HolderId,
    pub(crate) owned: Arc<Ownership>,
    pub(crate) pieces: Pieces,
}

impl OrphanedHold {
    /// Who holds.
    #[must_use]
    pub const fn holder(&self) -> &HolderId {
        &self.holder
    }

    /// Whose frames.
    #[must_use]
    pub fn allocation(&self) -> AllocationId {
        self.owned.id
    }

    /// The frames, cut at GiBs.
    #[must_use]
    pub fn frames(&self) -> Vec<PfnRange> {
        self.pieces.iter().map(|piece| piece.frames).collect()
    }
}

impl fmt::Debug for OrphanedHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an orphaned hold of {} by {}", self.owned.id, self.holder)
    }
}

/// Why an allocation was not given back to its owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotReattached {
    /// No allocation waits for this token: it never did, its owner has it again, or it counts as dead.
    #[error("{allocation} waits for nobody with this token")]
    NotWaiting {
        /// The allocation that the token names.
        allocation: AllocationId,
    },
}

impl Pool {
    /// Gives a restored allocation back to the owner that shows its token. Who may reach its frames is unknown, so the first
    /// conversion either way does its full work; mappings that were attached must be attached again.
    pub fn reattach(&self, token: Token) -> Result<Allocation, NotReattached> {
        let wanted = |owned: &Ownership| owned.id == token.allocation && owned.secret == token.secret;
        self.0.take_awaiting(wanted).ok_or(NotReattached::NotWaiting { allocation: token.allocation })
    }

    /// The allocations that wait for their owners, with the owners' names.
    #[must_use]
    pub fn awaiting(&self) -> Vec<(AllocationId, Arc<str>)> {
        let Some(keeping) = &self.0.keeping else { return Vec::new() };
        keeping.awaiting.0.lock().values().map(|owned| (owned.id, Arc::clone(&owned.owner))).collect()
    }

    /// Nobody will come back any more: everything that still waits for its owner is released. How many allocations those
    /// were.
    pub fn owners_gone(&self) -> usize {
        let Some(keeping) = &self.0.keeping else { return 0 };
        let waiting = std::mem::take(&mut *keeping.awaiting.0.lock());
        waiting.values().filter(|owned| self.0.release_all(owned)).count()
    }

    /// Answers for a mapping that was attached under this name before the pool was reopened: from now on `mapping` is asked
    /// for its proofs. To how many allocations it was attached.
    pub fn answer_for(&self, name: &str, mapping: &Arc<dyn Mapping>) -> usize {
        let owners: Vec<Arc<Ownership>> = self.0.owners.lock().values().cloned().collect();
        owners.iter().filter(|owned| owned.answer(name, mapping)).count()
    }

    /// The holds of an earlier life of the pool.
    #[must_use]
    pub fn orphaned_holds(&self) -> Vec<OrphanedHold> {
        self.0.keeping.as_ref().map_or_else(Vec::new, |keeping| keeping.orphans.lock().clone())
    }

    /// The holder confirms that it uses nothing of before, or is known to be dead: its orphaned holds end. How many.
    pub fn holder_done(&self, holder: &str) -> usize {
        let Some(keeping) = &self.0.keeping else { return 0 };
        let (done, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut *keeping.orphans.lock()).into_iter().partition(|hold| hold.holder.name() == holder);
        keeping.orphans.lock().extend(rest);
        for hold in &done {
            self.0.end_hold(&hold.owned, hold.id, &hold.holder, &hold.pieces);
        }
        done.len()
    }
}

impl Inner {
    fn take_awaiting(self: &Arc<Self>, wanted: impl Fn(&Ownership) -> bool) -> Option<Allocation> {
        let mut awaiting = self.keeping.as_ref()?.awaiting.0.lock();
        let id = awaiting.values().find(|owned| wanted(owned) && owned.is_live()).map(|owned| owned.id)?;
        let owned = awaiting.remove(&id)?;
        Some(Allocation::new(owned, self))
    }

    /// The allocation that a named request made in an earlier life of the pool, and whose owner asks again.
    pub(crate) fn awaiting_request(self: &Arc<Self>, name: RequestId, owner: &str, bytes: u64) -> Option<Allocation> {
        let id = self.keeping.as_ref()?.allocation_of(name)?;
        self.take_awaiting(|owned| owned.id == id && &*owned.owner == owner && owned.bytes == bytes)
    }
}

impl Ownership {
    /// Lets `mapping` answer under a name that nobody answers for yet.
    pub(crate) fn answer(&self, name: &str, mapping: &Arc<dyn Mapping>) -> bool {
        let _editing = self.editing.lock();
        let mut mappings = Mappings::clone(&self.mappings.load());
        let Some(attached) = mappings.iter_mut().find(|attached| attached.unanswered && &*attached.name == name) else {
            return false;
        };
        *attached = Attached { name: name.into(), mapping: Arc::clone(mapping), retired: None, unanswered: false };
        self.mappings.store(Arc::new(mappings));
        true
    }
}

/// Stands for a mapping of an earlier life of the pool, until somebody answers for it. It proves nothing.
pub(crate) struct Unanswered(pub(crate) Arc<str>);

impl Unanswered {
    fn why(&self) -> String {
        format!("mapping {:?} was attached before the pool was reopened, and nobody answers for it yet", self.0)
    }
}

impl Mapping for Unanswered {
    fn prepare(&self, _op: &Operation) -> Result<(), Refusal> {
        Err(Refusal::Other(self.why().into()))
    }

    fn invalidate(&self, _op: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        let verdict = Verdict::Retry { after: std::time::Duration::ZERO };
        Err(Stuck { at: frames, verdict, cause: Cause::new("reopen", 0, self.why()) })
    }
}
