//! Looking at a ledger while no pool has it open. The file is read into memory and never changed, but for a recorded
//! replacement of hardware.

use std::path::Path;
use std::sync::Arc;

use pageless::RunSet;
use pageless::ledger::{Book, Entry, Ledger, LedgerError, PoolFacts};

use crate::disk::{Disk, FileDisk, MemoryDisk};
use crate::opened;
use crate::writer::RedbLedger;

/// What a ledger holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inspection {
    /// The pool it was written for; none before a pool has opened it.
    pub pool: Option<PoolFacts>,
    /// All rows.
    pub book: Book,
    /// How many commits it has seen.
    pub commits: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// The last commit was cut off between its two phases, or the byte that says which commit counts was changed. It is whole,
    /// and the next opening takes it up; the rows are those with it.
    pub unfinished: bool,
}

impl Inspection {
    /// What a person should look at, in sentences; none when all is well.
    #[must_use]
    pub fn findings(&self) -> Vec<String> {
        let unfinished = self.unfinished.then(|| {
            "the last commit is whole, but the file does not count it: it was cut off, or the byte that says so was changed; \
             the next opening of the ledger takes it up"
                .to_owned()
        });
        unfinished.into_iter().collect()
    }
}

/// Reads the ledger at `path` and verifies all of it. An error names what is wrong, and where.
pub fn inspect(path: &Path) -> Result<Inspection, LedgerError> {
    let place = path.display().to_string();
    // Locked while it is read, so that no pool changes it meanwhile.
    let file: Arc<dyn Disk> = Arc::new(FileDisk::open(path)?);
    let bytes = opened::all_bytes(&place, &file)?;
    inspect_bytes(&place, bytes)
}

/// The same for the bytes of a file.
pub fn inspect_bytes(place: &str, bytes: Vec<u8>) -> Result<Inspection, LedgerError> {
    let length = bytes.len() as u64;
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new(bytes));
    let found = opened::open(place, &disk, &"".into())?;
    Ok(Inspection {
        pool: found.pool,
        book: found.book,
        commits: found.totals.commits,
        bytes: length,
        unfinished: found.taken_up,
    })
}

/// Records that the hardware behind `frames` was replaced while the host was off, and ends their poisoned marks. For a ledger
/// that no pool has open. Returns the frames that were poisoned.
pub fn replace_hardware(path: &Path, frames: &RunSet, evidence: &str) -> Result<RunSet, LedgerError> {
    if evidence.trim().is_empty() {
        let why = "no evidence was given; say what shows that the hardware was replaced".to_owned();
        return Err(LedgerError::Inconsistent { place: path.display().to_string(), why });
    }
    let found = inspect(path)?;
    let poisoned = found.book.marked(pageless::Withdrawal::Poisoned).intersection(frames);
    let ledger = RedbLedger::at(path)?;
    ledger.commit(vec![Entry::HardwareReplaced { frames: poisoned.clone(), evidence: evidence.into() }])?;
    Ok(poisoned)
}
