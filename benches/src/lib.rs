//! The benchmarks of pageless: the standalone comparison with its rivals, and the workloads that other benchmarks share.
//!
//! A [`Contest`](contest::Contest) is one question with all its contenders; [`Bench`] runs contests,
//! interleaved; [`question`] has them all, in order; [`Report`] keeps what was seen, and `table`, `html`,
//! `markdown` and its JSON show it.
#![deny(unsafe_code)] // Allowed where a module says why.

pub mod args;
pub mod bar;
pub mod bench;
pub mod calm;
pub mod contest;
pub mod counting;
pub mod dice;
pub mod figures;
pub mod floor;
pub mod guest;
pub mod html;
pub mod machine;
pub mod markdown;
pub mod question;
pub mod report;
pub mod rival;
pub mod table;

use bench::{Bench, Scale};
use floor::Floor;
use report::Report;

/// Asks all that a filter selects. `show` draws a progress bar on stderr.
pub fn run(scale: Scale, filter: Option<&str>, show: bool) -> anyhow::Result<Report> {
    let mut floor = Floor::measure(scale.chase_bytes, scale.reps.max(3));
    let mut bench = Bench::new(scale, filter, question::selected(filter), show);
    question::ask_all(&mut bench)?;
    bench.finish();
    // A run that only counts bytes takes no sample beside a contest.
    for _ in 0..5 {
        bench.samples.take_rmw();
        bench.samples.take_load();
    }
    floor.settle(bench.samples);
    let (all, put_aside) = bench.repetitions;
    let machine = format!("{}, {put_aside} of {all} repetitions put aside for a neighbour on the core", machine::machine());
    let mut report = Report { commit: machine::commit(), machine, floor, rows: bench.rows };
    report.settle();
    Ok(report)
}
