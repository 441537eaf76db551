//! Settings of the host for the length of a test: huge pages reserved as root, and given back also when the test panics or
//! its process is killed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard};

use nix::fcntl::{Flock, FlockArg};
use pageless_host::{PageSize, probe};

/// Tests of this process that use huge pages run one after another.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A setting that was changed. A process of its own writes the old value back when this is dropped, or when the process that
/// has it ends in whatever way: it waits for the end of a pipe. Until then it holds the lock that other processes wait for.
struct Changed(Child);

impl Changed {
    const RESTORE: &str = r#"trap '' HUP INT TERM; read -r _; printf %s "$2" >"$1""#;

    fn to(file: &Path, old: &str, new: &str, lock: Option<&Flock<File>>) -> io::Result<Self> {
        let mut setting = File::options().write(true).open(file)?;
        let lock = lock.and_then(|lock| lock.try_clone().ok()).map_or_else(Stdio::null, Stdio::from);
        let arguments = ["-c", Self::RESTORE, "restore"];
        let restoring =
            Command::new("sh").args(arguments).arg(file).arg(old).stdin(Stdio::piped()).stdout(lock).process_group(0).spawn()?;
        let this = Self(restoring);
        setting.write_all(new.as_bytes())?;
        Ok(this)
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        if !self.0.wait().is_ok_and(|status| status.success()) {
            let _ = io::stderr().write_all(b"\na setting of this host could not be restored\n");
        }
    }
}

/// Pages that this test may use. Restores the old count when dropped.
pub(crate) struct Reservation {
    _changed: Option<Changed>,
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
        let lock = lock_file();
        if available(page) >= pages {
            return Some(Self { _changed: None, _other_processes: lock, _other_tests: other_tests });
        }
        let why = why_not(page);
        let file = page.reservation_file()?;
        let Some(old) = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse::<u64>().ok()) else {
            skip(test, &why);
            return None;
        };
        let new = old + pages - available(page);
        let changed = match Changed::to(&file, &old.to_string(), &new.to_string(), lock.as_ref()) {
            Ok(changed) => changed,
            Err(error) => {
                skip(test, &format!("{why}; and cannot be reserved here: {error}"));
                return None;
            }
        };
        if available(page) < pages {
            skip(test, &format!("{pages} pages of {page} cannot be reserved: memory is short or fragmented"));
            return None;
        }
        Some(Self { _changed: Some(changed), _other_processes: lock, _other_tests: other_tests })
    }
}

/// A setting of which ordinary memfds get large folios. Restores the old one when dropped.
pub(crate) struct LargeFolios {
    _changed: Changed,
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
        let other_tests = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let lock = lock_file();
        let setting = fs::read_to_string(Self::SETTING).unwrap_or_default();
        let Some(restore) = setting.split(['[', ']']).nth(1).map(str::to_owned) else {
            skip(test, "this kernel has no shmem_enabled");
            return None;
        };
        match Changed::to(Path::new(Self::SETTING), &restore, word, lock.as_ref()) {
            Ok(changed) => Some(Self { _changed: changed, _other_processes: lock, _other_tests: other_tests }),
            Err(error) => {
                skip(test, &format!("{} cannot be set here: {error}", Self::SETTING));
                None
            }
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
