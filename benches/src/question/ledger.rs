//! The ledger: what a durable withdrawal costs over a bare commit, how soon a pool is back, and how small an image is.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::ensure;
use pageless::ledger::{AllocationRow, Entry, Ledger, PoolFacts};
use pageless::{
    AllocationId, Cause, Contents, Extent, FRAME_BYTES, Identity, MetadataOnly, NodeFrames, Order, Pfn, PfnRange, Pool, RunSet,
    Withdrawal, Withdrawn,
};
use pageless_ledger::{Options, RedbLedger, to_image};

use crate::bench::Bench;
use crate::contest::{Contest, Trial, as_f64, nanos};
use crate::question::footprint;

/// See [`super::Question::tasks`].
pub const TASKS: &[&str] = &["ledger.commit", "pool.reopen", "reopen with many withdrawn", "footprint.image"];

/// Commits in one repetition.
const COMMITS: u32 = 16;
const TABLE: redb::TableDefinition<'static, u64, &'static [u8]> = redb::TableDefinition::new("rows");
/// Nobody hurries the preparation of a file.
const PATIENT: Options = Options { patience: Duration::from_secs(600), reserve: 8 << 20 };

/// Asks all of it that is wanted.
pub fn ask(bench: &mut Bench) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let full = bench.scale.tib_gibs >= 1024;
    if bench.wants("ledger.commit") {
        let state = "one row of the same size, one caller, in the folder for temporary files";
        let contest = Contest::new("a durable withdrawal over a bare two-phase commit", state).unit("x").key("ledger.commit");
        bench.run(contest.entry("pageless", commit(folder.path())?))?;
    }
    if bench.wants("pool.reopen") {
        let file = folder.path().join("crashed");
        let (allocations, failures) = if full { (10_000, 1_000) } else { (500, 50) };
        let bytes = write(&file, allocations, failures)?;
        let state = format!("{allocations} allocations with {failures} failures, {bytes} bytes of ledger");
        let contest = Contest::new("open the ledger of a crashed pool and build the pool", state).key("pool.reopen");
        bench.run(contest.entry("pageless", reopen(&file, allocations, failures)))?;
    }
    if bench.wants("reopen with many withdrawn") {
        let file = folder.path().join("many");
        let failures = if full { 1_000_000 } else { 20_000 };
        let bytes = write(&file, 1, failures)?;
        let state = format!("{failures} withdrawn frames, each a run of its own, {bytes} bytes of ledger");
        let contest = Contest::new("open the ledger of a crashed pool and build the pool", state);
        bench.run(contest.entry("pageless", reopen(&file, 1, failures)))?;
    }
    if bench.wants("footprint.image") {
        let gibs = bench.scale.pool_gibs.min(8);
        let guest = footprint::filled(gibs, Order::BASE, 0.1, false)?;
        let shared = as_f64(guest.pool.stats().shared) / as_f64(gibs * Order::GIB1.frames());
        let entropy = -(shared * shared.log2() + (1.0 - shared) * (1.0 - shared).log2()) / 8.0;
        let limit = entropy * as_f64(gibs * Order::GIB1.frames());
        let ratio = as_f64(to_image(&guest.pool.snapshot()).len() as u64) / limit;
        let contest =
            Contest::new("hand-off image over the entropy limit", "10 % random 4K shared").unit("x").key("footprint.image");
        bench.run(contest.entry("pageless", Box::new(move || Ok(ratio))))?;
    }
    Ok(())
}

fn mark(frame: u64) -> Withdrawn {
    Withdrawn {
        frames: PfnRange::single(Pfn::new(frame)),
        state: Withdrawal::Failed,
        intent: None,
        cause: Cause::new("TDH.MEM.PAGE.REMOVE", 0xC000_0300_0000_0001, "PAGE_METADATA_INCORRECT").at_mapping("ept"),
        allocation: Some(AllocationId::new(1)),
        owner: Some("vm-42".into()),
        offset: frame * FRAME_BYTES,
        holder: None,
        since: SystemTime::now(),
        attempts: 0,
    }
}

/// The ratio of both, in turn, so that the disk's mood hits both.
fn commit<'a>(folder: &Path) -> anyhow::Result<Trial<'a>> {
    let ledger = RedbLedger::with(&folder.join("ledger"), PATIENT)?;
    ledger.open(&facts(1 << 20))?;
    let bare = redb::Database::create(folder.join("bare"))?;
    // A row of a mark is about so long.
    let row = [7_u8; 200];
    let mut next = 0;
    Ok(Box::new(move || {
        let (mut ours, mut theirs) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..COMMITS {
            next += 2;
            let begun = Instant::now();
            let txn = {
                let mut txn = bare.begin_write()?;
                txn.set_two_phase_commit(true);
                txn.open_table(TABLE)?.insert(next, row.as_slice())?;
                txn
            };
            txn.commit()?;
            theirs += begun.elapsed();
            let begun = Instant::now();
            ledger.commit(vec![Entry::Withdrawn(mark(next))])?;
            ours += begun.elapsed();
        }
        Ok(nanos(ours) / nanos(theirs))
    }))
}

fn facts(frames: u64) -> PoolFacts {
    let frames = PfnRange::block(Pfn::new(0), Order::GIB1).hull(PfnRange::single(Pfn::new(frames - 1)));
    PoolFacts { nodes: vec![NodeFrames { node: 0, frames }], identity: Identity::Synthetic, instance: None }
}

/// Frames of the pool, and of each allocation, for so many allocations and failures.
fn shape(allocations: u64, failures: u64) -> (u64, u64) {
    let each = (failures * 2).div_ceil(allocations).max(64).next_multiple_of(64);
    ((each * allocations).next_multiple_of(Order::GIB1.frames()), each)
}

/// Writes the ledger of a pool that crashed; its length in bytes.
fn write(file: &Path, allocations: u64, failures: u64) -> anyhow::Result<u64> {
    let (frames, each) = shape(allocations, failures);
    let ledger = RedbLedger::with(file, PATIENT)?;
    ledger.open(&facts(frames))?;
    let rows: Vec<Entry> = (0..allocations)
        .map(|nth| {
            let run = PfnRange::from_len(Pfn::new(nth * each), each)?;
            Ok(Entry::Allocated(AllocationRow {
                id: AllocationId::new(nth + 1),
                owner: format!("vm-{nth}").into(),
                bytes: run.bytes(),
                contents: Contents::Zero,
                request: None,
                secret: nth.into(),
                extents: vec![Extent { offset: 0, frames: run }],
                live: RunSet::from(run),
                released: Vec::new(),
                mappings: Vec::new(),
            }))
        })
        .collect::<anyhow::Result<_>>()?;
    ledger.commit(rows)?;
    // Every other frame, spread over all allocations where there are several.
    let step = (allocations * each / failures.max(1)).max(2);
    let marks: Vec<u64> = (0..failures).map(|nth| nth * step).collect();
    for part in marks.chunks(50_000) {
        ledger.commit(part.iter().map(|frame| Entry::Withdrawn(mark(*frame))).collect())?;
    }
    drop(ledger);
    Ok(std::fs::metadata(file)?.len())
}

fn reopen<'a>(file: &Path, allocations: u64, failures: u64) -> Trial<'a> {
    let (file, copy) = (file.to_owned(), file.with_extension("copy"));
    Box::new(move || {
        std::fs::copy(&file, &copy)?;
        let (frames, each) = shape(allocations, failures);
        let begun = Instant::now();
        let ledger = Arc::new(RedbLedger::with(&copy, PATIENT)?);
        let pool = Pool::builder().backing(MetadataOnly::of_bytes(frames * FRAME_BYTES)).ledger(ledger).build()?;
        let elapsed = nanos(begun.elapsed());
        let stats = pool.stats();
        ensure!((stats.failed, stats.released) == (failures, allocations * each), "the pool came back as {stats:?}");
        drop(pool);
        std::fs::remove_file(&copy)?;
        Ok(elapsed)
    })
}
