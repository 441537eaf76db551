//! `pageless ledger` on a file that a pool has left.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use pageless::{Cause, FRAME_BYTES, MetadataOnly, Pfn, PfnRange, Pool};
use pageless_ledger::RedbLedger;
use serde_json::Value;

fn pageless(words: &[&str], file: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pageless")).arg("ledger").args(words).arg(file).output().unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn pool(file: &Path) -> Pool {
    let ledger = Arc::new(RedbLedger::at(file).unwrap());
    Pool::builder().backing(MetadataOnly::of_bytes(64 * FRAME_BYTES)).ledger(ledger).build().unwrap()
}

#[test]
fn a_ledger_is_shown_verified_and_exported_while_no_pool_runs() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pool.ledger");
    drop(pool(&file));
    let running = pool(&file);
    let busy = pageless(&["show"], &file);
    assert_eq!(busy.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&busy.stderr).contains("open already"), "{busy:?}");
    drop(running);
    let running = pool(&file);
    running.poison(PfnRange::single(Pfn::new(40)), Cause::new("MCE", 0xb, "uncorrectable"));
    drop(running);

    let shown = pageless(&["show", "--json"], &file);
    assert_eq!((shown.status.code(), json(&shown)["poisoned_frames"].as_u64()), (Some(0), Some(1)));
    let mark = &json(&pageless(&["withdrawn", "--json"], &file))["withdrawn"][0];
    assert_eq!(
        (mark["status"].as_str(), mark["step"].as_str(), mark["state"].as_str()),
        (Some("0xb"), Some("MCE"), Some("poisoned"))
    );
    assert!(json(&pageless(&["export", "--json"], &file))["withdrawn"].is_array());
    let verified = pageless(&["verify", "--json"], &file);
    assert_eq!((verified.status.code(), json(&verified)["clean"].as_bool()), (Some(0), Some(true)));
    for words in [["show"], ["withdrawn"], ["verify"]] {
        assert!(pageless(&words, &file).stdout.starts_with(match words[0] {
            "show" => b"A ledger",
            "withdrawn" => b"pfn:0x28",
            _ => b"The ledger is whole",
        }));
    }
}

#[test]
fn verify_finds_a_flipped_byte_and_exits_with_1() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pool.ledger");
    let running = pool(&file);
    running.poison(PfnRange::single(Pfn::new(40)), Cause::new("MCE", 0xb, "uncorrectable"));
    drop(running);
    let mut bytes = std::fs::read(&file).unwrap();
    // In the one byte of redb's header that no checksum covers: which commit counts.
    bytes[9] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let verified = pageless(&["verify", "--json"], &file);
    assert_eq!((verified.status.code(), json(&verified)["withdrawn_frames"].as_u64()), (Some(1), Some(1)));
    bytes.truncate(bytes.len() / 2);
    std::fs::write(&file, &bytes).unwrap();
    let verified = pageless(&["verify", "--json"], &file);
    assert_eq!(verified.status.code(), Some(1));
    assert!(json(&verified)["findings"][0].as_str().unwrap().contains("damaged"));
    assert_eq!(std::fs::read(&file).unwrap(), bytes, "nothing was changed");
}

#[test]
fn poison_ends_by_a_recorded_replacement_only() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pool.ledger");
    let running = pool(&file);
    running.poison(PfnRange::single(Pfn::new(40)), Cause::new("MCE", 0xb, "uncorrectable"));
    drop(running);
    let replaced = |words: &[&str]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_pageless")).args(["ledger", "hardware-replaced"]).arg(&file).args(words).output();
        output.unwrap()
    };
    assert_eq!(replaced(&["0x28..0x29"]).status.code(), Some(2), "without evidence");
    assert_eq!(replaced(&["banana", "--evidence", "x"]).status.code(), Some(2));
    assert_eq!(replaced(&["0x28..0x29", "--evidence", " "]).status.code(), Some(1), "empty evidence");
    assert_eq!(json(&replaced(&["0x28..0x29", "--evidence", "DIMM A1", "--json"]))["lifted"][0]["start"].as_u64(), Some(40));
    assert_eq!(pool(&file).stats().poisoned, 0);
    let shown = pageless(&["show"], &file);
    assert!(
        String::from_utf8_lossy(&shown.stdout).contains("hardware replaced, pfn:0x28..0x29 (1 frames): DIMM A1"),
        "{shown:?}"
    );
}
