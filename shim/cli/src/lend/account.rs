//! What became of a loan: told like time(1), on standard error, so that the command's output stays its own.

use std::fmt;
use std::process::ExitStatus;

use pageless::{Lost, Reclaimed};
use serde::Serialize;

use crate::figures;

/// The account of one loan. Its JSON is a promise to programs: fields are added, not renamed.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Account {
    /// What the frame numbers mean: `physical` or `synthetic`.
    pub identity: String,
    /// What the command opens.
    pub path: String,
    /// Where the memory begins in it, in bytes: in /dev/mem the physical address.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// Number of the first frame.
    pub pfn: u64,
    /// How many there are.
    pub frames: u64,
    /// The command's end, in words.
    pub ended: String,
    /// Its exit code; none where a signal ended it.
    pub code: Option<i32>,
    /// Whether the command succeeded.
    pub succeeded: bool,
    /// Frames that were proven unreachable and are free again.
    pub proven_frames: u64,
    /// Frames that were not.
    pub lost: Vec<LostRun>,
    /// Bytes of the free frames that were read afterwards.
    pub bytes_checked: u64,
    /// How many of them were not zero: 0, or pageless is broken.
    pub stale_bytes: u64,
}

/// Frames that could not be proven unreachable.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct LostRun {
    /// Number of the first frame.
    pub pfn: u64,
    /// How many.
    pub frames: u64,
    /// `quarantined`, `failed` or `poisoned`.
    pub state: String,
    /// Why.
    pub cause: String,
}

impl From<&Lost> for LostRun {
    fn from(lost: &Lost) -> Self {
        let frames = lost.frames();
        let (state, cause) = (lost.state().to_string(), lost.cause().to_string());
        Self { pfn: frames.start().get(), frames: frames.frames(), state, cause }
    }
}

impl Account {
    /// Whether the command succeeded, and all it had is back, and empty.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.succeeded && self.proven_frames == self.frames && self.stale_bytes == 0
    }

    /// Enters how the command ended.
    pub(super) fn ended(&mut self, status: ExitStatus) {
        (self.ended, self.code, self.succeeded) = (status.to_string(), status.code(), status.success());
    }

    /// Enters what was reclaimed.
    pub(super) fn reclaimed(&mut self, told: &Reclaimed) {
        self.proven_frames = told.freed.frames();
        self.lost = told.lost.iter().map(LostRun::from).collect();
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = format!("{} at {:#x} of {}", figures::bytes(self.bytes), self.offset, self.path);
        writeln!(
            f,
            "pageless: lent {place} ({} frames, from pfn {:#x}); the command ended with {}",
            self.identity, self.pfn, self.ended
        )?;
        let (frames, proven) = (figures::counted(self.frames, "frame"), figures::count(self.proven_frames));
        write!(f, "pageless: of {frames} {proven} proven unreachable and free; ")?;
        writeln!(
            f,
            "{} of them read: {} not zero",
            figures::bytes(self.bytes_checked),
            figures::counted(self.stale_bytes, "byte")
        )?;
        for run in &self.lost {
            let frames = figures::counted(run.frames, "frame");
            writeln!(f, "pageless: lost: {frames} from pfn {:#x}, {}: {}", run.pfn, run.state, run.cause)?;
        }
        Ok(())
    }
}
