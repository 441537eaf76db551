//! A ledger in a file: what a pool finds in it again, and what it says when it cannot be opened.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod cast;

use std::path::Path;
use std::sync::Arc;

use cast::{NOT_NOW, Sticky, marked, marks, pages, pool_on, run, set};
use pageless::ledger::{LandmarkKind, Ledger, LedgerError};
use pageless::{BuildError, FRAME_BYTES, Mapping, MetadataOnly, Pool, Request, RunSet};
use pageless_ledger::{RedbLedger, inspect, replace_hardware};

fn open(path: &Path) -> Arc<RedbLedger> {
    Arc::new(RedbLedger::at(path).unwrap())
}

/// A pool of 64 frames with marks of every kind.
fn lived(path: &Path) {
    let pool = pool_on(open(path), 64);
    let _lost = marked(&pool);
}

#[test]
fn a_pool_finds_everything_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool.ledger");
    lived(&path);
    let found = inspect(&path).unwrap();
    assert_eq!(marks(&found.book), [set([(9, 10)]), set([(3, 4)]), set([(40, 41)])]);
    assert!(found.findings().is_empty());
    assert!(!found.book.unproven.values().next().unwrap().boot.is_empty());
    let pool = pool_on(open(&path), 64);
    assert_eq!(pool.reopened().unwrap().withdrawn, set([(3, 4), (9, 10), (40, 41)]));
    let mapping: Arc<dyn Mapping> = Sticky::new();
    pool.answer_for("ept", &mapping);
    assert_eq!(pool.retry(run(0, 64)).freed, set([(0, 3), (4, 32)]));
    assert!(pool.verify().is_sound());
    drop(pool);
    let found = inspect(&path).unwrap();
    assert_eq!(found.book.allocations.values().map(|row| row.live.clone()).collect::<Vec<_>>(), [RunSet::new()]);
    assert!(found.book.dead_below > 1, "its owner is dead");
    assert_eq!(found.book.past.len(), 1, "the quarantine that ended");
    assert!(found.book.landmarks.iter().filter(|landmark| landmark.kind == LandmarkKind::Opened).count() >= 2);
}

#[test]
fn two_openers_are_one_too_many() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool.ledger");
    let first = open(&path);
    assert!(matches!(RedbLedger::at(&path), Err(LedgerError::Busy { .. })));
    assert!(matches!(inspect(&path), Err(LedgerError::Busy { .. })));
    let pool = pool_on(first.clone(), 64);
    let again: Arc<dyn Ledger> = first.clone();
    let second = Pool::builder().backing(MetadataOnly::new(run(0, 64))).ledger(again).build();
    assert!(matches!(second, Err(BuildError::Ledger(LedgerError::Busy { .. }))));
    drop(pool);
    drop(pool_on(first, 64));
    drop(open(&path));
}

#[test]
fn files_that_are_no_ledger_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool.ledger");
    lived(&path);
    let whole = std::fs::read(&path).unwrap();
    let other = folder.path().join("other");
    let refused = |bytes: &[u8]| {
        std::fs::write(&other, bytes).unwrap();
        let error = RedbLedger::at(&other).unwrap_err();
        assert_eq!(inspect(&other).unwrap_err(), error);
        error
    };
    assert!(matches!(refused(b"#!/bin/sh\n"), LedgerError::Damaged { .. }));
    assert!(matches!(refused(&[7; 4096]), LedgerError::Foreign { .. }));
    for length in [100, 4096, 8192, whole.len() / 2, whole.len() - 1, whole.len() - 4096] {
        assert!(matches!(refused(&whole[..length]), LedgerError::Damaged { .. }), "cut at {length}");
    }
    let redb = folder.path().join("redb");
    drop(redb::Database::create(&redb).unwrap());
    assert!(matches!(RedbLedger::at(&redb), Err(LedgerError::Foreign { .. })));
    assert!(matches!(inspect(&folder.path().join("none")), Err(LedgerError::Missing { .. })));
}

#[test]
fn a_pool_of_another_shape_is_refused_with_both_values() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool.ledger");
    lived(&path);
    let built = Pool::builder().backing(MetadataOnly::new(run(0, 65))).ledger(open(&path)).build();
    let Err(BuildError::Ledger(LedgerError::OtherPool { recorded, given, .. })) = built else { panic!() };
    assert!(recorded.contains("0x0..0x40") && given.contains("0x0..0x41"), "{recorded} and {given}");
}

#[test]
fn poison_ends_by_a_recorded_replacement_while_no_pool_runs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool.ledger");
    lived(&path);
    assert_eq!(replace_hardware(&path, &set([(0, 64)]), "DIMM A1 replaced").unwrap(), set([(40, 41)]));
    let found = inspect(&path).unwrap();
    assert_eq!(marks(&found.book), [set([(9, 10)]), set([(3, 4)]), RunSet::new()]);
    let told = format!("{:?}", found.book.landmarks.last().unwrap());
    assert!(told.contains("DIMM A1 replaced") && told.contains("0x28"), "{told}");
}

#[test]
fn several_withdrawals_share_a_commit() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(&folder.path().join("pool.ledger"));
    let pool = pool_on(ledger.clone(), 4096);
    let ram = pool.allocate(Request::bytes(1024 * FRAME_BYTES).contiguous().owner("vm")).unwrap();
    let ept = Sticky::new();
    ram.attach("ept", ept.clone()).unwrap();
    (0..200).for_each(|n| ept.sticks(n * 2, NOT_NOW));
    let before = ledger.commits();
    assert!(ram.share(pages(0, 1024)).is_err());
    assert_eq!(ledger.commits() - before, 1, "one operation's withdrawals are one commit");
    // And those of several threads are fewer commits than operations.
    let before = ledger.commits();
    std::thread::scope(|threads| {
        for n in 0..8 {
            let (ram, ept) = (&ram, &ept);
            threads.spawn(move || {
                for at in (512 + n * 64)..(512 + n * 64 + 20) {
                    ept.sticks(at, NOT_NOW);
                    assert!(ram.unshare(pages(at, at + 1)).is_err());
                }
            });
        }
    });
    let commits = ledger.commits() - before;
    assert!(commits < 160, "{commits} commits for 160 failures");
}
