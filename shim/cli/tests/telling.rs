//! How a tour is told: the page, the JSON, the map, the summary.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod demo;

use pageless_cli::args::{BackingChoice, HtmlTarget, TourSettings, Voice, Zeroing};
use pageless_cli::deliver;
use pageless_cli::html;
use pageless_cli::map::{self, PoolMap};
use pageless_cli::narrate::Narrator;
use pageless_cli::paint::Paint;
use std::path::PathBuf;

fn settings(html: HtmlTarget) -> TourSettings {
    let (memory, backing, zeroing) = (Some(8 << 30), BackingChoice::Auto, Zeroing::On);
    TourSettings { memory, seed: 1, voice: Voice::Prose, html, backing, window: None, zeroing }
}

fn scratch(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn silent() -> Narrator {
    Narrator::speaking_to(Box::new(std::io::sink()), Paint::Plain, 80)
}

#[test]
fn the_page_is_well_formed_and_needs_nothing_else() {
    let page = html::page(&demo::report());
    std::fs::write(scratch("demo.html"), &page).unwrap();
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    let document = roxmltree::Document::parse_with_options(&page, options).expect("well-formed");
    for node in document.descendants().filter(roxmltree::Node::is_element) {
        assert!(!["script", "link", "img", "iframe", "object", "image", "use"].contains(&node.tag_name().name()), "{node:?}");
        for attribute in node.attributes() {
            assert!(!["src", "href", "srcset", "data", "action"].contains(&attribute.name()), "{attribute:?}");
            assert!(!attribute.name().starts_with("on"), "{attribute:?}");
        }
    }
    for loader in ["http://", "https://", "url(", "@import", "//cdn"] {
        assert!(!page.contains(loader), "{loader}");
    }
    assert!(page.contains("prefers-color-scheme: dark") && page.contains("name=\"viewport\""));
    assert!(page.len() < 1_500_000, "{} bytes", page.len());
}

#[test]
fn no_name_becomes_markup() {
    let page = html::page(&demo::report());
    assert!(
        !page.contains("<script") && page.contains("vm-&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt; &amp; &#39;co&#39;")
    );
}

#[test]
fn the_page_shows_map_pictures_steps_causes_and_caveats() {
    let page = html::page(&demo::report());
    for text in [
        "No withdrawn frame was handed out again",
        "pfn:0x10025",
        "TDH.MEM.PAGE.REMOVE gave 0xc0000b0d00000000",
        "real: a kernel pin",
        "An unmap fails",
        "562 µs hot",
        "1.3 ns hot",
        "304 KiB",
        "128 MiB",
        "TLB flushes",
        "keep their own struct page",
        "Not free: first every mapping",
        "while the pin holds",
        "pageless tour --memory 8589934592 --backing memfd --seed 1",
    ] {
        assert!(page.contains(text), "{text}");
    }
    // Every chapter, every tab, and a pin for each of the three withdrawn runs, on both maps.
    assert_eq!(page.matches("<li>\n<h3>").count(), 3);
    assert_eq!(page.matches("type=\"radio\"").count(), 2);
    assert_eq!(page.matches("<i class=\"pin").count(), 6);
    assert_eq!(page.matches("<figure class=\"lens\">").count(), 3);
}

#[test]
fn the_picture_stays_small_when_every_second_frame_differs() {
    let mut report = demo::report();
    let runs: Vec<_> = (0..100_000).map(|frame| (frame * 2, 1, map::CellKind::Shared { guest: 0 }, "")).collect();
    let cells = runs.iter().flat_map(|&(start, _, kind, _)| {
        let at = |pfn| pageless::PfnRange::single(pageless::Pfn::new(pfn));
        [map::MapCell::new(at(start), kind), map::MapCell::new(at(start + 1), map::CellKind::Private { guest: 0 })]
    });
    report.snapshots.truncate(1);
    report.snapshots[0].map = PoolMap::new(cells.collect(), vec!["vm-a".into()]).unwrap();
    assert!(html::page(&report).len() < 500_000);
}

#[test]
fn a_tour_without_chapters_snapshots_or_withdrawals_still_makes_a_page() {
    let mut report = demo::report();
    report.steps.clear();
    report.snapshots.clear();
    report.withdrawn.clear();
    report.metadata_bytes = 0;
    let page = html::page(&report);
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    roxmltree::Document::parse_with_options(&page, options).expect("well-formed");
}

#[test]
fn the_json_has_every_promised_field() {
    let value = serde_json::to_value(demo::report()).unwrap();
    for field in [
        "backing",
        "pool_bytes",
        "conversions",
        "reassigned_withdrawn_frames",
        "stale_bytes_seen",
        "reopened_withdrawn_frames",
        "lost_after_crash",
        "metadata_bytes",
        "struct_page_bytes",
        "seed",
        "elapsed_ms",
        "kernel",
    ] {
        assert!(!value[field].is_null(), "{field}");
    }
    assert!(value["check_1g_ns"]["pageless"].is_f64() && value["check_1g_ns"]["refcount_scan"].is_f64());
    let pinned = &value["withdrawn"][0];
    assert_eq!((pinned["pfn"].as_u64(), pinned["frames"].as_u64()), (Some(0x0014_4000), Some(16_384)));
    assert_eq!((pinned["state"].as_str(), pinned["origin"].as_str()), (Some("quarantined"), Some("kernel-pin")));
    assert!(pinned["cause"].as_str().unwrap().contains("F_SEAL_WRITE"));
    assert_eq!(value["pool_by_state"][1]["moment"], "at the end");
    assert_eq!(value["pool_by_state"][1]["frames"]["failed"], 4);
    assert_eq!(value["steps"][1]["outcomes"][0]["errno"], "EAGAIN");
}

#[test]
fn the_verdict_turns_with_the_findings() {
    let mut report = demo::report();
    assert!(report.holds() && report.headline().starts_with("No withdrawn frame"));
    report.lost_after_crash = 1;
    assert!(!report.holds() && report.headline().starts_with("BROKEN: 1 withdrawn frame forgotten"));
    report.lost_after_crash = 0;
    report.stale_bytes_seen = 4096;
    assert!(!report.holds() && report.headline().starts_with("BROKEN"));
    report.zeroing = false;
    assert!(!report.holds() && report.headline().contains("as they must be without zeroing"));
    report.reassigned_withdrawn_frames = 1;
    assert!(report.headline().contains("BROKEN: 1 withdrawn frame handed out again"));
    assert!(html::page(&report).contains("<h1 class=\"bad\">"));
}

#[test]
fn delivery_writes_the_page_and_says_where() {
    let file = scratch("delivered.html");
    let mut report = demo::report();
    deliver::deliver(&mut report, &settings(HtmlTarget::Asked(file.clone())), silent()).unwrap();
    assert_eq!(report.html.as_deref(), file.to_str());
    assert!(std::fs::read_to_string(file).unwrap().starts_with("<!DOCTYPE html>"));
}

#[test]
fn a_page_that_was_asked_for_and_cannot_be_written_is_an_error_and_the_usual_one_is_not() {
    let nowhere = scratch("no-such-folder").join("x.html");
    let mut report = demo::report();
    assert!(deliver::deliver(&mut report, &settings(HtmlTarget::Asked(nowhere.clone())), silent()).is_err());
    deliver::deliver(&mut report, &settings(HtmlTarget::Usual(nowhere.clone())), silent()).unwrap();
    assert_eq!(report.html, None);
    assert!(deliver::check_target(&HtmlTarget::Asked(nowhere)).is_err());
    assert!(deliver::check_target(&HtmlTarget::Asked(scratch(""))).is_err());
    assert!(deliver::check_target(&HtmlTarget::Asked("".into())).is_err());
    assert!(deliver::check_target(&HtmlTarget::Asked("x.html".into())).is_ok());
}

#[test]
fn the_summary_names_both_costs_and_what_came_back() {
    let summary = demo::report().summary().join("\n");
    assert!(summary.contains("16,384 frames came back once a proof was there, 5 frames stay withdrawn"), "{summary}");
    assert!(summary.contains("1.3 ns") && summary.contains("562 µs") && summary.contains("430,000 times"), "{summary}");
}
