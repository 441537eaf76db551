//! [`Capacity`]: how much memory there is, asked of the kernel at the moment of the question.

use std::fmt;
use std::fs;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::stat::fstat;
use pageless::{PfnRange, RunSet};

use crate::PageSize;

/// Bytes of one memory. Others take and give pages at any time, so an answer is about the moment when it was given; only a
/// commit makes memory one's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capacity {
    /// All frames.
    pub bytes: u64,
    /// What the host has set aside for them now, by the kernel's own count. Nothing where the kernel does not tell.
    pub committed: Option<u64>,
    /// Pages that are kept shut because a frame in them is withdrawn: lost to the host until the marks are lifted.
    pub withdrawn: u64,
    /// How much of what is not committed could be had from the host now.
    pub available: u64,
}

impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes >> 20;
        write!(f, "{} MiB in all, ", mib(self.bytes))?;
        match self.committed {
            Some(committed) => write!(f, "{} committed, ", mib(committed))?,
            None => f.write_str("the kernel does not tell how many committed, ")?,
        }
        write!(f, "{} withdrawn, {} more to be had now", mib(self.withdrawn), mib(self.available))
    }
}

/// Bytes of the pages of `page` that have a frame of `marked` in them.
pub(crate) fn bytes_shut(marked: &RunSet, page: PageSize) -> u64 {
    let order = page.order();
    let widened = |run: &PfnRange| PfnRange::new(run.start().align_down(order), run.end().align_up(order)).unwrap_or(*run);
    marked.runs().iter().map(widened).collect::<RunSet>().frames() * pageless::FRAME_BYTES
}

/// Bytes that the kernel has set aside for `file`: its blocks (`st_blocks`, of 512 bytes each, stat(2)).
pub(crate) fn bytes_taken(file: impl AsFd) -> Result<u64, Errno> {
    Ok(u64::try_from(fstat(file)?.st_blocks).unwrap_or(0).saturating_mul(512))
}

/// Bytes of memory that the host could give without swapping: `MemAvailable` of /proc/meminfo (proc(5)). Nothing where it
/// cannot be read.
pub(crate) fn host_available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()?.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use pageless::Pfn;

    use super::*;

    #[test]
    fn a_page_is_shut_once_however_many_of_its_frames_are_withdrawn() {
        let frame = |number| PfnRange::single(Pfn::new(number));
        let marked: RunSet = [frame(1), frame(511), frame(512)].into_iter().collect();
        assert_eq!(bytes_shut(&marked, PageSize::Base4K), 3 << 12);
        assert_eq!(bytes_shut(&marked, PageSize::Huge2M), 4 << 20);
        assert_eq!(bytes_shut(&marked, PageSize::Huge1G), 1 << 30);
    }
}
