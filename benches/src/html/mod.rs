//! The page: one file that needs no other, with the contests as plots and the bars of the design as a table.
//!
//! It is well-formed XML too, so that a test can read it with a strict parser.

mod plot;

use std::fmt::{self, Write};

use crate::bar::Standing;
use crate::report::{Report, Row};
use crate::table::{bar, value};

/// The whole page.
#[must_use]
pub fn page(report: &Report) -> String {
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta name=\"color-scheme\" content=\"light dark\"/>\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>\n\
         <title>pageless and its rivals</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n",
        include_str!("page.css")
    );
    masthead(report, &mut html);
    bars(report, &mut html);
    lost(report, &mut html);
    plot::sections(report, &mut html);
    html.push_str("</main>\n</body>\n</html>\n");
    html
}

fn masthead(report: &Report, html: &mut String) {
    let _ = write!(
        html,
        "<header>\n<h1>pageless and its rivals, measured in one run</h1>\n<p class=\"soft\">commit {}; {}</p>\n\
         <p class=\"soft\">The machine's floor in this run: {}.</p>\n</header>\n",
        esc(&report.commit),
        esc(&report.machine),
        esc(&report.floor.text())
    );
}

/// The lines of the design that were measured, each with its bar.
fn bars(report: &Report, html: &mut String) {
    let ours: Vec<(&Row, Standing)> =
        report.rows.iter().filter_map(|row| report.standing(row).map(|standing| (row, standing))).collect();
    if ours.is_empty() {
        return;
    }
    let met = ours.iter().filter(|(_, standing)| *standing == Standing::Met).count();
    let _ = write!(
        html,
        "<section>\n<h2>The numbers to reach: {met} of {} met</h2>\n<div class=\"scroll\"><table>\n<thead><tr><th>key</th>\
         <th>what</th><th>median</th><th>min to max</th><th>x RMW</th><th>bar</th></tr></thead>\n<tbody>\n",
        ours.len()
    );
    for (row, standing) in ours {
        let class = if standing == Standing::Missed { "bad" } else { "good" };
        let _ = writeln!(
            html,
            "<tr><td>{}</td><td>{}, {}</td><td class=\"n\">{}</td><td class=\"n\">{} to {}</td><td class=\"n\">{}</td>\
             <td class=\"{class}\">{}</td></tr>",
            esc(row.key.unwrap_or("")),
            esc(&row.operation),
            esc(&row.state),
            esc(&value(row, row.median)),
            esc(&value(row, row.min)),
            esc(&value(row, row.max)),
            row.per_rmw.map_or_else(String::new, crate::figures::digits),
            esc(&bar(report, row))
        );
    }
    html.push_str("</tbody>\n</table></div>\n</section>\n");
}

/// Where a rival wins.
fn lost(report: &Report, html: &mut String) {
    html.push_str("<section>\n<h2>Where a rival wins</h2>\n");
    let lost = report.lost();
    if lost.is_empty() {
        html.push_str("<p>Nowhere in this run.</p>\n</section>\n");
        return;
    }
    html.push_str("<ul>\n");
    for (ours, theirs) in lost {
        let _ = writeln!(
            html,
            "<li>{}, {}: <b>{}</b> {}, pageless {}</li>",
            esc(&ours.operation),
            esc(&ours.state),
            esc(&theirs.contender),
            esc(&value(theirs, theirs.median)),
            esc(&value(ours, ours.median))
        );
    }
    html.push_str("</ul>\n</section>\n");
}

/// `text` so that it can stand between tags and within double quotes.
fn esc(text: &str) -> Escaped<'_> {
    Escaped(text)
}

struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            c if c.is_control() => f.write_char('\u{fffd}'),
            c => f.write_char(c),
        })
    }
}
