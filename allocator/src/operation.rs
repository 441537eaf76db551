//! One operation on a range, from its mark to its end: the order that every verb that can fail runs in.
//!
//! 1. **check and mark** ([`OpenOperation::begin`]): under the locks of all GiBs of the range, at once. Refused: nothing has
//!    happened.
//! 2. **prepare** every mapping. Refused: the mark is cleared, and nothing has happened.
//! 3. **invalidate** mapping by mapping, outside the locks. A stuck run leaves the set, and the next mapping is asked only for
//!    what all earlier ones proved. Last, private frames that become shared are zeroed.
//! 4. **flip** the survivors and clear the mark ([`OpenOperation::finish`]); what is stuck is withdrawn.
//!
//! A panic in a mapping drops the operation, and its drop quarantines everything: nothing counts as proven before the flip.

use std::time::Duration;

use pageless_metadata::{
    Ended, Ending, Gib, Intent, Obstacle, OperationId, Order, PfnRange, Purpose, RunSet, Shareability, Span, ToChange, Withdrawal,
};
use smallvec::SmallVec;

use crate::asking::{Asked, Losses};
use crate::extents::{Extent, Runs, push_joined};
use crate::locked::Locked;
use crate::mapping::{Cause, Contents, Operation, Refusal, Stuck, Verdict};
use crate::mappings::Mappings;
use crate::outcome::{Blocked, Refused};
use crate::ownership::Ownership;
use crate::placement;
use crate::pool::Inner;
use crate::record::{Piece, Pieces};
use crate::withdrawal::Lost;

/// An operation whose frames are marked.
pub(crate) struct OpenOperation<'p> {
    pool: &'p Inner,
    owned: &'p Ownership,
    id: OperationId,
    intent: Intent,
    runs: Runs,
    /// Whether every frame of the runs changes, so that nobody needs to look which do.
    changes_all: bool,
    /// Cleared by `finish` and `cancel`; what is left to `drop` is an operation whose mapping panicked.
    open: bool,
    /// How many marks had been taken from hung operations when this one began.
    swept: u64,
    /// This one has been declared hung: nobody is asked any more.
    over: bool,
}

/// How an operation began.
pub(crate) enum Begun<'p> {
    /// The frames are marked.
    Open(OpenOperation<'p>),
    /// Every frame is already as asked, and known to be: nothing to do.
    AlreadySo(Runs),
}

/// What became of the frames of an operation: each is in exactly one place.
#[derive(Default)]
pub(crate) struct Partition {
    pub(crate) done: RunSet,
    pub(crate) lost: Vec<Lost>,
    /// The owner released them meanwhile.
    pub(crate) released: RunSet,
}

impl<'p> OpenOperation<'p> {
    /// Step 1. `runs` are the owner's frames, in guest order.
    pub(crate) fn begin(pool: &'p Inner, owned: &'p Ownership, runs: Runs, intent: Intent) -> Result<Begun<'p>, Blocked> {
        let pieces = pieces_of(pool, &runs);
        let mut locked = pool.records.lock(&pieces);
        let purpose = if intent == Intent::Detach { Purpose::Use } else { Purpose::Change };
        pool.unobstructed(owned, &pieces, &mut locked, purpose)?;
        let changes =
            target(intent).map(|target| how_much(&pieces, |piece| locked.gib(piece.record).to_change(piece.span, target)));
        if changes == Some(ToChange::Nothing) {
            return Ok(Begun::AlreadySo(runs));
        }
        let Some(first) = pieces.first() else { return Ok(Begun::AlreadySo(runs)) };
        let id = locked.gib(first.record).next_operation(first.record as u64);
        let swept = pool.swept();
        for (nth, piece) in pieces.iter().enumerate() {
            if locked.gib(piece.record).begin(piece.span, id, intent).is_err() {
                pieces[..nth].iter().for_each(|piece| locked.gib(piece.record).cancel(id, piece.span));
                return Err(Refused::NoMemory.into());
            }
        }
        let guarded = pieces.iter().any(|piece| locked.gib(piece.record).is_guarded(piece.span));
        drop(locked);
        let changes_all = changes.is_none_or(|changes| changes == ToChange::Everything);
        let mut open = Self { pool, owned, id, intent, runs, changes_all, open: true, swept, over: false };
        if guarded && !pool.drained(&pieces) {
            open.cancel();
            return Err(Blocked::Busy { after: pool.policy.busy_after });
        }
        Ok(Begun::Open(open))
    }

    /// Takes over frames that the caller has marked itself, when so many marks had been swept.
    #[inline]
    pub(crate) fn adopt(
        pool: &'p Inner,
        owned: &'p Ownership,
        id: OperationId,
        runs: Runs,
        intent: Intent,
        swept: u64,
        changes_all: bool,
    ) -> Self {
        Self { pool, owned, id, intent, runs, changes_all, open: true, swept, over: false }
    }

    /// Step 2. On refusal the marks are cleared.
    pub(crate) fn prepare(&mut self, mappings: &Mappings) -> Result<(), Blocked> {
        self.prepare_from(0, &mut None, mappings)
    }

    /// Step 2 from the `nth` mapping on, which may have given its `first` refusal already.
    pub(crate) fn prepare_from(&mut self, nth: usize, first: &mut Option<Refusal>, mappings: &Mappings) -> Result<(), Blocked> {
        for run in 0..self.runs.len() {
            let op = self.describe(self.runs[run]);
            for attached in mappings.iter().skip(nth).filter(|attached| attached.is_needed_for(op.frames)) {
                let refused = match first.take() {
                    Some(refusal) => Some(refusal),
                    None if self.still_marked(op.frames).is_ok() => attached.mapping.prepare(&op).err(),
                    None => None,
                };
                if self.still_marked(op.frames).is_err() {
                    // Declared hung: the frames are not this operation's to touch, and it is too late to have changed nothing.
                    self.over = true;
                    return Ok(());
                }
                let Some(refusal) = refused else { continue };
                self.cancel();
                return Err(refused_by(&attached.name, refusal));
            }
        }
        Ok(())
    }

    /// Step 3: mapping by mapping, each for what all before it proved.
    pub(crate) fn invalidate(&self, mappings: &Mappings, losses: &mut Losses) {
        self.invalidate_from(0, &mut None, mappings, losses);
    }

    /// Step 3 from the `nth` mapping on, which has given its `first` answer already.
    pub(crate) fn invalidate_from(&self, nth: usize, first: &mut Option<Stuck>, mappings: &Mappings, losses: &mut Losses) {
        for attached in mappings.iter().skip(nth) {
            let asked = Asked { name: &attached.name, policy: &self.pool.policy.retry };
            self.for_each_change(|op, part| {
                for part in attached.needed_for(part) {
                    losses.ask(&asked, part, |frames| {
                        first.take().map_or(Ok(()), Err)?;
                        self.still_marked(frames)?;
                        attached.mapping.invalidate(op, frames)
                    });
                }
            });
        }
    }

    /// Step 3, its end: what is about to become shared is zeroed, unless the owner keeps contents. The backing may have given
    /// its `first` answer already.
    pub(crate) fn scrub(&self, first: &mut Option<Stuck>, losses: &mut Losses) {
        if self.scrubs() {
            let asked = Asked { name: "backing", policy: &self.pool.policy.retry };
            self.for_each_change(|op, part| {
                losses.ask(&asked, part, |frames| {
                    first.take().map_or(Ok(()), Err)?;
                    self.still_marked(frames)?;
                    self.pool.backing.scrub(op, frames)
                });
            });
        }
    }

    /// Whether the frames must be zeroed before they are as asked.
    #[inline]
    pub(crate) fn scrubs(&self) -> bool {
        self.intent == Intent::Share && self.owned.contents == Contents::Zero
    }

    /// Step 4: what was proven is flipped, what was not is withdrawn. Returns what became of every frame.
    pub(crate) fn finish(mut self, losses: Losses) -> Partition {
        self.open = false;
        let mut partition = Partition::default();
        let pool = self.pool;
        let mut freed = Runs::new();
        for (run, piece) in self.runs.iter().flat_map(|run| pool.records.pieces(run.frames).map(move |piece| (run, piece))) {
            let mut gib = pool.records.record(piece.record).lock();
            let whole = piece.span.is_whole() && self.intent == Intent::Reclaim && losses.runs().is_empty();
            if whole && gib.free_whole(self.id) {
                placement::put(&pool.records, piece.frames);
                run.clipped(piece.frames).into_iter().for_each(|part| push_joined(&mut freed, part));
                continue;
            }
            let mut ours = false;
            for (part, loss) in losses.cut(piece) {
                let ending = loss.map_or(Ending::Proven, |loss| ending(&loss.verdict));
                for (span, ended) in gib.finish(self.id, part.span, ending) {
                    let frames = span.in_gib_of(piece.frames.start());
                    ours |= ended != Ended::TooLate;
                    match (ended, loss) {
                        (Ended::Done, _) => {
                            if self.intent == Intent::Reclaim {
                                // Under the same lock as the frames' last mark: free in the same instant.
                                placement::put(&pool.records, frames);
                                self.owned.remove_released(frames);
                            }
                            partition.done.insert(frames);
                        }
                        (Ended::Released, _) => partition.released.insert(frames),
                        (Ended::Lost, Some(loss)) => {
                            // One of them may have been poisoned and replaced meanwhile; it alone is released.
                            for (part, tenant) in gib.tenants(span) {
                                let intent = if tenant.released { Intent::Reclaim } else { self.intent };
                                let part = part.in_gib_of(piece.frames.start());
                                pool.withdraw(self.owned, intent, part, &loss.verdict, &loss.cause);
                            }
                            // Read back, because some of them may be poisoned too, which is worse.
                            partition.lost.extend(pool.receipts(frames));
                        }
                        (Ended::TooLate, _) => self.came_back_late(&gib, frames, &mut partition),
                        // Another mark came first, and the registry knows its reason.
                        (Ended::Lost | Ended::Withdrawn(_), _) => partition.lost.extend(pool.receipts(frames)),
                    }
                }
            }
            if ours && target(self.intent).is_some() {
                gib.demote(piece.span);
            }
        }
        for run in &freed {
            // They may be somebody else's by now, who has them on another list.
            self.owned.remove_released(run.frames);
            partition.done.insert(run.frames);
        }
        pool.tell_backing(&mut partition.lost);
        partition
    }

    /// The operation had been declared hung. Its frames are still withdrawn, or a later proof has completed its intent, or
    /// the owner has given them up.
    fn came_back_late(&self, gib: &Gib, frames: PfnRange, partition: &mut Partition) {
        let lost = self.pool.receipts(frames);
        let mut settled = RunSet::from(frames);
        lost.iter().for_each(|lost| settled.remove(lost.frames()));
        partition.lost.extend(lost);
        for run in &settled {
            let live = gib.live_runs(Span::head_of(run), self.owned.id).into_iter().map(|(span, _)| span.in_gib_of(run.start()));
            let live: RunSet = live.collect();
            partition.released.extend(&RunSet::from(run).difference(&live));
            partition.done.extend(&live);
        }
    }

    /// Whether the operation still has its marks on `frames`. A sweep takes them from an operation that it declares hung, and
    /// from then on the frames are not this operation's to touch: they may have been proven, freed and handed to somebody
    /// else. Asked right before every call that touches memory; a mapping that hangs in its call is past it.
    #[inline]
    pub(crate) fn still_marked(&self, frames: PfnRange) -> Result<(), Stuck> {
        // No mark was taken from anybody since this operation began.
        if !self.over && self.swept == self.pool.swept() { Ok(()) } else { self.look_for_marks(frames) }
    }

    #[cold]
    fn look_for_marks(&self, frames: PfnRange) -> Result<(), Stuck> {
        let marked = |piece: Piece| {
            let gib = self.pool.records.record(piece.record).lock();
            let own = gib.marks().filter(|mark| mark.operation == self.id).filter_map(|mark| mark.span.intersect(piece.span));
            own.map(Span::frames).sum::<u32>() == piece.span.frames()
        };
        if !self.over && self.pool.records.pieces(frames).all(marked) {
            return Ok(());
        }
        let cause = Cause::new("operation", 0, format!("{} came back after it had been declared hung", self.id));
        Err(Stuck { at: frames, verdict: Verdict::Retry { after: Duration::ZERO }, cause })
    }

    /// The operation is over before it began: the marks go, and nothing has happened.
    pub(crate) fn cancel(&mut self) {
        self.open = false;
        for piece in pieces_of(self.pool, &self.runs) {
            self.pool.records.record(piece.record).lock().cancel(self.id, piece.span);
        }
    }

    /// Leaves `frames` out from now on: their marks go, and nothing has happened to them.
    pub(crate) fn set_aside(&mut self, frames: PfnRange) {
        for piece in self.pool.records.pieces(frames) {
            self.pool.records.record(piece.record).lock().cancel(self.id, piece.span);
        }
        let runs = std::mem::take(&mut self.runs);
        let rest = |run: Extent| run.frames.subtract(frames).into_iter().flatten().filter_map(move |part| run.clipped(part));
        self.runs = runs.into_iter().flat_map(rest).collect();
    }

    pub(crate) fn runs(&self) -> &[Extent] {
        &self.runs
    }

    pub(crate) fn owned(&self) -> &'p Ownership {
        self.owned
    }

    /// The operation on one run, as mappings and the backing are told.
    #[inline]
    pub(crate) fn describe(&self, run: Extent) -> Operation {
        Operation {
            id: self.id,
            intent: self.intent,
            contents: if self.intent == Intent::Reclaim { Contents::Zero } else { self.owned.contents },
            allocation: self.owned.id,
            frames: run.frames,
            guest_offset: run.offset,
        }
    }

    /// Runs `each` on every maximal part of the runs that this operation changes. The marks keep the parts as they are, so
    /// the lock is held only to find each.
    fn for_each_change(&self, mut each: impl FnMut(&Operation, PfnRange)) {
        for run in &self.runs {
            let op = self.describe(*run);
            match target(self.intent).filter(|_| !self.changes_all) {
                None => each(&op, run.frames),
                Some(target) => {
                    let mut rest = Some(run.frames);
                    while let Some(part) = rest.and_then(|rest| self.pool.next_to_change(rest, target)) {
                        each(&op, part);
                        rest = PfnRange::new(part.end(), run.frames.end()).ok();
                    }
                }
            }
        }
    }
}

impl Drop for OpenOperation<'_> {
    fn drop(&mut self) {
        if self.open {
            let mut losses = Losses::default();
            let cause = Cause::new("operation", 0, "a mapping panicked");
            // What was as asked before is not touched by any mapping, so nothing needs to be proven about it.
            self.for_each_change(|_, part| losses.add(part, Verdict::Retry { after: Duration::ZERO }, cause.clone()));
            let runs = std::mem::take(&mut self.runs);
            Self { runs, ..*self }.finish(losses);
            self.open = false;
        }
    }
}

impl Inner {
    /// The frames of `runs` that are not `target` yet, first maximal part, joined across GiBs.
    fn next_to_change(&self, range: PfnRange, target: Shareability) -> Option<PfnRange> {
        let mut found: Option<PfnRange> = None;
        for piece in self.records.pieces(range) {
            let span = self.records.record(piece.record).lock().next_to_change(piece.span, target);
            let part = span.map(|span| span.in_gib_of(piece.frames.start()));
            match (found, part) {
                (None, Some(part)) => found = Some(part),
                (Some(before), Some(part)) if before.end() == part.start() => found = Some(before.hull(part)),
                (Some(_), _) => return found,
                (None, None) => {}
            }
            if found.is_some_and(|found| found.end() < piece.frames.end()) {
                return found;
            }
        }
        found
    }

    /// Whether nothing stands in the way of `purpose` on the pieces; else the most fundamental obstacle, and of several of
    /// that kind the one at the lowest offset.
    pub(crate) fn unobstructed(
        &self,
        owned: &Ownership,
        pieces: &[Piece],
        locked: &mut Locked<'_>,
        purpose: Purpose,
    ) -> Result<(), Blocked> {
        let obstacles = pieces.iter().filter_map(|piece| {
            let obstacle = locked.gib(piece.record).obstacle(piece.span, owned.id, purpose)?;
            Some((obstacle.rank(), *piece, obstacle))
        });
        match obstacles.min_by_key(|(rank, ..)| *rank) {
            Some((_, piece, obstacle)) => Err(self.blocked_by(owned, piece, obstacle)),
            None => Ok(()),
        }
    }

    /// What an obstacle means to the caller of a verb.
    pub(crate) fn blocked_by(&self, owned: &Ownership, piece: Piece, obstacle: Obstacle) -> Blocked {
        let at = obstacle.at().in_gib_of(piece.frames.start());
        let (offset, frames) = (owned.offset_of(at), at.frames());
        match obstacle {
            Obstacle::NotOwner { .. } => Refused::NotOwner { offset }.into(),
            Obstacle::Released { .. } => Refused::Released { offset }.into(),
            Obstacle::Withdrawn { state: Withdrawal::Poisoned, .. } => Refused::Poisoned { offset, frames }.into(),
            Obstacle::Withdrawn { state, .. } => Refused::Withdrawn { offset, frames, state }.into(),
            Obstacle::Held { holder, .. } => Blocked::Held { holder, offset },
            Obstacle::Converting { .. } => Blocked::Busy { after: self.policy.busy_after },
        }
    }
}

/// The shareability that an intent leads to.
pub(crate) const fn target(intent: Intent) -> Option<Shareability> {
    match intent {
        Intent::Share => Some(Shareability::Shared),
        Intent::Unshare => Some(Shareability::Private),
        Intent::Reclaim | Intent::Detach | Intent::Resize => None,
    }
}

pub(crate) fn pieces_of(pool: &Inner, runs: &[Extent]) -> Pieces {
    let gibs = |run: &Extent| (u64::from(run.frames.start().in_gib()) + run.frames.frames()).div_ceil(Order::GIB1.frames());
    // A run over many nodes has a few more.
    let mut pieces = Pieces::with_capacity(usize::try_from(runs.iter().map(gibs).sum::<u64>()).unwrap_or(0));
    pieces.extend(runs.iter().flat_map(|run| pool.records.pieces(run.frames)));
    pieces
}

pub(crate) fn refused_by(name: &str, refusal: Refusal) -> Blocked {
    match refusal {
        Refusal::Busy { after } => Blocked::Busy { after },
        refusal => Refused::Mapping { mapping: name.to_owned(), refusal }.into(),
    }
}

fn how_much(pieces: &[Piece], to_change: impl FnMut(&Piece) -> ToChange) -> ToChange {
    let mut each = pieces.iter().map(to_change);
    let first = each.next().unwrap_or(ToChange::Nothing);
    if each.all(|other| other == first) { first } else { ToChange::Part }
}

pub(crate) const fn ending(verdict: &Verdict) -> Ending {
    match verdict {
        Verdict::Never => Ending::Fail,
        Verdict::Retry { .. } | Verdict::Held { .. } => Ending::Quarantine,
    }
}

/// Parts of a piece with what happened to them.
pub(crate) type Cut<'l> = SmallVec<[(Piece, Option<&'l crate::asking::Loss>); 2]>;
