//! What the memory is made of: one answer for each name, or why this host has none.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use pageless_host::PageSize;
use pageless_hugepages::{Borrowed, Setting};

/// Every backing there is, by the name that `--backing` takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Ground {
    /// memfd with 4 KiB pages.
    Memfd,
    /// memfd with transparent huge pages.
    MemfdThp,
    /// hugetlb pages of 2 MiB.
    #[value(name = "hugetlb-2m")]
    Hugetlb2M,
    /// hugetlb pages of 1 GiB.
    #[value(name = "hugetlb-1g")]
    Hugetlb1G,
    /// A plain file.
    File,
    /// The memory of one KVM virtual machine.
    GuestMemfd,
}

impl Ground {
    pub(crate) const ALL: [Self; 6] =
        [Self::Memfd, Self::MemfdThp, Self::Hugetlb2M, Self::Hugetlb1G, Self::File, Self::GuestMemfd];

    pub(crate) fn page(self) -> PageSize {
        match self {
            Self::Hugetlb2M => PageSize::Huge2M,
            Self::Hugetlb1G => PageSize::Huge1G,
            Self::Memfd | Self::MemfdThp | Self::File | Self::GuestMemfd => PageSize::Base4K,
        }
    }

    /// Whether a seal can be asked for: then a pin is seen when shared memory becomes private.
    pub(crate) fn takes_seals(self) -> bool {
        !matches!(self, Self::File | Self::GuestMemfd)
    }
}

impl fmt::Display for Ground {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        clap::ValueEnum::to_possible_value(self).map_or(Ok(()), |value| f.write_str(value.get_name()))
    }
}

/// What this host lends for the length of a run, and gets back even when this process is killed.
pub(crate) enum Loan {
    /// Nothing had to be asked for.
    Nothing,
    /// Huge pages, added to the host's pool.
    Pages { _pages: Borrowed },
    /// Memfds that ask get transparent huge pages.
    Transparent { _setting: Setting },
}

/// Makes sure that `bytes` of this page size are free, as root by adding pages.
pub(crate) fn huge_pages(page: PageSize, bytes: u64) -> Result<Loan> {
    Ok(Loan::Pages { _pages: Borrowed::pages(page.bytes(), bytes.div_ceil(page.bytes()))? })
}

/// Lets memfds that ask have transparent huge pages.
pub(crate) fn transparent_huge_pages() -> Result<Loan> {
    const FILE: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    let now = fs::read_to_string(FILE).context("this kernel has no transparent huge pages for memfds")?;
    let chosen = now.split(['[', ']']).nth(1).unwrap_or_default();
    if matches!(chosen, "always" | "within_size" | "advise" | "force") {
        return Ok(Loan::Nothing);
    }
    Ok(Loan::Transparent { _setting: Setting::choose(Path::new(FILE), "advise")? })
}
