//! `pageless-bench`: the standalone comparison.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use pageless_bench::args::Args;
use pageless_bench::bench::Scale;
use pageless_bench::{html, markdown, question, table};

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(word) = args.filter.as_deref().filter(|word| question::selected(Some(word)) == 0) {
        let names: Vec<&str> = question::QUESTIONS.iter().map(|question| question.name).collect();
        eprintln!("no key or question has \"{word}\" in its name; the questions are: {}", names.join(", "));
        return ExitCode::from(2);
    }
    match compare(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the comparison ended early: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn compare(args: &Args) -> anyhow::Result<()> {
    let start = Instant::now();
    // Opened first: minutes later it would be late to hear that a file cannot be written.
    let json = args.json.as_deref().map(create).transpose()?;
    let html = args.html.as_deref().map(create).transpose()?;
    let markdown = args.markdown.as_deref().map(create).transpose()?;
    if cfg!(debug_assertions) {
        eprintln!("built without --release: no figure below means anything");
    }
    let scale = if args.quick { Scale::QUICK } else { Scale::FULL };
    let report = pageless_bench::run(scale, args.filter.as_deref(), true)?;
    println!("{}", table::text(&report));
    if let Some(file) = json {
        file.write(&serde_json::to_string_pretty(&report)?)?;
    }
    if let Some(file) = html {
        file.write(&html::page(&report))?;
    }
    if let Some(file) = markdown {
        file.write(&markdown::text(&report))?;
    }
    println!("took {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// A file to write to in the end.
struct Target<'a> {
    file: File,
    path: &'a Path,
}

fn create(path: &Path) -> anyhow::Result<Target<'_>> {
    let file = File::create(path).with_context(|| format!("{} cannot be written", path.display()))?;
    Ok(Target { file, path })
}

impl Target<'_> {
    fn write(mut self, text: &str) -> anyhow::Result<()> {
        self.file.write_all(text.as_bytes()).with_context(|| format!("{} could not be written", self.path.display()))
    }
}
