//! The comparison from outside: every question is really asked, at a scale where no figure means anything; and the program as
//! its user runs it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may stop at the first surprise")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::LazyLock;

use pageless_bench::bench::Scale;
use pageless_bench::report::{ENTROPY_LIMIT, Report};
use pageless_bench::{html, markdown, question, run, table};
use serde_json::Value;

/// The lines of the design.
const KEYS: &str = "
    frames.4k_pair_hot frames.4k_put_random_1tib frames.4k_put_batch_1tib frames.2m_pair_hot frames.1g_pair frames.64g_pair
    frames.2m_fragmented_take frames.2m_fragmented_fail convert.4k convert.4k_cold convert.2m convert.1g_uniform convert.hostile
    check.1g_hot check.order_hot check.1g_cold threads.disjoint_2 threads.same_gib_2 pool.16g_cycle footprint.uniform
    footprint.random_2m footprint.random_4k footprint.random_4k_rest footprint.worst footprint.image
    ledger.commit pool.build_1tib pool.reopen";

fn words(text: &str) -> BTreeSet<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn members(value: &Value) -> BTreeSet<String> {
    value.as_object().unwrap().keys().cloned().collect()
}

/// Every question, asked once.
static REPORT: LazyLock<Report> = LazyLock::new(|| run(Scale::TINY, None, false).unwrap());

fn json_of(report: &Report) -> Value {
    serde_json::from_str(&serde_json::to_string(report).unwrap()).unwrap()
}

fn has_schema(json: &Value) {
    assert_eq!(members(json), words("commit floor machine rows"));
    let floor = &json["floor"];
    assert_eq!(
        members(floor),
        words(concat!(
            "clock_ns load_1g_ns load_2m_max_ns load_2m_min_ns load_2m_ns load_32m_ns load_l2_ns ",
            "rmw_max_ns rmw_min_ns rmw_ns"
        ))
    );
    assert!(floor.as_object().unwrap().values().all(|value| value.as_f64().unwrap() > 0.0), "{floor}");
    for row in json["rows"].as_array().unwrap() {
        assert_eq!(members(row), words("contender key max median min operation per_rmw question reps state unit"));
        for name in ["contender", "operation", "question", "state", "unit"] {
            assert!(!row[name].as_str().unwrap().is_empty(), "{row}");
        }
        assert!(words("ns B x blocks").contains(row["unit"].as_str().unwrap()), "{row}");
        let reps = row["reps"].as_u64().unwrap();
        let values = ["min", "median", "max"].map(|name| row[name].as_f64());
        if reps == 0 {
            assert!(row["state"].as_str().unwrap().contains("; skipped: ") && values == [None; 3], "{row}");
        } else {
            assert!(values.iter().all(Option::is_some) && values.is_sorted(), "{row}");
        }
        assert_eq!(row["per_rmw"].is_number(), reps > 0 && row["unit"] == "ns", "{row}");
        let rmw = floor["rmw_ns"].as_f64().unwrap();
        if let (Some(multiple), Some(median)) = (row["per_rmw"].as_f64(), values[1]) {
            assert!((multiple * rmw - median).abs() <= median * 1e-9, "{row}");
        }
    }
}

#[test]
fn the_keys_of_the_json_are_those_of_the_design_and_every_row_is_whole() {
    let json = json_of(&REPORT);
    has_schema(&json);
    let rows = json["rows"].as_array().unwrap();
    let keys: Vec<String> = rows.iter().filter_map(|row| Some(row["key"].as_str()?.to_owned())).collect();
    assert_eq!(keys.iter().cloned().collect::<BTreeSet<_>>(), words(KEYS));
    assert_eq!(keys.len(), words(KEYS).len(), "a key twice: {keys:?}");
    assert!(rows.iter().filter(|row| row["key"].is_string()).all(|row| row["contender"] == "pageless" && row["reps"] != 0));
}

#[test]
fn every_contender_of_the_catalogue_takes_part_or_says_why_not() {
    let report = &*REPORT;
    let contenders = |question: &str, operation: &str| {
        let rows = report.rows.iter().filter(|row| row.question == question && row.operation.contains(operation));
        rows.map(|row| (row.state.clone(), row.contender.clone())).collect::<Vec<_>>()
    };
    let of_state = |question: &str, operation: &str, state: &str| {
        let all = contenders(question, operation).into_iter().filter(|(known, _)| known.starts_with(state));
        all.map(|(_, contender)| contender).collect::<Vec<_>>()
    };
    for size in ["4K", "2M", "1G", "16G"] {
        for state in ["asked again", "caches swept"] {
            let seen = of_state("check and restructure", &format!("may {size} be"), state);
            let parts = ["pageless", "RFC", "struct page", "packed u32", "packed u8", "one bit", "unsplit"];
            assert!(seen.len() == parts.len() && seen.iter().zip(parts).all(|(name, part)| name.contains(part)), "{seen:?}");
        }
    }
    for page in ["4K", "2M", "1G"] {
        for what in ["not mapped", "one pinned"] {
            let seen = of_state("the running kernel", "using", &format!("a GiB of {page} pages, {what}"));
            assert!(seen.iter().any(|name| name.contains("F_SEAL_WRITE")), "{page}, {what}: {seen:?}");
        }
    }
    let planes = ["pageless", "bitvec", "BTreeMap", "rangemap", "one roaring", "roaring per GiB"];
    for pattern in ["uniform", "1 % random 2M", "1 % random 4K", "10 % random 4K", "checkerboard"] {
        let bytes = of_state("shareability", "bytes per TiB", &format!("{pattern}, over"));
        assert!(planes.iter().chain([&ENTROPY_LIMIT]).all(|part| bytes.iter().any(|name| name.contains(part))), "{bytes:?}");
    }
    for hostile in ["a shared GiB; every second", "one GiB, one frame toggled"] {
        for operation in ["set 4K, hostile", "the most bytes"] {
            let seen = of_state("shareability", operation, hostile);
            assert!(planes.iter().all(|part| seen.iter().any(|name| name.contains(part))), "{operation}: {seen:?}");
        }
    }
    let allocators =
        "frame-alloc buddy_system_allocator buddy-slab-allocator bitmap-allocator range-alloc vm-allocator xalloc pageless";
    for operation in ["take and put 4K", "take and put 2M", "take and put 1G", "2M blocks found"] {
        let seen = contenders("allocation", operation);
        let has = |part: &String| seen.iter().any(|(_, contender)| contender.starts_with(part.as_str()));
        assert!(words(allocators).iter().all(has), "{operation}: {seen:?}");
    }
}

#[test]
fn the_tables_and_the_page_show_every_row_and_where_a_rival_wins() {
    let (text, page) = (table::text(&REPORT), html::page(&REPORT));
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    let document = roxmltree::Document::parse_with_options(&page, options).unwrap();
    for key in words(KEYS) {
        assert!(text.contains(&key) && page.contains(&key), "{key} is not shown");
    }
    let figures = document.descendants().filter(|node| node.has_tag_name("figure")).count();
    let mut contests: Vec<_> = REPORT.rows.iter().map(|row| (row.question, &row.operation, &row.state)).collect();
    contests.dedup();
    assert_eq!(figures, contests.len());
    assert!(text.contains("where a rival wins:") && page.contains("Where a rival wins"));
    assert!(!REPORT.lost().is_empty(), "an unsplit head is one load: if nobody wins, the verdict looks away");
    needs_no_other_file(&page);
    let markdown = markdown::text(&REPORT);
    let cells = |line: &str| line.matches('|').count();
    for table in markdown.split("\n\n").filter(|part| part.starts_with("| ")) {
        assert!(table.lines().all(|line| cells(line) == cells(table.lines().next().unwrap())), "{table}");
    }
    assert!(words(KEYS).iter().all(|key| markdown.contains(&format!("| {key} |"))));
    assert!(REPORT.rows.iter().all(|row| markdown.contains(row.contender.as_str())));
}

/// Nothing in the page makes a browser ask for anything.
fn needs_no_other_file(page: &str) {
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    let document = roxmltree::Document::parse_with_options(page, options).unwrap_or_else(|why| panic!("{why}"));
    for node in document.descendants().filter(roxmltree::Node::is_element) {
        assert!(!matches!(node.tag_name().name(), "script" | "link" | "img" | "iframe" | "object" | "embed"), "{node:?}");
        assert!(node.attributes().all(|attribute| !matches!(attribute.name(), "src" | "href" | "srcset")), "{node:?}");
    }
    assert!(!page.contains("url(") && !page.contains("@import"));
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

fn program(arguments: &[&str]) -> (Output, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_pageless-bench")).args(arguments).output().unwrap();
    let (told, complaint) = (output.stdout.clone(), output.stderr.clone());
    (output, String::from_utf8(told).unwrap(), String::from_utf8(complaint).unwrap())
}

#[test]
fn a_run_prints_a_table_and_writes_what_it_was_asked_to_write() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("comparison-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (json, html) = (folder.join("seen.json"), folder.join("seen.html"));
    let files = ["--json", json.to_str().unwrap(), "--html", html.to_str().unwrap()];
    let (output, told, complaint) = program(&[&["--quick", "--filter", "frames.1g_pair"], files.as_slice()].concat());
    assert!(output.status.success(), "{complaint}");
    for part in
        ["commit ", "floor: locked RMW", "frames.1g_pair", "pageless", "x RMW", "1 bars met", "where a rival wins", "took "]
    {
        assert!(told.contains(part), "no \"{part}\" in\n{told}");
    }
    let json: Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    has_schema(&json);
    assert_eq!(json["rows"].as_array().unwrap().len(), 1);
    needs_no_other_file(&std::fs::read_to_string(&html).unwrap());
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_wrong_argument_is_refused_at_once_by_its_name() {
    let wrong: [(&[&str], &str); 4] =
        [(&["--filter", "nonsense"], "\"nonsense\""), (&["--fast"], "--fast"), (&["quick"], "quick"), (&["--json"], "--json")];
    for (arguments, name) in wrong {
        let (output, told, complaint) = program(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {complaint}");
        assert!(told.is_empty() && complaint.contains(name), "{arguments:?}: {complaint}");
    }
    let (_, _, complaint) = program(&["--filter", "nonsense"]);
    assert!(
        complaint.lines().count() == 1 && complaint.contains("shareability") && complaint.contains("frame layer"),
        "{complaint}"
    );
}

#[test]
fn a_file_that_cannot_be_written_is_refused_before_anything_is_measured() {
    for option in ["--json", "--html", "--markdown"] {
        let (output, told, complaint) = program(&["--quick", option, "no-such-folder/seen"]);
        assert_eq!(output.status.code(), Some(1), "{complaint}");
        assert!(told.is_empty() && complaint.contains("no-such-folder/seen"), "{complaint}");
    }
}
