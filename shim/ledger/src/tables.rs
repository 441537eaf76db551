//! What stands in the file: six tables of rows by number, and three rows about all of them.
//!
//! Each row ends with a checksum over its table, its key and its bytes. The totals hold the sum of the hashes of all rows and
//! how many there are; every commit rewrites them. So a row that changed, that is missing, or that is an old one is found,
//! whatever went wrong with it.

use std::sync::Arc;

use pageless::ledger::{AllocationRow, HoldRow, Landmark, MarkKind, MarkRow, PastMark, Rows};
use pageless::metadata::HoldId;
use pageless::{AllocationId, Pfn, PfnRange};
use redb::{ReadableTable, StorageError, Table, TableDefinition, WriteTransaction};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::encode::Row;
use crate::words::{Bad, Reader, Writer};

/// Rows by number.
pub(crate) type ByNumber = TableDefinition<'static, u64, &'static [u8]>;
/// Rows by name.
pub(crate) const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");
const NAMES: [&str; 6] = ["allocations", "holds", "unproven", "poisoned", "past marks", "landmarks"];
/// All tables of rows, in the order of [`At`].
pub(crate) const TABLES: [ByNumber; 6] = [
    TableDefinition::new(NAMES[0]),
    TableDefinition::new(NAMES[1]),
    TableDefinition::new(NAMES[2]),
    TableDefinition::new(NAMES[3]),
    TableDefinition::new(NAMES[4]),
    TableDefinition::new(NAMES[5]),
];
pub(crate) const FORMAT_ROW: &str = "format";
pub(crate) const POOL_ROW: &str = "pool";
pub(crate) const TOTALS_ROW: &str = "totals";

/// Marks that ended by proof are kept up to this many.
const PAST_MARKS: u64 = 16_384;

/// Which table; the number is part of the format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub(crate) enum At {
    Allocations,
    Holds,
    Unproven,
    Poisoned,
    Past,
    Landmarks,
}

impl From<MarkKind> for At {
    fn from(kind: MarkKind) -> Self {
        match kind {
            MarkKind::Unproven => Self::Unproven,
            MarkKind::Poisoned => Self::Poisoned,
        }
    }
}

/// What all rows together come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Totals {
    /// Commits so far.
    pub(crate) commits: u64,
    /// The sum of the hashes of all rows.
    pub(crate) hash: u128,
    /// Rows of each table.
    pub(crate) rows: [u64; 6],
    /// Frames of all marks.
    pub(crate) withdrawn_frames: u64,
    pub(crate) next_allocation: u64,
    pub(crate) next_hold: u64,
    pub(crate) next_past: u64,
    pub(crate) next_landmark: u64,
    /// The owners of all allocations below this number are dead.
    pub(crate) dead_below: u64,
}

impl Row for Totals {
    fn write(&self, to: &mut Writer) {
        to.u64(self.commits);
        to.u128(self.hash);
        self.rows.iter().for_each(|rows| to.u64(*rows));
        to.u64(self.withdrawn_frames);
        to.u64(self.next_allocation);
        to.u64(self.next_hold);
        to.u64(self.next_past);
        to.u64(self.next_landmark);
        to.u64(self.dead_below);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Bad> {
        let mut totals = Self { commits: from.u64()?, hash: from.u128()?, ..Self::default() };
        for rows in &mut totals.rows {
            *rows = from.u64()?;
        }
        totals.withdrawn_frames = from.u64()?;
        totals.next_allocation = from.u64()?;
        totals.next_hold = from.u64()?;
        totals.next_past = from.u64()?;
        totals.next_landmark = from.u64()?;
        totals.dead_below = from.u64()?;
        Ok(totals)
    }
}

/// A row's bytes with their checksum.
pub(crate) fn sealed(table: &str, key: &[u8], mut body: Vec<u8>) -> Vec<u8> {
    let sum = xxh3_64(&named(table, key, &body));
    body.extend(sum.to_le_bytes());
    body
}

/// A row's bytes without their checksum, if that is right.
pub(crate) fn unsealed<'v>(table: &str, key: &[u8], value: &'v [u8]) -> Result<&'v [u8], Bad> {
    let (body, sum) = value.split_last_chunk::<8>().ok_or("it ends too early")?;
    if xxh3_64(&named(table, key, body)) == u64::from_le_bytes(*sum) { Ok(body) } else { Err("its checksum is wrong") }
}

/// What a row adds to the sum of all hashes.
pub(crate) fn hash(at: At, key: u64, value: &[u8]) -> u128 {
    xxh3_128(&named(name(at), &key.to_le_bytes(), value))
}

/// The name of a table.
pub(crate) const fn name(at: At) -> &'static str {
    NAMES[at as usize]
}

fn named(table: &str, key: &[u8], body: &[u8]) -> Vec<u8> {
    let mut all = Vec::with_capacity(table.len() + key.len() + body.len() + 2);
    all.extend(table.as_bytes());
    all.push(0);
    all.extend(key);
    all.extend(body);
    all
}

/// Why a step of a transaction failed.
#[derive(Debug)]
pub(crate) enum StepError {
    /// redb could not do it.
    Storage(redb::Error),
    /// A row cannot be read.
    Bad(At, u64, Bad),
}

impl From<StorageError> for StepError {
    fn from(error: StorageError) -> Self {
        Self::Storage(error.into())
    }
}

/// The rows of a file within one transaction.
pub(crate) struct Changes<'t> {
    tables: [Table<'t, u64, &'static [u8]>; 6],
    pub(crate) totals: Totals,
    boot: Arc<str>,
}

impl<'t> Changes<'t> {
    pub(crate) fn begin(txn: &'t WriteTransaction, totals: Totals, boot: Arc<str>) -> Result<Self, redb::Error> {
        let open = |at: At| txn.open_table(TABLES[at as usize]);
        let tables = [
            open(At::Allocations)?,
            open(At::Holds)?,
            open(At::Unproven)?,
            open(At::Poisoned)?,
            open(At::Past)?,
            open(At::Landmarks)?,
        ];
        Ok(Self { tables, totals, boot })
    }

    fn put(&mut self, at: At, key: u64, row: &impl Row) -> Result<Option<Vec<u8>>, StepError> {
        let value = sealed(name(at), &key.to_le_bytes(), row.to_bytes());
        let old = self.tables[at as usize].insert(key, value.as_slice())?.map(|old| old.value().to_vec());
        self.totals.hash = self.totals.hash.wrapping_add(hash(at, key, &value));
        self.totals.rows[at as usize] += 1;
        Ok(self.forget(at, key, old))
    }

    fn remove(&mut self, at: At, key: u64) -> Result<Option<Vec<u8>>, StepError> {
        let old = self.tables[at as usize].remove(key)?.map(|old| old.value().to_vec());
        Ok(self.forget(at, key, old))
    }

    /// Takes a row out of the totals.
    fn forget(&mut self, at: At, key: u64, old: Option<Vec<u8>>) -> Option<Vec<u8>> {
        if let Some(old) = &old {
            self.totals.hash = self.totals.hash.wrapping_sub(hash(at, key, old));
            self.totals.rows[at as usize] -= 1;
        }
        old
    }

    fn count_mark(&mut self, at: At, key: u64, old: Option<Vec<u8>>) -> Result<(), StepError> {
        if let Some(old) = old {
            let mark: MarkRow = read(at, key, &old)?;
            self.totals.withdrawn_frames = self.totals.withdrawn_frames.saturating_sub(mark.told.frames.frames());
        }
        Ok(())
    }

    /// Nobody has, holds or lost anything any more.
    pub(crate) fn forget_memory(&mut self) -> Result<(), StepError> {
        for at in [At::Allocations, At::Holds, At::Unproven, At::Poisoned] {
            let keys: Vec<u64> =
                self.tables[at as usize].iter()?.map(|row| row.map(|(key, _)| key.value())).collect::<Result<_, _>>()?;
            for key in keys {
                self.remove(at, key)?;
            }
        }
        self.totals.withdrawn_frames = 0;
        Ok(())
    }
}

/// A row from what is stored.
pub(crate) fn read<R: Row>(at: At, key: u64, value: &[u8]) -> Result<R, StepError> {
    unsealed(name(at), &key.to_le_bytes(), value).and_then(R::from_bytes).map_err(|bad| StepError::Bad(at, key, bad))
}

impl Rows for Changes<'_> {
    type Error = StepError;

    fn owners_dead(&mut self, below: u64) -> Result<(), StepError> {
        self.totals.dead_below = self.totals.dead_below.max(below);
        Ok(())
    }

    fn boot(&self) -> Arc<str> {
        Arc::clone(&self.boot)
    }

    fn allocation(&mut self, id: AllocationId) -> Result<Option<AllocationRow>, StepError> {
        let found = self.tables[At::Allocations as usize].get(id.get())?;
        found.map(|value| read(At::Allocations, id.get(), value.value())).transpose()
    }

    fn put_allocation(&mut self, row: &AllocationRow) -> Result<(), StepError> {
        self.totals.next_allocation = self.totals.next_allocation.max(row.id.get() + 1);
        self.put(At::Allocations, row.id.get(), row).map(drop)
    }

    fn remove_allocation(&mut self, id: AllocationId) -> Result<(), StepError> {
        self.totals.next_allocation = self.totals.next_allocation.max(id.get() + 1);
        self.remove(At::Allocations, id.get()).map(drop)
    }

    fn put_hold(&mut self, row: &HoldRow) -> Result<(), StepError> {
        self.totals.next_hold = self.totals.next_hold.max(row.id.0 + 1);
        self.put(At::Holds, row.id.0, row).map(drop)
    }

    fn remove_hold(&mut self, id: HoldId) -> Result<(), StepError> {
        self.totals.next_hold = self.totals.next_hold.max(id.0 + 1);
        self.remove(At::Holds, id.0).map(drop)
    }

    fn marks(&mut self, kind: MarkKind, frames: PfnRange) -> Result<Vec<MarkRow>, StepError> {
        let at = At::from(kind);
        let table = &self.tables[at as usize];
        let mut found = Vec::new();
        let before = table.range(..frames.start().get())?.next_back();
        for row in before.into_iter().chain(table.range(frames.start().get()..frames.end().get())?) {
            let (key, value) = row?;
            found.push(read::<MarkRow>(at, key.value(), value.value())?);
        }
        found.retain(|mark| mark.told.frames.overlaps(frames));
        Ok(found)
    }

    fn put_mark(&mut self, row: &MarkRow) -> Result<(), StepError> {
        let (at, key) = (At::from(MarkKind::of(row.told.state)), row.told.frames.start().get());
        let old = self.put(at, key, row)?;
        self.totals.withdrawn_frames += row.told.frames.frames();
        self.count_mark(at, key, old)
    }

    fn remove_mark(&mut self, kind: MarkKind, start: Pfn) -> Result<(), StepError> {
        let (at, key) = (At::from(kind), start.get());
        let old = self.remove(at, key)?;
        self.count_mark(at, key, old)
    }

    fn add_past(&mut self, past: &PastMark) -> Result<(), StepError> {
        let key = self.totals.next_past;
        self.totals.next_past += 1;
        self.put(At::Past, key, past)?;
        if let Some(oldest) = key.checked_sub(PAST_MARKS) {
            self.remove(At::Past, oldest)?;
        }
        Ok(())
    }

    fn add_landmark(&mut self, landmark: &Landmark) -> Result<(), StepError> {
        let key = self.totals.next_landmark;
        self.totals.next_landmark += 1;
        self.put(At::Landmarks, key, landmark).map(drop)
    }
}
