//! Huge pages borrowed from the host for the length of a test. They are given back when the test ends, panics, or is killed.
//!
//! A killed process gives nothing back, so somebody else has to: every loan is made by a guardian, a small shell process in a
//! session of its own (`guardian.sh`). It waits for the end of a pipe whose other end only the borrower has, and then takes
//! the pages back. A page that a dying process still uses goes when that process is gone: the kernel counts it as surplus
//! until then.
//!
//! Borrowers share: each adds its own pages to the pool and takes as many away, so that any number of them, nested or in
//! other processes, ends with the count that was there before. (Somebody who writes down a count meanwhile and writes it back
//! later brings back what was borrowed then.) Where pages cannot be added, for lack of root, those that are free serve one
//! borrower at a time, and a thread that borrows twice waits for itself.
//!
//! ```no_run
//! use pageless_hugepages::{Borrowed, HUGE_2M};
//!
//! let Some(_pages) = Borrowed::or_skip("my_test", HUGE_2M, 8) else { return };
//! // eight pages of 2 MiB are free here
//! ```
#![forbid(unsafe_code)]

mod guardian;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use guardian::{Guardian, Lock};

/// Bytes of a huge page of the middle size on x86-64 and on Arm with base pages of 4 KiB.
pub const HUGE_2M: u64 = 2 << 20;
/// Bytes of a huge page of the largest size on x86-64 and on Arm with base pages of 4 KiB.
pub const HUGE_1G: u64 = 1 << 30;

/// Why there are no pages to use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// The kernel or the processor has no pages of this size.
    #[error("no huge pages of {0} bytes on this host")]
    NoSuchSize(u64),
    /// Too few are free, and no more came.
    #[error("{free} huge pages of {page} bytes are free, {asked} are needed; {why}")]
    TooFew {
        /// Bytes of a page.
        page: u64,
        /// Pages asked for.
        asked: u64,
        /// Pages free.
        free: u64,
        /// Why no more could be added.
        why: String,
    },
    /// The setting cannot be changed.
    #[error("{file} cannot be set to {value:?} here: root can")]
    NotSettable {
        /// The kernel's file.
        file: PathBuf,
        /// What was to be written.
        value: String,
    },
    /// The guardian could not be started: it takes `setsid` and `flock` (util-linux) and a shell.
    #[error("no guardian for borrowed pages")]
    NoGuardian(#[from] std::io::Error),
}

/// Huge pages that this process may use as long as it keeps this value.
#[derive(Debug)]
pub struct Borrowed {
    _guardian: Guardian,
}

impl Borrowed {
    /// Makes sure that `pages` huge pages of `page` bytes are free: adds as many, or else takes those there are.
    pub fn pages(page: u64, pages: u64) -> Result<Self, Unavailable> {
        Self::take(page, pages, Lock::Shared)
    }

    /// The same, and nobody else borrows meanwhile: for tests that use up every free page. Waits until others are done.
    pub fn alone(page: u64, pages: u64) -> Result<Self, Unavailable> {
        Self::take(page, pages, Lock::Alone)
    }

    /// [`pages`](Self::pages), or a line that says why the test does nothing.
    #[must_use]
    pub fn or_skip(test: &str, page: u64, pages: u64) -> Option<Self> {
        said(test, Self::pages(page, pages))
    }

    /// [`alone`](Self::alone), or a line that says why the test does nothing.
    #[must_use]
    pub fn alone_or_skip(test: &str, page: u64, pages: u64) -> Option<Self> {
        said(test, Self::alone(page, pages))
    }

    fn take(page: u64, pages: u64, lock: Lock) -> Result<Self, Unavailable> {
        let folder = folder(page);
        if !folder.is_dir() {
            return Err(Unavailable::NoSuchSize(page));
        }
        let why = match fs::OpenOptions::new().write(true).open(folder.join("nr_hugepages")) {
            Ok(_) => {
                let guardian = Guardian::adding(&folder, lock, pages)?;
                if guardian.said() == pages {
                    return Ok(Self { _guardian: guardian });
                }
                format!("{} of {pages} could be added: memory is short or fragmented", guardian.said())
            }
            Err(error) => format!("none can be added: {error}"),
        };
        // What is free is enough for one borrower, if nobody else counts on it.
        let guardian = Guardian::adding(&folder, Lock::Alone, 0)?;
        let free = free(&folder);
        if free < pages {
            return Err(Unavailable::TooFew { page, asked: pages, free, why });
        }
        Ok(Self { _guardian: guardian })
    }
}

/// One of the kernel's settings that list their choices, as `always [madvise] never`, set to another choice.
#[derive(Debug)]
pub struct Setting {
    _guardian: Guardian,
}

impl Setting {
    /// Chooses `value` in `file`, for one borrower at a time.
    pub fn choose(file: &Path, value: &str) -> Result<Self, Unavailable> {
        let refused = || Unavailable::NotSettable { file: file.to_owned(), value: value.to_owned() };
        fs::OpenOptions::new().write(true).open(file).map_err(|_| refused())?;
        let guardian = Guardian::choosing(file, value)?;
        if guardian.said() == 1 { Ok(Self { _guardian: guardian }) } else { Err(refused()) }
    }

    /// Ordinary memfds get large folios while this lives.
    pub fn large_folios() -> Result<Self, Unavailable> {
        Self::choose(Path::new("/sys/kernel/mm/transparent_hugepage/shmem_enabled"), "force")
    }

    /// [`large_folios`](Self::large_folios), or a line that says why the test does nothing.
    #[must_use]
    pub fn large_folios_or_skip(test: &str) -> Option<Self> {
        said(test, Self::large_folios())
    }
}

/// Says why a test does nothing, where a run can count it: `skipped: TEST: why` on a line of its own, past libtest's capture.
pub fn skip(test: &str, why: &str) {
    // One write, so that nothing comes between the words.
    let _ = std::io::stderr().write_all(format!("\nskipped: {test}: {why}\n").as_bytes());
}

/// Pages of `page` bytes in the host's pool, free or not; nothing where there is no such size.
#[must_use]
pub fn total(page: u64) -> Option<u64> {
    count(&folder(page), "nr_hugepages")
}

fn said<T>(test: &str, borrowed: Result<T, Unavailable>) -> Option<T> {
    borrowed.map_err(|why| skip(test, &why.to_string())).ok()
}

fn folder(page: u64) -> PathBuf {
    PathBuf::from(format!("/sys/kernel/mm/hugepages/hugepages-{}kB", page / 1024))
}

fn count(folder: &Path, name: &str) -> Option<u64> {
    fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok()
}

/// Pages that one more file could get: free and promised to nobody, plus what the kernel may add on demand.
fn free(folder: &Path) -> u64 {
    let count = |name| count(folder, name).unwrap_or(0);
    let on_demand = count("nr_overcommit_hugepages").saturating_sub(count("surplus_hugepages"));
    count("free_hugepages").saturating_sub(count("resv_hugepages")) + on_demand
}
