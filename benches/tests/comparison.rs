//! The comparison from outside: every question is really asked, at a scale where no figure means anything.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may stop at the first surprise")]

use std::collections::BTreeSet;
use std::process::Command;

use pageless_bench::bar::BARS;
use pageless_bench::bench::Scale;
use pageless_bench::{html, question, run, table};

/// The questions that answer lines of the design, by name.
const OURS: [&str; 6] = ["frame layer", "conversion", "check", "threads", "pool", "footprint"];

#[test]
fn the_keys_of_the_json_are_those_of_the_design_and_every_row_is_whole() {
    // The words select what has keys; rivals are not asked.
    let mut keys = BTreeSet::new();
    for word in ["frames.", "convert.", "check.1g", "check.order", "threads.", "pool.", "footprint."] {
        let report = run(Scale::TINY, Some(word), false).unwrap();
        let json: serde_json::Value = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
        let members = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
        assert_eq!(members(&json), ["commit", "floor", "machine", "rows"].map(str::to_owned).into());
        assert!(json["floor"]["rmw_ns"].as_f64().unwrap() > 0.0);
        for row in json["rows"].as_array().unwrap() {
            let names = "contender key max median min operation per_rmw question reps state unit";
            assert_eq!(members(row), names.split(' ').map(str::to_owned).collect());
            assert_eq!(row["contender"], "pageless");
            assert!(OURS.contains(&row["question"].as_str().unwrap()), "{row}");
            keys.extend(row["key"].as_str().map(str::to_owned));
        }
        let page = html::page(&report);
        roxmltree::Document::parse_with_options(&page, roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() })
            .unwrap_or_else(|why| panic!("{word}: {why}"));
        assert!(table::text(&report).contains(word));
    }
    assert_eq!(keys, BARS.iter().map(|(key, _)| (*key).to_owned()).collect());
}

#[test]
fn a_filter_selects_by_question_or_by_task_and_nothing_else() {
    let all: usize = question::QUESTIONS.iter().map(|question| question.tasks.len()).sum();
    assert_eq!(question::selected(None), all);
    assert_eq!(question::selected(Some("frame layer")), 8);
    assert_eq!(question::selected(Some("convert.2m")), 1);
    assert_eq!(question::selected(Some("no such thing")), 0);
    let report = run(Scale::TINY, Some("frames.1g_pair"), false).unwrap();
    assert_eq!(report.rows.iter().map(|row| row.key.unwrap()).collect::<Vec<_>>(), ["frames.1g_pair"]);
}

#[test]
fn a_filter_that_matches_nothing_is_refused_in_one_sentence() {
    let output = Command::new(env!("CARGO_BIN_EXE_pageless-bench")).args(["--filter", "nonsense"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("\"nonsense\"") && told.contains("shareability") && told.lines().count() == 1, "{told}");
    assert!(output.stdout.is_empty());
}
