//! What happens while the backing commits memory: the frames are taken, and nobody's yet. Everything that can happen to frames
//! may happen then.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails should panic")]

use std::sync::{Arc, Mutex};

use pageless::{
    AllocateError, Backing, Cause, FRAME_BYTES, Identity, Mapping, NodeFrames, Operation, Pfn, PfnRange, Pool, ProofScope,
    Refusal, Request, RunSet, Shortage, Stuck, Verdict,
};

const BASE: u64 = (1 << 18) - 4;

type Happening = Box<dyn FnOnce(PfnRange) -> bool + Send>;

/// A backing that lets something happen in `commit`, once, and is short of memory if that says so.
struct Slow(Arc<Mutex<Option<Happening>>>);

impl Backing for Slow {
    fn identity(&self) -> Identity {
        Identity::Synthetic
    }

    fn nodes(&self) -> Vec<NodeFrames> {
        vec![NodeFrames { node: 0, frames: PfnRange::from_len(Pfn::new(BASE), 8).unwrap() }]
    }

    fn proof(&self) -> ProofScope {
        ProofScope { method: "none".into(), covers: "".into(), blind_to: "".into(), granule_frames: 1 }
    }

    fn commit(&self, frames: PfnRange) -> Result<(), Shortage> {
        let happening = self.0.lock().unwrap().take();
        let enough = happening.is_none_or(|happen| happen(frames));
        if enough { Ok(()) } else { Err(Shortage { frames, reason: "none left".into() }) }
    }

    fn scrub(&self, _op: &Operation, _frames: PfnRange) -> Result<(), Stuck> {
        Ok(())
    }

    fn prove(&self, _op: &Operation, _frames: PfnRange) -> Result<(), Stuck> {
        Ok(())
    }
}

struct World {
    pool: Pool,
    during_commit: Arc<Mutex<Option<Happening>>>,
}

impl World {
    fn new() -> Self {
        let during_commit = Arc::new(Mutex::new(None));
        let pool = Pool::builder().backing(Slow(Arc::clone(&during_commit))).build().unwrap();
        Self { pool, during_commit }
    }

    /// Lets this happen in the next `commit`; it says whether there is memory.
    fn during_commit(&self, happen: impl FnOnce(&Pool, PfnRange) -> bool + Send + 'static) {
        let pool = self.pool.clone();
        *self.during_commit.lock().unwrap() = Some(Box::new(move |frames| happen(&pool, frames)));
    }

    fn sound(&self) {
        let verified = self.pool.verify();
        assert!(verified.is_sound(), "{:#?}", verified.faults);
    }
}

fn frames(count: u64) -> Request {
    Request::bytes(count * FRAME_BYTES).owner("vm")
}

fn mce() -> Cause {
    Cause::new("mce", 1, "")
}

/// Fails for good at every frame.
struct Stubborn;

impl Mapping for Stubborn {
    fn prepare(&self, _op: &Operation) -> Result<(), Refusal> {
        Ok(())
    }

    fn invalidate(&self, _op: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        Err(Stuck { at: PfnRange::single(frames.start()), verdict: Verdict::Never, cause: Cause::new("test", 1, "") })
    }
}

#[test]
fn a_backing_that_panics_in_commit_costs_the_pool_no_frame() {
    let world = World::new();
    world.during_commit(|_, frames| panic!("no {frames}"));
    let allocating = std::panic::AssertUnwindSafe(|| world.pool.allocate(frames(4)));
    assert!(std::panic::catch_unwind(allocating).is_err());
    assert_eq!(world.pool.stats().free, 8);
    world.sound();
    assert_eq!(world.pool.allocate(frames(8)).unwrap().bytes(), 8 * FRAME_BYTES);
}

#[test]
fn a_frame_poisoned_while_it_is_committed_is_not_handed_out() {
    let world = World::new();
    world.during_commit(|pool, frames| {
        pool.poison(PfnRange::single(frames.start()), mce());
        true
    });
    let ram = world.pool.allocate(frames(4)).unwrap();
    let got: RunSet = ram.extents().iter().map(|extent| extent.frames).collect();
    assert!((&got).into_iter().all(|run| world.pool.withdrawn().iter().all(|lost| !lost.frames.overlaps(run))), "{got}");
    assert_eq!(world.pool.stats().free, 3);
    world.sound();
}

#[test]
fn a_frame_poisoned_and_replaced_while_it_is_committed_has_one_owner() {
    let world = World::new();
    world.during_commit(|pool, frames| {
        pool.poison(frames, mce());
        pool.hardware_replaced(frames, "slot 3").unwrap();
        true
    });
    let ram = world.pool.allocate(frames(4)).unwrap();
    world.sound();
    let rest = world.pool.allocate(frames(4)).unwrap();
    let (one, other): (RunSet, RunSet) =
        (ram.extents().iter().map(|e| e.frames).collect(), rest.extents().iter().map(|e| e.frames).collect());
    assert!(one.intersection(&other).is_empty(), "{one} and {other}");
    world.sound();
}

#[test]
fn a_frame_poisoned_while_memory_runs_short_does_not_become_free() {
    let world = World::new();
    world.during_commit(|pool, frames| {
        pool.poison(PfnRange::single(frames.start()), mce());
        false
    });
    assert!(matches!(world.pool.allocate(frames(4)), Err(AllocateError::Shortage(_))));
    world.sound();
    assert_eq!(world.pool.stats().free, 7);
    let all = world.pool.allocate(frames(7)).unwrap();
    assert_eq!(world.pool.withdrawn().len(), 1);
    drop(all);
}

#[test]
fn an_owner_that_dies_while_its_replacement_is_committed_leaves_nothing_behind() {
    let world = World::new();
    let ram = world.pool.allocate(frames(2)).unwrap();
    ram.attach("ept", Arc::new(Stubborn)).unwrap();
    ram.share(0..FRAME_BYTES).unwrap_err();
    let (died, dies) = std::sync::mpsc::channel();
    world.during_commit(move |pool, _| {
        let pool = pool.clone();
        // From another thread, which may have to wait until the frame has been given.
        std::thread::spawn(move || died.send(pool.owner_died("vm")));
        std::thread::sleep(std::time::Duration::from_millis(5));
        true
    });
    let _dead_or_replaced = ram.replace(0);
    assert_eq!(dies.recv(), Ok(1));
    drop(ram);
    world.sound();
    let stats = world.pool.stats();
    assert_eq!((stats.allocated, stats.allocations), (0, 0), "{stats:?}");
    let told = world.pool.reclaim();
    let lost: RunSet = told.lost.iter().map(pageless::Lost::frames).collect();
    let waiting: RunSet = told.waiting.iter().map(|waiting| waiting.frames).collect();
    let parts = [told.freed.clone(), lost, waiting, told.withdrawn.clone()];
    assert_eq!(
        parts.iter().map(RunSet::frames).sum::<u64>(),
        parts.iter().fold(RunSet::new(), |all, part| all.union(part)).frames()
    );
    world.sound();
}
