//! A disk that remembers every write and sync, and the images that a crash at any moment could leave.

use std::io;
use std::sync::{Arc, Mutex};

use pageless_ledger::{Disk, MemoryDisk};
use rand::Rng;

/// The smallest part of a write that reaches a disk whole.
const SECTOR: usize = 512;

/// One thing that happened, in order.
#[derive(Clone, Debug)]
pub(crate) enum Happened<T> {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Sync,
    /// Somebody was told this.
    Told(T),
}

/// What happened on a disk, and what was told meanwhile.
pub(crate) struct Log<T>(Mutex<Vec<Happened<T>>>);

impl<T: Clone> Log<T> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::default()))
    }

    pub(crate) fn tell(&self, told: T) {
        self.0.lock().unwrap().push(Happened::Told(told));
    }

    pub(crate) fn all(&self) -> Vec<Happened<T>> {
        self.0.lock().unwrap().clone()
    }
}

/// The disk.
pub(crate) struct Recording<T> {
    memory: MemoryDisk,
    log: Arc<Log<T>>,
}

impl<T> Recording<T> {
    pub(crate) fn over(bytes: Vec<u8>, log: Arc<Log<T>>) -> Self {
        Self { memory: MemoryDisk::new(bytes), log }
    }
}

impl<T> std::fmt::Debug for Recording<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a recording disk")
    }
}

impl<T: Send + 'static> Disk for Recording<T> {
    fn len(&self) -> io::Result<u64> {
        self.memory.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.memory.read(offset, out)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.log.0.lock().unwrap().push(Happened::Write(offset, bytes.to_vec()));
        self.memory.write(offset, bytes)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.log.0.lock().unwrap().push(Happened::SetLen(bytes));
        self.memory.set_len(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.log.0.lock().unwrap().push(Happened::Sync);
        Ok(())
    }
}

/// How much of what was not synced reaches the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unsynced {
    None,
    All,
    /// A random part, torn at sectors.
    Torn,
}

/// The bytes after a crash just before `at`, of a disk that held `before`.
pub(crate) fn image<T>(before: &[u8], log: &[Happened<T>], at: usize, unsynced: Unsynced, dice: &mut impl Rng) -> Vec<u8> {
    let synced = log[..at].iter().rposition(|happened| matches!(happened, Happened::Sync)).map_or(0, |sync| sync + 1);
    let mut bytes = before.to_vec();
    for (nth, happened) in log[..at].iter().enumerate() {
        let whole = nth < synced || unsynced == Unsynced::All;
        if !whole && unsynced == Unsynced::None {
            continue;
        }
        match happened {
            Happened::SetLen(length) if whole || dice.random() => bytes.resize(usize::try_from(*length).unwrap(), 0),
            Happened::Write(offset, written) if whole => put(&mut bytes, *offset, written),
            Happened::Write(offset, written) if dice.random_bool(0.7) => {
                let tears = dice.random_bool(0.5);
                for (sector, part) in written.chunks(SECTOR).enumerate() {
                    if !tears || dice.random() {
                        put(&mut bytes, offset + (sector * SECTOR) as u64, part);
                    }
                }
            }
            _ => {}
        }
    }
    bytes
}

/// Writes what fits: a write beyond an end that never grew is lost.
fn put(bytes: &mut [u8], offset: u64, written: &[u8]) {
    let from = usize::try_from(offset).unwrap().min(bytes.len());
    let to = (from + written.len()).min(bytes.len());
    bytes[from..to].copy_from_slice(&written[..to - from]);
}
