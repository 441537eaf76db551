//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// Compares pageless with its rivals: every question in one run, contenders interleaved, beside the machine's own floor.
#[derive(Parser, Clone, Debug)]
#[command(name = "pageless-bench", version)]
pub struct Args {
    /// Fewer repetitions and smaller rivals: within two minutes on two cores
    #[arg(long)]
    pub quick: bool,
    /// Writes what was seen to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Writes a page with plots to this file, which needs no other
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Writes the tables of docs/BENCHMARKS.md to this file
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
    /// Asks only what has this word in its key or name
    #[arg(long, value_name = "WORD")]
    pub filter: Option<String>,
}
