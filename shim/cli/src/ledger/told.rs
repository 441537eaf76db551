//! What `pageless ledger` says, as values: printed for people, or as JSON for programs.

use std::fmt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use pageless::ledger::{AllocationRow, HoldRow, Landmark, LandmarkKind, LedgerError, MarkRow, PoolFacts};
use pageless::{PfnRange, RunSet, Withdrawal};
use pageless_ledger::{FORMAT, Inspection};
use serde::Serialize;

use super::withdrawn_frames;

#[derive(Serialize)]
pub(super) struct Frames {
    start: u64,
    end: u64,
}

impl From<PfnRange> for Frames {
    fn from(range: PfnRange) -> Self {
        Self { start: range.start().get(), end: range.end().get() }
    }
}

fn frames(set: &RunSet) -> Vec<Frames> {
    set.into_iter().map(Into::into).collect()
}

/// Seconds since 1970.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn pool_of(pool: Option<&PoolFacts>) -> String {
    pool.map_or_else(|| "no pool has opened it yet".to_owned(), PoolFacts::geometry)
}

/// `pageless ledger show`.
#[derive(Serialize)]
pub(super) struct Overview {
    format: u32,
    pool: String,
    instance: Option<String>,
    bytes: u64,
    commits: u64,
    allocations: usize,
    holds: usize,
    withdrawn_frames: u64,
    quarantined_frames: u64,
    failed_frames: u64,
    poisoned_frames: u64,
    events: Vec<Event>,
}

#[derive(Serialize)]
pub(super) struct Event {
    at: u64,
    boot: String,
    event: String,
}

impl Overview {
    pub(super) fn of(found: &Inspection) -> Self {
        let marked = |state| found.book.marked(state).frames();
        Self {
            format: FORMAT,
            pool: pool_of(found.pool.as_ref()),
            instance: found.pool.as_ref().and_then(|pool| pool.instance.clone()),
            bytes: found.bytes,
            commits: found.commits,
            allocations: found.book.allocations.len(),
            holds: found.book.holds.len(),
            withdrawn_frames: withdrawn_frames(found),
            quarantined_frames: marked(Withdrawal::Quarantined),
            failed_frames: marked(Withdrawal::Failed),
            poisoned_frames: marked(Withdrawal::Poisoned),
            events: found.book.landmarks.iter().map(Event::of).collect(),
        }
    }
}

impl Event {
    fn of(landmark: &Landmark) -> Self {
        let event = match &landmark.kind {
            LandmarkKind::Opened => "a pool opened the ledger".to_owned(),
            LandmarkKind::MemoryGone { instance, withdrawn } => {
                format!("the memory {instance} was gone, and {withdrawn} withdrawn frames ended with it")
            }
            LandmarkKind::PlatformReset { frames, evidence } => format!("platform reset, {frames}: {evidence}"),
            LandmarkKind::HardwareReplaced { frames, evidence } => format!("hardware replaced, {frames}: {evidence}"),
        };
        Self { at: seconds(landmark.at), boot: landmark.boot.to_string(), event }
    }
}

impl fmt::Display for Overview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "A ledger of format {} in {} bytes, {} commits.", self.format, self.bytes, self.commits)?;
        writeln!(f, "Pool: {}", self.pool)?;
        writeln!(f, "{} allocations, {} holds.", self.allocations, self.holds)?;
        writeln!(
            f,
            "{} frames are withdrawn: {} quarantined, {} failed, {} poisoned.",
            self.withdrawn_frames, self.quarantined_frames, self.failed_frames, self.poisoned_frames
        )?;
        self.events.iter().try_for_each(|event| writeln!(f, "at {} in boot {}: {}", event.at, event.boot, event.event))
    }
}

/// `pageless ledger withdrawn`.
#[derive(Serialize)]
pub(super) struct Marks {
    withdrawn: Vec<Mark>,
}

#[derive(Serialize)]
pub(super) struct Mark {
    frames: Frames,
    state: String,
    intent: Option<String>,
    mapping: String,
    step: String,
    status: String,
    meaning: String,
    owner: Option<String>,
    allocation: Option<u64>,
    offset: u64,
    since: u64,
    attempts: u32,
    boot: String,
    #[serde(skip)]
    said: String,
}

impl Marks {
    pub(super) fn of(found: &Inspection) -> Self {
        Self { withdrawn: found.book.marks().map(Mark::of).collect() }
    }
}

impl Mark {
    fn of(row: &MarkRow) -> Self {
        let told = &row.told;
        Self {
            frames: told.frames.into(),
            state: told.state.to_string(),
            intent: told.intent.map(|intent| intent.to_string()),
            mapping: told.cause.mapping.to_string(),
            step: told.cause.step.to_string(),
            status: format!("{:#x}", told.cause.status),
            meaning: told.cause.meaning.to_string(),
            owner: told.owner.as_deref().map(str::to_owned),
            allocation: told.allocation.map(pageless::AllocationId::get),
            offset: told.offset,
            since: seconds(told.since),
            attempts: told.attempts,
            boot: row.boot.to_string(),
            said: format!("{} {}: {}", told.frames, told.state, told.cause),
        }
    }
}

impl fmt::Display for Marks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.withdrawn.is_empty() {
            writeln!(f, "No frame is withdrawn.")?;
        }
        self.withdrawn.iter().try_for_each(|mark| {
            let owner = mark.owner.as_deref().unwrap_or("nobody");
            writeln!(
                f,
                "{}; of {owner}, since {} in boot {}, asked again {} times",
                mark.said, mark.since, mark.boot, mark.attempts
            )
        })
    }
}

/// `pageless ledger verify`.
#[derive(Serialize)]
pub(super) struct Verdict {
    pub(super) clean: bool,
    findings: Vec<String>,
    withdrawn_frames: Option<u64>,
}

impl Verdict {
    pub(super) fn of(file: &Path, found: Result<Inspection, LedgerError>) -> Self {
        let findings = match &found {
            Ok(found) => found.findings(),
            Err(error) => vec![error.to_string()],
        };
        let findings: Vec<String> = findings.into_iter().map(|finding| format!("{}: {finding}", file.display())).collect();
        Self { clean: findings.is_empty(), findings, withdrawn_frames: found.ok().as_ref().map(withdrawn_frames) }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.findings.iter().try_for_each(|finding| writeln!(f, "{finding}"))?;
        match (self.clean, self.withdrawn_frames) {
            (true, Some(frames)) => writeln!(f, "The ledger is whole; {frames} frames are withdrawn in it."),
            (_, Some(frames)) => writeln!(f, "{frames} frames are withdrawn in what could be read."),
            (_, None) => writeln!(f, "Nothing of it was used."),
        }
    }
}

/// `pageless ledger export`.
#[derive(Serialize)]
pub(super) struct Export {
    #[serde(flatten)]
    overview: Overview,
    #[serde(flatten)]
    marks: Marks,
    allocations_rows: Vec<Allocation>,
    holds_rows: Vec<Hold>,
    past_marks: Vec<Mark>,
}

#[derive(Serialize)]
struct Allocation {
    id: u64,
    owner: String,
    bytes: u64,
    request: Option<String>,
    extents: Vec<ExtentRow>,
    live: Vec<Frames>,
    released: Vec<ExtentRow>,
    mappings: Vec<String>,
}

#[derive(Serialize)]
struct ExtentRow {
    offset: u64,
    frames: Frames,
}

#[derive(Serialize)]
struct Hold {
    id: u64,
    allocation: u64,
    holder: String,
    frames: Vec<Frames>,
}

impl Export {
    pub(super) fn of(found: &Inspection) -> Self {
        Self {
            overview: Overview::of(found),
            marks: Marks::of(found),
            allocations_rows: found.book.allocations.values().map(Allocation::of).collect(),
            holds_rows: found.book.holds.values().map(Hold::of).collect(),
            past_marks: found.book.past.iter().map(|past| Mark::of(&past.mark)).collect(),
        }
    }
}

impl Allocation {
    /// Without the secret of its token, which is not for others.
    fn of(row: &AllocationRow) -> Self {
        let extents = |list: &[pageless::Extent]| -> Vec<ExtentRow> {
            list.iter().map(|extent| ExtentRow { offset: extent.offset, frames: extent.frames.into() }).collect()
        };
        Self {
            id: row.id.get(),
            owner: row.owner.to_string(),
            bytes: row.bytes,
            request: row.request.map(|request| format!("{:#x}", request.0)),
            extents: extents(&row.extents),
            live: frames(&row.live),
            released: extents(&row.released),
            mappings: row.mappings.iter().map(ToString::to_string).collect(),
        }
    }
}

impl Hold {
    fn of(row: &HoldRow) -> Self {
        Self {
            id: row.id.0,
            allocation: row.allocation.get(),
            holder: row.holder.to_string(),
            frames: row.frames.iter().map(|run| Frames::from(*run)).collect(),
        }
    }
}

/// `pageless ledger hardware-replaced`.
#[derive(Serialize)]
pub(super) struct Lifted {
    lifted: Vec<Frames>,
    evidence: String,
    #[serde(skip)]
    said: String,
}

impl Lifted {
    pub(super) fn of(lifted: &RunSet, evidence: &str) -> Self {
        Self { lifted: frames(lifted), evidence: evidence.to_owned(), said: lifted.to_string() }
    }
}

impl fmt::Display for Lifted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "No longer poisoned, and recorded so with the evidence {:?}: {}", self.evidence, self.said)
    }
}
