//! `pageless-bench`: the standalone comparison.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use pageless_bench::args::Args;
use pageless_bench::bench::Scale;
use pageless_bench::{html, question, table};

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
    if cfg!(debug_assertions) {
        eprintln!("built without --release: no figure below means anything");
    }
    let scale = if args.quick { Scale::QUICK } else { Scale::FULL };
    let report = pageless_bench::run(scale, args.filter.as_deref(), true)?;
    println!("{}", table::text(&report));
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, json).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    if let Some(path) = &args.html {
        std::fs::write(path, html::page(&report)).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(())
}
