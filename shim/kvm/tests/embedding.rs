//! The example in docs/EMBEDDING.md is the one at the top of the crate, which is compiled and run.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::fs;
use std::path::Path;

#[test]
fn the_page_shows_the_code_that_is_run() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("../../docs/EMBEDDING.md")).unwrap();
    let (_, from) = page.split_once("<!-- kvm -->\n```rust\n").unwrap();
    let (shown, _) = from.split_once("```\n<!-- /kvm -->").unwrap();
    let source = fs::read_to_string(root.join("src/lib.rs")).unwrap();
    let (_, from) = source.split_once("//! ```\n").unwrap();
    let (example, _) = from.split_once("//! ```\n").unwrap();
    let visible = |line: &&str| !line.starts_with("# ");
    let lines = example.lines().map(|line| line.trim_start_matches("//!").strip_prefix(' ').unwrap_or_default());
    let run: Vec<&str> = lines.filter(visible).collect();
    assert_eq!(shown.lines().collect::<Vec<_>>(), run);
}
