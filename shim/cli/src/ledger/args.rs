//! What may be said after `pageless ledger`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use pageless::{Pfn, PfnRange};

/// The subcommands of `pageless ledger`.
#[derive(Subcommand, Debug)]
pub enum LedgerCommand {
    /// Shows the pool, how many rows there are, and the events for all time
    Show(LedgerFile),
    /// Lists every withdrawn run: state, owner, cause, raw status, since when and in which boot
    Withdrawn(LedgerFile),
    /// Checks every page, every row and the totals; exit code 1 when something is found
    Verify(LedgerFile),
    /// Prints every row as JSON
    Export(LedgerFile),
    /// Records that the memory behind a range was replaced while the host was off, and ends its poisoned marks
    HardwareReplaced(Replaced),
}

/// Which ledger, and how to tell of it.
#[derive(Args, Debug)]
pub struct LedgerFile {
    /// The ledger's file; no pool may have it open
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// A replacement of hardware.
#[derive(Args, Debug)]
pub struct Replaced {
    /// Which ledger.
    #[command(flatten)]
    pub file: LedgerFile,
    /// The frames, as START..END in frame numbers (hexadecimal with 0x), or one frame number
    #[arg(value_name = "RANGE", required = true, value_parser = range)]
    pub frames: Vec<PfnRange>,
    /// What shows that the memory was replaced: a ticket, a serial number
    #[arg(long, value_name = "TEXT")]
    pub evidence: String,
}

/// Why a range cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("'{0}' is no range of frames; write START..END, for instance 0x28..0x2a, or one frame number")]
pub struct RangeError(String);

fn range(text: &str) -> Result<PfnRange, RangeError> {
    let wrong = || RangeError(text.to_owned());
    let number = |text: &str| {
        let text = text.trim().trim_start_matches("pfn:");
        text.strip_prefix("0x").map_or_else(|| text.parse(), |digits| u64::from_str_radix(digits, 16)).map_err(|_| wrong())
    };
    let (start, end) = match text.split_once("..") {
        Some((start, end)) => (number(start)?, number(end)?),
        None => {
            let start = number(text)?;
            (start, start.checked_add(1).ok_or_else(wrong)?)
        }
    };
    if end > Pfn::LIMIT.get() {
        return Err(wrong());
    }
    PfnRange::new(Pfn::new(start), Pfn::new(end)).map_err(|_| wrong())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_two_numbers_or_one() {
        let frames = |text| range(text).map(|range| (range.start().get(), range.end().get()));
        assert_eq!(frames("0x28..0x2a"), Ok((40, 42)));
        assert_eq!(frames("pfn:0x28..0x2a"), Ok((40, 42)));
        assert_eq!(frames("7"), Ok((7, 8)));
        for wrong in ["", "..", "5..5", "6..5", "x", "0..99999999999999", "18446744073709551615"] {
            assert!(frames(wrong).is_err(), "{wrong}");
        }
    }
}
