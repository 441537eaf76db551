//! A frame number is not just a number, and a range of frames not just two of them.

use pageless::{Pfn, PfnRange};

fn of_a_number(number: u64) -> PfnRange {
    PfnRange::single(number)
}

fn of_numbers(start: u64, end: u64) -> PfnRange {
    (start..end).into()
}

fn in_bytes(pfn: Pfn) -> u64 {
    pfn * 4096
}

fn main() {}
