//! A backing that remembers what it was told, and looks at the pool whenever it touches memory.

use std::sync::{Arc, Mutex, OnceLock};

use pageless::{
    Backing, Cause, Identity, NodeFrames, Operation, Pfn, PfnRange, Pool, ProofScope, RunSet, Shortage, Stuck, Verdict,
};

/// Memory in granules of a few frames, whose pages can be shut.
#[derive(Default)]
pub(crate) struct Shutter {
    frames: u64,
    granule: u64,
    pool: OnceLock<Pool>,
    shut: Mutex<RunSet>,
    proven: Mutex<RunSet>,
    scrubbed: Mutex<RunSet>,
    stuck: Mutex<Option<(PfnRange, Verdict)>>,
    /// Poisoned in the next commit that touches them: between being taken and being assigned.
    struck: Mutex<Option<PfnRange>>,
    /// What was asked that must never be asked. The pool catches panics of a backing, so they are kept for the test.
    violations: Mutex<Vec<String>>,
}

impl Shutter {
    /// A pool over frames `0..frames`, proven `granule` at a time.
    pub(crate) fn pool(frames: u64, granule: u64) -> (Pool, Arc<Self>) {
        let shutter = Arc::new(Self { frames, granule, ..Self::default() });
        let pool = Pool::builder().shared_backing(shutter.clone()).policy(super::IMPATIENT).build().unwrap();
        assert!(shutter.pool.set(pool.clone()).is_ok());
        (pool, shutter)
    }

    /// From now on proofs of these frames do not come, or do again.
    pub(crate) fn sticks(&self, stuck: Option<(PfnRange, Verdict)>) {
        *self.stuck.lock().unwrap() = stuck;
    }

    /// The next owner of these frames meets a machine check while they are committed for it.
    pub(crate) fn strikes_in_commit(&self, frames: PfnRange) {
        *self.struck.lock().unwrap() = Some(frames);
    }

    /// The frames whose pages are shut; asserts that nobody has touched them.
    pub(crate) fn shut(&self) -> RunSet {
        let violations = self.violations.lock().unwrap();
        assert!(violations.is_empty(), "{violations:#?}");
        self.shut.lock().unwrap().clone()
    }

    /// The frames that were proven since the last time.
    pub(crate) fn proven(&self) -> RunSet {
        std::mem::take(&mut self.proven.lock().unwrap())
    }

    /// The frames that were zeroed since the last time.
    pub(crate) fn scrubbed(&self) -> RunSet {
        std::mem::take(&mut self.scrubbed.lock().unwrap())
    }

    /// Whoever touches a page that is shut, or bears a mark that only evidence lifts, gives it to somebody else.
    fn note_unless_open(&self, frames: PfnRange) {
        let mut violations = self.violations.lock().unwrap();
        if self.shut.lock().unwrap().overlaps(frames) {
            violations.push(format!("{frames} is shut"));
        }
        let pool = self.pool.get().unwrap();
        for pfn in frames.iter() {
            // Also shows that no lock is held meanwhile.
            let state = pool.explain(pfn).unwrap().state;
            if state.failed || state.poisoned {
                violations.push(format!("{pfn} is {state:?}"));
            }
        }
    }
}

impl Backing for Shutter {
    fn identity(&self) -> Identity {
        Identity::Synthetic
    }

    fn nodes(&self) -> Vec<NodeFrames> {
        vec![NodeFrames { node: 0, frames: super::run(0, self.frames) }]
    }

    fn proof(&self) -> ProofScope {
        ProofScope { method: "a script".into(), covers: "".into(), blind_to: "".into(), granule_frames: self.granule }
    }

    fn granule(&self, pfn: Pfn) -> PfnRange {
        let start = pfn.get() / self.granule * self.granule;
        super::run(start, start + self.granule)
    }

    fn commit(&self, frames: PfnRange) -> Result<(), Shortage> {
        let mut struck = self.struck.lock().unwrap();
        if let Some(strike) = struck.take_if(|strike| strike.overlaps(frames)) {
            drop(struck);
            self.pool.get().unwrap().poison(strike, Cause::new("MCE", 0xbd, "uncorrectable"));
        }
        Ok(())
    }

    fn scrub(&self, _: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        self.note_unless_open(frames);
        self.scrubbed.lock().unwrap().insert(frames);
        Ok(())
    }

    fn prove(&self, _: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        self.note_unless_open(frames);
        let stuck = self.stuck.lock().unwrap().clone();
        if let Some((at, verdict)) = stuck.and_then(|(at, verdict)| Some((at.intersect(frames)?, verdict))) {
            return Err(Stuck { at, verdict, cause: Cause::new("F_ADD_SEALS(F_SEAL_WRITE)", 16, "EBUSY") });
        }
        self.proven.lock().unwrap().insert(frames);
        Ok(())
    }

    fn keep_shut(&self, frames: PfnRange) {
        self.shut.lock().unwrap().insert(frames);
    }

    fn lift(&self, frames: PfnRange) {
        self.shut.lock().unwrap().remove(frames);
    }
}
