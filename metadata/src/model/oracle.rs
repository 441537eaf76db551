//! Where the model's answers from mappings and the backing come from.

use crate::Pfn;

/// What a mapping says to `prepare`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Prepared {
    /// Go on.
    Ready,
    /// Not now.
    Busy,
    /// No.
    Refused,
    /// It panics.
    Panics,
}

/// Why a frame is not proven.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoProof {
    /// Not now, or held: asking again may help.
    ForNow,
    /// Never.
    ForGood,
}

/// What a mapping or the backing says about one frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Unreachable.
    Proven,
    /// Unreachable, when asked a second time: what lies before it is proven by the first answer.
    ProvenAgain,
    /// No proof, of this frame alone.
    Stuck(NoProof),
    /// An answer about frames that were not asked for: everything that was asked counts as never provable.
    Breach,
    /// It panics.
    Panics,
}

/// The world around the pool, as the model sees it. Answers must not change between the halves of one operation.
pub trait Oracle {
    /// What the mapping in this slot says to `prepare`.
    fn prepare(&self, slot: usize) -> Prepared;
    /// What the mapping in this slot says about a frame, in the end: after the pool's retries at once.
    fn invalidate(&self, slot: usize, pfn: Pfn) -> Answer;
    /// Whether the backing can zero the frame.
    fn scrub(&self, pfn: Pfn) -> Answer;
    /// Whether the backing can prove the frame.
    fn prove(&self, pfn: Pfn) -> Answer;
}
