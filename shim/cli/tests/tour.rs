//! The tour from outside, on real memory: without root, and without huge pages.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_pageless");

/// An empty folder that anybody may write to.
fn scratch(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _not_there = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    folder
}

/// The binary, run by nobody where this is root and nobody can reach it.
fn command() -> Command {
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", BINARY];
    let root = fs::metadata("/proc/self").is_ok_and(|file| file.uid() == 0);
    let reachable = || Command::new("setpriv").args(nobody).arg("--version").output().is_ok_and(|told| told.status.success());
    if root && reachable() {
        let mut command = Command::new("setpriv");
        command.args(nobody);
        return command;
    }
    if root {
        eprintln!("\nskipped: without root: setpriv cannot run {BINARY} as nobody; it runs as root");
    }
    Command::new(BINARY)
}

/// Runs the tour in a folder of its own.
fn tour(folder: &str, words: &[&str]) -> Output {
    let mut command = command();
    command.arg("tour").args(words).env_remove("PAGELESS_MEMORY").env_remove("PAGELESS_SEED");
    command.current_dir(scratch(folder)).output().unwrap()
}

/// The one object that `--json` prints, and the exit code.
fn json(folder: &str, words: &[&str]) -> (Value, i32) {
    let output = tour(folder, &[words, &["--json", "--no-html"]].concat());
    let said = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    let value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said:?} {errors}"));
    (value, output.status.code().unwrap())
}

/// A list of the withdrawn runs without what depends on the moment: (pfn, frames, state, origin, came back).
fn withdrawn(told: &Value) -> Vec<String> {
    let fields = ["pfn", "frames", "state", "origin", "came_back", "owner"];
    let runs = told["withdrawn"].as_array().unwrap();
    runs.iter().map(|run| fields.map(|field| run[field].to_string()).join(" ")).collect()
}

#[test]
fn the_tour_holds_what_pageless_promises() {
    let (told, code) = json("holds", &["--memory", "3G", "--backing", "memfd"]);
    assert_eq!(code, 0);
    assert_eq!(told["backing"], "memfd");
    assert_eq!(told["pool_bytes"], 3_u64 << 30);
    assert_eq!((&told["reassigned_withdrawn_frames"], &told["stale_bytes_seen"]), (&0.into(), &0.into()));
    assert_eq!((&told["reopened_withdrawn_frames"], &told["lost_after_crash"]), (&5.into(), &0.into()));
    assert!(told["bytes_checked"].as_u64().unwrap() > 50 << 20);
    assert!(told["conversions"].as_u64().unwrap() > 5000);
    assert!(told["metadata_bytes"].as_u64().unwrap() < 1 << 20);
    assert_eq!(told["struct_page_bytes"], 48 << 20);
    let check = |name: &str| told["check_1g_ns"][name].as_f64().unwrap();
    assert!(check("refcount_scan") > 10.0 * check("pageless"), "{}", told["check_1g_ns"]);
    let moments: Vec<_> = told["pool_by_state"].as_array().unwrap().iter().map(|moment| moment["moment"].clone()).collect();
    assert_eq!(moments, ["after boot", "while the pin holds", "at the end"]);
    let free = |moment: usize| told["pool_by_state"][moment]["frames"]["free"].as_u64();
    assert!(free(1) > free(0) && free(2).is_none(), "at the end nothing is free");
}

#[test]
fn what_failed_is_listed_with_its_cause_and_what_became_of_it() {
    let (told, _) = json("causes", &["--memory", "1G", "--backing", "memfd"]);
    let runs = told["withdrawn"].as_array().unwrap();
    let find = |origin: &str, cause: &str| {
        let found = runs.iter().find(|run| run["origin"] == origin && run["cause"].as_str().unwrap().contains(cause));
        found.unwrap_or_else(|| panic!("{origin} {cause}: {runs:#?}"))
    };
    let pinned = find("kernel-pin", "F_ADD_SEALS(F_SEAL_WRITE) gave 0x10");
    assert_eq!((&pinned["state"], &pinned["came_back"]), (&"quarantined".into(), &true.into()));
    assert_eq!(pinned["frames"], told["proof"]["granule_bytes"].as_u64().unwrap() / 4096, "the kernel proves whole segments");
    let busy = find("injected", "0x8000020000000080, OPERAND_BUSY");
    assert_eq!((&busy["state"], &busy["came_back"]), (&"quarantined".into(), &true.into()));
    let device = find("injected", "vfio-0000:3b:00.0");
    assert_eq!((&device["state"], &device["came_back"]), (&"quarantined".into(), &false.into()));
    for cause in ["0xc000030000000001, PAGE_METADATA_INCORRECT", "0xc0000b0d00000093, EPT_ENTRY_STATE_INCORRECT"] {
        let failed = find("injected", cause);
        assert_eq!((&failed["state"], &failed["came_back"], &failed["frames"]), (&"failed".into(), &false.into(), &1.into()));
    }
    assert_eq!(find("machine-check", "machine check")["state"], "poisoned");
    let errnos: Vec<&str> = told["steps"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|step| step["outcomes"].as_array().unwrap())
        .map(|row| row["errno"].as_str().unwrap())
        .collect();
    for errno in ["0", "EAGAIN", "EBUSY", "EINVAL", "ERANGE", "EIO", "EUCLEAN", "EHWPOISON"] {
        assert!(errnos.contains(&errno), "{errno}: {errnos:?}");
    }
}

#[test]
fn a_seed_makes_the_same_tour_and_another_seed_another() {
    let tour = |folder: &str, seed: &str| {
        let (told, code) = json(folder, &["--memory", "1G", "--backing", "memfd", "--seed", seed]);
        assert_eq!((code, &told["seed"]), (0, &seed.parse::<u64>().unwrap().into()));
        (withdrawn(&told), told["conversions"].clone(), told["pool_by_state"].clone())
    };
    let first = tour("seed-a", "42");
    assert_eq!(first, tour("seed-b", "42"));
    assert_ne!(first, tour("seed-c", "43"));
}

#[test]
fn without_zeroing_stale_bytes_are_seen_and_the_tour_fails() {
    let (told, code) = json("stale", &["--memory", "1G", "--backing", "memfd", "--without-zeroing"]);
    assert_eq!(code, 1);
    assert!(told["stale_bytes_seen"].as_u64().unwrap() > 1 << 20);
    assert_eq!((&told["zeroing"], &told["reassigned_withdrawn_frames"]), (&false.into(), &0.into()));
}

#[test]
fn it_is_told_in_prose_and_leaves_one_page_that_needs_nothing_else() {
    let output = tour("prose", &["--memory", "1 GiB"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    for text in [
        "1. The memory",
        "Two guests get memory",
        "What the VMM is told",
        "Held { holder: \"vhost-net\"",
        "An unmap fails, and is not forgotten",
        "takes the place of",
        "Everything else is handed out",
        "No withdrawn frame was handed out again",
        "pageless-tour.html",
    ] {
        assert!(said.contains(text), "{text}: {said}");
    }
    assert!(!said.contains('\x1b'), "no colour where there is no terminal");
    let files: Vec<_> = fs::read_dir(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("prose")).unwrap().collect();
    assert_eq!(files.len(), 1);
    let page = fs::read_to_string(files[0].as_ref().unwrap().path()).unwrap();
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    roxmltree::Document::parse_with_options(&page, options).unwrap();
    assert!(page.len() < 2 << 20 && !page.contains("://") && !page.contains("<script"), "{} bytes", page.len());
}

#[test]
fn a_refusal_leaves_nothing_behind() {
    for (nth, (words, code)) in [
        (&["--memory", "banana"][..], 2),
        (&["--memory", "1K"], 2),
        (&["--memory", "900T"], 2),
        (&["--memory", "1G", "--backing", "hugetlb-1g"], 1),
        (&["--memory", "8T", "--backing", "hugetlb-2m"], 1),
        (&["--memory", "1G", "--html", "no-such-folder/x.html"], 1),
    ]
    .into_iter()
    .enumerate()
    {
        let folder = format!("refused-{nth}");
        let output = tour(&folder, words);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
        assert!(output.stdout.is_empty() && said.lines().count() < 8 && said.len() > 40, "{words:?}: {said}");
        let left = fs::read_dir(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(&folder)).unwrap().count();
        assert_eq!(left, 0, "{words:?}");
    }
}

#[test]
fn huge_pages_of_which_enough_are_reserved_are_taken_and_tell_the_same_story() {
    let [_, two_mib, _] = pageless_host::probe();
    if two_mib.bytes < 1 << 30 {
        eprintln!("\nskipped: tour on hugetlb-2m: {}", two_mib.why_not.unwrap_or_else(|| "too few pages".to_owned()));
        return;
    }
    let (told, code) = json("hugetlb", &["--memory", "1G", "--backing", "hugetlb-2m"]);
    assert_eq!((code, &told["backing"], &told["stale_bytes_seen"]), (0, &"hugetlb-2m".into(), &0.into()));
    assert!(withdrawn(&told).iter().any(|run| run.contains("kernel-pin") && run.contains("true")));
}

#[test]
fn huge_pages_that_are_not_there_are_named_with_what_to_do() {
    let said = |words: &[&str]| String::from_utf8(tour("huge", words).stderr).unwrap();
    let few = said(&["--memory", "8T", "--backing", "hugetlb-2m"]);
    assert!(few.contains("hugetlb-2m cannot be had") || few.contains("does not offer"), "{few}");
    let small = said(&["--memory", "1G", "--backing", "hugetlb-1g"]);
    assert!(small.contains("at least 3 of them") && small.contains("--memory 3GiB"), "{small}");
}
