//! The pool's side of its ledger: what is recorded when, and what happens when it cannot be.
//!
//! An allocation is durable before its handle exists, a withdrawal before its error is returned, a free only after its proof
//! is. Nothing here runs under a GiB's lock, because a commit takes milliseconds.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use pageless_metadata::{AllocationId, Intent, PfnRange, RunSet, Withdrawal};

use super::entry::{AllocationRow, Entry, RequestId, Token};
use super::{Awaiting, Ledger, LedgerError, OrphanedHold, Reopened};
use crate::allocation::Allocation;
use crate::extents::Extent;
use crate::pool::{Inner, Pool};
use crate::recall::Recall;
use crate::request::{AllocateError, Request};
use crate::sync::Mutex;
use crate::withdrawal::{Lost, Recorded, Withdrawn};

/// Withdrawn runs in one commit: so long does one client's flood keep the others waiting.
const RUNS_IN_A_COMMIT: usize = 256;
/// Between looks whether somebody else has finished writing.
const PAUSE: Duration = Duration::from_micros(50);

/// A pool's ledger, and what the pool remembers because of it.
pub(crate) struct Keeping {
    ledger: Arc<dyn Ledger>,
    /// Which allocation a named request made.
    requests: Mutex<HashMap<RequestId, AllocationId>>,
    pub(crate) awaiting: Awaiting,
    pub(crate) orphans: Mutex<Vec<OrphanedHold>>,
    pub(crate) reopened: Mutex<Reopened>,
}

impl Keeping {
    pub(crate) fn new(ledger: Arc<dyn Ledger>) -> Self {
        Self {
            ledger,
            requests: Mutex::default(),
            awaiting: Awaiting::default(),
            orphans: Mutex::default(),
            reopened: Mutex::default(),
        }
    }

    pub(crate) fn place(&self) -> String {
        self.ledger.place()
    }

    pub(crate) fn allocation_of(&self, request: RequestId) -> Option<AllocationId> {
        self.requests.lock().get(&request).copied()
    }

    pub(crate) fn request_of(&self, allocation: AllocationId) -> Option<RequestId> {
        self.requests.lock().iter().find(|(_, id)| **id == allocation).map(|(request, _)| *request)
    }

    pub(crate) fn remember_request(&self, row: &AllocationRow) {
        if let Some(request) = row.request {
            self.requests.lock().insert(request, row.id);
        }
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        self.ledger.close();
    }
}

impl Pool {
    /// Records the withdrawals that could not be recorded before; how many frames that were. `allocate`, `reclaim`, `retry`
    /// and `release` try it, too.
    pub fn record_pending(&self) -> Result<u64, LedgerError> {
        self.0.record_pending()
    }

    /// The withdrawn frames that are in memory only, because the ledger could not be written.
    #[must_use]
    pub fn unrecorded(&self) -> RunSet {
        self.0.registry.lock().unrecorded().clone()
    }
}

impl Allocation {
    /// What its owner shows to get it again after the pool was reopened; none without a ledger.
    #[must_use]
    pub fn token(&self) -> Option<Token> {
        self.pool.keeping.as_ref().map(|_| Token { allocation: self.owned.id, secret: self.owned.secret })
    }
}

impl Inner {
    /// Writes entries, where there is a ledger.
    pub(crate) fn commit_entries(&self, entries: impl FnOnce() -> Vec<Entry>) -> Result<(), LedgerError> {
        self.keeping.as_ref().map_or(Ok(()), |keeping| keeping.ledger.commit(entries()))
    }

    /// Puts an entry before all later commits, where there is a ledger.
    pub(crate) fn submit_entry(&self, entry: impl FnOnce() -> Entry) {
        if let Some(keeping) = &self.keeping {
            keeping.ledger.submit(vec![entry()]);
        }
    }

    pub(crate) const fn has_ledger(&self) -> bool {
        self.keeping.is_some()
    }

    /// How a new entry of the registry stands with the ledger.
    pub(crate) const fn unless_ledger(&self) -> Recorded {
        if self.has_ledger() { Recorded::No } else { Recorded::Yes }
    }

    /// Nothing is handed out while a withdrawal is not recorded, nor twice for one request.
    pub(crate) fn may_allocate(&self, request: &Request) -> Result<(), AllocateError> {
        let Some(keeping) = &self.keeping else { return Ok(()) };
        if let Some(allocation) = request.name.and_then(|name| keeping.allocation_of(name))
            && self.owners.lock().get(&allocation).is_some_and(|owned| owned.is_live())
        {
            return Err(AllocateError::AlreadyAllocated { allocation });
        }
        self.record_pending()?;
        Ok(())
    }

    /// Makes an allocation durable that nobody has yet; returns the secret of its token.
    pub(crate) fn record_allocation(&self, id: AllocationId, extents: &[Extent], request: &Request) -> Result<u128, LedgerError> {
        let Some(keeping) = &self.keeping else { return Ok(0) };
        let row = AllocationRow {
            id,
            owner: Arc::clone(&request.owner),
            bytes: request.bytes,
            contents: request.contents,
            request: request.name,
            secret: secret(id),
            extents: extents.to_vec(),
            live: extents.iter().map(|extent| extent.frames).collect(),
            released: Vec::new(),
            mappings: Vec::new(),
        };
        let secret = row.secret;
        keeping.remember_request(&row);
        keeping.ledger.commit(vec![Entry::Allocated(row)]).inspect_err(|_| self.undo_allocation(id))?;
        Ok(secret)
    }

    /// Takes an allocation back that never came to be. In the queue before any later allocation of its frames.
    pub(crate) fn undo_allocation(&self, allocation: AllocationId) {
        self.submit_entry(|| Entry::Undone { allocation });
    }

    /// Makes withdrawals durable, and says of each whether it is. Called with no lock held, before the caller is told.
    pub(crate) fn record_losses(&self, lost: &mut [Lost]) {
        if lost.is_empty() || !self.has_ledger() {
            return;
        }
        let frames: RunSet = lost.iter().map(Lost::frames).collect();
        // What could not be recorded is in the registry, and is tried again.
        let mut failed = self.record_withdrawn(Some(&frames)).err();
        while self.registry.lock().is_under_way(&frames) {
            // Somebody else is writing it, and this caller may not be told before that is done.
            crate::sync::sleep(PAUSE);
            failed = self.record_withdrawn(Some(&frames)).err().or(failed);
        }
        let registry = self.registry.lock();
        for lost in lost {
            lost.recorded = !registry.unrecorded().overlaps(lost.frames);
            if let (false, Some(error)) = (lost.recorded, &failed) {
                tracing::error!(frames = %lost.frames, %error, "a withdrawal is not recorded");
            }
        }
    }

    /// Records every withdrawal that is not; how many frames that were.
    pub(crate) fn record_pending(&self) -> Result<u64, LedgerError> {
        if !self.has_ledger() || self.registry.lock().unrecorded().is_empty() {
            return Ok(0);
        }
        self.record_withdrawn(None)
    }

    fn record_withdrawn(&self, within: Option<&RunSet>) -> Result<u64, LedgerError> {
        let entries: Vec<Withdrawn> = self.registry.lock().claim(within);
        let frames = |part: &[Withdrawn]| part.iter().map(|entry| entry.frames.frames()).sum::<u64>();
        let settle = |part: &[Withdrawn], recorded: Recorded| {
            let mut registry = self.registry.lock();
            part.iter().for_each(|entry| registry.written(entry.frames, entry.state, recorded));
        };
        let mut rest = &entries[..];
        while !rest.is_empty() {
            let (part, after) = rest.split_at(rest.len().min(RUNS_IN_A_COMMIT));
            if let Err(why) = self.commit_entries(|| part.iter().cloned().map(Entry::Withdrawn).collect()) {
                settle(rest, Recorded::No);
                return Err(LedgerError::Unrecorded { frames: frames(rest), why: Box::new(why) });
            }
            settle(part, Recorded::Yes);
            rest = after;
        }
        Ok(frames(&entries))
    }

    /// Makes durable that released frames are free, before they are.
    pub(crate) fn record_reclaim(&self, allocation: AllocationId, frames: &RunSet) -> Result<(), LedgerError> {
        if frames.is_empty() {
            return Ok(());
        }
        self.commit_entries(|| vec![Entry::Reclaimed { allocation, frames: frames.clone() }])
    }

    /// Before quarantined frames become free by a later proof: makes it durable.
    pub(crate) fn record_recall(&self, recall: &Recall) -> Result<(), LedgerError> {
        if recall.intent() != Intent::Reclaim {
            return Ok(());
        }
        let proven: Vec<PfnRange> = recall.proven().collect();
        if proven.is_empty() {
            return Ok(());
        }
        self.commit_entries(|| proven.into_iter().map(|frames| Entry::Proven { frames, freed: true }).collect())
    }

    /// Frames that were given up. Nothing waits for it: after a crash they are released anyway.
    pub(crate) fn record_release(&self, allocation: AllocationId, released: impl FnOnce() -> RunSet) {
        self.submit_entry(|| Entry::Released { allocation, frames: released() });
    }

    /// Records what is about to end marks, before it does.
    pub(crate) fn record_lift(&self, state: Withdrawal, frames: &RunSet, evidence: &str) -> Result<(), LedgerError> {
        self.commit_entries(|| {
            let (frames, evidence) = (frames.clone(), evidence.into());
            vec![match state {
                Withdrawal::Poisoned => Entry::HardwareReplaced { frames, evidence },
                _ => Entry::PlatformReset { frames, evidence },
            }]
        })
    }
}

/// What cannot be guessed: the keys of the standard hasher come from the system's randomness.
fn secret(id: AllocationId) -> u128 {
    let word = |salt: u64| {
        let mut hasher = RandomState::new().build_hasher();
        hasher.write_u64(id.get());
        hasher.write_u64(salt);
        hasher.finish()
    };
    u128::from(word(0)) << 64 | u128::from(word(1))
}
