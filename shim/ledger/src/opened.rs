//! Opening a ledger: the newest commit is found and verified, every row is read, and the totals must agree. Nothing is dropped
//! to make a file open; what is wrong is named, with its place and what can be done.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use pageless::ledger::{Book, Damage, LedgerError, PoolFacts};
use redb::{Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable, StorageError, TableError};

use crate::disk::{Backend, Disk, MemoryDisk, explain_at};
use crate::encode::Row;
use crate::slots::{FLAGS_AT, HEADER_BYTES, NotRedb, Slots};
use crate::tables::{
    At, Changes, FORMAT_ROW, META, POOL_ROW, StepError, TABLES, TOTALS_ROW, Totals, hash, name, read, sealed, unsealed,
};

/// The format of rows that this version writes.
pub const FORMAT: u32 = 1;
const KNOWN: &str = "format 1";
/// redb's cache. The whole of a usual ledger fits.
const CACHE_BYTES: usize = 16 << 20;
const RESTORE: &str = "keep this file, and restore the ledger from a copy; without one, treat every frame of the pool as \
                       withdrawn until the platform was reset";

/// An open file, and what stood in it.
pub(crate) struct Opened {
    pub(crate) database: Database,
    pub(crate) pool: Option<PoolFacts>,
    pub(crate) totals: Totals,
    pub(crate) book: Book,
    /// The newest commit did not count yet, and was taken up.
    pub(crate) taken_up: bool,
}

pub(crate) fn damaged(place: &str, what: impl Into<String>, at: impl Into<String>) -> LedgerError {
    let damage = Damage { what: what.into(), at: at.into(), remedy: RESTORE.to_owned() };
    LedgerError::Damaged { place: place.to_owned(), damage }
}

/// What redb said, by its name.
pub(crate) fn explain_redb(place: &str, error: redb::Error) -> LedgerError {
    match error {
        redb::Error::Io(error) => explain_at(place, &error),
        redb::Error::DatabaseAlreadyOpen => LedgerError::Busy { place: place.to_owned() },
        redb::Error::Corrupted(what) => damaged(place, what, "a page of the file"),
        redb::Error::UpgradeRequired(version) => {
            LedgerError::Foreign { place: place.to_owned(), found: format!("a redb file of format {version}") }
        }
        error => LedgerError::Io { place: place.to_owned(), why: error.to_string() },
    }
}

pub(crate) fn explain_step(place: &str, error: StepError) -> LedgerError {
    match error {
        StepError::Storage(error) => explain_redb(place, error),
        StepError::Bad(at, key, bad) => damaged(place, format!("a row cannot be read: {bad}"), row_at(at, key)),
    }
}

fn row_at(at: At, key: u64) -> String {
    format!("row {key:#x} of table '{}'", name(at))
}

/// Runs what reads a file that may be anything: a panic in there is damage, too.
fn shielded<R>(place: &str, read: impl FnOnce() -> Result<R, LedgerError>) -> Result<R, LedgerError> {
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err(damaged(place, "redb could not make sense of it", "a page of the file")))
}

/// Makes a new ledger on an empty disk.
pub(crate) fn create(place: &str, disk: &Arc<dyn Disk>, boot: &Arc<str>) -> Result<(), LedgerError> {
    let redb = |error: redb::Error| explain_redb(place, error);
    let database = database(disk).map_err(|error| redb(error.into()))?;
    let totals = Totals { next_allocation: 1, next_hold: 1, ..Totals::default() };
    // Twice, so that both commit slots hold a whole ledger.
    for _ in 0..2 {
        let mut txn = database.begin_write().map_err(|error| redb(error.into()))?;
        txn.set_two_phase_commit(true);
        Changes::begin(&txn, totals, Arc::clone(boot)).map_err(redb)?;
        put_meta(&txn, FORMAT_ROW, FORMAT.to_le_bytes().to_vec()).map_err(redb)?;
        put_meta(&txn, TOTALS_ROW, totals.to_bytes()).map_err(redb)?;
        txn.commit().map_err(|error| redb(error.into()))?;
    }
    drop(database);
    disk.sync().map_err(|error| explain_at(place, &error))
}

pub(crate) fn put_meta(txn: &redb::WriteTransaction, row: &str, body: Vec<u8>) -> Result<(), redb::Error> {
    let value = sealed("meta", row.as_bytes(), body);
    txn.open_table(META)?.insert(row, value.as_slice())?;
    Ok(())
}

fn database(disk: &Arc<dyn Disk>) -> Result<Database, DatabaseError> {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder.create_with_backend(Backend(Arc::clone(disk)))
}

/// Opens a ledger and reads all of it.
pub(crate) fn open(place: &str, disk: &Arc<dyn Disk>, boot: &Arc<str>) -> Result<Opened, LedgerError> {
    let slots = slots(place, disk)?;
    if let Some(flags) = slots.newer() {
        // Tried on a copy first: what the newer slot names may not have reached the disk.
        let copy: Arc<dyn Disk> = Arc::new(MemoryDisk::new(all_bytes(place, disk)?));
        let io = |error: std::io::Error| explain_at(place, &error);
        copy.write(FLAGS_AT as u64, &[flags]).map_err(io)?;
        if load(place, &copy, boot).is_ok() {
            disk.write(FLAGS_AT as u64, &[flags]).map_err(io)?;
            disk.sync().map_err(io)?;
            tracing::warn!(place, "the ledger's last commit was not finished; it is whole, and was taken up");
            return load(place, disk, boot).map(|opened| Opened { taken_up: true, ..opened });
        }
    }
    if !slots.is_readable() {
        let at = format!("byte {}", slots.offset());
        return Err(damaged(place, "the commit that counts has a wrong checksum", at));
    }
    load(place, disk, boot)
}

fn slots(place: &str, disk: &Arc<dyn Disk>) -> Result<Slots, LedgerError> {
    let io = |error: std::io::Error| explain_at(place, &error);
    let length = disk.len().map_err(io)?;
    let mut header = vec![0; HEADER_BYTES.min(usize::try_from(length).unwrap_or(HEADER_BYTES))];
    disk.read(0, &mut header).map_err(io)?;
    Slots::read(&header).map_err(|why| match why {
        NotRedb::Short => damaged(place, format!("it has only {length} bytes"), format!("byte {length}")),
        NotRedb::Foreign => LedgerError::Foreign { place: place.to_owned(), found: "its first bytes are not redb's".to_owned() },
    })
}

pub(crate) fn all_bytes(place: &str, disk: &Arc<dyn Disk>) -> Result<Vec<u8>, LedgerError> {
    let io = |error: std::io::Error| explain_at(place, &error);
    let length = usize::try_from(disk.len().map_err(io)?).unwrap_or(usize::MAX);
    let mut bytes = vec![0; length];
    disk.read(0, &mut bytes).map_err(io)?;
    Ok(bytes)
}

fn load(place: &str, disk: &Arc<dyn Disk>, boot: &Arc<str>) -> Result<Opened, LedgerError> {
    shielded(place, || {
        let database = database(disk).map_err(|error| explain_redb(place, error.into()))?;
        let txn = database.begin_read().map_err(|error| explain_redb(place, error.into()))?;
        let (pool, totals, book) = read_all(place, &txn, boot)?;
        drop(txn);
        Ok(Opened { database, pool, totals, book, taken_up: false })
    })
}

/// Reads every row and holds it against the totals.
fn read_all(place: &str, txn: &ReadTransaction, boot: &Arc<str>) -> Result<(Option<PoolFacts>, Totals, Book), LedgerError> {
    let format = meta(place, txn, FORMAT_ROW)?.ok_or_else(|| LedgerError::Foreign {
        place: place.to_owned(),
        found: "a redb file that says nothing of a ledger".to_owned(),
    })?;
    let format = format.first_chunk().map(|bytes| u32::from_le_bytes(*bytes)).unwrap_or_default();
    if format != FORMAT {
        return Err(LedgerError::Version { place: place.to_owned(), found: format, known: KNOWN });
    }
    let bad = |row: &str, bad| damaged(place, format!("a row cannot be read: {bad}"), format!("row '{row}' of table 'meta'"));
    let pool =
        meta(place, txn, POOL_ROW)?.map(|body| PoolFacts::from_bytes(&body)).transpose().map_err(|why| bad(POOL_ROW, why))?;
    let totals = meta(place, txn, TOTALS_ROW)?.ok_or_else(|| damaged(place, "the totals are missing", "table 'meta'"))?;
    let totals = Totals::from_bytes(&totals).map_err(|why| bad(TOTALS_ROW, why))?;

    let mut found = Totals { hash: 0, rows: [0; 6], withdrawn_frames: 0, ..totals };
    let mut book = Book { boot: Arc::clone(boot), ..Book::new("") };
    (book.next_allocation, book.next_hold) = (totals.next_allocation, totals.next_hold);
    book.dead_below = totals.dead_below;
    for at in [At::Allocations, At::Holds, At::Unproven, At::Poisoned, At::Past, At::Landmarks] {
        each_row(place, txn, at, |key, value| {
            found.hash = found.hash.wrapping_add(hash(at, key, value));
            found.rows[at as usize] += 1;
            enter(&mut book, at, key, value, &mut found)
        })?;
    }
    if found != totals {
        let what =
            format!("its rows do not come to what is recorded: {} rows are there, {} should be", sum(&found), sum(&totals));
        return Err(damaged(place, what, "table 'meta', row 'totals'"));
    }
    if let Some(fault) = pool.as_ref().and_then(|pool| book.faults(&pool.frames()).into_iter().next()) {
        return Err(LedgerError::Inconsistent { place: place.to_owned(), why: fault });
    }
    Ok((pool, totals, book))
}

fn sum(totals: &Totals) -> u64 {
    totals.rows.iter().sum()
}

fn enter(book: &mut Book, at: At, key: u64, value: &[u8], found: &mut Totals) -> Result<(), StepError> {
    match at {
        At::Allocations => {
            book.allocations.insert(pageless::AllocationId::new(key), read(at, key, value)?);
        }
        At::Holds => {
            book.holds.insert(pageless::metadata::HoldId(key), read(at, key, value)?);
        }
        At::Unproven | At::Poisoned => {
            let mark: pageless::ledger::MarkRow = read(at, key, value)?;
            found.withdrawn_frames += mark.told.frames.frames();
            let table = if at == At::Unproven { &mut book.unproven } else { &mut book.poisoned };
            table.insert(pageless::Pfn::new(key), mark);
        }
        At::Past => book.past.push(read(at, key, value)?),
        At::Landmarks => book.landmarks.push(read(at, key, value)?),
    }
    Ok(())
}

fn each_row(
    place: &str,
    txn: &ReadTransaction,
    at: At,
    mut each: impl FnMut(u64, &[u8]) -> Result<(), StepError>,
) -> Result<(), LedgerError> {
    let storage = |error: StorageError| explain_redb(place, error.into());
    let table = match txn.open_table(TABLES[at as usize]) {
        Ok(table) => table,
        Err(TableError::Storage(error)) => return Err(storage(error)),
        Err(error) => return Err(damaged(place, error.to_string(), format!("table '{}'", name(at)))),
    };
    for row in table.iter().map_err(storage)? {
        let (key, value) = row.map_err(storage)?;
        each(key.value(), value.value()).map_err(|error| explain_step(place, error))?;
    }
    Ok(())
}

fn meta(place: &str, txn: &ReadTransaction, row: &str) -> Result<Option<Vec<u8>>, LedgerError> {
    let table = match txn.open_table(META) {
        Ok(table) => table,
        Err(TableError::Storage(error)) => return Err(explain_redb(place, error.into())),
        // A redb file without it is somebody else's.
        Err(_) => return Ok(None),
    };
    let Some(value) = table.get(row).map_err(|error| explain_redb(place, error.into()))? else { return Ok(None) };
    let at = || format!("row '{row}' of table 'meta'");
    unsealed("meta", row.as_bytes(), value.value())
        .map(|body| Some(body.to_vec()))
        .map_err(|bad| damaged(place, format!("a row cannot be read: {bad}"), at()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    fn fresh() -> Arc<dyn Disk> {
        let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::default());
        create("a test", &disk, &"boot".into()).unwrap();
        disk
    }

    fn with_row(row: &str, body: Vec<u8>) -> LedgerError {
        let disk = fresh();
        let database = database(&disk).unwrap();
        let txn = database.begin_write().unwrap();
        put_meta(&txn, row, body).unwrap();
        txn.commit().unwrap();
        drop(database);
        open("a test", &disk, &"boot".into()).err().unwrap()
    }

    #[test]
    fn a_file_of_a_later_format_is_refused_by_its_number() {
        let refused = with_row(FORMAT_ROW, 2u32.to_le_bytes().to_vec());
        assert!(matches!(refused, LedgerError::Version { found: 2, .. }), "{refused}");
    }

    #[test]
    fn rows_that_do_not_come_to_the_totals_are_damage() {
        let totals = Totals { rows: [1, 0, 0, 0, 0, 0], ..Totals::default() };
        let refused = with_row(TOTALS_ROW, totals.to_bytes());
        let LedgerError::Damaged { damage, .. } = refused else { panic!("{refused}") };
        assert!(damage.what.contains("0 rows are there, 1 should be") && damage.remedy.contains("copy"), "{damage}");
    }
}
