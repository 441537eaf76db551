//! A byte of the file is changed, at any place: the ledger never looks clean with less in it than was acknowledged.
//!
//! `PAGELESS_EVERY_BYTE=1` tries every byte of the files; otherwise every byte of the headers and a sample of the rest.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod cast;

use std::path::Path;
use std::sync::Arc;

use cast::{marked, pages, pool_on, set};
use pageless::{RunSet, Verdict};
use pageless_ledger::{RedbLedger, inspect_bytes};

/// Bytes of the header and the two commit slots: all eight bits of each are tried.
const HEADER: usize = 320;

/// A ledger with marks of every kind, the last of them acknowledged by the last commit. Copied while the pool runs, as a
/// SIGKILL would leave it, and after it was closed.
fn ledgers(path: &Path) -> [Vec<u8>; 2] {
    let pool = pool_on(Arc::new(RedbLedger::at(path).unwrap()), 64);
    let (ram, ept) = marked(&pool);
    ept.sticks(20, Verdict::Never);
    assert!(ram.unshare(pages(16, 32)).is_err());
    let killed = std::fs::read(path).unwrap();
    drop((ram, pool));
    [killed, std::fs::read(path).unwrap()]
}

fn acknowledged() -> RunSet {
    set([(3, 4), (9, 10), (20, 21), (40, 41)])
}

fn try_flip(bytes: &[u8], at: usize, mask: u8, names: &mut std::collections::BTreeMap<&'static str, u64>) {
    let mut flipped = bytes.to_vec();
    flipped[at] ^= mask;
    let what = match inspect_bytes("flipped", flipped) {
        Ok(found) => {
            let forgotten = acknowledged().difference(&found.book.withdrawn());
            let clean = found.findings().is_empty();
            assert!(!clean || forgotten.is_empty(), "byte {at} ^ {mask:#x}: clean, and {forgotten} are forgotten");
            assert!(forgotten.is_empty(), "byte {at} ^ {mask:#x}: {forgotten} are not found though it opens");
            if clean { "clean and whole" } else { "whole, with a finding" }
        }
        Err(_) => "refused",
    };
    *names.entry(what).or_default() += 1;
}

#[test]
fn no_flipped_byte_makes_a_clean_ledger_that_forgets() {
    let folder = tempfile::tempdir().unwrap();
    let every = std::env::var_os("PAGELESS_EVERY_BYTE").is_some();
    for bytes in ledgers(&folder.path().join("pool.ledger")) {
        assert_eq!(inspect_bytes("whole", bytes.clone()).unwrap().book.withdrawn(), acknowledged());
        let mut names = std::collections::BTreeMap::new();
        for at in 0..HEADER {
            (0..8).for_each(|bit| try_flip(&bytes, at, 1 << bit, &mut names));
        }
        let written: Vec<usize> = (HEADER..bytes.len()).filter(|at| every || bytes[*at] != 0).collect();
        let step = if every { 1 } else { written.len().div_ceil(1500) };
        written.iter().step_by(step).for_each(|at| try_flip(&bytes, *at, 1 << (at % 8), &mut names));
        println!("{} bytes, of which {} are not zero or all are tried: {names:?}", bytes.len(), written.len());
        assert!(names["refused"] > 0 && names.contains_key("whole, with a finding"), "{names:?}");
    }
}
