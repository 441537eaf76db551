//! A pool is killed in the middle of conversions, and what it had told of its losses is still in its ledger.
//!
//! The pool lives in a process of its own, which is this program again, and is ended by SIGKILL. It has bookkeeping and no
//! memory: marks on this host's memfd memory would end with the memory.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use pageless::{
    Cause, Convert, FRAME_BYTES, Lost, Mapping, MetadataOnly, Operation, Pfn, PfnRange, Pool, Refusal, Request, RunSet, Stuck,
    Verdict,
};
use pageless_ledger::RedbLedger;

use super::Story;
use crate::figures;

/// Frames of the pool that is killed.
const FRAMES: u64 = 65_536;
/// Frames that get stuck before the kill.
const STUCK: u64 = 5;
/// What the worker says when it has told of all its losses, and goes on converting.
const READY: &str = "ready";
/// A worker that nobody kills ends by itself.
const LONGEST: Duration = Duration::from_secs(20);

/// What was found after the kill.
pub(super) struct Found {
    pub(super) reopened_withdrawn_frames: u64,
    pub(super) lost_after_crash: u64,
}

/// Kills a pool, and looks what its ledger holds.
pub(super) fn tell(story: &mut Story<'_>) -> anyhow::Result<Found> {
    story.tell.chapter("A pool is killed, and its marks are not");
    let folder = tempfile::tempdir().context("a folder for the ledger")?;
    let file = folder.path().join("tour.ledger");
    let frames = story.draw.distinct(STUCK, FRAMES / 4);
    let told = run_and_kill(&file, &frames)?;
    story.tell.line(format!(
        "Another process keeps a pool of {} frames with a ledger. {} get stuck there for good, its VMM is told of each, and then it \
         is ended by SIGKILL, in the middle of conversions: nothing of it runs to its end.",
        figures::count(FRAMES),
        figures::counted(told.frames(), "frame")
    ));
    let pool = reopen(&file).context("the ledger of the killed pool")?;
    let verified = pool.verify();
    if !verified.is_sound() {
        bail!("the reopened pool's books do not agree, which is a bug of pageless: {}", verified.faults.join("; "));
    }
    let found: RunSet = pool.withdrawn().iter().map(|run| run.frames).collect();
    let free: RunSet = told.into_iter().filter(|run| run.iter().any(|pfn| pool.is_free(pfn))).collect();
    let lost = told.difference(&found).union(&free);
    let stats = pool.stats();
    story.tell.line(format!(
        "The pool is opened again from its ledger: {} withdrawn, each with its cause; {} forgotten. What the dead VMM had, {} frames, \
         is released and not free: it needs the proof of the mapping that was attached.",
        figures::counted(found.frames(), "frame"),
        figures::count(lost.frames()),
        figures::count(stats.released),
    ));
    if let Some(mark) = pool.withdrawn().first() {
        story.tell.line(format!("The first of them: {} is {}: {}.", super::place(mark.frames), mark.state, mark.cause));
    }
    story.tell.line(
        "Such a ledger is looked at with `pageless ledger show`, `withdrawn` and `verify`, while no pool has it open. This pool had \
         no memory behind it: marks on memfd memory end with the memory, and the ledger says so."
            .to_owned(),
    );
    Ok(Found { reopened_withdrawn_frames: found.frames(), lost_after_crash: lost.frames() })
}

fn reopen(file: &Path) -> anyhow::Result<Pool> {
    let ledger = Arc::new(RedbLedger::at(file)?);
    Ok(Pool::builder().backing(MetadataOnly::of_bytes(FRAMES * FRAME_BYTES)).ledger(ledger).build()?)
}

/// Runs the worker until it has told of all its losses, and kills it. Returns what it had told.
fn run_and_kill(file: &Path, frames: &[u64]) -> anyhow::Result<RunSet> {
    let program = std::env::current_exe().context("this program")?;
    let mut worker = Command::new(program)
        .arg("tour-worker")
        .arg(file)
        .args(frames.iter().map(ToString::to_string))
        .stdout(Stdio::piped())
        .spawn()
        .context("a second process")?;
    let told = worker.stdout.take().map_or_else(|| Ok(RunSet::new()), |lines| listen(BufReader::new(lines)));
    std::thread::sleep(Duration::from_millis(20));
    // SIGKILL on Unix.
    worker.kill().context("ending the second process")?;
    worker.wait()?;
    let told = told?;
    if told.frames() < STUCK {
        bail!("the second process told of {} of {STUCK} losses", told.frames());
    }
    Ok(told)
}

fn listen(lines: impl BufRead) -> anyhow::Result<RunSet> {
    let mut told = RunSet::new();
    for line in lines.lines() {
        let line = line?;
        if line == READY {
            break;
        }
        told.insert(PfnRange::single(Pfn::new(line.parse()?)));
    }
    Ok(told)
}

/// The second process: gets stuck at these frames of its allocation, tells of each loss once it is recorded, and goes on converting.
pub(crate) fn work(file: &Path, frames: &[u64]) -> anyhow::Result<()> {
    let pool = reopen(file)?;
    let ram = pool.allocate(Request::bytes(FRAMES / 2 * FRAME_BYTES).contiguous().owner("vm-k"))?;
    let stuck = frames.iter().map(|frame| ram.frame(frame * FRAME_BYTES)).collect::<Result<_, _>>()?;
    let stage2 = Arc::new(Stage2(stuck));
    ram.attach("ept", stage2)?;
    let bytes = FRAMES / 4 * FRAME_BYTES;
    if let Err(Convert::Torn { lost, .. }) = ram.share(0..bytes) {
        for pfn in lost.iter().filter(|lost| lost.recorded()).map(Lost::frames).flat_map(PfnRange::iter) {
            println!("{}", pfn.get());
        }
    }
    println!("{READY}");
    std::io::stdout().flush()?;
    let begun = Instant::now();
    while begun.elapsed() < LONGEST {
        let range = bytes..2 * bytes;
        ram.share(range.clone())?;
        ram.unshare(range)?;
    }
    Ok(())
}

/// A stage 2 that fails for good where it is told.
struct Stage2(Vec<Pfn>);

impl Mapping for Stage2 {
    fn prepare(&self, _op: &Operation) -> Result<(), Refusal> {
        Ok(())
    }

    fn invalidate(&self, _op: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        match self.0.iter().filter(|pfn| frames.contains(**pfn)).min() {
            Some(pfn) => {
                let cause = Cause::new("TDH.MEM.PAGE.REMOVE", 0xC000_0300_0000_0001, "PAGE_METADATA_INCORRECT");
                Err(Stuck { at: PfnRange::single(*pfn), verdict: Verdict::Never, cause })
            }
            None => Ok(()),
        }
    }
}
