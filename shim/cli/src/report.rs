//! What the tour found, as a value: printed as JSON, drawn as a page, summed up in sentences.

use serde::{Serialize, Serializer};

use crate::figures;
use crate::map::PoolMap;
use crate::refcount::Comparison;

/// What one tour found. Its JSON is a promise to programs: fields are added, not renamed.
#[derive(Clone, Debug, Serialize)]
pub struct TourReport {
    /// Version of pageless.
    pub version: String,
    /// Release of the running kernel.
    pub kernel: String,
    /// The memory that was used: `memfd`, `hugetlb-2m`, `hugetlb-1g`, `physical`.
    pub backing: String,
    /// Why that one.
    pub backing_reason: String,
    /// The physical window, as it is written on the command line; only with `physical`.
    pub window: Option<String>,
    /// Whether the kernel keeps a `struct page` for each of the frames: everywhere but in /dev/mem.
    pub kernel_has_struct_pages: bool,
    /// What the frame numbers mean, and what a proof covers on this memory.
    pub proof: ProofNote,
    /// Size of the pool.
    pub pool_bytes: u64,
    /// Seed of everything that was drawn.
    pub seed: u64,
    /// Whether memory was zeroed between owners.
    pub zeroing: bool,
    /// How long it all took.
    pub elapsed_ms: u64,
    /// The guests of the story.
    pub guests: Vec<GuestNote>,
    /// Conversions that were asked for, share and unshare together.
    pub conversions: u64,
    /// Every run of frames that was withdrawn during the story, whether or not it came back.
    pub withdrawn: Vec<Withdrawal>,
    /// Frames handed out while they were withdrawn: 0, or pageless is broken.
    pub reassigned_withdrawn_frames: u64,
    /// Frames that were withdrawn in a pool that was killed, and are in its ledger after it was opened again.
    pub reopened_withdrawn_frames: u64,
    /// Frames that the killed pool had told of as withdrawn and that its ledger has forgotten: 0, or pageless is broken.
    pub lost_after_crash: u64,
    /// Bytes of one owner that a later owner could read: 0, or pageless is broken.
    pub stale_bytes_seen: u64,
    /// Bytes that were read to look for them.
    pub bytes_checked: u64,
    /// Bytes that pageless keeps about the pool.
    pub metadata_bytes: u64,
    /// Bytes of `struct page` for the same frames: computed, 64 for each.
    pub struct_page_bytes: u64,
    /// One question about a GiB, hot, median nanoseconds.
    pub check_1g_ns: CheckNs,
    /// All that was measured about that question.
    pub comparison: Comparison,
    /// What was told, chapter by chapter.
    pub steps: Vec<Step>,
    /// The pool at telling moments, the end last. In JSON only the totals appear.
    #[serde(rename = "pool_by_state", serialize_with = "totals_of_all")]
    pub snapshots: Vec<Snapshot>,
    /// The page, where one was written.
    pub html: Option<String>,
}

/// What the frame numbers mean and what a proof covers.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ProofNote {
    /// `physical` or `synthetic`.
    pub identity: String,
    /// How a proof is made.
    pub method: String,
    /// What it rules out.
    pub covers: String,
    /// What it does not see.
    pub blind_to: String,
    /// Bytes that can only be proven together.
    pub granule_bytes: u64,
}

/// One guest of the story.
#[derive(Clone, Debug, Serialize)]
pub struct GuestNote {
    /// Its name.
    pub name: String,
    /// Its memory.
    pub bytes: u64,
    /// Conversions it asked for.
    pub conversions: u64,
}

/// The two costs of one question about a GiB, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct CheckNs {
    /// Asked of pageless.
    pub pageless: f64,
    /// Answered by scanning 262,144 reference counts.
    pub refcount_scan: f64,
}

impl From<&Comparison> for CheckNs {
    fn from(comparison: &Comparison) -> Self {
        Self { pageless: comparison.pageless.hot_ns, refcount_scan: comparison.refcount_scan.hot_ns }
    }
}

/// A run of frames that was withdrawn.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Withdrawal {
    /// Number of the first frame.
    pub pfn: u64,
    /// How many frames.
    pub frames: u64,
    /// Its state: at the end, or until it came back.
    pub state: WithdrawnState,
    /// What happened, in the words and numbers of the platform.
    pub cause: String,
    /// Whether it really happened or was injected.
    pub origin: Origin,
    /// Whose it was; empty if nobody's.
    pub owner: String,
    /// Whether it came back by proof.
    pub came_back: bool,
}

/// A state that keeps a frame from everybody.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WithdrawnState {
    /// No proof yet.
    Quarantined,
    /// No proof, ever.
    Failed,
    /// Broken hardware.
    Poisoned,
}

impl WithdrawnState {
    /// The state in a word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Quarantined => "quarantined",
            Self::Failed => "failed",
            Self::Poisoned => "poisoned",
        }
    }
}

/// Where a failure came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// The running kernel refused: somebody really held a page.
    KernelPin,
    /// The tour made a page-table model answer with a platform's status word.
    Injected,
    /// The tour reported a machine check.
    MachineCheck,
}

impl Origin {
    /// The origin for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::KernelPin => "real: a kernel pin",
            Self::Injected => "injected",
            Self::MachineCheck => "a reported machine check",
        }
    }
}

/// A chapter of the story, as it was told.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Step {
    /// Its title.
    pub title: String,
    /// What was said, sentence by sentence.
    pub lines: Vec<String>,
    /// What the VMM was told.
    pub outcomes: Vec<Outcome>,
}

/// One answer to a VMM.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Outcome {
    /// What was the case.
    pub situation: String,
    /// What the VMM sees, in the words of the Rust API.
    pub vmm_sees: String,
    /// The errno it becomes over the C ABI: `0`, `EAGAIN`, ...
    pub errno: String,
    /// What a VMM does then.
    pub vmm_does: String,
}

/// The pool at a telling moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The moment in a few words.
    pub title: String,
    /// What to see.
    pub caption: String,
    /// The pool.
    pub map: PoolMap,
}

/// Serialises snapshots as `[{"moment": ..., "frames": {"free": 1, ...}}]`.
fn totals_of_all<S: Serializer>(snapshots: &[Snapshot], serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Totals<'a> {
        moment: &'a str,
        frames: std::collections::BTreeMap<&'static str, u64>,
    }
    serializer.collect_seq(snapshots.iter().map(|snapshot| {
        let mut frames = std::collections::BTreeMap::new();
        for (kind, number) in snapshot.map.totals() {
            *frames.entry(kind.name()).or_insert(0) += number;
        }
        Totals { moment: &snapshot.title, frames }
    }))
}

impl TourReport {
    /// Whether the tour kept what pageless promises.
    #[must_use]
    pub const fn holds(&self) -> bool {
        self.reassigned_withdrawn_frames == 0 && self.stale_bytes_seen == 0 && self.lost_after_crash == 0
    }

    /// How the same memory is asked for again on the command line.
    #[must_use]
    pub fn ground_arguments(&self) -> String {
        self.window.as_ref().map_or_else(
            || format!("--memory {} --backing {}", self.pool_bytes, self.backing),
            |window| format!("--backing {} --window {window}", self.backing),
        )
    }

    /// The verdict in one sentence.
    #[must_use]
    pub fn headline(&self) -> String {
        if self.lost_after_crash > 0 {
            let forgotten = figures::counted(self.lost_after_crash, "withdrawn frame");
            return format!(
                "BROKEN: {forgotten} forgotten by a pool that was killed. Please report this with the seed {}.",
                self.seed
            );
        }
        match (self.reassigned_withdrawn_frames, self.stale_bytes_seen) {
            (0, 0) => "No withdrawn frame was handed out again, and no guest saw another's bytes.".to_owned(),
            (0, stale) if !self.zeroing => {
                format!(
                    "{} of one owner were seen by the next, as they must be without zeroing.",
                    figures::counted(stale, "stale byte")
                )
            }
            (frames, stale) => format!(
                "BROKEN: {} handed out again, and {} seen. Please report this with the seed {}.",
                figures::counted(frames, "withdrawn frame"),
                figures::counted(stale, "stale byte"),
                self.seed
            ),
        }
    }

    /// What a newcomer should take home, sentence by sentence.
    #[must_use]
    pub fn summary(&self) -> Vec<String> {
        let frames: u64 = self.withdrawn.iter().map(|run| run.frames).sum();
        let (back, lost): (Vec<_>, Vec<_>) = self.withdrawn.iter().partition(|run| run.came_back);
        let sum = |runs: &[&Withdrawal]| figures::counted(runs.iter().map(|run| run.frames).sum(), "frame");
        let (fast, slow) = (self.check_1g_ns.pageless, self.check_1g_ns.refcount_scan);
        vec![
            format!(
                "{} shared and unshared memory {} times in a pool of {}.",
                figures::counted(self.guests.len() as u64, "guest"),
                figures::count(self.conversions),
                figures::bytes(self.pool_bytes)
            ),
            format!(
                "{} were withdrawn at once, not proven unreachable or poisoned: {} came back once a proof was there, {} stay withdrawn.",
                figures::counted(frames, "frame"),
                sum(&back),
                sum(&lost)
            ),
            format!(
                "Then everything else was allocated. {} withdrawn frames were handed out; {} were read in search of an earlier owner's bytes, and {} found.",
                figures::count(self.reassigned_withdrawn_frames),
                figures::bytes(self.bytes_checked),
                figures::count(self.stale_bytes_seen)
            ),
            format!(
                "Another pool was killed in the middle of conversions. Of the frames that it had told of as withdrawn {} are in its \
                 ledger, and {} are forgotten.",
                figures::count(self.reopened_withdrawn_frames),
                figures::count(self.lost_after_crash)
            ),
            format!(
                "'May this GiB be converted?' took pageless {} and a scan of reference counts {}: {} times as long.",
                figures::nanoseconds(fast),
                figures::nanoseconds(slow),
                figures::ratio(slow, fast)
            ),
            format!(
                "pageless keeps {} about the pool, where struct page takes {}. {}",
                figures::bytes(self.metadata_bytes),
                figures::bytes(self.struct_page_bytes),
                if self.kernel_has_struct_pages {
                    format!("On {} the kernel keeps its own besides.", self.backing)
                } else {
                    "Of this memory the kernel keeps none.".to_owned()
                }
            ),
        ]
    }
}
