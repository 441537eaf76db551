//! Huge pages for the length of a test: reserved as root, and given back even when the test panics.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard};

use nix::fcntl::{Flock, FlockArg};
use pageless_host::{PageSize, probe};

/// Tests of this process that use huge pages run one after another.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Pages that this test may use. Restores the old count when dropped.
pub(crate) struct Reservation {
    restore: Option<(PageSize, String)>,
    _other_processes: Option<Flock<File>>,
    _other_tests: MutexGuard<'static, ()>,
}

/// Says why a test does nothing, where a run can count it.
pub(crate) fn skip(test: &str, why: &str) {
    // One write, so that nothing comes between the words; a line of its own, whatever was printed before.
    let _ = std::io::stderr().write_all(format!("\nskipped: {test}: {why}\n").as_bytes());
}

impl Reservation {
    /// Makes sure that `pages` pages are free, as root by reserving more. Says why not, and answers nothing, where it cannot.
    pub(crate) fn take(test: &str, page: PageSize, pages: u64) -> Option<Self> {
        let other_tests = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let other_processes = lock_file();
        let mut this = Self { restore: None, _other_processes: other_processes, _other_tests: other_tests };
        if available(page) >= pages {
            return Some(this);
        }
        let why = why_not(page);
        let file = page.reservation_file()?;
        let Some(old) = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse::<u64>().ok()) else {
            skip(test, &why);
            return None;
        };
        if let Err(error) = fs::write(&file, (old + pages - available(page)).to_string()) {
            skip(test, &format!("{why}; and cannot be reserved here: {error}"));
            return None;
        }
        this.restore = Some((page, old.to_string()));
        if available(page) < pages {
            skip(test, &format!("{pages} pages of {page} cannot be reserved: memory is short or fragmented"));
            return None;
        }
        Some(this)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some((page, old)) = self.restore.take()
            && let Some(file) = page.reservation_file()
            && let Err(error) = fs::write(&file, &old)
        {
            let _ = writeln!(std::io::stderr().lock(), "could not restore {}: {error}", file.display());
        }
    }
}

/// A setting of which ordinary memfds get large folios. Restores the old one when dropped.
pub(crate) struct LargeFolios {
    restore: String,
    _other_processes: Option<Flock<File>>,
    _other_tests: MutexGuard<'static, ()>,
}

impl LargeFolios {
    const SETTING: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

    /// Forces large folios, as root. Says why not, and answers nothing, where it cannot.
    pub(crate) fn force(test: &str) -> Option<Self> {
        Self::set(test, "force")
    }

    /// The same with another word of the setting.
    pub(crate) fn set(test: &str, word: &str) -> Option<Self> {
        let _other_tests = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let _other_processes = lock_file();
        let setting = fs::read_to_string(Self::SETTING).unwrap_or_default();
        let Some(restore) = setting.split(['[', ']']).nth(1).map(str::to_owned) else {
            skip(test, "this kernel has no shmem_enabled");
            return None;
        };
        if let Err(error) = fs::write(Self::SETTING, word) {
            skip(test, &format!("{} cannot be set here: {error}", Self::SETTING));
            return None;
        }
        Some(Self { restore, _other_processes, _other_tests })
    }
}

impl Drop for LargeFolios {
    fn drop(&mut self) {
        if let Err(error) = fs::write(Self::SETTING, &self.restore) {
            let _ = std::io::stderr().write_all(format!("could not restore {}: {error}\n", Self::SETTING).as_bytes());
        }
    }
}

fn available(page: PageSize) -> u64 {
    probe().into_iter().find(|answer| answer.page == page).map_or(0, |answer| answer.bytes / page.bytes())
}

fn why_not(page: PageSize) -> String {
    let answer = probe().into_iter().find(|answer| answer.page == page);
    answer.and_then(|answer| answer.why_not).unwrap_or_else(|| format!("too few {page} pages are free"))
}

/// Other test processes of this host wait here.
fn lock_file() -> Option<Flock<File>> {
    let path = std::env::temp_dir().join("pageless-hugepages.lock");
    let file = File::options().create(true).truncate(false).write(true).open(path).ok()?;
    Flock::lock(file, FlockArg::LockExclusive).ok()
}

/// A descriptor copied for a test, as a client that got it would have it.
pub(crate) fn copied(fd: std::os::fd::BorrowedFd<'_>) -> OwnedFd {
    fd.try_clone_to_owned().unwrap()
}
