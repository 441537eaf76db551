//! The ledger: what of a pool must outlive its process (invariant I7).
//!
//! A [`Ledger`] keeps rows: allocations, holds, withdrawn runs and two histories. The pool tells it what happens as
//! [`Entry`] values; [`apply`](Rows::apply) is the one place that says what an entry does to the rows, whatever keeps them.
//! Conversions are not recorded: after a crash everything of a dead owner is released and needs its proof anyway.
//!
//! Read in this order: this contract, [`entry`](Entry), [`rows`](Rows), then what the pool does with it: `keep` records,
//! `reopen` restores.

mod book;
mod entry;
mod error;
mod keep;
mod memory;
mod orphans;
mod reopen;
mod rows;
mod snapshot;

pub use book::Book;
pub use entry::{
    AllocationRow, Entry, HoldRow, Landmark, LandmarkKind, MarkKind, MarkRow, PastMark, PoolFacts, RequestId, Token,
};
pub use error::{Damage, LedgerError};
pub(crate) use keep::Keeping;
pub use memory::Kept;
pub use orphans::{NotReattached, OrphanedHold};
pub use reopen::Reopened;
pub(crate) use reopen::{Awaiting, restore};
pub use rows::Rows;
pub use snapshot::{GibSnapshot, Snapshot};

/// A durable record of a pool. One pool at a time writes through it.
///
/// Called from many threads at once. `commit` is called with no lock of a GiB held, and may take milliseconds; `submit` may be
/// called with locks held, and must return at once. Neither may call the pool.
pub trait Ledger: Send + Sync {
    /// What keeps the record, for people: a path, or "memory of this process".
    fn place(&self) -> String;

    /// Binds the ledger to a pool, and answers what it holds. The first pool gives the ledger its geometry; from then on
    /// any other is refused with both values. Marks of a synthetic backing whose memory is gone end here, and the book says
    /// so.
    fn open(&self, pool: &PoolFacts) -> Result<Book, LedgerError>;

    /// Returns when `entries`, and all that was submitted before, are durable; or with the reason why that is not known,
    /// within the ledger's bound on waiting. After an error they may or may not have been written.
    fn commit(&self, entries: Vec<Entry>) -> Result<(), LedgerError>;

    /// Puts entries before those of every later `commit`. They are kept until they can be written.
    fn submit(&self, entries: Vec<Entry>);

    /// The pool is gone: what was submitted is written if it can be, and another pool may open the ledger.
    fn close(&self);
}
