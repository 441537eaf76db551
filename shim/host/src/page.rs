//! The page sizes that Linux can put behind a memfd, and how many pages of each this host has now.

use std::fmt;
use std::fs;
use std::path::PathBuf;

use nix::sys::memfd::MFdFlags;
use pageless::Order;

use crate::capacity;

/// The size of the kernel's pages behind the frames: how much one page-table entry of this process maps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum PageSize {
    /// 4 KiB pages of an ordinary memfd, filled when first touched. Needs no privilege and no reservation.
    #[default]
    Base4K,
    /// 2 MiB pages from the host's hugetlb pool.
    Huge2M,
    /// 1 GiB pages from the host's hugetlb pool.
    Huge1G,
}

impl PageSize {
    /// All sizes, largest first.
    pub const DESCENDING: [Self; 3] = [Self::Huge1G, Self::Huge2M, Self::Base4K];

    /// Length of one page in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.order().bytes()
    }

    /// The same size as an order of frames.
    #[must_use]
    pub const fn order(self) -> Order {
        match self {
            Self::Base4K => Order::BASE,
            Self::Huge2M => Order::MIB2,
            Self::Huge1G => Order::GIB1,
        }
    }

    /// Whether the pages come from the host's hugetlb pool.
    #[must_use]
    pub const fn is_huge(self) -> bool {
        !matches!(self, Self::Base4K)
    }

    pub(crate) const fn memfd_flags(self) -> MFdFlags {
        match self {
            Self::Base4K => MFdFlags::empty(),
            Self::Huge2M => MFdFlags::MFD_HUGETLB.union(MFdFlags::MFD_HUGE_2MB),
            Self::Huge1G => MFdFlags::MFD_HUGETLB.union(MFdFlags::MFD_HUGE_1GB),
        }
    }

    fn directory(self) -> PathBuf {
        PathBuf::from(format!("/sys/kernel/mm/hugepages/hugepages-{}kB", self.bytes() / 1024))
    }

    /// Free huge pages of one NUMA node, promised ones among them; nothing where the kernel does not tell.
    pub(crate) fn free_on(self, node: u32) -> Option<u64> {
        let folder = format!("/sys/devices/system/node/node{node}/hugepages/hugepages-{}kB", self.bytes() / 1024);
        fs::read_to_string(format!("{folder}/free_hugepages")).ok()?.trim().parse().ok()
    }

    /// The file that the host's administrator writes a number of pages to, or nothing for 4 KiB pages.
    #[must_use]
    pub fn reservation_file(self) -> Option<PathBuf> {
        self.is_huge().then(|| self.directory().join("nr_hugepages"))
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.order(), f)
    }
}

/// What the kernel says about its pool of huge pages of one size, in pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct HugePool {
    pub(crate) total: u64,
    pub(crate) free: u64,
    pub(crate) reserved: u64,
    pub(crate) surplus: u64,
    pub(crate) overcommit: u64,
}

impl HugePool {
    /// The pool of pages of this size, or nothing when this kernel has none.
    pub(crate) fn read(page: PageSize) -> Option<Self> {
        let directory = page.directory();
        let count = |name: &str| fs::read_to_string(directory.join(name)).ok()?.trim().parse::<u64>().ok();
        Some(Self {
            total: count("nr_hugepages")?,
            free: count("free_hugepages")?,
            reserved: count("resv_hugepages")?,
            surplus: count("surplus_hugepages").unwrap_or(0),
            overcommit: count("nr_overcommit_hugepages").unwrap_or(0),
        })
    }

    /// Pages that one more file could get: free and promised to nobody, plus what the kernel may still add on demand.
    pub(crate) const fn available(self) -> u64 {
        let on_demand = self.overcommit.saturating_sub(self.surplus);
        self.free.saturating_sub(self.reserved).saturating_add(on_demand)
    }
}

/// Whether this host can provide pages of one size at this moment. An answer for people and for choosing: only
/// [`commit`](pageless::Backing::commit) makes the pages yours.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageAvailability {
    /// The size.
    pub page: PageSize,
    /// How many bytes of such pages could be committed now; 0 when `why_not` is set.
    pub bytes: u64,
    /// Why there are none, with what to do about it.
    pub why_not: Option<String>,
}

impl fmt::Display for PageAvailability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.why_not {
            None => write!(f, "{} pages: {} MiB available", self.page, self.bytes >> 20),
            Some(why) => write!(f, "{} pages: none, {why}", self.page),
        }
    }
}

/// Asks the host which page sizes it can provide now, largest size first. Reads `/sys/kernel/mm/hugepages` and
/// `/proc/meminfo`; takes nothing.
#[must_use]
pub fn probe() -> [PageAvailability; 3] {
    PageSize::DESCENDING.map(|page| {
        let (bytes, why_not) = if page.is_huge() { probe_huge(page) } else { probe_base() };
        PageAvailability { page, bytes, why_not }
    })
}

fn probe_huge(page: PageSize) -> (u64, Option<String>) {
    let file = page.directory().join("nr_hugepages");
    let Some(pool) = HugePool::read(page) else {
        return (0, Some(format!("this kernel or processor has no such pages ({} is missing)", page.directory().display())));
    };
    if kernel_before(5, 18) {
        return (0, Some("kernels before 5.18 do not zero part of a huge page on request".to_owned()));
    }
    match pool.available() {
        0 if pool.total == 0 => (0, Some(format!("none are reserved; as root, write a number of pages to {}", file.display()))),
        0 => {
            (0, Some(format!("all {} are in use or promised; as root, write a larger number to {}", pool.total, file.display())))
        }
        pages => (pages.saturating_mul(page.bytes()), None),
    }
}

fn probe_base() -> (u64, Option<String>) {
    match capacity::host_available() {
        Some(bytes) => (bytes, None),
        None => (0, Some("/proc/meminfo does not say how much memory is available".to_owned())),
    }
}

/// Whether the running kernel is older than `major.minor`. A version nobody can read counts as older.
pub(crate) fn kernel_before(major: u32, minor: u32) -> bool {
    let Ok(name) = nix::sys::utsname::uname() else { return true };
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(have_major), Some(have_minor)) => (have_major, have_minor) < (major, minor),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promised_pages_are_not_available_but_overcommit_is() {
        let pool = HugePool { total: 10, free: 4, reserved: 3, surplus: 1, overcommit: 3 };
        assert_eq!(pool.available(), 1 + 2);
    }

    #[test]
    fn probing_answers_for_every_size_and_gives_a_reason_for_every_none() {
        for answer in probe() {
            assert_eq!(answer.bytes == 0, answer.why_not.is_some(), "{answer}");
        }
    }

    #[test]
    fn this_kernel_is_neither_older_than_linux_3_nor_newer_than_linux_1000() {
        assert!(!kernel_before(3, 0));
        assert!(kernel_before(1000, 0));
    }
}
