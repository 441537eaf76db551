//! Mappings and a backing that answer what a script says, and keep a log that is held against the contract.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::panic_any;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use pageless::metadata::model::{Answer, NoProof, Oracle, Prepared};
use pageless::{
    AllocationId, Backing, Cause, HolderId, Identity, Mapping, NodeFrames, Operation, Pfn, PfnRange, Pool, ProofScope, Refusal,
    Stuck, Verdict,
};

/// The slot under which faults of the backing stand in a script.
pub(crate) const BACKING: usize = 9;

/// How asking about a frame goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// Transient, for ever.
    Retry,
    /// Transient, once.
    RetryOnce,
    /// In use by somebody.
    Held,
    /// Permanent.
    Never,
    /// An answer about frames that nobody asked about.
    Breach,
    /// A panic.
    Panic,
}

/// How prepare and promote go wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Prep {
    Busy,
    NoMemory,
    Unsupported,
    Other,
    Panic,
}

/// What goes wrong during one verb.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script {
    pub(crate) faults: BTreeMap<(usize, Pfn), Fault>,
    pub(crate) prepare: BTreeMap<usize, Prep>,
}

/// The payload of a panic that a script asked for.
pub(crate) struct Scripted;

/// Where in a verb something else happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum When {
    Prepare,
    Invalidate,
}

type Meeting = Box<dyn FnOnce() + Send>;

/// One call to a mapping.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) slot: usize,
    pub(crate) op: Operation,
    /// None for prepare, the frames for invalidate.
    pub(crate) frames: Option<PfnRange>,
    /// Frames before this one are proven by the answer.
    pub(crate) proven_to: Pfn,
}

/// What the mappings and the backing of a world share.
#[derive(Default)]
pub(crate) struct Stage {
    script: Mutex<Script>,
    once: Mutex<BTreeSet<(usize, Pfn)>>,
    meeting: Mutex<Option<(usize, When, Meeting)>>,
    log: Mutex<Vec<Call>>,
    violations: Mutex<Vec<String>>,
    pool: OnceLock<Pool>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What to put back when a verb that met another one goes on.
pub(crate) struct Before {
    script: Script,
    once: BTreeSet<(usize, Pfn)>,
    log: Vec<Call>,
}

impl Stage {
    pub(crate) fn knows(&self, pool: &Pool) {
        self.pool.get_or_init(|| pool.clone());
    }

    /// Sets the scene for one verb.
    pub(crate) fn enter(&self, script: &Script, meeting: Option<(usize, When, Meeting)>) -> Before {
        *lock(&self.meeting) = meeting;
        Before {
            script: std::mem::replace(&mut lock(&self.script), script.clone()),
            once: std::mem::take(&mut lock(&self.once)),
            log: std::mem::take(&mut lock(&self.log)),
        }
    }

    /// Ends it, and returns what was asked.
    pub(crate) fn leave(&self, before: Before) -> Vec<Call> {
        *lock(&self.meeting) = None;
        *lock(&self.script) = before.script;
        *lock(&self.once) = before.once;
        std::mem::replace(&mut lock(&self.log), before.log)
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        lock(&self.violations).clone()
    }

    fn meet(&self, slot: usize, when: When) {
        let mut place = lock(&self.meeting);
        if place.as_ref().is_some_and(|(at, then, _)| *at == slot && *then == when) {
            let meeting = place.take();
            drop(place);
            if let Some((_, _, happen)) = meeting {
                happen();
            }
        }
    }

    /// The answer about `frames`: the first fault in them decides.
    fn answer(&self, slot: usize, frames: PfnRange) -> Result<(), Stuck> {
        let script = lock(&self.script).clone();
        for pfn in frames.iter() {
            let Some(fault) = script.faults.get(&(slot, pfn)) else { continue };
            let stuck = |verdict| Stuck { at: PfnRange::single(pfn), verdict, cause: Cause::new("script", slot as u64, "") };
            match fault {
                Fault::RetryOnce if !lock(&self.once).insert((slot, pfn)) => {}
                Fault::Retry | Fault::RetryOnce => return Err(stuck(Verdict::Retry { after: Duration::ZERO })),
                Fault::Held => return Err(stuck(Verdict::Held { by: HolderId::new("dma") })),
                Fault::Never => return Err(stuck(Verdict::Never)),
                Fault::Breach => return Err(Stuck { at: PfnRange::single(frames.end()), ..stuck(Verdict::Never) }),
                Fault::Panic => panic_any(Scripted),
            }
        }
        Ok(())
    }

    fn prepared(&self, slot: usize) -> Result<(), Refusal> {
        let prepared = lock(&self.script).prepare.get(&slot).copied();
        match prepared {
            None => Ok(()),
            Some(Prep::Busy) => Err(Refusal::Busy { after: Duration::from_millis(3) }),
            Some(Prep::NoMemory) => Err(Refusal::NoMemory),
            Some(Prep::Unsupported) => Err(Refusal::Unsupported),
            Some(Prep::Other) => Err(Refusal::Other("script".into())),
            Some(Prep::Panic) => panic_any(Scripted),
        }
    }

    /// Nothing is asked about that the pool has not marked, or quarantined before.
    fn must_be_marked(&self, frames: PfnRange, what: &str) {
        let Some(pool) = self.pool.get() else { return };
        for pfn in [frames.start(), Pfn::new(frames.end().get() - 1)] {
            let marked = pool.explain(pfn).is_some_and(|e| e.state.converting.is_some() || e.state.quarantined.is_some());
            if !marked {
                lock(&self.violations).push(format!("{what} of {frames}: {pfn} is not marked"));
            }
        }
    }
}

/// A mapping that does what the script says about its slot.
pub(crate) struct ScriptedMapping {
    pub(crate) slot: usize,
    pub(crate) stage: Arc<Stage>,
}

impl Mapping for ScriptedMapping {
    fn prepare(&self, op: &Operation) -> Result<(), Refusal> {
        lock(&self.stage.log).push(Call { slot: self.slot, op: *op, frames: None, proven_to: op.frames.start() });
        self.stage.must_be_marked(op.frames, "prepare");
        self.stage.meet(self.slot, When::Prepare);
        self.stage.prepared(self.slot)
    }

    fn invalidate(&self, op: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        self.stage.must_be_marked(frames, "invalidate");
        self.stage.meet(self.slot, When::Invalidate);
        let answer = self.stage.answer(self.slot, frames);
        let proven_to = match &answer {
            Ok(()) => frames.end(),
            Err(stuck) if frames.contains_range(stuck.at) => stuck.at.start(),
            Err(_) => frames.start(),
        };
        lock(&self.stage.log).push(Call { slot: self.slot, op: *op, frames: Some(frames), proven_to });
        answer
    }

    fn promote(&self, _block: PfnRange) -> Result<(), Refusal> {
        self.stage.prepared(self.slot)
    }
}

/// A backing without memory that proves granules and does what the script says.
pub(crate) struct ScriptedBacking {
    pub(crate) nodes: Vec<NodeFrames>,
    pub(crate) granule: u64,
    pub(crate) stage: Arc<Stage>,
}

impl Backing for ScriptedBacking {
    fn identity(&self) -> Identity {
        Identity::Synthetic
    }

    fn nodes(&self) -> Vec<NodeFrames> {
        self.nodes.clone()
    }

    fn proof(&self) -> ProofScope {
        ProofScope { method: "script".into(), covers: "".into(), blind_to: "".into(), granule_frames: self.granule }
    }

    fn granule(&self, pfn: Pfn) -> PfnRange {
        let start = pfn.get() - pfn.get() % self.granule;
        PfnRange::from_len(Pfn::new(start), self.granule).unwrap()
    }

    fn scrub(&self, _op: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        self.stage.must_be_marked(frames, "scrub");
        self.stage.answer(BACKING, frames)
    }

    fn prove(&self, _op: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        self.stage.answer(BACKING, frames)
    }
}

impl Oracle for Script {
    fn prepare(&self, slot: usize) -> Prepared {
        match self.prepare.get(&slot) {
            None => Prepared::Ready,
            Some(Prep::Busy) => Prepared::Busy,
            Some(Prep::Panic) => Prepared::Panics,
            Some(_) => Prepared::Refused,
        }
    }

    fn invalidate(&self, slot: usize, pfn: Pfn) -> Answer {
        match self.faults.get(&(slot, pfn)) {
            None => Answer::Proven,
            Some(Fault::RetryOnce) => Answer::ProvenAgain,
            Some(Fault::Retry | Fault::Held) => Answer::Stuck(NoProof::ForNow),
            Some(Fault::Never) => Answer::Stuck(NoProof::ForGood),
            Some(Fault::Breach) => Answer::Breach,
            Some(Fault::Panic) => Answer::Panics,
        }
    }

    fn scrub(&self, pfn: Pfn) -> Answer {
        self.invalidate(BACKING, pfn)
    }

    fn prove(&self, pfn: Pfn) -> Answer {
        self.invalidate(BACKING, pfn)
    }
}

/// Holds the log of one verb against the contract: each mapping is prepared before it is asked, mappings are asked in order of
/// attachment, and none about frames that an earlier one did not prove. `order` says which slots an allocation has attached.
pub(crate) fn check_log(log: &[Call], order: &dyn Fn(AllocationId) -> Vec<usize>) {
    let mut unproven: BTreeSet<(usize, Pfn)> = BTreeSet::new();
    let mut prepared: BTreeSet<(usize, u64, Pfn)> = BTreeSet::new();
    let mut last: BTreeMap<u64, usize> = BTreeMap::new();
    for call in log {
        let preparation = (call.slot, call.op.id.get(), call.op.frames.start());
        let Some(frames) = call.frames else {
            prepared.insert(preparation);
            continue;
        };
        assert!(call.op.frames.contains_range(frames), "asked about {frames} in an operation on {}", call.op.frames);
        assert!(prepared.contains(&preparation), "{call:?} without prepare");
        let order = order(call.op.allocation);
        if order.iter().collect::<BTreeSet<_>>().len() < order.len() {
            // Attached again after it was detached: asked twice.
            continue;
        }
        let at = order.iter().position(|slot| *slot == call.slot).unwrap();
        let before = last.insert(call.op.id.get(), at).unwrap_or(0);
        assert!(at >= before, "{call:?} came after a later mapping was asked; the order is {order:?}");
        for pfn in frames.iter() {
            let earlier = order[..at].iter().find(|slot| unproven.contains(&(**slot, pfn)));
            assert!(earlier.is_none(), "{call:?}: {pfn} was not proven by slot {earlier:?}");
            if pfn < call.proven_to {
                unproven.remove(&(call.slot, pfn))
            } else {
                unproven.insert((call.slot, pfn))
            };
        }
    }
}
