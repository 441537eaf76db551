//! The pool: the frames that one allocator owns, and everything that is known of them.
//!
//! [`Pool`] is a handle that can be cloned; [`Inner`] is what it points at. The verbs of the pool live in files of their own
//! (`reclaim`, `retry`, `poison`, `explain`, `stats`, `verify`); this one allocates, and holds what they share.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crossbeam::channel::Receiver;
use pageless_metadata::{AllocationId, HoldId, Intent, OperationId, PfnRange, RunSet, Withdrawal};

use crate::allocation::Allocation;
use crate::backing::{Backing, Shortage};
use crate::builder::PoolBuilder;
use crate::extents::Extent;
use crate::journal::{Event, EventKind, Journal};
use crate::ledger::Keeping;
use crate::mapping::{Cause, Verdict};
use crate::ownership::Ownership;
use crate::placement;
use crate::record::{Piece, Records};
use crate::request::{AllocateError, Request};
use crate::sync::{AtomicU64, Mutex, Ordering, RwLock};
use crate::withdrawal::{Entry, Lost, Registry, RetryPolicy, Withdrawn};

/// A pool of frames. Clones are handles to the same pool; all verbs may run concurrently from many threads.
#[derive(Clone)]
pub struct Pool(pub(crate) Arc<Inner>);

/// How patient the pool is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// How it asks again about invalidations that did not succeed.
    pub retry: RetryPolicy,
    /// How long an operation waits for map guards to be dropped before it answers busy.
    pub guard_drain: Duration,
    /// What a busy answer suggests to wait.
    pub busy_after: Duration,
}

impl Default for Policy {
    /// Guards are dropped within microseconds where a VMM takes them around one page fault: 2 ms is generous.
    fn default() -> Self {
        Self { retry: RetryPolicy::default(), guard_drain: Duration::from_millis(2), busy_after: Duration::from_micros(50) }
    }
}

/// How long an allocation that finds not enough waits for frames that are in transit: longer than the kernel takes to answer
/// that a segment has a pinned page (about 160 ms).
const TRANSIT_WAIT: Duration = Duration::from_millis(400);
const TRANSIT_PAUSE: Duration = Duration::from_millis(2);

/// What all handles of a pool share.
pub(crate) struct Inner {
    pub(crate) records: Records,
    pub(crate) backing: Arc<dyn Backing>,
    pub(crate) policy: Policy,
    /// Innermost lock: taken with GiB locks held, never the other way round.
    pub(crate) registry: Mutex<Registry>,
    pub(crate) journal: Journal,
    /// Every allocation that has a frame, live or released.
    pub(crate) owners: Mutex<HashMap<AllocationId, Arc<Ownership>>>,
    /// Those of them with released frames: what `reclaim` works on.
    pub(crate) releasing: Mutex<BTreeMap<AllocationId, Arc<Ownership>>>,
    pub(crate) transit: Transit,
    /// When a sweep for hung operations first saw an operation.
    pub(crate) seen_running: Mutex<HashMap<OperationId, Instant>>,
    /// How many marks sweeps have taken from hung operations. Hardly ever written, so that every operation can look.
    pub(crate) swept_marks: AtomicU64,
    pub(crate) next_allocation: AtomicU64,
    pub(crate) next_hold: AtomicU64,
    /// The ledger, where there is one.
    pub(crate) keeping: Option<Keeping>,
}

/// Frames that are neither free nor anybody's for a moment: taken, and not yet assigned or put back.
///
/// Whoever moves frames between the frame layer and the records holds the gate for reading; `verify` holds it for writing and
/// so sees every frame in one place.
#[derive(Default)]
pub(crate) struct Transit {
    gate: RwLock<()>,
    frames: Mutex<RunSet>,
}

impl Transit {
    /// Whether frames are under way.
    fn is_occupied(&self) -> bool {
        !self.frames.lock().is_empty()
    }

    /// Runs `take`, and enters the frames that it took.
    pub(crate) fn enter<E>(&self, take: impl FnOnce() -> Result<Vec<PfnRange>, E>) -> Result<Vec<PfnRange>, E> {
        let _gate = self.gate.read();
        let taken = take()?;
        self.frames.lock().extend(taken.iter().copied());
        Ok(taken)
    }

    /// Runs `leave`, which assigns the frames or puts them back, and forgets them. The gate comes before the locks of GiBs.
    pub(crate) fn leave<R>(&self, runs: &[PfnRange], leave: impl FnOnce() -> R) -> R {
        let _gate = self.gate.read();
        let left = leave();
        let mut frames = self.frames.lock();
        runs.iter().for_each(|run| frames.remove(*run));
        left
    }

    /// Runs `step`, which moves frames between the records and the frame layer at one instant each.
    pub(crate) fn moving<R>(&self, step: impl FnOnce() -> R) -> R {
        let _gate = self.gate.read();
        step()
    }

    /// Runs `take` while nothing moves, with the frames in transit, and enters those that it returns.
    pub(crate) fn enter_stopped<E>(&self, take: impl FnOnce(&RunSet) -> Result<Vec<PfnRange>, E>) -> Result<Vec<PfnRange>, E> {
        let _gate = self.gate.write();
        let mut frames = self.frames.lock();
        let taken = take(&frames)?;
        frames.extend(taken.iter().copied());
        Ok(taken)
    }

    /// Runs `look` while nothing moves, with the frames in transit.
    pub(crate) fn stopped<R>(&self, look: impl FnOnce(&RunSet) -> R) -> R {
        let _gate = self.gate.write();
        let frames = self.frames.lock().clone();
        look(&frames)
    }
}

impl Pool {
    /// A builder. It needs a backing.
    #[must_use]
    pub fn builder() -> PoolBuilder {
        PoolBuilder::default()
    }

    /// Hands frames to an owner: free and sound ones only (invariant I1), largest blocks first.
    pub fn allocate(&self, request: Request) -> Result<Allocation, AllocateError> {
        request.check()?;
        let pool = &self.0;
        if let Some(again) = request.name.and_then(|name| pool.awaiting_request(name, &request.owner, request.bytes)) {
            return Ok(again);
        }
        pool.may_allocate(&request)?;
        loop {
            let runs = pool.take(&request)?;
            if let Err(shortage) = pool.commit(&runs) {
                if pool.is_withdrawn(shortage.frames) {
                    // Poisoned after it was taken, so the backing keeps it shut. It stays out of the pool: try again.
                    continue;
                }
                return Err(shortage.into());
            }
            // Relaxed: only uniqueness matters.
            let id = AllocationId::new(pool.next_allocation.fetch_add(1, Ordering::Relaxed));
            let extents = extents_of(&runs);
            let secret = match pool.record_allocation(id, &extents, &request) {
                Ok(secret) => secret,
                Err(error) => {
                    pool.transit.leave(&runs, || placement::put_back(&pool.records, &runs));
                    return Err(error.into());
                }
            };
            let mut owned = Ownership::new(id, &request, extents);
            owned.secret = secret;
            if let Some(owned) = pool.transit.leave(&runs, || pool.assign(Arc::new(owned), &runs, &request)) {
                return Ok(Allocation::new(owned, pool));
            }
            pool.undo_allocation(id);
            // A frame was poisoned between being taken and being assigned: what is sound went back, so try again.
        }
    }

    /// Events from now on. A subscriber that falls [`SUBSCRIBER_QUEUE`](crate::SUBSCRIBER_QUEUE) events behind misses some,
    /// and is told how many.
    #[must_use]
    pub fn subscribe(&self) -> Receiver<Event> {
        self.0.journal.subscribe()
    }

    /// Releases every allocation of an owner that has died, whether or not operations are under way on them. Returns how
    /// many allocations that were.
    pub fn owner_died(&self, owner: &str) -> usize {
        let owners: Vec<_> = self.0.owners.lock().values().filter(|owned| &*owned.owner == owner).cloned().collect();
        owners.iter().filter(|owned| self.0.release_all(owned)).count()
    }

    /// The withdrawn runs, ascending; a frame with several marks is listed once for each.
    #[must_use]
    pub fn withdrawn(&self) -> Vec<Withdrawn> {
        let mut told: Vec<Withdrawn> = self.0.registry.lock().entries().map(|entry| entry.told.clone()).collect();
        told.sort_by_key(|run| (run.frames, run.state));
        told
    }

    /// The backing.
    #[must_use]
    pub fn backing(&self) -> &dyn Backing {
        &*self.0.backing
    }

    /// Folds what is in use into what is small at rest, one GiB at a time. For an idle moment; returns how many GiBs became
    /// smaller.
    pub fn compact(&self) -> usize {
        self.0.records.indices().filter(|index| self.0.records.record(*index).lock().compact()).count()
    }
}

impl Inner {
    pub(crate) fn new(records: Records, backing: Arc<dyn Backing>, policy: Policy) -> Self {
        Self {
            records,
            backing,
            policy,
            registry: Mutex::new(Registry::default()),
            journal: Journal::default(),
            owners: Mutex::new(HashMap::new()),
            releasing: Mutex::new(BTreeMap::new()),
            transit: Transit::default(),
            seen_running: Mutex::new(HashMap::new()),
            swept_marks: AtomicU64::new(0),
            next_allocation: AtomicU64::new(1),
            next_hold: AtomicU64::new(1),
            keeping: None,
        }
    }

    /// Makes sure that frames in transit can be touched; where they cannot, they are free again. A backing that panics gets
    /// its panic back, and the pool its frames.
    pub(crate) fn commit(&self, runs: &[PfnRange]) -> Result<(), Shortage> {
        let commit = || runs.iter().try_for_each(|run| self.backing.commit(*run));
        let committed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(commit));
        if !matches!(committed, Ok(Ok(()))) {
            self.transit.leave(runs, || placement::put_back(&self.records, runs));
        }
        committed.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Whether every frame of `frames` bears a mark.
    fn is_withdrawn(&self, frames: PfnRange) -> bool {
        let marked: RunSet = self.registry.lock().covering(frames).into_iter().map(|entry| entry.told.frames).collect();
        marked.contains_range(frames)
    }

    /// Takes frames out of the frame layers. Free frames may be out for a moment, while the backing proves the rest of their
    /// granule: so "not enough" is said only when none are under way, and after one more look.
    fn take(&self, request: &Request) -> Result<Vec<PfnRange>, AllocateError> {
        let (mut waited, mut last_look) = (Duration::ZERO, false);
        loop {
            let taken = self.transit.enter(|| placement::take(&self.records, request));
            if !matches!(taken, Err(AllocateError::NotEnough { .. })) || last_look {
                return taken;
            }
            last_look = waited >= TRANSIT_WAIT || !self.transit.is_occupied();
            if !last_look {
                crate::sync::sleep(TRANSIT_PAUSE);
                waited += TRANSIT_PAUSE;
            }
        }
    }

    /// Makes the request's owner the owner of `runs`; none when a frame turned out to be poisoned, and then the sound frames
    /// are free again.
    fn assign(&self, owned: Arc<Ownership>, runs: &[PfnRange], request: &Request) -> Option<Arc<Ownership>> {
        let id = owned.id;
        let pieces: Vec<Piece> = runs.iter().flat_map(|run| self.records.pieces(*run)).collect();
        let mut locked = self.records.lock(&pieces);
        if pieces.iter().any(|piece| locked.gib(piece.record).is_withdrawn(piece.span)) {
            for piece in &pieces {
                for span in locked.gib(piece.record).sound_runs(piece.span) {
                    placement::put(&self.records, span.in_gib_of(piece.frames.start()));
                }
            }
            return None;
        }
        // Known before a record names it: whoever finds the id in a record finds the owner.
        self.owners.lock().insert(id, Arc::clone(&owned));
        for piece in &pieces {
            locked.gib(piece.record).allocate(piece.span, id, request.shareability);
        }
        drop(locked);
        for run in runs {
            self.journal.write(*run, Some(id), EventKind::Allocated { owner: Arc::clone(&request.owner) });
        }
        Some(owned)
    }

    #[inline]
    pub(crate) fn swept(&self) -> u64 {
        // Acquire: pairs with the sweep's increment, which comes before it takes a mark.
        self.swept_marks.load(Ordering::Acquire)
    }

    pub(crate) fn next_hold(&self) -> HoldId {
        // Relaxed: only uniqueness matters.
        HoldId(self.next_hold.fetch_add(1, Ordering::Relaxed))
    }

    /// Waits until no map guard is out on the pieces, which are marked, so that no new one can come. False when it took too
    /// long.
    pub(crate) fn drained(&self, pieces: &[Piece]) -> bool {
        /// A guard is usually dropped within the time of a page fault.
        const PAUSE: Duration = Duration::from_micros(20);
        let mut waited = Duration::ZERO;
        loop {
            if !pieces.iter().any(|piece| self.records.record(piece.record).lock().is_guarded(piece.span)) {
                return true;
            }
            if waited >= self.policy.guard_drain {
                return false;
            }
            crate::sync::sleep(PAUSE);
            waited += PAUSE;
        }
    }

    /// Records a loss. Called with the lock of the frames' GiB held, so that plane and registry agree.
    pub(crate) fn withdraw(&self, owned: &Ownership, intent: Intent, frames: PfnRange, verdict: &Verdict, cause: &Cause) -> Lost {
        let state = if *verdict == Verdict::Never { Withdrawal::Failed } else { Withdrawal::Quarantined };
        let holder = if let Verdict::Held { by } = verdict { Some(by.clone()) } else { None };
        let told = Withdrawn {
            frames,
            state,
            intent: (state == Withdrawal::Quarantined).then_some(intent),
            cause: cause.clone(),
            allocation: Some(owned.id),
            owner: Some(Arc::clone(&owned.owner)),
            offset: owned.origin_of(frames),
            holder,
            since: SystemTime::now(),
            attempts: 0,
        };
        let entry = Entry {
            told,
            due: Instant::now() + self.policy.retry.wait(verdict, 0),
            asking: false,
            recorded: self.unless_ledger(),
        };
        let receipt = entry.receipt();
        self.registry.lock().insert(entry);
        self.journal.write(frames, Some(owned.id), EventKind::Withdrawn { state, cause: cause.clone() });
        receipt
    }

    /// Receipts for frames that are withdrawn already. A frame with two marks is on one of them, with the worse: poisoned.
    pub(crate) fn receipts(&self, frames: PfnRange) -> Vec<Lost> {
        let entries = self.registry.lock().covering(frames);
        let (poisoned, unproven): (Vec<Entry>, Vec<Entry>) =
            entries.into_iter().partition(|entry| entry.told.state == Withdrawal::Poisoned);
        let worse: RunSet = poisoned.iter().map(|entry| entry.told.frames).collect();
        let only_unproven = |entry: &Entry| -> Vec<Entry> {
            worse.gaps_in(entry.told.frames).into_iter().filter_map(|run| entry.clipped(run)).collect()
        };
        let mut lost: Vec<Lost> = unproven.iter().flat_map(only_unproven).chain(poisoned).map(|entry| entry.receipt()).collect();
        lost.sort_unstable_by_key(Lost::frames);
        lost
    }

    /// Tells the backing, the ledger and the log of losses, with no lock held.
    pub(crate) fn tell_backing(&self, lost: &mut [Lost]) {
        lost.iter().for_each(|lost| self.backing.keep_shut(lost.frames()));
        self.record_losses(lost);
        for lost in lost {
            tracing::error!(frames = %lost.frames(), state = %lost.state(), cause = %lost.cause(), "frames withdrawn");
        }
    }
}

fn extents_of(runs: &[PfnRange]) -> Vec<Extent> {
    let mut offset = 0;
    runs.iter()
        .map(|run| {
            let extent = Extent { offset, frames: *run };
            offset = extent.end();
            extent
        })
        .collect()
}
