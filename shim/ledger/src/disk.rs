//! What a ledger is kept on: a file with blocks reserved beyond its end, or bytes in memory for looking at one.

use std::fmt::Debug;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::{FallocateFlags, fallocate};
use pageless::ledger::LedgerError;
use parking_lot::Mutex;
use redb::StorageBackend;

/// Bytes that can be written and made durable. Fault injection and recording stand here in the tests.
pub trait Disk: Debug + Send + Sync + 'static {
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Reads `out.len()` bytes at `offset`.
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// Writes bytes at `offset`, durable after the next sync.
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Cuts or lengthens; new bytes are zero.
    fn set_len(&self, bytes: u64) -> io::Result<()>;
    /// Makes everything written durable.
    fn sync(&self) -> io::Result<()>;
    /// Makes sure that so many bytes can be added to the length without running out of space.
    fn reserve(&self, bytes: u64) -> io::Result<()> {
        let _ = bytes;
        Ok(())
    }
    /// Whether it has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// A file, locked against every other process and pool as long as this lives.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
    /// Blocks are reserved up to here.
    reserved: Mutex<u64>,
}

impl FileDisk {
    /// Opens and locks an existing file.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(|error| explain(path, &error))?;
        Self::locked(path, file)
    }

    /// Makes a new file and locks it. There must be none.
    pub fn create(path: &Path) -> Result<Self, LedgerError> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path);
        Self::locked(path, file.map_err(|error| explain(path, &error))?)
    }

    /// Locks the file, and waits a little for the lock: a process that the last holder has forked keeps it until it runs another
    /// program, although the holder has closed the file.
    fn locked(path: &Path, file: File) -> Result<Self, LedgerError> {
        const PATIENCE: Duration = Duration::from_millis(300);
        const PAUSE: Duration = Duration::from_millis(5);
        let began = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { file, reserved: Mutex::new(0) }),
                Err(TryLockError::WouldBlock) if began.elapsed() < PATIENCE => std::thread::sleep(PAUSE),
                Err(TryLockError::WouldBlock) => return Err(LedgerError::Busy { place: path.display().to_string() }),
                Err(TryLockError::Error(error)) => return Err(explain(path, &error)),
            }
        }
    }
}

impl Disk for FileDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let mut reserved = self.reserved.lock();
        if bytes < self.len()? {
            // Cutting a file gives up what is reserved beyond.
            *reserved = 0;
        }
        self.file.set_len(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        let mut reserved = self.reserved.lock();
        let end = self.len()?.saturating_add(bytes);
        if *reserved >= end {
            return Ok(());
        }
        let length = i64::try_from(end).map_err(|_| io::ErrorKind::FileTooLarge)?;
        match fallocate(&self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, length) {
            // A filesystem that cannot reserve cannot promise: docs/CAVEATS.md.
            Ok(()) | Err(nix::errno::Errno::EOPNOTSUPP) => {
                *reserved = end;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Bytes in memory: for looking at a file without touching it, and for tests.
#[derive(Debug, Default)]
pub struct MemoryDisk(Mutex<Vec<u8>>);

impl MemoryDisk {
    /// These bytes.
    #[must_use]
    pub const fn new(bytes: Vec<u8>) -> Self {
        Self(Mutex::new(bytes))
    }

    /// The bytes as they are now.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().clone()
    }
}

/// The part of `bytes` that lies at `offset..offset + length`.
fn place(offset: u64, length: usize, bytes: usize) -> io::Result<std::ops::Range<usize>> {
    let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
    let end = start.checked_add(length).filter(|end| *end <= bytes).ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(start..end)
}

impl Disk for MemoryDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.0.lock();
        out.copy_from_slice(&bytes[place(offset, out.len(), bytes.len())?]);
        Ok(())
    }

    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        let mut bytes = self.0.lock();
        let at = place(offset, from.len(), bytes.len())?;
        bytes[at].copy_from_slice(from);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.lock().resize(usize::try_from(length).map_err(|_| io::ErrorKind::FileTooLarge)?, 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// What redb sees.
#[derive(Debug)]
pub(crate) struct Backend(pub(crate) Arc<dyn Disk>);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}

/// What the system said about a file, by its name.
pub(crate) fn explain(path: &Path, error: &io::Error) -> LedgerError {
    explain_at(&path.display().to_string(), error)
}

pub(crate) fn explain_at(place: &str, error: &io::Error) -> LedgerError {
    let (place, why) = (place.to_owned(), error.to_string());
    match error.kind() {
        io::ErrorKind::NotFound => LedgerError::Missing { place },
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            LedgerError::Full { place, why }
        }
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => LedgerError::ReadOnly { place, why },
        io::ErrorKind::WouldBlock => LedgerError::Busy { place },
        _ => LedgerError::Io { place, why },
    }
}

/// The name under which a new ledger is made before it gets its own.
pub(crate) fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}
