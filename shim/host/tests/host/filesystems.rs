//! Places for files of tests: folders of filesystems that are there, and small filesystems of a test's own.
//!
//! As root a test can mount what it needs. It does so in a mount namespace of its thread's own, so nobody else sees the mount
//! and it ends with the thread, also when the test is killed.

use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use pageless_hugepages::skip;

/// A folder on the disk and one in memory, where there are such. Each test has its own.
pub(crate) fn folders() -> Vec<TempDir> {
    let places = [env!("CARGO_TARGET_TMPDIR"), "/dev/shm"];
    let made: Vec<_> = places.iter().filter_map(|place| tempfile::tempdir_in(place).ok()).collect();
    assert!(!made.is_empty(), "none of {places:?} can be written");
    made
}

/// Runs `test` in a thread that has a new filesystem of `kind` with these options. Says why not where it cannot.
pub(crate) fn with_mount(name: &str, kind: &str, options: &str, test: impl FnOnce(&Path) + Send) {
    if !nix::unistd::geteuid().is_root() {
        return skip(name, &format!("only root can mount a {kind}"));
    }
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let ran = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let path =
                mounted(folder.path(), kind, options).map_err(|errno| skip(name, &format!("no {kind} here: {errno}"))).ok()?;
            test(&path);
            Some(())
        });
        thread.join()
    });
    if let Err(panic) = ran {
        std::panic::resume_unwind(panic);
    }
}

fn mounted(folder: &Path, kind: &str, options: &str) -> nix::Result<PathBuf> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    mount(Some("pageless"), folder, Some(kind), MsFlags::empty(), Some(options))?;
    Ok(folder.to_owned())
}
