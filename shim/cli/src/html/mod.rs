//! The page `pageless-tour.html`: one file that needs no other, with the map and the comparison as pictures.
//!
//! It is well-formed XML too, so that a test can read it with a strict parser.

mod bars;
mod frames;
mod markup;
mod prose;
mod story;

use std::fmt::Write;

use crate::figures;
use crate::refcount;
use crate::report::TourReport;
use markup::esc;

/// The whole page.
#[must_use]
pub fn page(report: &TourReport) -> String {
    let mut html = String::with_capacity(1 << 18);
    let _ = write!(
        html,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta name=\"color-scheme\" content=\"light dark\"/>\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>\n\
         <title>pageless tour: {}, {}</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n",
        figures::bytes(report.pool_bytes),
        esc(&report.backing),
        include_str!("page.css"),
    );
    masthead(report, &mut html);
    frames::section(report, &mut html);
    bars::section(report, &mut html);
    story::section(report, &mut html);
    story::withdrawals(report, &mut html);
    small_print(report, &mut html);
    html.push_str("</main>\n</body>\n</html>\n");
    html
}

/// The verdict and the figures that matter.
fn masthead(report: &TourReport, html: &mut String) {
    let verdict = if report.holds() { "good" } else { "bad" };
    let _ = write!(
        html,
        "<header>\n<p class=\"brand\"><span class=\"logo\" aria-hidden=\"true\"><i></i><i></i><i></i><i></i></span>pageless \
         <span>tour of {} on {}</span></p>\n<h1 class=\"{verdict}\">{}</h1>\n<p class=\"lead\">{}</p>\n<ul class=\"tiles\">\n",
        figures::bytes(report.pool_bytes),
        esc(&report.backing),
        esc(&report.headline()),
        esc(prose::LEAD),
    );
    let tile = |html: &mut String, class: &str, number: &str, label: &str| {
        let _ = writeln!(html, "<li class=\"{class}\"><b>{}</b><span>{}</span></li>", esc(number), esc(label));
    };
    let level = |number: u64| if number == 0 { "good" } else { "bad" };
    let reassigned = report.reassigned_withdrawn_frames;
    tile(html, level(reassigned), &figures::count(reassigned), "withdrawn frames handed out again");
    let stale = format!("stale bytes seen in {} searched", figures::bytes(report.bytes_checked));
    tile(html, level(report.stale_bytes_seen), &figures::count(report.stale_bytes_seen), &stale);
    let frames = report.withdrawn.iter().map(|run| run.frames).sum();
    tile(html, "", &figures::count(frames), "frames withdrawn during the story");
    tile(html, "", &figures::count(report.conversions), "conversions between private and shared");
    html.push_str("</ul>\n</header>\n");
}

/// What the model leaves out, the words, and how to repeat it.
fn small_print(report: &TourReport, html: &mut String) {
    html.push_str("<section id=\"left-out\">\n<h2>What the comparison leaves out</h2>\n<ul class=\"plain\">\n");
    for sentence in refcount::LEFT_OUT {
        let _ = writeln!(html, "<li>{}</li>", esc(sentence));
    }
    html.push_str("</ul>\n</section>\n<section id=\"words\">\n<h2>The states a frame can be in</h2>\n<dl class=\"words\">\n");
    for (class, word, meaning) in prose::STATES {
        let _ = writeln!(html, "<div><dt><i class=\"swatch {class}\"></i>{word}</dt><dd>{}</dd></div>", esc(meaning));
    }
    html.push_str("</dl>\n</section>\n<footer>\n<dl>\n");
    let proof = &report.proof;
    let rows = [
        ("memory", format!("{}: {}", report.backing, report.backing_reason)),
        ("frame numbers", proof.identity.clone()),
        ("proof", format!("{}, {} at a time", proof.method, figures::bytes(proof.granule_bytes))),
        ("a proof covers", proof.covers.clone()),
        ("it does not see", proof.blind_to.clone()),
        ("kernel", report.kernel.clone()),
        ("version", report.version.clone()),
        ("took", figures::nanoseconds(std::time::Duration::from_millis(report.elapsed_ms).as_secs_f64() * 1e9)),
    ];
    for (name, value) in rows.iter().filter(|(_, value)| !value.is_empty()) {
        let _ = writeln!(html, "<dt>{name}</dt><dd>{}</dd>", esc(value));
    }
    let zeroing = if report.zeroing { "" } else { " --without-zeroing" };
    let _ = write!(
        html,
        "<dt>again</dt><dd><code>pageless tour {} --seed {}{zeroing}</code></dd>\n</dl>\n</footer>\n",
        esc(&report.ground_arguments()),
        report.seed
    );
}
