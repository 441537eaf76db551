//! `pageless lend` from outside, on memfd: a physical window is lent in the end-to-end suite.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pageless_hugepages::{Borrowed, HUGE_2M};
use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_pageless");

fn lend(words: &[&str], command: &[&str]) -> Output {
    Command::new(BINARY).arg("lend").args(words).arg("--").args(command).output().unwrap()
}

/// The account, the exit code, and what the command printed.
fn account(words: &[&str], command: &[&str]) -> (Value, i32, String) {
    let output = lend(&[words, &["--json"]].concat(), command);
    let said = String::from_utf8(output.stderr).unwrap();
    let line = said.lines().last().unwrap_or_default();
    let told = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {said:?}"));
    (told, output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn a_command_finds_the_memory_and_it_comes_back_proven_and_empty() {
    let script = "printf secret | dd of={path} seek={offset} oflag=seek_bytes conv=notrunc status=none
        head -c 6 $PAGELESS_PATH; echo \" {bytes} $PAGELESS_BYTES $PAGELESS_OFFSET\"";
    let (told, code, printed) = account(&["--memory", "4M"], &["sh", "-c", script]);
    assert_eq!(printed, "secret 4194304 4194304 0\n");
    assert_eq!(code, 0, "{told}");
    assert_eq!((&told["frames"], &told["proven_frames"], &told["lost"]), (&1024.into(), &1024.into(), &Value::Array(vec![])));
    assert_eq!((&told["bytes_checked"], &told["stale_bytes"]), (&4_194_304.into(), &0.into()));
    assert_eq!((&told["code"], &told["succeeded"]), (&0.into(), &true.into()));
}

#[test]
fn huge_pages_are_lent_as_one_file() {
    let Some(_pages) = Borrowed::or_skip("huge_pages_are_lent_as_one_file", HUGE_2M, 3) else { return };
    // Three pages are no power of two, and still one file.
    let (told, code, printed) = account(&["--memory", "6M", "--backing", "hugetlb-2m"], &["stat", "-Lc", "%s %o", "{path}"]);
    assert_eq!((code, printed.as_str()), (0, "6291456 2097152\n"), "{told}");
    assert_eq!((&told["proven_frames"], &told["stale_bytes"]), (&1536.into(), &0.into()));
}

#[test]
fn a_command_that_fails_is_told_and_its_memory_comes_back_all_the_same() {
    let (told, code, _) = account(&["--memory", "1M"], &["sh", "-c", "exit 3"]);
    assert_eq!((code, &told["code"], &told["ended"]), (1, &3.into(), &"exit status: 3".into()));
    assert_eq!(told["proven_frames"], 256);
    let (told, code, _) = account(&["--memory", "1M"], &["sh", "-c", "kill -9 $$"]);
    assert_eq!((code, &told["code"]), (1, &Value::Null));
    assert!(told["ended"].as_str().unwrap().contains("signal: 9"), "{told}");
    let prose = String::from_utf8(lend(&["--memory", "1M"], &["false"]).stderr).unwrap();
    assert!(
        prose.contains("lent 1 MiB") && prose.contains("ended with exit status: 1") && prose.contains("256 proven"),
        "{prose}"
    );
}

#[test]
fn what_the_command_left_behind_is_waited_for() {
    let begun = Instant::now();
    let (told, code, _) = account(&["--memory", "1M"], &["sh", "-c", "sleep 1 >/dev/null 2>&1 & exit 0"]);
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!((code, &told["proven_frames"]), (0, &256.into()));
}

#[test]
fn a_signal_that_asks_to_end_is_passed_on_and_the_memory_comes_back() {
    let mut command = Command::new(BINARY);
    command.args(["lend", "--memory", "1M", "--json", "--", "sh", "-c", "echo begun; exec sleep 100"]);
    let lender = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = Pid::from_raw(i32::try_from(lender.id()).unwrap());
    // Its own signals are watched soon after the command has begun.
    std::thread::sleep(Duration::from_millis(500));
    kill(pid, Signal::SIGTERM).unwrap();
    let output = lender.wait_with_output().unwrap();
    let told: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert!(told["ended"].as_str().unwrap().contains("signal: 15"), "{told}");
    assert_eq!((output.status.code(), &told["proven_frames"]), (Some(1), &256.into()));
}

#[test]
fn a_ledger_is_opened_again_by_the_next_run() {
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("lend.ledger");
    let _not_there = std::fs::remove_file(&file);
    for _ in 0..2 {
        let (told, code, _) = account(&["--memory", "1M", "--ledger", file.to_str().unwrap()], &["true"]);
        assert_eq!((code, &told["proven_frames"]), (0, &256.into()));
    }
    assert!(file.exists());
}

#[test]
fn what_cannot_be_lent_is_refused_with_a_sentence() {
    let cases: [(&[&str], &[&str], i32, &str); 6] = [
        (&[], &["true"], 2, "--memory"),
        (&["--memory", "banana"], &["true"], 2, "'banana'"),
        (&["--window", "banana"], &["true"], 2, "/dev/mem@0x40000000+512M"),
        (&["--backing", "physical"], &["true"], 2, "--window"),
        (&["--memory", "1M"], &["no-such-command-anywhere"], 1, "cannot be started"),
        (&["--window", "/dev/dax99.99"], &["true"], 1, "there is no /dev/dax99.99"),
    ];
    for (words, command, code, why) in cases {
        let output = lend(words, command);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
        assert!(said.contains(why) && output.stdout.is_empty(), "{words:?}: {said}");
    }
    assert_eq!(lend(&["--memory", "1M"], &[]).status.code(), Some(2));
}
