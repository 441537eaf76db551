//! The contract with the memory behind the frames.
//!
//! A [`Backing`] says which frames exist, what their numbers mean ([`Identity`]), and what it can prove about them
//! ([`ProofScope`]). The pool asks it last, after every mapping: to zero private frames before they are shared, and to
//! prove released frames unreachable and clean before they are free again. It is told of every withdrawal, so that a
//! withdrawn page stays shut (invariant I12).

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use pageless_metadata::{FRAME_BYTES, Pfn, PfnRange};

use crate::{Operation, Stuck};

/// Memory with frame numbers. Called from many threads at once, for disjoint frames, with no lock of pageless held; only
/// [`Backing::keep_shut`] and [`Backing::lift`] may be called while [`Pool::verify`](crate::Pool::verify) has to wait for it, and
/// must not call the pool.
pub trait Backing: Send + Sync {
    /// What the frame numbers mean.
    fn identity(&self) -> Identity;

    /// Names the very memory behind the frames, so that a ledger can tell whether it is still the same: two backings with one
    /// name are the same memory. None where nobody knows; a ledger then takes it to be the same, and keeps every mark.
    fn instance(&self) -> Option<Cow<'static, str>> {
        None
    }

    /// The frames there are, by NUMA node: ascending, disjoint, at least one.
    fn nodes(&self) -> Vec<NodeFrames>;

    /// What [`Backing::prove`] covers, and what it does not see.
    fn proof(&self) -> ProofScope;

    /// The frames that can only be proven together with `pfn`: one frame, a huge page, or a segment.
    fn granule(&self, pfn: Pfn) -> PfnRange {
        PfnRange::single(pfn)
    }

    /// Makes sure that `frames` can be touched. Called before an owner gets them; a shortage is an error here, not a
    /// SIGBUS later.
    fn commit(&self, frames: PfnRange) -> Result<(), Shortage> {
        let _ = frames;
        Ok(())
    }

    /// Zeroes `frames`, which every mapping has just proven unreachable, for an operation that must not keep contents.
    fn scrub(&self, op: &Operation, frames: PfnRange) -> Result<(), Stuck>;

    /// Proves that nothing outside the mappings reaches `frames` and that their next owner will read zeroes. `frames` is one
    /// whole granule (see [`Backing::granule`]) or, where granules are single frames, a run of them; all of it is released or
    /// free, and nobody can allocate it meanwhile. On [`Stuck`] every frame before `stuck.at` is proven.
    fn prove(&self, op: &Operation, frames: PfnRange) -> Result<(), Stuck>;

    /// `frames` have been withdrawn: from now on their pages must not be punched, truncated or closed.
    fn keep_shut(&self, frames: PfnRange) {
        let _ = frames;
    }

    /// The mark on `frames` has been lifted by reset or replacement, or is about to be asked about by [`Backing::prove`]; if
    /// that proof does not come, [`Backing::keep_shut`] follows.
    fn lift(&self, frames: PfnRange) {
        let _ = frames;
    }
}

impl<B: Backing + ?Sized> Backing for Arc<B> {
    fn identity(&self) -> Identity {
        (**self).identity()
    }

    fn instance(&self) -> Option<Cow<'static, str>> {
        (**self).instance()
    }

    fn nodes(&self) -> Vec<NodeFrames> {
        (**self).nodes()
    }

    fn proof(&self) -> ProofScope {
        (**self).proof()
    }

    fn granule(&self, pfn: Pfn) -> PfnRange {
        (**self).granule(pfn)
    }

    fn commit(&self, frames: PfnRange) -> Result<(), Shortage> {
        (**self).commit(frames)
    }

    fn scrub(&self, op: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        (**self).scrub(op, frames)
    }

    fn prove(&self, op: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        (**self).prove(op, frames)
    }

    fn keep_shut(&self, frames: PfnRange) {
        (**self).keep_shut(frames);
    }

    fn lift(&self, frames: PfnRange) {
        (**self).lift(frames);
    }
}

/// What a backing's frame numbers mean.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Identity {
    /// A PFN is a host physical frame number: a /dev/mem window, dax.
    Physical,
    /// A PFN is an offset in files whose pages the kernel chooses: memfd, hugetlb, guest_memfd.
    Synthetic,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Physical => "physical",
            Self::Synthetic => "synthetic",
        })
    }
}

/// What a backing's proof covers. Shown to people, so that nobody believes more than was proven.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProofScope {
    /// How the proof is made, for instance `F_ADD_SEALS(F_SEAL_WRITE) on the segment's memfd`.
    pub method: Cow<'static, str>,
    /// What a proof rules out.
    pub covers: Cow<'static, str>,
    /// What it does not see.
    pub blind_to: Cow<'static, str>,
    /// Length of the largest proof granule, in frames.
    pub granule_frames: u64,
}

/// The frames of one NUMA node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeFrames {
    /// The node's number, as the host counts them.
    pub node: u32,
    /// Its frames.
    pub frames: PfnRange,
}

/// The backing could not provide memory behind frames.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no memory behind {frames} ({bytes} bytes): {reason}", bytes = .frames.bytes())]
pub struct Shortage {
    /// The frames that could not be provided.
    pub frames: PfnRange,
    /// Why, with what to do about it.
    pub reason: Cow<'static, str>,
}

/// A backing without memory: bookkeeping only, for planners, simulators and tests.
///
/// There is nothing to reach, so its proof is empty and always given; what the mappings say is all there is.
#[derive(Clone, Debug)]
pub struct MetadataOnly {
    nodes: Vec<NodeFrames>,
}

impl MetadataOnly {
    /// One node, number 0, with these frames.
    #[must_use]
    pub fn new(frames: PfnRange) -> Self {
        Self { nodes: vec![NodeFrames { node: 0, frames }] }
    }

    /// Several nodes. The pool checks them when it is built.
    #[must_use]
    pub fn with_nodes(nodes: impl IntoIterator<Item = NodeFrames>) -> Self {
        Self { nodes: nodes.into_iter().collect() }
    }

    /// One node of `bytes` bytes from frame 0, rounded down to whole frames. Less than one frame is no node, and more than
    /// there are frame numbers is as many as there are: the pool's builder refuses the first.
    #[must_use]
    pub fn of_bytes(bytes: u64) -> Self {
        let frames = (bytes / FRAME_BYTES).min(Pfn::LIMIT.get());
        let frames = PfnRange::from_len(Pfn::new(0), frames).ok();
        Self::with_nodes(frames.map(|frames| NodeFrames { node: 0, frames }))
    }
}

impl Backing for MetadataOnly {
    fn identity(&self) -> Identity {
        Identity::Synthetic
    }

    fn nodes(&self) -> Vec<NodeFrames> {
        self.nodes.clone()
    }

    fn proof(&self) -> ProofScope {
        ProofScope {
            method: "none: there is no memory".into(),
            covers: "nothing beyond what the mappings prove".into(),
            blind_to: "everything outside the mappings".into(),
            granule_frames: 1,
        }
    }

    fn scrub(&self, _op: &Operation, _frames: PfnRange) -> Result<(), Stuck> {
        Ok(())
    }

    fn prove(&self, _op: &Operation, _frames: PfnRange) -> Result<(), Stuck> {
        Ok(())
    }
}
