//! One file for each format that was ever written: it opens, and nothing in it is misread.
//!
//! `PAGELESS_WRITE_FORMAT=FILE` writes such a file with the format of today, for the day when that becomes an old one.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod cast;

use std::path::Path;
use std::sync::Arc;

use cast::{NOT_NOW, Sticky, marks, pages, pool_on, run, set};
use pageless::ledger::{LandmarkKind, RequestId};
use pageless::{Cause, Contents, FRAME_BYTES, Intent, Request, RunSet, Verdict};
use pageless_ledger::{RedbLedger, inspect};

/// A row of every kind.
fn write(path: &Path) {
    let pool = pool_on(Arc::new(RedbLedger::at(path).unwrap()), 64);
    let request = Request::bytes(32 * FRAME_BYTES).contiguous().owner("vm-42").named(RequestId(42)).keep_contents();
    let ram = pool.allocate(request).unwrap();
    let ept = Sticky::new();
    ram.attach("ept", ept.clone()).unwrap();
    ept.sticks(3, Verdict::Never);
    ept.sticks(9, NOT_NOW);
    ept.sticks(11, NOT_NOW);
    assert!(ram.share(pages(0, 32)).is_err());
    ept.heals();
    ept.sticks(9, NOT_NOW);
    pool.retry(run(0, 64));
    pool.poison(run(40, 42), Cause::new("MCE", 0xb, "uncorrectable"));
    ram.release_range(pages(30, 32)).unwrap();
    std::mem::forget(ram.hold(pages(20, 22), "dma").unwrap());
    std::mem::forget(ram);
    pool.record_pending().unwrap();
    // In the order of the queue, so that everything submitted before is written, too.
    std::mem::forget(pool.allocate(Request::bytes(FRAME_BYTES).owner("vm-43")).unwrap());
    std::mem::forget(pool);
}

#[test]
fn a_file_of_today_can_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("today.ledger");
    write(&path);
    if let Some(target) = std::env::var_os("PAGELESS_WRITE_FORMAT") {
        std::fs::copy(&path, target).unwrap();
    }
}

#[test]
fn format_1_is_read_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("1.ledger");
    std::fs::write(&path, include_bytes!("formats/1.ledger")).unwrap();
    let found = inspect(&path).unwrap();
    assert!(found.findings().is_empty());
    assert!(found.pool.as_ref().unwrap().geometry().contains("synthetic node 0 with pfn:0x0..0x40"));
    assert_eq!(marks(&found.book), [set([(9, 10)]), set([(3, 4)]), set([(40, 42)])]);
    let row = found.book.allocations.values().next().unwrap();
    assert_eq!((&*row.owner, row.bytes, row.contents), ("vm-42", 32 * FRAME_BYTES, Contents::Keep));
    assert_eq!((row.request, &row.live, row.released.len()), (Some(RequestId(42)), &set([(0, 30)]), 1));
    assert_eq!(row.mappings.iter().map(|name| &**name).collect::<Vec<_>>(), ["ept"]);
    assert_ne!(row.secret, 0);
    let hold = found.book.holds.values().next().unwrap();
    assert_eq!((hold.holder.name(), &hold.frames[..], hold.allocation), ("dma", &[run(20, 22)][..], row.id));
    let quarantined = &found.book.unproven[&pageless::Pfn::new(9)].told;
    assert_eq!((quarantined.intent, quarantined.attempts), (Some(Intent::Share), 1));
    assert_eq!((&*quarantined.cause.mapping, quarantined.cause.status), ("ept", 0x8000_0200));
    assert_eq!(found.book.past.iter().map(|past| past.mark.told.frames).collect::<RunSet>(), set([(11, 12)]));
    assert_eq!(found.book.landmarks[0].kind, LandmarkKind::Opened);
    let pool = pool_on(Arc::new(RedbLedger::at(&path).unwrap()), 64);
    assert_eq!(pool.reopened().unwrap().withdrawn, set([(3, 4), (9, 10), (40, 42)]));
    assert!(pool.verify().is_sound());
}
