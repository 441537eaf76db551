//! All that is known of a pool at one moment, as a value: what a live update hands over.
//!
//! Beside the book there is what a ledger does not keep: who may reach each frame, and which leaves were cut. Withdrawn frames
//! are part of it and never stand in its way.

use std::sync::Arc;

use pageless_metadata::{HoldId, PfnRange, RunSet, Shareability, Span};

use super::entry::{AllocationRow, HoldRow, MarkKind, MarkRow, PoolFacts};
use super::{Book, LedgerError};
use crate::ownership::Ownership;
use crate::pool::{Inner, Pool};
use crate::sync::Ordering;

/// A pool at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// Its shape.
    pub pool: PoolFacts,
    /// Who has what, who holds what, and what is withdrawn.
    pub book: Book,
    /// GiBs in which a frame is shared or unknown, or a leaf was cut, ascending.
    pub gibs: Vec<GibSnapshot>,
}

/// What a ledger does not keep of one GiB.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GibSnapshot {
    /// The frames of the pool in this GiB.
    pub frames: PfnRange,
    /// The shared ones.
    pub shared: RunSet,
    /// Those of which nobody knows who may reach them. An operation that was under way leaves its frames here.
    pub unknown: RunSet,
    /// The 1 GiB leaf was cut.
    pub demoted: bool,
    /// The 2 MiB blocks that are mapped by 4 KiB leaves, by their number in the GiB.
    pub broken: Vec<u32>,
}

impl GibSnapshot {
    /// Whether nothing needs to be said.
    fn is_plain(&self) -> bool {
        self.shared.is_empty() && self.unknown.is_empty() && !self.demoted
    }
}

impl Pool {
    /// All that is known of the pool now. Allocating and freeing wait meanwhile. Frames under an operation are of unknown
    /// shareability in it, so let operations end first.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let pool = &self.0;
        pool.transit.stopped(|_| {
            let mut book = Book::new("");
            book.next_allocation = pool.next_allocation.load(Ordering::Relaxed);
            let owners: Vec<Arc<Ownership>> = pool.owners.lock().values().cloned().collect();
            book.allocations = owners.iter().map(|owned| (owned.id, pool.row_of(owned))).collect();
            let mut gibs = Vec::new();
            for index in pool.records.indices() {
                let Some(frames) = pool.records.frames_of(index) else { continue };
                pool.look(index, frames, &mut book, &mut gibs);
            }
            for entry in pool.registry.lock().entries() {
                let row = MarkRow { told: entry.told.clone(), boot: "".into() };
                let table =
                    if MarkKind::of(row.told.state) == MarkKind::Poisoned { &mut book.poisoned } else { &mut book.unproven };
                table.insert(row.told.frames.start(), row);
            }
            book.allocations.retain(|_, row| !(row.live.is_empty() && row.released.is_empty()));
            Snapshot { pool: pool.facts(), book, gibs }
        })
    }
}

impl Snapshot {
    /// The book of this moment, for a pool of this shape whose ledger holds `recorded`: all of that must be in it.
    pub(crate) fn book_over(&self, recorded: &Book, pool: &PoolFacts) -> Result<Book, LedgerError> {
        const PLACE: &str = "image";
        if pool.memory_gone(&self.pool, PLACE)?.is_some() {
            let (recorded, given) = (format!("{:?}", self.pool.instance), format!("{:?}", pool.instance));
            return Err(LedgerError::OtherPool { place: PLACE.to_owned(), recorded, given });
        }
        let missing = recorded.withdrawn().difference(&self.book.withdrawn());
        let missing = missing.union(&recorded.owned().difference(&self.book.owned()));
        if !missing.is_empty() {
            let why = format!("it is older than the ledger, which also has {missing}; take a new one");
            return Err(LedgerError::Inconsistent { place: PLACE.to_owned(), why });
        }
        let mut book = self.book.clone();
        book.boot = Arc::clone(&recorded.boot);
        book.next_allocation = book.next_allocation.max(recorded.next_allocation);
        book.next_hold = book.next_hold.max(recorded.next_hold);
        book.dead_below = book.dead_below.max(recorded.dead_below);
        Ok(book)
    }
}

impl Inner {
    pub(crate) fn facts(&self) -> PoolFacts {
        let nodes = self.records.nodes().iter().map(|node| crate::NodeFrames { node: node.number, frames: node.span() });
        let instance = self.backing.instance().map(std::borrow::Cow::into_owned);
        PoolFacts { nodes: nodes.collect(), identity: self.backing.identity(), instance }
    }

    fn row_of(&self, owned: &Ownership) -> AllocationRow {
        AllocationRow {
            id: owned.id,
            owner: Arc::clone(&owned.owner),
            bytes: owned.bytes,
            contents: owned.contents,
            request: self.keeping.as_ref().and_then(|keeping| keeping.request_of(owned.id)),
            secret: owned.secret,
            extents: owned.extents.with(<[_]>::to_vec),
            live: RunSet::new(),
            released: owned.released.lock().clone(),
            mappings: owned.mappings.load().iter().map(|attached| Arc::clone(&attached.name)).collect(),
        }
    }

    /// Adds what one GiB's record says.
    fn look(&self, index: usize, frames: PfnRange, book: &mut Book, gibs: &mut Vec<GibSnapshot>) {
        let in_pool = |span: Span| span.in_gib_of(frames.start());
        let gib = self.records.record(index).lock();
        for (span, tenant) in gib.tenants(Span::WHOLE).filter(|(_, tenant)| !tenant.released) {
            if let Some(row) = book.allocations.get_mut(&tenant.allocation) {
                row.live.insert(in_pool(span));
            }
        }
        for (span, holder) in gib.holders(Span::WHOLE) {
            let Some(allocation) = gib.tenants(span).next().map(|(_, tenant)| tenant.allocation) else { continue };
            let id = HoldId(book.next_hold);
            book.next_hold += 1;
            book.holds.insert(id, HoldRow { id, allocation, frames: vec![in_pool(span)], holder });
        }
        let (broken, demoted) = gib.demotions();
        let mut found = GibSnapshot { frames, shared: RunSet::new(), unknown: RunSet::new(), demoted, broken: Vec::new() };
        let mut rest = Some(Span::head_of(frames));
        while let Some(span) = rest {
            let run = gib.alike(span);
            match gib.shareability(run.start()) {
                Shareability::Shared => found.shared.insert(in_pool(run)),
                Shareability::Unknown => found.unknown.insert(in_pool(run)),
                Shareability::Private => {}
            }
            rest = Span::new(run.end(), span.end());
        }
        for mark in gib.marks() {
            found.shared.remove(in_pool(mark.span));
            found.unknown.insert(in_pool(mark.span));
        }
        if broken > 0 {
            let is_broken = |block: &u32| gib.would_demote(Span::single(Span::block(*block).start())).blocks == [None, None];
            found.broken = (0..512).filter(is_broken).collect();
        }
        if !found.is_plain() {
            gibs.push(found);
        }
    }

    /// Puts back what the ledger does not keep. Restored allocations are of unknown shareability until then.
    pub(crate) fn restore_snapshot(&self, gibs: &[GibSnapshot]) {
        for piece in self.records.nodes().iter().flat_map(|node| self.records.pieces(node.span())) {
            let mut gib = self.records.record(piece.record).lock();
            let tenants: Vec<Span> = gib.tenants(Span::WHOLE).map(|(span, _)| span).collect();
            tenants.into_iter().for_each(|span| gib.set_shareability(span, Shareability::Private));
        }
        for found in gibs {
            let set = |set: &RunSet, shareability: Shareability| {
                for piece in set.into_iter().flat_map(|run| self.records.pieces(run)) {
                    self.records.record(piece.record).lock().set_shareability(piece.span, shareability);
                }
            };
            set(&found.shared, Shareability::Shared);
            set(&found.unknown, Shareability::Unknown);
            let Some(piece) = self.records.pieces(found.frames).next() else { continue };
            let mut gib = self.records.record(piece.record).lock();
            if found.demoted {
                gib.demote(Span::block(0));
            }
            for block in found.broken.iter().filter(|block| **block < 512) {
                gib.demote(Span::single(Span::block(*block).start()));
            }
        }
    }
}
