//! The comparison as bars on logarithmic scales, with the numbers written beside them.

use std::fmt::Write;

use super::markup::esc;
use crate::figures;
use crate::refcount::Cost;
use crate::report::TourReport;

/// A bar: its colour, its length, and what is written at its end.
struct Bar {
    class: &'static str,
    value: f64,
    text: String,
}

/// Somebody who is compared, with one or two bars.
struct Contender {
    name: &'static str,
    detail: String,
    bars: Vec<Bar>,
}

/// A logarithmic scale: every gridline is `base` times the one before.
struct Scale {
    base: f64,
    low: f64,
    high: f64,
}

impl Scale {
    /// A scale from the gridline below half the smallest value to the one above the largest.
    fn over(contenders: &[Contender], base: f64) -> Self {
        let values = || contenders.iter().flat_map(|contender| &contender.bars).map(|bar| bar.value.max(0.1));
        let (least, most) = (values().fold(f64::INFINITY, f64::min), values().fold(0.1, f64::max));
        let low = (least.min(most) / 2.0).log(base).floor();
        Self { base, low, high: most.log(base).ceil().max(low + 1.0) }
    }

    /// Where a value lies, in percent.
    fn place(&self, value: f64) -> f64 {
        ((value.max(0.1).log(self.base) - self.low) / (self.high - self.low) * 100.0).clamp(0.5, 100.0)
    }

    /// The gridlines' values, from the low end to the high end.
    fn lines(&self) -> impl Iterator<Item = f64> + Clone {
        let (base, low, high) = (self.base, self.low, self.high);
        std::iter::successors(Some(low), |at| Some(at + 1.0)).take_while(move |at| *at <= high + 0.5).map(move |at| base.powf(at))
    }
}

/// Time and space, side by side.
pub(super) fn section(report: &TourReport, html: &mut String) {
    let (fast, slow) = (report.check_1g_ns.pageless, report.check_1g_ns.refcount_scan);
    let _ = write!(
        html,
        "<section id=\"comparison\">\n<h2>One question, two ways to answer it</h2>\n<p>{}</p>\n<div class=\"charts\">\n",
        esc(&format!(
            "May this GiB be converted, or merged into one huge page? pageless reads what it keeps about the GiB; Linux reads one \
             reference count for each of its 262,144 frames. In this run the scan took {} times as long.",
            figures::ratio(slow, fast)
        ))
    );
    chart(
        "Time to answer for 1 GiB",
        "Shorter is better. Every gridline is ten times the one before.",
        &times(report),
        10.0,
        |ns| figures::nanoseconds(ns).replace(".0 ", " "),
        html,
    );
    html.push_str("<div class=\"aside\">\n");
    chart(
        "Metadata for the whole pool",
        "Shorter is better. Every gridline is 1,024 times the one before.",
        &sizes(report),
        1024.0,
        whole_bytes,
        html,
    );
    let comparison = &report.comparison;
    let _ = write!(
        html,
        "<p class=\"note\">{}</p>\n</div>\n</div>\n</section>\n",
        esc(&format!(
            "Medians. Hot: the same GiB again and again, {} rounds. Cold: another GiB after {} of other memory was read, {} rounds. \
             The array of struct page was real: {} for {} GiB.",
            comparison.hot_rounds,
            figures::bytes(comparison.swept_bytes),
            comparison.cold_rounds,
            figures::bytes(comparison.allocated_bytes),
            figures::count(comparison.gibs)
        ))
    );
}

/// What one answer costs each contender.
fn times(report: &TourReport) -> Vec<Contender> {
    let bars = |class: &'static str, cost: Cost| {
        let cold = if class == "ours" { "ours cold" } else { "theirs cold" };
        vec![
            Bar { class, value: cost.hot_ns, text: format!("{} hot", figures::nanoseconds(cost.hot_ns)) },
            Bar { class: cold, value: cost.cold_ns, text: format!("{} cold", figures::nanoseconds(cost.cold_ns)) },
        ]
    };
    let told = &report.comparison;
    let contender = |name, detail: &str, class, cost| Contender { name, detail: detail.to_owned(), bars: bars(class, cost) };
    vec![
        contender("pageless", "reads its record of the GiB", "ours", told.pageless),
        contender("struct page scan", "262,144 counters, 64 bytes apart", "theirs", told.refcount_scan),
        contender("packed scan", "one byte per frame; Linux has no such array", "theirs", told.packed_scan),
        contender("unsplit huge page", "one counter in its head: Linux, before any conversion", "theirs", told.unsplit_head),
    ]
}

/// What each keeps in memory.
fn sizes(report: &TourReport) -> Vec<Contender> {
    // Far below 2^53.
    #[allow(clippy::cast_precision_loss)]
    let bar = |class, bytes: u64| vec![Bar { class, value: bytes as f64, text: figures::bytes(bytes) }];
    vec![
        Contender {
            name: "pageless",
            detail: "everything it keeps, at the end".to_owned(),
            bars: bar("ours", report.metadata_bytes),
        },
        Contender {
            name: "struct page",
            detail: "64 bytes for each frame (computed)".to_owned(),
            bars: bar("theirs", report.struct_page_bytes),
        },
    ]
}

/// A gridline's size; gridlines are powers of 1,024 and never negative.
fn whole_bytes(bytes: f64) -> String {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let bytes = bytes.round() as u64;
    figures::bytes(bytes)
}

/// One chart.
fn chart(title: &str, hint: &str, contenders: &[Contender], base: f64, label: fn(f64) -> String, html: &mut String) {
    let scale = Scale::over(contenders, base);
    let _ = write!(html, "<figure class=\"chart\">\n<figcaption><b>{}</b><span>{}</span></figcaption>\n", esc(title), esc(hint));
    let mut grid = String::new();
    for value in scale.lines() {
        let x = scale.place(value);
        let _ = write!(grid, "<line x1=\"{x:.2}\" x2=\"{x:.2}\" y1=\"0\" y2=\"10\"/>");
    }
    for contender in contenders {
        let _ = write!(
            html,
            "<div class=\"contender\">\n<p><b>{}</b><span>{}</span></p>\n<div class=\"bars\">\n",
            contender.name,
            esc(&contender.detail)
        );
        for bar in &contender.bars {
            let x = scale.place(bar.value);
            let side = if x > 62.0 { "inside" } else { "outside" };
            let at = if x > 62.0 { format!("right:{:.2}%", 100.0 - x) } else { format!("left:{x:.2}%") };
            let _ = writeln!(
                html,
                "<div class=\"bar\"><svg viewBox=\"0 0 100 10\" preserveAspectRatio=\"none\" aria-hidden=\"true\"><g class=\"grid\">{grid}</g>\
                 <rect class=\"{}\" x=\"0\" y=\"0\" width=\"{x:.2}\" height=\"10\"/></svg><b class=\"{side}\" style=\"{at}\">{}</b></div>",
                bar.class,
                esc(&bar.text)
            );
        }
        html.push_str("</div>\n</div>\n");
    }
    html.push_str("<div class=\"axis\" aria-hidden=\"true\">");
    for (index, value) in scale.lines().enumerate() {
        let thin = if index % 2 == 1 { " class=\"odd\"" } else { "" };
        let _ = write!(html, "<span{thin} style=\"left:{:.2}%\">{}</span>", scale.place(value), esc(&label(value)));
    }
    html.push_str("</div>\n</figure>\n");
}
