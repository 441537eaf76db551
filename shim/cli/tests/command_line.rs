//! The binary from outside: what it says to bad arguments, and with which exit code.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn pageless(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pageless"));
    command.args(words).env_remove("PAGELESS_MEMORY").env_remove("PAGELESS_SEED");
    command.current_dir(env!("CARGO_TARGET_TMPDIR")).output().unwrap()
}

/// Runs with bad arguments; checks the exit code and that nothing but an explanation came out.
fn refused(words: &[&str]) -> String {
    let output = pageless(words);
    assert_eq!(output.status.code(), Some(2), "{words:?}");
    assert!(output.stdout.is_empty(), "{words:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_size_that_is_none_is_named_with_what_would_be_right() {
    let said = refused(&["tour", "--memory", "banana"]);
    assert!(said.contains("'banana' is not a size") && said.contains("3G"), "{said}");
    assert!(said.contains("Usage: pageless tour"), "{said}");
    assert!(refused(&["tour", "--memory", "12", "bananas", "--json"]).contains("'12 bananas'"));
    assert!(refused(&["tour", "--memory", ""]).contains("''"));
}

#[test]
fn a_size_outside_of_what_can_be_done_is_refused_with_the_bound() {
    assert!(refused(&["tour", "--memory", "1K"]).contains("1K is too small: the tour needs at least 1 GiB"));
    assert!(refused(&["tour", "--memory", "900T"]).contains("900T is too large"));
    assert!(refused(&["tour", "--memory", "99999999999999999999999999T"]).contains("64 bits"));
}

#[test]
fn other_mistakes_are_usage_errors_too() {
    for words in [
        &["tour", "--seed", "x"][..],
        &["tour", "--backing", "floppy"],
        &["tour", "--memory"],
        &["tour", "--memory", "1G", "2G", "3G"],
        &["tour", "--no-html", "--html", "x"],
        &["tour", "extra"],
        &["detour"],
        &[],
    ] {
        refused(words);
    }
}

#[test]
fn a_page_in_a_folder_that_is_not_there_is_refused_before_the_tour() {
    let output = pageless(&["tour", "--html", "no-such-folder/x.html"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("there is no folder no-such-folder"));
    assert!(output.stdout.is_empty());
}

#[test]
fn help_explains_the_units() {
    let output = pageless(&["tour", "--help"]);
    assert_eq!(output.status.code(), Some(0));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("G means GiB") && said.contains("--without-zeroing") && said.contains("hugetlb-1g"), "{said}");
    assert_eq!(pageless(&["--version"]).status.code(), Some(0));
}
