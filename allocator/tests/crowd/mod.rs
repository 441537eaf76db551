//! Memory that several threads fight over, with a tally beside the pool that would show any frame that has two owners, any
//! translation that outlives its owner, and any lost frame that comes back.

use std::cell::RefCell;
use std::panic::panic_any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use pageless::{
    AllocationId, Backing, Cause, HolderId, Identity, Lost, Mapping, NodeFrames, Operation, Pfn, PfnRange, ProofScope, Refusal,
    RunSet, Stuck, Verdict, Withdrawal,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

thread_local!(static DICE: RefCell<StdRng> = RefCell::new(StdRng::seed_from_u64(0)));

/// The payload of a panic that was rolled.
pub(crate) struct Rolled;

/// Seeds this thread.
pub(crate) fn seed(seed: u64) {
    DICE.with(|dice| *dice.borrow_mut() = StdRng::seed_from_u64(seed));
}

/// A number below `below`.
pub(crate) fn roll(below: u64) -> u64 {
    DICE.with(|dice| dice.borrow_mut().random_range(0..below))
}

/// What is known of every frame, beside the pool.
pub(crate) struct Tally {
    pub(crate) nodes: Vec<NodeFrames>,
    granule: u64,
    base: u64,
    /// Who has the frame: an allocation's number, 0 for nobody.
    owner: Vec<AtomicU64>,
    /// Through which allocation's mapping the frame is mapped.
    mapped: Vec<AtomicU64>,
    /// A receipt said that it will never come back.
    gone: Vec<AtomicBool>,
    /// Whether mappings and the backing still fail.
    pub(crate) faulty: AtomicBool,
}

impl Tally {
    pub(crate) fn new(nodes: &[(u32, u64, u64)], granule: u64) -> Arc<Self> {
        let range = |start, end| PfnRange::new(Pfn::new(start), Pfn::new(end)).unwrap();
        let nodes: Vec<NodeFrames> =
            nodes.iter().map(|(node, start, end)| NodeFrames { node: *node, frames: range(*start, *end) }).collect();
        let base = nodes[0].frames.start().get();
        let frames = nodes[nodes.len() - 1].frames.end().get() - base;
        Arc::new(Self {
            nodes,
            granule,
            base,
            owner: (0..frames).map(|_| AtomicU64::new(0)).collect(),
            mapped: (0..frames).map(|_| AtomicU64::new(0)).collect(),
            gone: (0..frames).map(|_| AtomicBool::new(false)).collect(),
            faulty: AtomicBool::new(true),
        })
    }

    fn at(&self, pfn: Pfn) -> usize {
        usize::try_from(pfn.get() - self.base).unwrap()
    }

    /// The owner got these frames: nobody had them, nothing maps them, and none of them was lost for good.
    pub(crate) fn got(&self, id: AllocationId, frames: &RunSet) {
        for pfn in frames.into_iter().flat_map(PfnRange::iter) {
            let before = self.owner[self.at(pfn)].swap(id.get(), SeqCst);
            assert_eq!(before, 0, "{pfn} belongs to alloc:{before} and was handed to {id}");
            assert_eq!(self.mapped[self.at(pfn)].load(SeqCst), 0, "{pfn} was handed to {id} while it was mapped");
            assert!(!self.gone[self.at(pfn)].load(SeqCst), "{pfn} was lost for good and handed to {id}");
        }
    }

    /// The owner is about to give these frames up; those of them that were its own are returned.
    pub(crate) fn gives(&self, id: AllocationId, frames: &RunSet) -> RunSet {
        let own = |pfn: &Pfn| self.owner[self.at(*pfn)].compare_exchange(id.get(), 0, SeqCst, SeqCst).is_ok();
        frames.into_iter().flat_map(PfnRange::iter).filter(own).map(PfnRange::single).collect()
    }

    /// It did not after all.
    pub(crate) fn keeps(&self, id: AllocationId, frames: &RunSet) {
        frames.into_iter().flat_map(PfnRange::iter).for_each(|pfn| self.owner[self.at(pfn)].store(id.get(), SeqCst));
    }

    /// Frames were mapped under a guard.
    pub(crate) fn maps(&self, id: AllocationId, frames: PfnRange) {
        frames.iter().for_each(|pfn| self.mapped[self.at(pfn)].store(id.get(), SeqCst));
    }

    pub(crate) fn lost(&self, lost: &[Lost]) {
        for receipt in lost.iter().filter(|receipt| receipt.state() != Withdrawal::Quarantined) {
            receipt.frames().iter().for_each(|pfn| self.gone[self.at(pfn)].store(true, SeqCst));
        }
    }

    pub(crate) fn is_gone(&self, pfn: Pfn) -> bool {
        self.gone[self.at(pfn)].load(SeqCst)
    }

    /// A frame of the pool.
    pub(crate) fn any_frame(&self) -> Pfn {
        let node = self.nodes[usize::try_from(roll(self.nodes.len() as u64)).unwrap()].frames;
        node.start().add(roll(node.frames()))
    }

    /// One in `odds` answers goes wrong.
    fn answer(&self, frames: PfnRange, odds: u64) -> Result<(), Stuck> {
        if !self.faulty.load(SeqCst) || roll(odds) > 0 {
            return Ok(());
        }
        let at = PfnRange::single(frames.start().add(roll(frames.frames())));
        let verdict = match roll(8) {
            0 => Verdict::Never,
            1..4 => Verdict::Held { by: HolderId::new("dma") },
            _ => Verdict::Retry { after: Duration::ZERO },
        };
        Err(Stuck { at, verdict, cause: Cause::new("dice", 6, "") })
    }
}

/// A mapping of one allocation, which the tally knows the translations of.
pub(crate) struct Shaky {
    pub(crate) tally: Arc<Tally>,
    /// Only one mapping of an allocation clears the tally's translations.
    pub(crate) real: bool,
}

impl Mapping for Shaky {
    fn prepare(&self, _op: &Operation) -> Result<(), Refusal> {
        if !self.tally.faulty.load(SeqCst) {
            return Ok(());
        }
        match roll(200) {
            0 => Err(Refusal::Busy { after: Duration::ZERO }),
            1 => Err(Refusal::NoMemory),
            2 => panic_any(Rolled),
            _ => Ok(()),
        }
    }

    fn invalidate(&self, op: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        if self.tally.faulty.load(SeqCst) && roll(400) == 0 {
            panic_any(Rolled);
        }
        if self.tally.faulty.load(SeqCst) && roll(200) == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
        let answer = self.tally.answer(frames, 25);
        let proven = answer.as_ref().map_or_else(|stuck| stuck.at.start(), |()| frames.end());
        if self.real {
            for pfn in frames.iter().take_while(|pfn| *pfn < proven) {
                let mapped = &self.tally.mapped[self.tally.at(pfn)];
                let _another_owner_maps_it = mapped.compare_exchange(op.allocation.get(), 0, SeqCst, SeqCst);
            }
        }
        answer
    }
}

/// A backing that proves granules, mostly.
pub(crate) struct ShakyBacking(pub(crate) Arc<Tally>);

impl Backing for ShakyBacking {
    fn identity(&self) -> Identity {
        Identity::Synthetic
    }

    fn nodes(&self) -> Vec<NodeFrames> {
        self.0.nodes.clone()
    }

    fn proof(&self) -> ProofScope {
        ProofScope { method: "dice".into(), covers: "".into(), blind_to: "".into(), granule_frames: self.0.granule }
    }

    fn granule(&self, pfn: Pfn) -> PfnRange {
        PfnRange::from_len(Pfn::new(pfn.get() - pfn.get() % self.0.granule), self.0.granule).unwrap()
    }

    fn scrub(&self, op: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        for pfn in frames.iter() {
            let owner = self.0.owner[self.0.at(pfn)].load(SeqCst);
            assert!(owner == 0 || owner == op.allocation.get(), "{} zeroes {pfn}, which is alloc:{owner}'s", op.allocation);
        }
        self.0.answer(frames, 60)
    }

    fn prove(&self, _op: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        for pfn in frames.iter().filter(|pfn| self.0.nodes.iter().any(|node| node.frames.contains(*pfn))) {
            assert_eq!(self.0.owner[self.0.at(pfn)].load(SeqCst), 0, "{pfn} is punched under its owner");
        }
        self.0.answer(frames, 30)
    }
}
