//! Disks that are full, fail, hang or may not be written: nothing continues silently, and what is promised holds all the same.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod cast;

use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cast::{Sticky, marks, pages, pool_on, run, set};
use pageless::ledger::LedgerError;
use pageless::{AllocateError, Allocation, Blocked, Convert, FRAME_BYTES, Lost, Pool, Refused, Request, RunSet, Verdict};
use pageless_ledger::{Disk, MemoryDisk, Options, RedbLedger, inspect, inspect_bytes};

/// A disk that fails or hangs when it is told to.
#[derive(Debug, Default)]
struct Sick {
    memory: MemoryDisk,
    /// The errno of every write and sync; 0 for none.
    errno: AtomicU64,
    /// Milliseconds that a sync takes.
    slow: AtomicU64,
}

impl Sick {
    fn ask(&self) -> io::Result<()> {
        match i32::try_from(self.errno.load(Ordering::SeqCst)).unwrap() {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

impl Disk for Sick {
    fn len(&self) -> io::Result<u64> {
        self.memory.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.memory.read(offset, out)
    }
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.ask()?;
        self.memory.write(offset, bytes)
    }
    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.ask()?;
        self.memory.set_len(bytes)
    }
    fn sync(&self) -> io::Result<()> {
        std::thread::sleep(Duration::from_millis(self.slow.load(Ordering::SeqCst)));
        self.ask()
    }
}

const EIO: u64 = 5;
const ENOSPC: u64 = 28;

fn world(disk: Arc<dyn Disk>, options: Options) -> (Pool, Allocation, Arc<Sticky>) {
    let pool = pool_on(Arc::new(RedbLedger::on("a sick disk", disk, options).unwrap()), 64);
    let ram = allocate(&pool).unwrap();
    let ept = Sticky::new();
    ram.attach("ept", ept.clone()).unwrap();
    (pool, ram, ept)
}

fn allocate(pool: &Pool) -> Result<Allocation, AllocateError> {
    pool.allocate(Request::bytes(16 * FRAME_BYTES).contiguous().owner("vm-42"))
}

fn torn(ram: &Allocation) -> Vec<Lost> {
    let Err(Convert::Torn { lost, .. }) = ram.share(pages(0, 16)) else { panic!("not torn") };
    lost
}

#[test]
fn an_io_error_stops_allocation_and_is_got_over() {
    for errno in [EIO, ENOSPC] {
        let disk = Arc::new(Sick::default());
        let (pool, ram, ept) = world(disk.clone(), Options::default());
        ept.sticks(3, Verdict::Never);
        disk.errno.store(errno, Ordering::SeqCst);
        let lost = torn(&ram);
        assert!(lost.iter().all(|lost| !lost.recorded()));
        let Err(AllocateError::Ledger(LedgerError::Unrecorded { frames: 1, why })) = allocate(&pool) else { panic!() };
        let named = if errno == EIO { matches!(*why, LedgerError::Io { .. }) } else { matches!(*why, LedgerError::Full { .. }) };
        assert!(named, "{why}");
        let refused = ram.release().unwrap_err();
        assert!(matches!(refused.why, Blocked::Refused(Refused::Unrecorded { .. })));
        disk.errno.store(0, Ordering::SeqCst);
        let second = allocate(&pool).unwrap();
        assert!(pool.unrecorded().is_empty() && pool.verify().is_sound());
        assert_eq!(marks(&inspect_bytes("after", disk.memory.bytes()).unwrap().book)[1], set([(3, 4)]));
        drop((second, refused));
        assert_eq!(pool.stats().failed, 1);
    }
}

#[test]
fn a_disk_that_hangs_is_not_waited_for_longer_than_the_bound() {
    let disk = Arc::new(Sick::default());
    let bound = Duration::from_millis(100);
    let (pool, ram, ept) = world(disk.clone(), Options { patience: bound, ..Options::default() });
    ept.sticks(3, Verdict::Never);
    disk.slow.store(400, Ordering::SeqCst);
    let begun = Instant::now();
    let lost = torn(&ram);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(lost.iter().all(|lost| !lost.recorded()));
    let refused = allocate(&pool).unwrap_err();
    assert!(
        matches!(&refused, AllocateError::Ledger(LedgerError::Unrecorded { why, .. }) if matches!(**why, LedgerError::TimedOut { .. })),
        "{refused}"
    );
    disk.slow.store(0, Ordering::SeqCst);
    std::thread::sleep(Duration::from_secs(1));
    assert!(allocate(&pool).is_ok() && pool.unrecorded().is_empty());
}

/// A small filesystem of its own; none where this process may not mount.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn new() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "pageless-test"]).arg(folder.path()).output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(folder)),
            said => {
                println!("skipped: no filesystem could be mounted here: {said:?}");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _unmounted = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Takes all the space that is left.
fn fill(path: &Path) {
    let filler = std::fs::File::create(path).unwrap();
    let mut at = 0;
    for step in [1 << 16, 4096] {
        while std::os::unix::fs::FileExt::write_all_at(&filler, &vec![1; step], at).is_ok() {
            at += step as u64;
        }
    }
}

#[test]
fn on_a_full_filesystem_nothing_is_handed_out_and_withdrawals_are_still_recorded() {
    let Some(tmpfs) = Tmpfs::new() else { return };
    let path = tmpfs.path().join("pool.ledger");
    let options = Options { reserve: 1 << 20, ..Options::default() };
    let pool = pool_on(Arc::new(RedbLedger::with(&path, options).unwrap()), 4096);
    let ram = pool.allocate(Request::bytes(1024 * FRAME_BYTES).contiguous().owner("vm-42")).unwrap();
    let ept = Sticky::new();
    ram.attach("ept", ept.clone()).unwrap();
    fill(&tmpfs.path().join("filler"));
    // 512 failures, one run each: more than the file has room for.
    let before = std::fs::metadata(&path).unwrap().len();
    let bad: RunSet = (0..512).map(|n| run(n * 2, n * 2 + 1)).collect();
    bad.into_iter().for_each(|run| ept.sticks(run.start().get(), Verdict::Never));
    let Err(Convert::Torn { lost, .. }) = ram.share(pages(0, 1024)) else { panic!() };
    assert!(lost.iter().all(Lost::recorded), "{:?}", pool.record_pending());
    assert!(std::fs::metadata(&path).unwrap().len() > before, "the reserve was not needed");
    let Err(AllocateError::Ledger(LedgerError::Full { place, .. })) = allocate(&pool) else { panic!() };
    assert!(place.ends_with("pool.ledger"));
    std::fs::remove_file(tmpfs.path().join("filler")).unwrap();
    let more = allocate(&pool).unwrap();
    drop((more, ram, pool));
    assert_eq!(marks(&inspect(&path).unwrap().book)[1].frames(), 512);
}

#[test]
fn a_ledger_that_may_only_be_read_is_refused_by_name() {
    let Some(tmpfs) = Tmpfs::new() else { return };
    let path = tmpfs.path().join("pool.ledger");
    drop(RedbLedger::at(&path).unwrap());
    assert!(Command::new("mount").args(["-o", "remount,ro"]).arg(tmpfs.path()).status().unwrap().success());
    assert!(matches!(RedbLedger::at(&path), Err(LedgerError::ReadOnly { .. })));
    assert!(matches!(RedbLedger::at(&tmpfs.path().join("new")), Err(LedgerError::ReadOnly { .. })));
}
