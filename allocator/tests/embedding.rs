//! The embedding example runs, every value in it is asserted, and README.md shows exactly its marked part.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

#[path = "../examples/embedding.rs"]
mod example;

/// What stands between two markers, without the indentation that all its lines have.
fn between(text: &str, from: &str, to: &str) -> String {
    let start = text.find(from).unwrap_or_else(|| panic!("{from} is missing")) + from.len();
    let inner = &text[start..start + text[start..].find(to).unwrap_or_else(|| panic!("{to} is missing"))];
    let lines: Vec<&str> = inner.trim_matches('\n').trim_end().lines().collect();
    let indented = |line: &&&str| !line.trim().is_empty();
    let depth = lines.iter().filter(indented).map(|line| line.len() - line.trim_start().len()).min().unwrap_or(0);
    lines.iter().map(|line| line.get(depth..).unwrap_or("")).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_example_meets_every_answer_with_the_values_it_names() {
    example::main().unwrap();
}

#[test]
fn the_readme_shows_the_example_as_it_is() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let Ok(readme) = std::fs::read_to_string(format!("{root}/README.md")) else { return };
    let example = std::fs::read_to_string(format!("{root}/allocator/examples/embedding.rs")).unwrap();
    let shown = between(&readme, "<!-- embedding -->\n```rust\n", "```\n<!-- /embedding -->");
    assert_eq!(shown, between(&example, "// <embedding>\n", "// </embedding>"));
}
