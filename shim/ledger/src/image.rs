//! The hand-off image: a snapshot of a pool as bytes, for a live update. All numbers are little-endian.
//!
//! ```text
//! byte 0..8     "PGLSIMG" and a zero byte
//!      8..12    version, 1
//!      12..20   length of the whole image, checksum included
//!      20..     the pool: its nodes (a count in 8 bytes, then 4 bytes number, 8 bytes first frame, 8 bytes end for each),
//!               1 byte identity (0 physical, 1 synthetic), the name of its memory (1 byte whether there is one, then a text)
//!      ..       8 bytes next allocation, 8 bytes next hold, 8 bytes the number below which owners are dead
//!      ..       allocations, holds, unproven marks, poisoned marks: for each list a count in 8 bytes, then its rows as in
//!               the ledger's file (`encode.rs`), without a length
//!      ..       GiBs that are not all private and uncut: a count in 8 bytes, then for each
//!               8 bytes first frame, 8 bytes end, 1 byte whether its 1 GiB leaf was cut,
//!               the shared frames, the unknown ones, the cut 2 MiB blocks, each a plane
//!      last 16  XXH3-128 of everything before
//!
//! a plane: 1 byte code (0 gaps before members, 1 gaps before the others, 2 runs), 1 byte Rice parameter, 1 byte parameter of
//!          run lengths, 4 bytes how many numbers (pairs of them for runs), 4 bytes how many bytes follow, the bits, lowest
//!          first
//! a text:  8 bytes length, UTF-8
//! ```

use std::io;

use pageless::ledger::{Book, GibSnapshot, LedgerError, Snapshot};
use pageless::metadata::GIB_FRAMES;
use pageless::{Order, Pfn, PfnRange, RunSet};
use roaring::RoaringTreemap;
use xxhash_rust::xxh3::xxh3_128;

use crate::encode::Row;
use crate::opened::damaged;
use crate::rice;
use crate::words::{Bad, Reader, Writer};

const MAGIC: [u8; 8] = *b"PGLSIMG\0";
/// The version that this one writes and reads.
pub const IMAGE_VERSION: u32 = 1;
const KNOWN: &str = "version 1";
const PLACE: &str = "image";
const HEADER: usize = 20;
const CHECKSUM: usize = 16;
/// 2 MiB blocks in a GiB.
const BLOCKS: u32 = 512;

/// A snapshot as bytes.
#[must_use]
pub fn to_image(snapshot: &Snapshot) -> Vec<u8> {
    let mut to = Writer::default();
    to.0.extend(MAGIC);
    to.u32(IMAGE_VERSION);
    to.u64(0);
    snapshot.pool.write(&mut to);
    let book = &snapshot.book;
    to.u64(book.next_allocation);
    to.u64(book.next_hold);
    to.u64(book.dead_below);
    to.list(book.allocations.values(), |to, row| row.write(to));
    to.list(book.holds.values(), |to, row| row.write(to));
    to.list(book.unproven.values(), |to, row| row.write(to));
    to.list(book.poisoned.values(), |to, row| row.write(to));
    to.list(snapshot.gibs.iter(), write_gib);
    let length = (to.0.len() + CHECKSUM) as u64;
    to.0[12..HEADER].copy_from_slice(&length.to_le_bytes());
    let sum = xxh3_128(&to.0);
    to.u128(sum);
    to.0
}

/// The snapshot that an image holds. One that is damaged, cut short or of another version is refused by that name; whether it
/// is of the same pool is found when a pool is built from it.
pub fn from_image(bytes: &[u8]) -> Result<Snapshot, LedgerError> {
    let cut = || damaged(PLACE, format!("it has only {} bytes", bytes.len()), format!("byte {}", bytes.len()));
    let header: &[u8; HEADER] = bytes.first_chunk().ok_or_else(cut)?;
    if header[..8] != MAGIC {
        let found = "its first bytes are not those of an image".to_owned();
        return Err(LedgerError::Foreign { place: PLACE.to_owned(), found });
    }
    let mut from = Reader(&header[8..]);
    let whole = |bad: Bad| damaged(PLACE, bad, "its header");
    let (version, length) = (from.u32().map_err(whole)?, from.u64().map_err(whole)?);
    if version != IMAGE_VERSION {
        return Err(LedgerError::Version { place: PLACE.to_owned(), found: version, known: KNOWN });
    }
    if length != bytes.len() as u64 {
        return Err(damaged(PLACE, format!("it has {} bytes of {length}", bytes.len()), format!("byte {}", bytes.len())));
    }
    let (body, sum) = bytes.split_last_chunk::<CHECKSUM>().ok_or_else(cut)?;
    if xxh3_128(body) != u128::from_le_bytes(*sum) {
        return Err(damaged(PLACE, "its checksum is wrong", "somewhere in it"));
    }
    let mut from = Reader(&body[HEADER..]);
    let read = read_body(&mut from).and_then(|snapshot| from.end().map(|()| snapshot));
    read.map_err(|bad| damaged(PLACE, format!("it cannot be read: {bad}"), "somewhere in it"))
}

/// Writes the shared frames in roaring's portable format for 64-bit sets, which its other libraries read.
pub fn export_shared(snapshot: &Snapshot, to: impl io::Write) -> io::Result<()> {
    let mut shared = RoaringTreemap::new();
    for run in snapshot.gibs.iter().flat_map(|gib| &gib.shared) {
        shared.insert_range(run.start().get()..run.end().get());
    }
    shared.serialize_into(to)
}

fn read_body(from: &mut Reader<'_>) -> Result<Snapshot, Bad> {
    let pool = Row::read(from)?;
    let mut book = Book::new("");
    (book.next_allocation, book.next_hold) = (from.u64()?, from.u64()?);
    book.dead_below = from.u64()?;
    book.allocations = from.list(pageless::ledger::AllocationRow::read)?.into_iter().map(|row| (row.id, row)).collect();
    book.holds = from.list(pageless::ledger::HoldRow::read)?.into_iter().map(|row| (row.id, row)).collect();
    let by_start = |row: pageless::ledger::MarkRow| (row.told.frames.start(), row);
    book.unproven = from.list(Row::read)?.into_iter().map(by_start).collect();
    book.poisoned = from.list(Row::read)?.into_iter().map(by_start).collect();
    Ok(Snapshot { pool, book, gibs: from.list(read_gib)? })
}

fn write_gib(to: &mut Writer, gib: &GibSnapshot) {
    to.u64(gib.frames.start().get());
    to.u64(gib.frames.end().get());
    to.u8(u8::from(gib.demoted));
    write_set(to, &gib.shared);
    write_set(to, &gib.unknown);
    let blocks: Vec<(u32, u32)> = gib.broken.iter().map(|block| (*block, block + 1)).collect();
    rice::write(to, &blocks, BLOCKS);
}

fn write_set(to: &mut Writer, set: &RunSet) {
    let span = |run: PfnRange| {
        let start = run.start().in_gib();
        (start, start + u32::try_from(run.frames()).unwrap_or(GIB_FRAMES - start))
    };
    let spans: Vec<(u32, u32)> = set.into_iter().map(span).collect();
    rice::write(to, &spans, GIB_FRAMES);
}

fn read_gib(from: &mut Reader<'_>) -> Result<GibSnapshot, Bad> {
    let (start, end) = (from.u64()?, from.u64()?);
    let first = Pfn::new(start).align_down(Order::GIB1);
    if end > Pfn::LIMIT.get() || end > first.get() + u64::from(GIB_FRAMES) {
        return Err("a GiB is none");
    }
    let frames = PfnRange::new(Pfn::new(start), Pfn::new(end)).map_err(|_| "a GiB is none")?;
    let demoted = from.u8()? != 0;
    let mut set = || -> Result<RunSet, Bad> {
        let spans = rice::read(from, GIB_FRAMES)?;
        let range = |(start, end): (u32, u32)| PfnRange::new(first.add(start.into()), first.add(end.into())).ok();
        let set: RunSet = spans.into_iter().filter_map(range).collect();
        if set.gaps_in(frames).frames() + set.frames() == frames.frames() { Ok(set) } else { Err("a frame is not in its GiB") }
    };
    let (shared, unknown) = (set()?, set()?);
    let broken = rice::read(from, BLOCKS)?.into_iter().flat_map(|(start, end)| start..end).collect();
    Ok(GibSnapshot { frames, shared, unknown, demoted, broken })
}
