//! What a pool with a ledger promises (invariant I7), one test for each promise.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod ledger;
mod scripted;

use std::sync::Arc;

use ledger::{Flaky, pool_with};
use pageless::ledger::{Kept, Ledger, LedgerError, NotReattached, RequestId, Token};
use pageless::{
    AllocateError, Allocation, Backing, Blocked, BuildError, Cause, Convert, FRAME_BYTES, LiftRefused, Mapping, MetadataOnly,
    Pfn, Pool, Refused, Request, RunSet, Shareability, Verdict, WaitingFor, Withdrawal,
};
use scripted::{IMPATIENT, NOT_NOW, Scripted, books, pages, run, set};

/// A pool of 64 frames with its ledger, an allocation of the first 32 and its mapping.
fn world() -> (Arc<Flaky>, Pool, Allocation, Arc<Scripted>) {
    let ledger = Flaky::new();
    let pool = pool_with(&ledger, 64);
    let ram = allocate(&pool, 32).unwrap();
    let ept = Scripted::new();
    ram.attach("ept", ept.clone()).unwrap();
    (ledger, pool, ram, ept)
}

fn allocate(pool: &Pool, frames: u64) -> Result<Allocation, AllocateError> {
    pool.allocate(Request::bytes(frames * FRAME_BYTES).contiguous().owner("vm-42"))
}

/// The pool again after its process died: nothing of it ran to its end.
fn crash(ledger: &Arc<Flaky>, pool: Pool, ram: Allocation) -> Arc<Flaky> {
    let book = ledger.book();
    drop((ram, pool));
    Flaky::over(Kept::holding(None, book))
}

fn returning(ledger: &Arc<Flaky>) -> Pool {
    let ledger: Arc<dyn Ledger> = ledger.clone();
    let builder = Pool::builder().backing(MetadataOnly::new(run(0, 64))).policy(IMPATIENT);
    builder.ledger(ledger).owners_may_return().build().unwrap()
}

#[test]
fn an_allocation_is_durable_before_its_handle_exists() {
    let ledger = Flaky::new();
    let pool = pool_with(&ledger, 64);
    for lands in [false, true] {
        ledger.fails(lands);
        assert!(matches!(allocate(&pool, 32), Err(AllocateError::Ledger(LedgerError::Io { .. }))));
        assert_eq!(books(&pool).stats.free, 64, "the frames went back");
        ledger.heals();
        let ram = allocate(&pool, 32).unwrap();
        let book = ledger.book();
        assert_eq!(
            book.allocations.keys().copied().collect::<Vec<_>>(),
            [ram.id()],
            "and nothing is left of the one that failed"
        );
        assert_eq!(book.allocations[&ram.id()].live, set([(0, 32)]));
        assert_eq!(&*book.allocations[&ram.id()].owner, "vm-42");
        drop(ram);
        pool.reclaim();
    }
}

#[test]
fn a_withdrawal_is_durable_before_its_error_is_returned() {
    let (ledger, _pool, ram, ept) = world();
    ept.sticks(run(3, 5), Verdict::Never);
    ept.sticks(run(9, 10), NOT_NOW);
    let Convert::Torn { lost, .. } = ram.share(pages(0, 32)).unwrap_err() else { panic!() };
    assert!(lost.iter().all(pageless::Lost::recorded));
    let book = ledger.book();
    assert_eq!((book.marked(Withdrawal::Failed), book.marked(Withdrawal::Quarantined)), (set([(3, 5)]), set([(9, 10)])));
    let mark = &book.unproven[&Pfn::new(3)].told;
    assert_eq!((&*mark.cause.mapping, &*mark.cause.step, mark.cause.status), ("ept", "TDH.MEM.PAGE.REMOVE", 0x8000_0200));
}

#[test]
fn what_cannot_be_recorded_says_so_stays_quarantined_and_stops_allocation() {
    let (ledger, pool, ram, ept) = world();
    ept.sticks(run(3, 5), NOT_NOW);
    ledger.fails(false);
    let Convert::Torn { lost, .. } = ram.share(pages(0, 32)).unwrap_err() else { panic!() };
    assert!(lost.iter().all(|lost| !lost.recorded()));
    assert_eq!(pool.unrecorded(), set([(3, 5)]));
    assert!(matches!(allocate(&pool, 1), Err(AllocateError::Ledger(LedgerError::Unrecorded { frames: 2, .. }))));
    let refused = ram.release().unwrap_err();
    assert_eq!(refused.why, Blocked::Refused(Refused::Unrecorded { offset: 3 * FRAME_BYTES, frames: 2 }));
    let ram = refused.allocation;
    // Asking again does not free it either, not even when its owner is gone.
    drop(ram);
    ept.heals();
    let told = pool.retry(run(0, 64));
    assert_eq!((told.freed, told.withdrawn), (RunSet::new(), set([(3, 5)])));
    assert!(told.waiting.iter().all(|waiting| matches!(waiting.why, WaitingFor::Ledger { .. })));
    ledger.heals();
    assert_eq!(pool.retry(run(0, 64)).freed, set([(0, 32)]));
    assert!(pool.unrecorded().is_empty());
    assert_eq!(ledger.book().withdrawn(), RunSet::new());
    assert_eq!(books(&pool).stats.free, 64);
}

#[test]
fn a_frame_is_free_only_after_that_is_recorded() {
    let (ledger, pool, ram, _ept) = world();
    drop(ram);
    ledger.fails(false);
    let told = pool.reclaim();
    assert!(told.freed.is_empty() && matches!(told.waiting[0].why, WaitingFor::Ledger { .. }));
    assert_eq!(books(&pool).stats.released, 32);
    ledger.heals();
    assert_eq!(pool.reclaim().freed, set([(0, 32)]));
    assert!(ledger.book().allocations.is_empty());
}

#[test]
fn a_lost_reply_orphans_nothing() {
    let ledger = Flaky::new();
    let request = || Request::bytes(8 * FRAME_BYTES).owner("vm-42").named(RequestId(7));
    let pool = pool_with(&ledger, 64);
    let ram = pool.allocate(request()).unwrap();
    assert_eq!(pool.allocate(request()).unwrap_err(), AllocateError::AlreadyAllocated { allocation: ram.id() });
    let id = ram.id();
    let ledger = crash(&ledger, pool, ram);
    let pool = returning(&ledger);
    let again = pool.allocate(request()).unwrap();
    assert_eq!((again.id(), pool.stats().allocated), (id, 8), "it is the same, and nothing else was taken");
}

#[test]
fn what_a_dead_owner_held_is_released_and_needs_its_proof() {
    let (ledger, pool, ram, _ept) = world();
    let ledger = crash(&ledger, pool, ram);
    let pool = pool_with(&ledger, 64);
    assert_eq!((pool.stats().released, pool.stats().free), (32, 32));
    let told = pool.reclaim();
    assert!(told.freed.is_empty(), "nobody answers for the mapping: {told:?}");
    assert!(matches!(told.waiting[0].why, WaitingFor::Mapping { .. }));
    let (ept, mapping): (_, Arc<dyn Mapping>) = {
        let ept = Scripted::new();
        (ept.clone(), ept)
    };
    assert_eq!(pool.answer_for("ept", &mapping), 1);
    assert_eq!(pool.reclaim().freed, set([(0, 32)]));
    assert_eq!(ept.invalidated(), [run(0, 32)]);
    assert_eq!(books(&pool).stats.free, 64);
}

#[test]
fn a_live_owner_gets_its_allocation_again_by_its_token_and_who_reaches_it_is_unknown() {
    let (ledger, pool, ram, _ept) = world();
    let token = ram.token().unwrap();
    ram.share(pages(0, 4)).unwrap();
    let ledger = crash(&ledger, pool, ram);
    let pool = returning(&ledger);
    assert_eq!(pool.awaiting().len(), 1);
    assert!(pool.reclaim().freed.is_empty());
    let wrong = Token { secret: token.secret ^ 1, ..token };
    assert_eq!(pool.reattach(wrong).unwrap_err(), NotReattached::NotWaiting { allocation: token.allocation });
    let ram = pool.reattach(token).unwrap();
    assert!(pool.reattach(token).is_err(), "it has one handle");
    assert_eq!(ram.shareability(0), Ok(Shareability::Unknown));
    assert!(ram.share(pages(0, 4)).is_err(), "nobody answers for the mapping yet");
    let ept = Scripted::new();
    ram.attach("ept", ept.clone()).unwrap();
    assert!(ram.share(pages(0, 4)).unwrap().changed(), "the first conversion does its full work");
    assert_eq!(ept.invalidated(), [run(0, 4)]);
    assert_eq!(pool.owners_gone(), 0);
    books(&pool);
}

#[test]
fn owners_that_do_not_come_back_are_dead() {
    let (ledger, pool, ram, _ept) = world();
    let token = ram.token().unwrap();
    let ledger = crash(&ledger, pool, ram);
    let pool = returning(&ledger);
    assert_eq!(pool.owners_gone(), 1);
    assert!(pool.reattach(token).is_err());
    assert_eq!(pool.stats().released, 32);
}

#[test]
fn an_owner_that_was_dead_in_one_life_does_not_come_back_in_the_next() {
    let (ledger, pool, ram, _ept) = world();
    let token = ram.token().unwrap();
    let ledger = crash(&ledger, pool, ram);
    let pool = pool_with(&ledger, 64);
    let other = allocate(&pool, 1).unwrap();
    let ledger = crash(&ledger, pool, other);
    let pool = returning(&ledger);
    assert!(pool.reattach(token).is_err());
    assert_eq!((pool.awaiting().len(), pool.stats().released), (1, 32));
}

#[test]
fn a_hold_blocks_until_its_holder_is_done() {
    let (ledger, pool, ram, _ept) = world();
    ledger.fails(false);
    assert!(matches!(ram.hold(pages(2, 3), "dma"), Err(Blocked::Refused(Refused::Ledger(_)))));
    ledger.heals();
    let hold = ram.hold(pages(0, 2), "dma").unwrap();
    std::mem::forget(hold);
    let book = ledger.book();
    assert_eq!(book.holds.len(), 1, "the one that failed is not there");
    drop((ram, pool));
    let ledger = Flaky::over(Kept::holding(None, book));
    let pool = pool_with(&ledger, 64);
    let mapping: Arc<dyn Mapping> = Scripted::new();
    pool.answer_for("ept", &mapping);
    assert_eq!(pool.reclaim().freed, set([(2, 32)]));
    assert_eq!(pool.orphaned_holds()[0].frames(), [run(0, 2)]);
    assert_eq!((pool.holder_done("somebody else"), pool.holder_done("dma")), (0, 1));
    assert_eq!(pool.reclaim().freed, set([(0, 2)]));
    assert!(ledger.book().holds.is_empty());
}

#[test]
fn failed_and_poisoned_frames_stay_so_and_only_recorded_evidence_ends_it() {
    let (ledger, pool, ram, ept) = world();
    ept.sticks(run(3, 5), Verdict::Never);
    ept.sticks(run(9, 10), NOT_NOW);
    assert!(ram.share(pages(0, 32)).is_err());
    pool.poison(run(40, 41), Cause::new("MCE", 0xb, "uncorrectable"));
    let ledger = crash(&ledger, pool, ram);
    let pool = pool_with(&ledger, 64);
    let mapping: Arc<dyn Mapping> = Scripted::new();
    pool.answer_for("ept", &mapping);
    assert_eq!(pool.retry(run(0, 64)).freed, set([(0, 3), (5, 32)]), "the quarantined one is proven now");
    assert_eq!(books(&pool).stats.free, 64 - 3);
    let live = allocate(&pool, 8).unwrap();
    assert!(matches!(pool.platform_reset("BMC log 7"), Err(LiftRefused::Live { live: 1, .. })));
    drop(live);
    ledger.fails(false);
    assert!(matches!(pool.platform_reset("BMC log 7"), Err(LiftRefused::Ledger(_))));
    assert_eq!(pool.stats().failed, 2, "nothing is lifted that is not recorded");
    ledger.heals();
    assert_eq!(pool.platform_reset("BMC log 7").unwrap(), set([(3, 5)]));
    assert_eq!(ledger.book().withdrawn(), set([(40, 41)]));
    assert!(format!("{:?}", ledger.book().landmarks).contains("BMC log 7"));
    assert_eq!(pool.reclaim().freed.frames(), 2 + 8);
}

#[test]
fn a_replaced_frame_is_recorded_before_it_is_the_owners() {
    let (ledger, pool, ram, ept) = world();
    ept.sticks(run(3, 4), Verdict::Never);
    assert!(ram.share(pages(0, 32)).is_err());
    for lands in [false, true] {
        ledger.fails(lands);
        assert!(matches!(ram.replace(3 * FRAME_BYTES), Err(Blocked::Refused(Refused::Ledger(_)))));
        ledger.heals();
        assert_eq!(books(&pool).stats.free, 32);
    }
    let replaced = ram.replace(3 * FRAME_BYTES).unwrap();
    let row = &ledger.book().allocations[&ram.id()];
    assert!(row.live.contains(replaced.frame) && !row.live.contains(Pfn::new(3)));
    assert_eq!(row.extents, ram.extents());
}

#[test]
fn a_pool_of_another_shape_is_refused_with_both_values() {
    let ledger = Flaky::new();
    drop(pool_with(&ledger, 64));
    let other: Arc<dyn Ledger> = ledger.clone();
    let built = Pool::builder().backing(MetadataOnly::new(run(0, 65))).ledger(other).build();
    let Err(BuildError::Ledger(LedgerError::OtherPool { recorded, given, .. })) = built else { panic!() };
    assert!(recorded.contains("0x0..0x40") && given.contains("0x0..0x41"), "{recorded} and {given}");
}

#[test]
fn one_pool_at_a_time_writes_through_a_ledger() {
    let ledger = Flaky::new();
    let pool = pool_with(&ledger, 64);
    let other: Arc<dyn Ledger> = ledger.clone();
    let second = Pool::builder().backing(MetadataOnly::new(run(0, 64))).ledger(other).build();
    assert!(matches!(second, Err(BuildError::Ledger(LedgerError::Busy { .. }))));
    drop(pool);
    drop(pool_with(&ledger, 64));
}

/// Memory that has a name.
struct Named(MetadataOnly, &'static str);

impl Backing for Named {
    fn identity(&self) -> pageless::Identity {
        self.0.identity()
    }
    fn nodes(&self) -> Vec<pageless::NodeFrames> {
        self.0.nodes()
    }
    fn proof(&self) -> pageless::ProofScope {
        self.0.proof()
    }
    fn scrub(&self, _op: &pageless::Operation, _frames: pageless::PfnRange) -> Result<(), pageless::Stuck> {
        Ok(())
    }
    fn prove(&self, _op: &pageless::Operation, _frames: pageless::PfnRange) -> Result<(), pageless::Stuck> {
        Ok(())
    }
    fn instance(&self) -> Option<std::borrow::Cow<'static, str>> {
        Some(self.1.into())
    }
}

#[test]
fn marks_of_a_synthetic_backing_end_with_its_file_and_say_so() {
    let ledger = Flaky::new();
    let on = |name: &'static str| {
        let ledger: Arc<dyn Ledger> = ledger.clone();
        Pool::builder().backing(Named(MetadataOnly::new(run(0, 64)), name)).ledger(ledger).build().unwrap()
    };
    let pool = on("memfd 1");
    pool.poison(run(40, 41), Cause::new("MCE", 0xb, ""));
    drop(pool);
    let pool = on("memfd 1");
    assert_eq!(pool.reopened().unwrap().withdrawn, set([(40, 41)]), "the same memory keeps its marks");
    drop(pool);
    let pool = on("memfd 2");
    let found = pool.reopened().unwrap();
    assert_eq!((found.withdrawn, found.memory_gone), (RunSet::new(), Some(("memfd 1".to_owned(), 1))));
    assert_eq!(pool.stats().free, 64);
}
