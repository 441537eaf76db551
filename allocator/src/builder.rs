//! Building a pool: the backing's frames are checked, and every one of them starts free.

use std::sync::Arc;

use pageless_metadata::PfnRange;

use crate::backing::{Backing, NodeFrames};
use crate::ledger::{self, Keeping, Kept, Ledger, LedgerError, Snapshot};
use crate::pool::{Inner, Policy, Pool};
use crate::record::Records;
use crate::withdrawal::RetryPolicy;

/// Builds a [`Pool`].
#[derive(Default)]
pub struct PoolBuilder {
    backing: Option<Arc<dyn Backing>>,
    policy: Policy,
    ledger: Option<Arc<dyn Ledger>>,
    owners_return: bool,
    snapshot: Option<Snapshot>,
}

/// Why a pool could not be built.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// No backing was given.
    #[error("the pool has no backing; give it one with PoolBuilder::backing")]
    NoBacking,
    /// The backing has no frames.
    #[error("the backing has no NUMA node and so no frames")]
    NoFrames,
    /// Two nodes share frames, or are not in ascending order.
    #[error("node {second} with {second_frames} must lie after node {first} with {first_frames}")]
    NodesOutOfOrder {
        /// The node that comes first.
        first: u32,
        /// Its frames.
        first_frames: PfnRange,
        /// The node that should lie after it.
        second: u32,
        /// Its frames.
        second_frames: PfnRange,
    },
    /// Two nodes have the same number.
    #[error("two nodes have the number {node}")]
    DuplicateNode {
        /// The number.
        node: u32,
    },
    /// The ledger could not be opened.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl PoolBuilder {
    /// The memory behind the frames. Needed.
    #[must_use]
    pub fn backing(self, backing: impl Backing + 'static) -> Self {
        self.shared_backing(Arc::new(backing))
    }

    /// The same, for a backing that the caller keeps using.
    #[must_use]
    pub fn shared_backing(mut self, backing: Arc<dyn Backing>) -> Self {
        self.backing = Some(backing);
        self
    }

    /// How often and how soon the pool asks again about invalidations that did not succeed.
    #[must_use]
    pub fn retry(mut self, retry: RetryPolicy) -> Self {
        self.policy.retry = retry;
        self
    }

    /// How patient the pool is in all respects.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Where the pool records what must outlive it. Without one, everything is lost with the process.
    #[must_use]
    pub fn ledger(mut self, ledger: Arc<dyn Ledger>) -> Self {
        self.ledger = Some(ledger);
        self
    }

    /// Owners of an earlier life of the pool may live, and come back with their tokens ([`Pool::reattach`]). Otherwise they
    /// count as dead, and what they had is released at once.
    #[must_use]
    pub fn owners_may_return(mut self) -> Self {
        self.owners_return = true;
        self
    }

    /// The pool goes on from this moment of another one, which is gone: who has, holds, shares and lost what. Its owners come back
    /// by [`Pool::reattach`]; the secret of a token of a pool without a ledger is 0. With a ledger, nothing may be missing in the
    /// snapshot that the ledger has.
    #[must_use]
    pub fn snapshot(mut self, snapshot: Snapshot) -> Self {
        self.snapshot = Some(snapshot);
        self.owners_return = true;
        self
    }

    /// Builds the pool: every frame of the backing is free, but for what the ledger says.
    pub fn build(self) -> Result<Pool, BuildError> {
        let backing = self.backing.ok_or(BuildError::NoBacking)?;
        let nodes = backing.nodes();
        check(&nodes)?;
        let mut inner = Inner::new(Records::new(&nodes), backing, self.policy);
        let facts = inner.facts();
        let from = self.snapshot.as_ref().map(|snapshot| Kept::holding(Some(snapshot.pool.clone()), snapshot.book.clone()));
        if let Some(ledger) = self.ledger.or_else(|| from.map(|kept| -> Arc<dyn Ledger> { kept })) {
            let mut book = ledger.open(&facts)?;
            inner.keeping = Some(Keeping::new(ledger));
            if let Some(snapshot) = &self.snapshot {
                book = snapshot.book_over(&book, &facts)?;
            }
            ledger::restore(&inner, book, self.owners_return)?;
        }
        if let Some(snapshot) = &self.snapshot {
            inner.restore_snapshot(&snapshot.gibs);
        }
        Ok(Pool(Arc::new(inner)))
    }
}

fn check(nodes: &[NodeFrames]) -> Result<(), BuildError> {
    if nodes.is_empty() {
        return Err(BuildError::NoFrames);
    }
    for pair in nodes.windows(2) {
        let [first, second] = [pair[0], pair[1]];
        if second.frames.start() < first.frames.end() {
            return Err(BuildError::NodesOutOfOrder {
                first: first.node,
                first_frames: first.frames,
                second: second.node,
                second_frames: second.frames,
            });
        }
    }
    let mut numbers: Vec<u32> = nodes.iter().map(|node| node.node).collect();
    numbers.sort_unstable();
    match numbers.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(BuildError::DuplicateNode { node: pair[0] }),
        None => Ok(()),
    }
}
