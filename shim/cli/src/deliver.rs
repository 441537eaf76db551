//! The end of the tour: the map, the summary, the page and the JSON.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail};

use crate::args::{HtmlTarget, TourSettings, Voice};
use crate::html;
use crate::map;
use crate::narrate::{Narrator, wrap};
use crate::report::TourReport;

/// Refuses early to write the page where it cannot be: nobody wants to hear it after the tour. Nothing is created.
pub fn check_target(target: &HtmlTarget) -> anyhow::Result<()> {
    let HtmlTarget::Asked(file) = target else { return Ok(()) };
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if file.as_os_str().is_empty() || file.is_dir() {
        bail!("--html needs the name of a file, and '{}' is none", file.display());
    }
    if !folder.is_dir() {
        bail!("--html {}: there is no folder {}", file.display(), folder.display());
    }
    Ok(())
}

/// Prints the map and the summary, writes the page and prints the JSON, as the settings want it.
pub fn deliver(report: &mut TourReport, settings: &TourSettings, mut narrator: Narrator) -> anyhow::Result<()> {
    report.steps = narrator.steps().to_vec();
    if let Some(last) = report.snapshots.last() {
        narrator.show("");
        narrator.show(&map::render(&last.map, narrator.paint(), narrator.columns()));
    }
    let verdict = report.headline();
    narrator.show(&if report.holds() { narrator.paint().good(&verdict) } else { narrator.paint().bad(&verdict) });
    for sentence in report.summary() {
        narrator.show(&wrap(&sentence, narrator.columns(), "   ").replacen("   ", " - ", 1));
    }
    match &settings.html {
        HtmlTarget::Off => {}
        HtmlTarget::Asked(file) => write_page(report, file)?,
        HtmlTarget::Usual(file) => {
            if let Err(error) = write_page(report, file) {
                eprintln!("pageless: no page: {error:#} (--html FILE writes it elsewhere, --no-html not at all)");
            }
        }
    }
    if let Some(file) = &report.html {
        narrator.show(&format!("\nThe same as a page, with pictures: {file}"));
    }
    narrator.finish().context("standard output")?;
    if settings.voice == Voice::Json { print_json(report) } else { Ok(()) }
}

/// Writes the page, and notes in the report where.
fn write_page(report: &mut TourReport, file: &Path) -> anyhow::Result<()> {
    report.html = Some(file.display().to_string());
    let written = std::fs::write(file, html::page(report)).with_context(|| format!("cannot write {}", file.display()));
    if written.is_err() {
        report.html = None;
    }
    written
}

/// Prints the one object.
fn print_json(report: &TourReport) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(report).context("cannot put the report into JSON")?;
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("standard output"),
        _ => Ok(()),
    }
}
