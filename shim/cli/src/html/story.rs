//! The story's chapters and the list of withdrawn frames.

use std::fmt::Write;

use super::markup::esc;
use crate::figures;
use crate::report::{Outcome, TourReport};
use pageless::FRAME_BYTES;

/// The chapters, as they were told.
pub(super) fn section(report: &TourReport, html: &mut String) {
    if report.steps.is_empty() {
        return;
    }
    html.push_str("<section id=\"story\">\n<h2>What happened</h2>\n<ol class=\"story\">\n");
    for step in &report.steps {
        let _ = writeln!(html, "<li>\n<h3>{}</h3>", esc(&step.title));
        for line in &step.lines {
            let _ = writeln!(html, "<p>{}</p>", esc(line));
        }
        outcomes(&step.outcomes, html);
        html.push_str("</li>\n");
    }
    html.push_str("</ol>\n</section>\n");
}

/// What the VMM was told, as a table that becomes a stack of cards on a phone.
fn outcomes(outcomes: &[Outcome], html: &mut String) {
    if outcomes.is_empty() {
        return;
    }
    html.push_str(
        "<table class=\"cards\">\n<thead><tr><th>situation</th><th>the VMM sees</th><th>errno</th><th>the VMM does</th></tr></thead>\n<tbody>\n",
    );
    for outcome in outcomes {
        let class = match outcome.errno.as_str() {
            "0" => "ok",
            "EAGAIN" | "EBUSY" => "wait",
            _ => "stop",
        };
        let _ = writeln!(
            html,
            "<tr><td data-th=\"situation\">{}</td><td data-th=\"the VMM sees\"><code>{}</code></td>\
             <td data-th=\"errno\"><span class=\"errno {class}\">{}</span></td><td data-th=\"the VMM does\">{}</td></tr>",
            esc(&outcome.situation),
            esc(&outcome.vmm_sees),
            esc(&outcome.errno),
            esc(&outcome.vmm_does)
        );
    }
    html.push_str("</tbody>\n</table>\n");
}

/// Every run that was withdrawn, with its cause and what became of it.
pub(super) fn withdrawals(report: &TourReport, html: &mut String) {
    if report.withdrawn.is_empty() {
        return;
    }
    html.push_str(
        "<section id=\"withdrawn\">\n<h2>Every frame that was withdrawn, and why</h2>\n<table class=\"cards\">\n\
         <thead><tr><th>frames</th><th>state</th><th>cause</th><th>origin</th><th>in the end</th></tr></thead>\n<tbody>\n",
    );
    for run in &report.withdrawn {
        let owner = if run.owner.is_empty() { "nobody's".to_owned() } else { format!("of {}", run.owner) };
        let size = figures::bytes(run.frames.saturating_mul(FRAME_BYTES));
        let _ = writeln!(
            html,
            "<tr><td data-th=\"frames\"><code>pfn:{:#x}</code><small>{}, {size}</small><small>{}</small></td>\
             <td data-th=\"state\"><span class=\"state\"><i class=\"swatch k-{state}\"></i>{state}</span></td>\
             <td data-th=\"cause\"><code class=\"cause\">{}</code></td><td data-th=\"origin\">{}</td><td data-th=\"in the end\">{}</td></tr>",
            run.pfn,
            figures::counted(run.frames, "frame"),
            esc(&owner),
            esc(&run.cause),
            run.origin.name(),
            if run.came_back { "came back by proof" } else { "never handed out again" },
            state = run.state.name(),
        );
    }
    html.push_str("</tbody>\n</table>\n</section>\n");
}
