//! A small pool over bookkeeping only, and a mapping that does what a test tells it to do.
#![allow(dead_code, reason = "every test binary uses another part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod shutter;

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pageless::{
    Allocation, Cause, Explanation, FRAME_BYTES, Intent, Mapping, MetadataOnly, Operation, Pfn, PfnRange, Policy, Pool, Refusal,
    Request, RetryPolicy, RunSet, Stats, Stretch, Stuck, Verdict, Withdrawn,
};
#[allow(unused_imports, reason = "every test binary uses another part of it")]
pub(crate) use shutter::Shutter;

/// The bytes of the frames `from..to` of an allocation.
pub(crate) const fn pages(from: u64, to: u64) -> Range<u64> {
    from * FRAME_BYTES..to * FRAME_BYTES
}

/// The frames `start..end` of the pool.
pub(crate) fn run(start: u64, end: u64) -> PfnRange {
    PfnRange::new(Pfn::new(start), Pfn::new(end)).unwrap()
}

/// Several runs of frames.
pub(crate) fn set<const N: usize>(runs: [(u64, u64); N]) -> RunSet {
    runs.into_iter().map(|(start, end)| run(start, end)).collect()
}

/// A verdict that says "not now".
pub(crate) const NOT_NOW: Verdict = Verdict::Retry { after: Duration::ZERO };

/// Gives up at the first stuck answer, asks again whenever it is told to, and hardly waits for guards.
pub(crate) const IMPATIENT: Policy = Policy {
    retry: RetryPolicy { at_once: 0, pause: Duration::ZERO, later: 16, later_after: Duration::ZERO },
    guard_drain: Duration::from_millis(1),
    busy_after: Duration::from_micros(50),
};

/// A pool of frames `0..frames`, one allocation that has them all in guest order, and one mapping, named `ept`.
pub(crate) struct World {
    pub(crate) pool: Pool,
    pub(crate) ram: Allocation,
    pub(crate) ept: Arc<Scripted>,
}

impl World {
    pub(crate) fn of(frames: u64) -> Self {
        let pool = pool_of(frames);
        let ram = pool.allocate(Request::bytes(frames * FRAME_BYTES).contiguous().owner("vm-42")).unwrap();
        let ept = Scripted::new();
        ram.attach("ept", ept.clone()).unwrap();
        Self { pool, ram, ept }
    }

    /// Attaches another mapping, which is asked after those before it.
    pub(crate) fn also(&self, name: &str) -> Arc<Scripted> {
        let mapping = Scripted::new();
        self.ram.attach(name, mapping.clone()).unwrap();
        mapping
    }

    /// Asserts that all books agree, and returns what they say.
    pub(crate) fn books(&self) -> Books {
        books(&self.pool)
    }
}

/// An impatient pool of frames `0..frames`.
pub(crate) fn pool_of(frames: u64) -> Pool {
    Pool::builder().backing(MetadataOnly::new(run(0, frames))).policy(IMPATIENT).build().unwrap()
}

/// Everything that anyone can see of a pool, history included: two of these are equal exactly when nothing changed.
#[derive(Clone, PartialEq)]
pub(crate) struct Books {
    pub(crate) stats: Stats,
    pub(crate) stretches: Vec<Stretch>,
    pub(crate) withdrawn: Vec<Withdrawn>,
    explained: Vec<Explanation>,
}

impl std::fmt::Debug for Books {
    /// Without the explanations, which repeat the rest once for every frame.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{:?}", self.stats)?;
        self.stretches
            .iter()
            .try_for_each(|stretch| writeln!(f, "{} {:?} {:?}", stretch.frames, stretch.allocation, stretch.state))?;
        self.withdrawn.iter().try_for_each(|run| writeln!(f, "{run:?}"))
    }
}

/// Asserts that the books agree with each other, and copies them.
pub(crate) fn books(pool: &Pool) -> Books {
    /// Frames at the start of the pool that are explained one by one.
    const EXPLAINED: usize = 64;
    let verified = pool.verify();
    assert!(verified.is_sound(), "{:#?}", verified.faults);
    let first = pool.nodes()[0].frames;
    Books {
        stats: pool.stats(),
        stretches: pool.stretches(),
        withdrawn: pool.withdrawn(),
        explained: first.iter().take(EXPLAINED).filter_map(|pfn| pool.explain(pfn)).collect(),
    }
}

/// One question that a mapping was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asked {
    Prepare(Intent, PfnRange),
    Invalidate(Intent, PfnRange),
    Promote(PfnRange),
}

/// What a mapping does once, instead of answering at once.
enum Antic {
    Refuse(Refusal),
    Panic,
    Park(Sender<()>, Receiver<()>),
}

/// A mapping that proves everything, except what a test told it.
#[derive(Default)]
pub(crate) struct Scripted {
    asked: Mutex<Vec<Asked>>,
    stuck: Mutex<BTreeMap<Pfn, (PfnRange, Verdict)>>,
    in_prepare: Mutex<VecDeque<Antic>>,
    in_invalidate: Mutex<VecDeque<Antic>>,
    in_promote: Mutex<VecDeque<Antic>>,
}

impl Scripted {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// From now on `frames` get stuck, with this verdict.
    pub(crate) fn sticks(&self, frames: PfnRange, verdict: Verdict) {
        self.stuck.lock().unwrap().insert(frames.start(), (frames, verdict));
    }

    /// From now on nothing gets stuck.
    pub(crate) fn heals(&self) {
        self.stuck.lock().unwrap().clear();
    }

    /// The next prepare is refused.
    pub(crate) fn refuses(&self, refusal: Refusal) {
        self.in_prepare.lock().unwrap().push_back(Antic::Refuse(refusal));
    }

    /// The next promotion is done.
    pub(crate) fn refuses_promotion(&self, refusal: Refusal) {
        self.in_promote.lock().unwrap().push_back(Antic::Refuse(refusal));
    }

    pub(crate) fn panics_in_prepare(&self) {
        self.in_prepare.lock().unwrap().push_back(Antic::Panic);
    }

    pub(crate) fn panics_in_invalidate(&self) {
        self.in_invalidate.lock().unwrap().push_back(Antic::Panic);
    }

    /// The next prepare waits in the middle of the call.
    pub(crate) fn parks_in_prepare(&self) -> Parked {
        Parked::in_queue(&self.in_prepare)
    }

    /// The next invalidation waits in the middle of the call.
    pub(crate) fn parks(&self) -> Parked {
        Parked::in_queue(&self.in_invalidate)
    }

    /// The next promotion waits in the middle of the call.
    pub(crate) fn parks_in_promote(&self) -> Parked {
        Parked::in_queue(&self.in_promote)
    }

    /// What it was asked since the last time.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    /// The runs it was asked to invalidate since the last time.
    pub(crate) fn invalidated(&self) -> Vec<PfnRange> {
        self.asked()
            .into_iter()
            .filter_map(|asked| if let Asked::Invalidate(_, run) = asked { Some(run) } else { None })
            .collect()
    }

    fn perform(queue: &Mutex<VecDeque<Antic>>) -> Result<(), Refusal> {
        let antic = queue.lock().unwrap().pop_front();
        match antic {
            None => Ok(()),
            Some(Antic::Refuse(refusal)) => Err(refusal),
            Some(Antic::Panic) => panic!("the script says so"),
            Some(Antic::Park(arrived, go)) => {
                arrived.send(()).unwrap();
                // A test that failed meanwhile has dropped the other end; then go on.
                let _gone = go.recv();
                Ok(())
            }
        }
    }
}

impl Mapping for Scripted {
    fn prepare(&self, op: &Operation) -> Result<(), Refusal> {
        self.asked.lock().unwrap().push(Asked::Prepare(op.intent, op.frames));
        Self::perform(&self.in_prepare)
    }

    fn invalidate(&self, op: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        assert!(op.frames.contains_range(frames), "asked about {frames} in an operation on {}", op.frames);
        self.asked.lock().unwrap().push(Asked::Invalidate(op.intent, frames));
        Self::perform(&self.in_invalidate).unwrap();
        let stuck = self.stuck.lock().unwrap();
        let first = stuck.values().find_map(|(at, verdict)| Some((at.intersect(frames)?, verdict.clone())));
        match first {
            Some((at, verdict)) => Err(Stuck { at, verdict, cause: Cause::new("TDH.MEM.PAGE.REMOVE", 0x8000_0200, "busy") }),
            None => Ok(()),
        }
    }

    fn promote(&self, block: PfnRange) -> Result<(), Refusal> {
        self.asked.lock().unwrap().push(Asked::Promote(block));
        Self::perform(&self.in_promote)
    }
}

/// A call that waits in the middle, and can be told to go on. Goes on by itself when this is dropped.
pub(crate) struct Parked {
    arrived: Receiver<()>,
    go: Sender<()>,
}

impl Parked {
    fn in_queue(queue: &Mutex<VecDeque<Antic>>) -> Self {
        let ((tell, arrived), (go, wait)) = (channel(), channel());
        queue.lock().unwrap().push_back(Antic::Park(tell, wait));
        Self { arrived, go }
    }

    /// Returns when the call has come and waits.
    pub(crate) fn arrived(&self) {
        self.arrived.recv_timeout(Duration::from_secs(20)).expect("the call came");
    }

    /// Lets the call go on.
    pub(crate) fn go(self) {
        self.go.send(()).expect("the call still waits");
    }
}

/// Runs `operation` in a thread until it waits inside a mapping, then `meanwhile`, and returns what both said.
pub(crate) fn while_parked<R: Send, M>(
    parked: Parked,
    operation: impl FnOnce() -> R + Send,
    meanwhile: impl FnOnce() -> M,
) -> (R, M) {
    std::thread::scope(|threads| {
        let running = threads.spawn(operation);
        parked.arrived();
        let met = meanwhile();
        parked.go();
        (running.join().expect("the operation returned"), met)
    })
}
