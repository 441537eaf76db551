//! The map of the pool as rows of rectangles, and single 2 MiB blocks magnified until their frames can be counted.

use std::fmt::Write;

use super::markup::esc;
use crate::figures;
use crate::map::{CellKind, Look, PoolMap, Stretch};
use crate::report::{Snapshot, TourReport};
use pageless::{FRAME_BYTES, Order, Pfn, PfnRange};

/// Stretches in a row: 2 MiB each where a row is 1 GiB.
const MARKS: u64 = 512;
/// Blocks that are magnified at most.
const MAGNIFIED: usize = 4;
/// Frames in a row of a magnified block.
const LENS_ROW: u64 = 32;

/// All snapshots behind tabs, and the magnified blocks of the last.
pub(super) fn section(report: &TourReport, html: &mut String) {
    let Some(last) = report.snapshots.last() else { return };
    html.push_str("<section id=\"map\">\n<h2>Every frame of the pool</h2>\n<div class=\"tabs\">\n");
    let shown = report.snapshots.len();
    for (index, snapshot) in report.snapshots.iter().enumerate() {
        let checked = if index + 1 == shown { " checked=\"checked\"" } else { "" };
        let _ = writeln!(
            html,
            "<input type=\"radio\" name=\"moment\" id=\"moment{index}\"{checked}/><label for=\"moment{index}\">{}</label>",
            esc(&snapshot.title)
        );
        picture(snapshot, html);
    }
    html.push_str("</div>\n");
    lenses(&last.map, html);
    html.push_str("</section>\n");
}

/// The class that colours a kind; guests take turns through four pairs of colours.
fn class(kind: CellKind) -> String {
    match kind {
        CellKind::Private { guest } => format!("k-p{}", guest % 4),
        CellKind::Shared { guest } => format!("k-s{}", guest % 4),
        kind => format!("k-{}", kind.name()),
    }
}

fn look_class(look: Look) -> String {
    match look {
        Look::Of(kind) => class(kind),
        Look::Blend { guest, quarters } => format!("k-m{}{quarters}", guest % 4),
    }
}

/// One map with its rows, axis and legend.
fn picture(snapshot: &Snapshot, html: &mut String) {
    let map = &snapshot.map;
    let row = map.row_frames();
    let step = (row / MARKS).max(1);
    let stretches: Vec<Stretch> = map.stretches(step).collect();
    let _ = write!(html, "<figure class=\"map\">\n<figcaption>{}</figcaption>\n", esc(&snapshot.caption));
    for (index, marks) in stretches.chunks(usize::try_from(MARKS).unwrap_or(512)).enumerate() {
        let offset = if index == 0 { "0".to_owned() } else { figures::bytes(index as u64 * row * FRAME_BYTES) };
        let _ = write!(html, "<div class=\"row\"><span>{offset}</span><div class=\"strip\">");
        strip(map, &merged(map, marks), step, html);
        html.push_str("</div></div>\n");
    }
    html.push_str("<div class=\"row axis\" aria-hidden=\"true\"><span></span><div class=\"strip\">");
    for quarter in 0..=4_u64 {
        let mark = if quarter == 0 { "0".to_owned() } else { format!("+{}", figures::bytes(row / 4 * quarter * FRAME_BYTES)) };
        let _ = write!(html, "<span style=\"left:{}%\">{mark}</span>", quarter * 25);
    }
    html.push_str("</div></div>\n");
    legend(map, &stretches, html);
    html.push_str("</figure>\n");
}

/// Neighbouring stretches that look the same and have the same to say become one.
fn merged(map: &PoolMap, stretches: &[Stretch]) -> Vec<(Look, Stretch)> {
    let mut runs: Vec<(Look, Stretch)> = Vec::new();
    for stretch in stretches {
        let look = stretch.look();
        match runs.last_mut() {
            Some((last, run)) if *last == look && note(map, look, run.frames) == note(map, look, stretch.frames) => {
                run.frames = run.frames.hull(stretch.frames);
                for &(kind, frames) in &stretch.parts {
                    match run.parts.iter_mut().find(|(known, _)| *known == kind) {
                        Some((_, sum)) => *sum += frames,
                        None => run.parts.push((kind, frames)),
                    }
                }
            }
            _ => runs.push((look, stretch.clone())),
        }
    }
    runs
}

/// What the map has to say about the frames that give a stretch its look.
fn note(map: &PoolMap, look: Look, frames: PfnRange) -> &str {
    let Look::Of(kind) = look else { return "" };
    let told = map.within(frames).find(|(_, cell)| cell.kind == kind && !cell.note.is_empty());
    told.map_or("", |(_, cell)| cell.note.as_str())
}

/// The rectangles of one row, with a pin on every withdrawn run that is too narrow to be seen.
fn strip(map: &PoolMap, runs: &[(Look, Stretch)], step: u64, html: &mut String) {
    let Some(origin) = runs.first().map(|(_, run)| run.frames.start()) else { return };
    let mut pins = String::new();
    let _ = write!(html, "<svg viewBox=\"0 0 {MARKS} 10\" preserveAspectRatio=\"none\">");
    for (look, run) in runs {
        let (x, width) = ((run.frames.start().get() - origin.get()) / step, run.frames.frames().div_ceil(step));
        let title = title(map, *look, run);
        let _ = write!(
            html,
            "<rect class=\"{}\" x=\"{x}\" y=\"0\" width=\"{width}\" height=\"10\"><title>{}</title></rect>",
            look_class(*look),
            esc(&title)
        );
        if let Look::Of(kind) = look
            && kind.is_withdrawn()
            && width < MARKS / 32
        {
            // Both are at most 512.
            #[allow(clippy::cast_precision_loss)]
            let left = (x as f64 + width as f64 / 2.0) / MARKS as f64 * 100.0;
            let _ = write!(pins, "<i class=\"pin {}\" style=\"left:{left:.2}%\" title=\"{}\"></i>", class(*kind), esc(&title));
        }
    }
    html.push_str("</svg>");
    html.push_str(&pins);
}

/// What one reads on hovering: range, states with their owners, cause.
fn title(map: &PoolMap, look: Look, run: &Stretch) -> String {
    let mut text = format!("{}, {}", run.frames, figures::bytes(run.frames.bytes()));
    let alone = run.parts.len() == 1;
    for &(kind, frames) in run.parts.iter().rev() {
        let amount = if alone { String::new() } else { format!(": {}", figures::counted(frames, "frame")) };
        let _ = write!(text, "\n{}{amount}", map.describe(kind));
    }
    let note = note(map, look, run.frames);
    if !note.is_empty() {
        let _ = write!(text, "\n{note}");
    }
    text
}

/// What the colours mean and how much there is of each.
fn legend(map: &PoolMap, stretches: &[Stretch], html: &mut String) {
    html.push_str("<ul class=\"legend\">\n");
    for (kind, frames) in map.totals() {
        let _ = writeln!(
            html,
            "<li><i class=\"swatch {}\"></i>{} <span>{}</span></li>",
            class(kind),
            esc(&map.describe(kind)),
            figures::bytes(frames * FRAME_BYTES)
        );
    }
    let blend = stretches.iter().find_map(|stretch| match stretch.look() {
        Look::Blend { guest, .. } => Some(guest % 4),
        Look::Of(_) => None,
    });
    if let Some(guest) = blend {
        let _ = writeln!(
            html,
            "<li><i class=\"swatch k-m{guest}1\"></i><i class=\"swatch k-m{guest}2\"></i><i class=\"swatch k-m{guest}3\"></i>\
             private with some frames shared</li>"
        );
    }
    html.push_str("</ul>\n");
}

/// The 2 MiB blocks that hold withdrawn frames beside others, magnified.
fn lenses(map: &PoolMap, html: &mut String) {
    let mut blocks: Vec<PfnRange> = Vec::new();
    for cell in map.cells().iter().filter(|cell| cell.kind.is_withdrawn()) {
        for edge in [cell.frames.start(), Pfn::new(cell.frames.end().get() - 1)] {
            let Some(block) = PfnRange::block(edge, Order::MIB2).intersect(map.frames()) else { continue };
            let mixed = map.within(block).any(|(_, cell)| !cell.kind.is_withdrawn());
            if mixed && !blocks.contains(&block) {
                blocks.push(block);
            }
        }
    }
    if blocks.is_empty() {
        return;
    }
    html.push_str("<h3>Seen from close: only what was not proven is lost</h3>\n<div class=\"lenses\">\n");
    for block in blocks.iter().take(MAGNIFIED) {
        lens(map, *block, html);
    }
    html.push_str("</div>\n");
    if let Some(more) = blocks.len().checked_sub(MAGNIFIED).filter(|more| *more > 0) {
        let _ = writeln!(html, "<p class=\"note\">And {} like these.</p>", figures::counted(more as u64, "block"));
    }
}

/// One block, a square for each frame.
fn lens(map: &PoolMap, block: PfnRange, html: &mut String) {
    let rows = block.frames().div_ceil(LENS_ROW);
    let _ = write!(html, "<figure class=\"lens\">\n<svg viewBox=\"0 0 {LENS_ROW} {rows}\" role=\"img\" aria-label=\"{block}\">");
    for index in 0..rows {
        let Some(row) = block.sub(index * LENS_ROW, LENS_ROW.min(block.frames() - index * LENS_ROW)) else { continue };
        for (part, cell) in map.within(row) {
            let x = part.start().get() - row.start().get();
            let title = format!("{part}\n{}\n{}", map.describe(cell.kind), cell.note);
            let _ = write!(
                html,
                "<rect class=\"{}\" x=\"{x}\" y=\"{index}\" width=\"{}\" height=\"1\"><title>{}</title></rect>",
                class(cell.kind),
                part.frames(),
                esc(title.trim_end())
            );
        }
    }
    let mut lines = String::new();
    for x in 0..=LENS_ROW {
        let _ = write!(lines, "M{x} 0V{rows}");
    }
    for y in 0..=rows {
        let _ = write!(lines, "M0 {y}H{LENS_ROW}");
    }
    let _ = writeln!(html, "<path class=\"mesh\" d=\"{lines}\"/></svg>");
    let sum = |window: PfnRange, wanted: fn(CellKind) -> bool| -> u64 {
        map.within(window).filter(|(_, cell)| wanted(cell.kind)).map(|(part, _)| part.frames()).sum()
    };
    let withdrawn = |window: PfnRange| sum(window, CellKind::is_withdrawn);
    let waiting = match sum(block, |kind| kind == CellKind::Released) {
        0 => String::new(),
        frames => format!(" {} beside them wait: this memory proves them only together.", figures::count(frames)),
    };
    let gib = PfnRange::block(block.start(), Order::GIB1).intersect(map.frames()).unwrap_or(block);
    let _ = write!(
        html,
        "<figcaption><code>{block}</code> {}</figcaption>\n</figure>\n",
        esc(&format!(
            "{} of its {} are withdrawn; in its whole GiB, {} of {} are.{waiting}",
            figures::count(withdrawn(block)),
            figures::counted(block.frames(), "frame"),
            figures::count(withdrawn(gib)),
            figures::count(gib.frames())
        ))
    );
}
