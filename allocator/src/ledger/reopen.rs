//! Restoring a pool from the book of its ledger.
//!
//! Nothing is free that the book does not say is: allocations come back with their frames and every mark, and who may reach
//! a frame is unknown. Nothing else runs yet, so no order of locks matters.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use pageless_metadata::{AllocationId, Ending, Intent, OperationId, PfnRange, RunSet, Shareability, Withdrawal};

use super::entry::{AllocationRow, HoldRow, LandmarkKind, MarkRow};
use super::orphans::Unanswered;
use super::{Book, Keeping, LedgerError, OrphanedHold};
use crate::extents::Extent;
use crate::ledger;
use crate::mapping::Contents;
use crate::mappings::{Attached, Mappings};
use crate::ownership::Ownership;
use crate::pool::{Inner, Pool};
use crate::request::Request;
use crate::sync::{Mutex, Ordering};
use crate::withdrawal::{Entry, Recorded};

/// What a pool found in its ledger when it was built.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reopened {
    /// Allocations that had a frame.
    pub allocations: usize,
    /// Holds that stand.
    pub holds: usize,
    /// Frames that are withdrawn.
    pub withdrawn: RunSet,
    /// The memory of a synthetic backing that is gone, with how many withdrawn frames ended with it.
    pub memory_gone: Option<(String, u64)>,
}

/// Restored allocations whose owners may come back.
#[derive(Default)]
pub(crate) struct Awaiting(pub(crate) Mutex<BTreeMap<AllocationId, Arc<Ownership>>>);

impl Pool {
    /// What was found in the ledger when the pool was built; none without a ledger.
    #[must_use]
    pub fn reopened(&self) -> Option<Reopened> {
        self.0.keeping.as_ref().map(|keeping| keeping.reopened.lock().clone())
    }
}

/// Puts what the book holds into a pool in which everything is free.
pub(crate) fn restore(pool: &Inner, mut book: Book, owners_return: bool) -> Result<(), LedgerError> {
    let Some(keeping) = &pool.keeping else { return Ok(()) };
    adopt_strays(&mut book);
    pool.start_numbers(book.next_allocation, book.next_hold);
    if !owners_return {
        book.dead_below = book.next_allocation;
    }
    for row in book.allocations.values() {
        restore_allocation(pool, row, row.id.get() < book.dead_below)?;
        keeping.remember_request(row);
    }
    for mark in book.unproven.values() {
        restore_unproven(pool, mark);
    }
    for mark in book.poisoned.values() {
        restore_poisoned(pool, mark);
    }
    for hold in book.holds.values() {
        keeping.orphans.lock().extend(restore_hold(pool, hold));
    }
    *keeping.reopened.lock() = Reopened {
        allocations: book.allocations.len(),
        holds: keeping.orphans.lock().len(),
        withdrawn: book.withdrawn(),
        memory_gone: memory_gone(&book),
    };
    let live: Vec<Arc<Ownership>> = pool.owners.lock().values().filter(|owned| owned.is_live()).cloned().collect();
    keeping.awaiting.0.lock().extend(live.into_iter().map(|owned| (owned.id, owned)));
    if !owners_return {
        // Not even in a later life will they come back.
        pool.submit_entry(|| ledger::Entry::OwnersDead { below: book.dead_below });
    }
    Ok(())
}

/// Whether this opening found other memory than the last: the landmark before the one of this opening.
fn memory_gone(book: &Book) -> Option<(String, u64)> {
    let mut last = book.landmarks.iter().rev().skip_while(|landmark| landmark.kind == LandmarkKind::Opened).take(1);
    let opened = book.landmarks.iter().rev().take_while(|landmark| landmark.kind == LandmarkKind::Opened).count();
    match last.next().map(|landmark| &landmark.kind) {
        Some(LandmarkKind::MemoryGone { instance, withdrawn }) if opened <= 1 => Some((instance.clone(), *withdrawn)),
        _ => None,
    }
}

/// Frames that are withdrawn without proof, and that no allocation has, become released frames of the one that lost them.
fn adopt_strays(book: &mut Book) {
    let owned = book.owned();
    let mut next = book.next_allocation;
    for mark in book.unproven.values().filter(|mark| !owned.contains_range(mark.told.frames)) {
        let id = mark.told.allocation.unwrap_or_else(|| {
            next += 1;
            AllocationId::new(next - 1)
        });
        let row = book.allocations.entry(id).or_insert_with(|| AllocationRow {
            id,
            owner: mark.told.owner.clone().unwrap_or_else(|| "nobody".into()),
            bytes: mark.told.frames.bytes(),
            contents: Contents::Zero,
            request: None,
            secret: 0,
            extents: Vec::new(),
            live: RunSet::new(),
            released: Vec::new(),
            mappings: Vec::new(),
        });
        for frames in &owned.gaps_in(mark.told.frames) {
            row.released.push(Extent { offset: mark.told.offset, frames });
        }
        row.released.sort_unstable_by_key(|extent| extent.frames);
    }
    book.next_allocation = next;
}

/// Restores an allocation. What a dead owner has is released.
fn restore_allocation(pool: &Inner, row: &AllocationRow, dead: bool) -> Result<(), LedgerError> {
    let mut request = Request::bytes(row.bytes).owner(&row.owner);
    request.contents = row.contents;
    let mut owned = Ownership::new(row.id, &request, row.extents.clone());
    owned.secret = row.secret;
    let unanswered = |name: &Arc<str>| Attached {
        name: Arc::clone(name),
        mapping: Arc::new(Unanswered(Arc::clone(name))),
        retired: None,
        unanswered: true,
    };
    owned.mappings.store(Arc::new(row.mappings.iter().map(unanswered).collect::<Mappings>()));
    let mut released = row.released.clone();
    for run in &row.live {
        take(pool, row.id, run, dead)?;
        if dead {
            released.extend(row.extents.iter().filter_map(|extent| extent.clipped(run)));
        }
    }
    for extent in &row.released {
        take(pool, row.id, extent.frames, true)?;
    }
    released.sort_unstable_by_key(|extent| extent.frames);
    let has_released = !released.is_empty();
    *owned.released.lock() = released;
    if dead || row.live.is_empty() {
        owned.end();
    }
    let owned = Arc::new(owned);
    pool.owners.lock().insert(row.id, Arc::clone(&owned));
    if has_released {
        pool.enqueue(&owned);
    }
    Ok(())
}

/// Takes frames out of the frame layer for an allocation.
fn take(pool: &Inner, id: AllocationId, frames: PfnRange, released: bool) -> Result<(), LedgerError> {
    let refused = |what: &str| {
        let place = pool.keeping.as_ref().map_or_else(String::new, Keeping::place);
        Err(LedgerError::Inconsistent { place, why: format!("{frames} of {id} {what}") })
    };
    let mut known = 0;
    for piece in pool.records.pieces(frames) {
        let taken = pool.records.node_of(piece.frames.start()).is_some_and(|node| node.frames.take_at(piece.frames).is_ok());
        if !taken {
            return refused("have another owner");
        }
        let mut gib = pool.records.record(piece.record).lock();
        gib.allocate(piece.span, id, Shareability::Unknown);
        if released {
            gib.release(piece.span, id);
        }
        known += piece.frames.frames();
    }
    if known == frames.frames() { Ok(()) } else { refused("are not the pool's") }
}

fn restore_unproven(pool: &Inner, mark: &MarkRow) {
    let told = &mark.told;
    let ending = if told.state == Withdrawal::Failed { Ending::Fail } else { Ending::Quarantine };
    for piece in pool.records.pieces(told.frames) {
        let mut gib = pool.records.record(piece.record).lock();
        let operation: OperationId = gib.next_operation(piece.record as u64);
        // A resize reserves nothing, so it cannot be refused; and its end sets the mark on every frame.
        if gib.begin(piece.span, operation, Intent::Resize).is_ok() {
            gib.finish(operation, piece.span, ending);
        }
        enter(pool, mark, piece.frames, is_released(&gib, piece.span));
    }
    pool.backing.keep_shut(told.frames);
}

fn restore_poisoned(pool: &Inner, mark: &MarkRow) {
    for piece in pool.records.pieces(mark.told.frames) {
        let mut gib = pool.records.record(piece.record).lock();
        gib.poison(piece.span);
        let owned: RunSet = gib.tenants(piece.span).map(|(span, _)| span.in_gib_of(piece.frames.start())).collect();
        owned.gaps_in(piece.frames).into_iter().for_each(|frames| pool.take_out(frames));
        enter(pool, mark, piece.frames, false);
    }
    pool.backing.keep_shut(mark.told.frames);
}

/// Enters the part of a mark that lies in one GiB into the registry. It is due at once: nothing is known of before.
fn enter(pool: &Inner, mark: &MarkRow, part: PfnRange, released: bool) {
    let mut told = mark.told.clone();
    if released && told.intent.is_some() {
        // Nobody wants the conversion any more.
        told.intent = Some(Intent::Reclaim);
    }
    let entry = Entry { told, due: Instant::now(), asking: false, recorded: Recorded::Yes };
    if let Some(entry) = entry.clipped(part) {
        pool.registry.lock().insert(entry);
    }
}

/// Whether their owner has given up these frames of one GiB.
fn is_released(gib: &pageless_metadata::Gib, span: pageless_metadata::Span) -> bool {
    gib.tenants(span).any(|(_, tenant)| tenant.released)
}

/// A hold on frames that nobody has any more protects nothing.
fn restore_hold(pool: &Inner, row: &HoldRow) -> Option<OrphanedHold> {
    let owned = pool.owners.lock().get(&row.allocation).cloned()?;
    let pieces = row.frames.iter().flat_map(|run| pool.records.pieces(*run)).collect();
    let hold = OrphanedHold { id: row.id, holder: row.holder.clone(), owned, pieces };
    for piece in &hold.pieces {
        pool.records.record(piece.record).lock().hold(row.id, piece.span, row.holder.clone());
    }
    Some(hold)
}

impl Inner {
    fn start_numbers(&self, allocation: u64, hold: u64) {
        // Relaxed: only uniqueness matters, and nobody else is here yet.
        self.next_allocation.fetch_max(allocation.max(1), Ordering::Relaxed);
        self.next_hold.fetch_max(hold.max(1), Ordering::Relaxed);
    }
}
