//! Asking again about quarantined frames, whether or not their owner lives.
//!
//! A quarantine leaves only by a later proof, and the proof completes what the quarantine was for: the conversion, or, once
//! the owner has given the frames up, the reclaim. No mark is set meanwhile: the quarantine itself keeps everybody out, and
//! the registry lets one recall at a time ask about an entry.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pageless_metadata::{Ended, Intent, Pfn, PfnRange, RunSet, Withdrawal};

use crate::asking::{Asked, Loss, Losses};
use crate::journal::EventKind;
use crate::ledger;
use crate::mapping::{Cause, Contents, Operation, Stuck, Verdict};
use crate::operation::Partition;
use crate::ownership::Ownership;
use crate::placement;
use crate::pool::Inner;
use crate::withdrawal::Entry;

/// A quarantined run that is being asked about.
pub(crate) struct Recall {
    pub(crate) entry: Entry,
    pub(crate) owned: Arc<Ownership>,
    pub(crate) op: Operation,
    pub(crate) losses: Losses,
    /// Frames about which the backing could not be asked, because somebody has others of their granule: no attempt was made.
    pub(crate) aside: RunSet,
}

impl Recall {
    pub(crate) fn intent(&self) -> Intent {
        self.op.intent
    }

    /// The frames that every mapping has proved now.
    pub(crate) fn proven(&self) -> impl Iterator<Item = PfnRange> + '_ {
        self.losses.survivors(self.op.frames)
    }
}

impl Inner {
    /// Picks the quarantined runs that `wanted` wants, and those that can be proven only together with them, and asks every
    /// mapping about each.
    pub(crate) fn recall(&self, wanted: impl Fn(&Entry) -> bool) -> Vec<Recall> {
        let mut picked = self.registry.lock().pick(wanted);
        if self.backing.proof().granule_frames > 1 {
            let reclaims = picked.iter().filter(|entry| entry.told.intent == Some(Intent::Reclaim));
            let granules: RunSet = reclaims.map(|entry| self.granules_of(entry.told.frames)).collect();
            let beside = |entry: &Entry| entry.told.intent == Some(Intent::Reclaim) && granules.overlaps(entry.told.frames);
            picked.extend(self.registry.lock().pick(beside));
        }
        picked.into_iter().filter_map(|entry| self.recall_entry(entry)).collect()
    }

    /// Everything that must be proven together with `frames`.
    fn granules_of(&self, frames: PfnRange) -> PfnRange {
        let last = Pfn::new(frames.end().get() - 1);
        frames.hull(self.backing.granule(frames.start())).hull(self.backing.granule(last))
    }

    fn recall_entry(&self, entry: Entry) -> Option<Recall> {
        let frames = entry.told.frames;
        let owned = entry.told.allocation.and_then(|id| self.owners.lock().get(&id).cloned());
        let (Some(owned), Some(intent), Some(piece)) = (owned, entry.told.intent, self.records.pieces(frames).next()) else {
            self.registry.lock().asked(frames, |_| {});
            return None;
        };
        let id = self.records.record(piece.record).lock().next_operation(piece.record as u64);
        let contents = if intent == Intent::Reclaim { Contents::Zero } else { owned.contents };
        let op = Operation { id, intent, contents, allocation: owned.id, frames, guest_offset: entry.told.offset };
        let mut recall = Recall { entry, owned, op, losses: Losses::default(), aside: RunSet::new() };
        self.leave_poisoned(&mut recall);
        if intent == Intent::Reclaim {
            self.leave_held(&mut recall);
        }
        self.ask_mappings(&mut recall);
        Some(recall)
    }

    /// A frame that was poisoned while it was quarantined has nothing to come back to: nobody is asked about it. Answers
    /// whether there was one that was not left out before.
    fn leave_poisoned(&self, recall: &mut Recall) -> bool {
        let covering = self.registry.lock().covering(recall.op.frames);
        let mut found = false;
        for entry in covering.into_iter().filter(|entry| entry.told.state == Withdrawal::Poisoned) {
            found |= recall.losses.survivors(entry.told.frames).next().is_some();
            self.lose_rest(&mut recall.losses, entry.told.frames, &recall.entry.told.cause);
        }
        found
    }

    /// What somebody holds is not reclaimed, though it could be proven: a detach may have got stuck under a hold. Nobody can
    /// come to hold a quarantined frame while it is asked about.
    fn leave_held(&self, recall: &mut Recall) {
        for piece in self.records.pieces(recall.op.frames) {
            let held: Vec<_> = self.records.record(piece.record).lock().holders(piece.span).collect();
            for (span, holder) in held {
                for part in recall.losses.survivors(span.in_gib_of(piece.frames.start())).collect::<Vec<_>>() {
                    let cause = Cause::new("hold", 0, format!("held by {holder}"));
                    recall.losses.add(part, Verdict::Held { by: holder.clone() }, cause);
                }
            }
        }
    }

    /// The backing keeps withdrawn pages shut, so it must be told of those within `frames` that it is about to be asked
    /// about; [`Self::shut_again`] follows. False when one of them was poisoned meanwhile: those stay shut.
    pub(crate) fn lift_to_ask(&self, recall: &mut Recall, frames: PfnRange) -> bool {
        let asked: Vec<PfnRange> = recall.losses.survivors(frames).collect();
        asked.iter().for_each(|run| self.backing.lift(*run));
        // Looked at after the lift: a poisoning enters the registry before it tells the backing, so either it is found here, or
        // it shuts the page after this.
        let sound = !self.leave_poisoned(recall);
        if !sound {
            self.shut_again(recall, frames);
        }
        sound
    }

    /// What was not proven of `frames` stays shut.
    pub(crate) fn shut_again(&self, recall: &Recall, frames: PfnRange) {
        let lost = recall.losses.runs().iter().filter_map(|loss| loss.frames.intersect(frames));
        lost.for_each(|run| self.backing.keep_shut(run));
    }

    fn ask_mappings(&self, recall: &mut Recall) {
        let mappings = recall.owned.mappings.load_full();
        let (op, losses) = (recall.op, &mut recall.losses);
        for attached in mappings.iter() {
            let needed = attached.needed_for(op.frames);
            if needed.is_empty() {
                continue;
            }
            let asked = Asked { name: &attached.name, policy: &self.policy.retry };
            let asking = || -> Result<(), crate::Refusal> {
                attached.mapping.prepare(&op)?;
                for run in &needed {
                    losses.ask(&asked, *run, |part| attached.mapping.invalidate(&op, part));
                }
                Ok(())
            };
            if let Err(cause) = guarded(&attached.name, asking) {
                self.lose_rest(losses, op.frames, &cause);
                return;
            }
        }
        if op.intent == Intent::Share && op.contents == Contents::Zero {
            let asked = Asked { name: "backing", policy: &self.policy.retry };
            self.lift_to_ask(recall, op.frames);
            recall.losses.ask(&asked, op.frames, |part| ask_backing(part, || self.backing.scrub(&op, part)));
            self.shut_again(recall, op.frames);
        }
    }

    /// What of `frames` is not lost yet is lost for now, for this cause.
    pub(crate) fn lose_rest(&self, losses: &mut Losses, frames: PfnRange, cause: &Cause) {
        let rest: Vec<PfnRange> = losses.survivors(frames).collect();
        let verdict = Verdict::Retry { after: self.policy.retry.later_after };
        rest.into_iter().for_each(|part| losses.add(part, verdict.clone(), cause.clone()));
    }

    /// Ends a recall: what is proven leaves the quarantine and its intent is carried out, what is not stays or fails.
    pub(crate) fn end_recall(&self, recall: &Recall, partition: &mut Partition) {
        if let Err(error) = self.record_recall(recall) {
            // Not free before the ledger knows: it stays quarantined, and is asked about again.
            tracing::warn!(frames = %recall.op.frames, %error, "a proof could not be recorded");
            self.registry.lock().asked(recall.op.frames, |_| {});
            return;
        }
        for frames in recall.proven() {
            for piece in self.records.pieces(frames) {
                self.lift_quarantine(recall, piece, partition);
            }
        }
        for frames in &partition.done {
            self.open(frames);
        }
        for loss in recall.losses.runs() {
            self.note_failure(recall, loss, partition);
        }
        self.tell_backing(&mut partition.lost);
    }

    fn lift_quarantine(&self, recall: &Recall, piece: crate::record::Piece, partition: &mut Partition) {
        let mut gib = self.records.record(piece.record).lock();
        // The owner may have gone while the mappings were asked: then this proof was for less than is needed now.
        let gone = gib.tenants(piece.span).any(|(_, tenant)| tenant.released);
        if gone != (recall.intent() == Intent::Reclaim) {
            self.registry.lock().asked(piece.frames, |_| {});
            return;
        }
        self.registry.lock().lift(piece.frames, Withdrawal::Quarantined);
        for (span, ended) in gib.prove_later(piece.span, recall.intent()) {
            let frames = span.in_gib_of(piece.frames.start());
            match ended {
                Ended::Done if recall.intent() == Intent::Reclaim => {
                    placement::put(&self.records, frames);
                    recall.owned.remove_released(frames);
                    self.journal.write(frames, Some(recall.owned.id), EventKind::Reclaimed);
                    partition.released.insert(frames);
                }
                Ended::Done => {
                    // In the ledger's queue while the GiB is locked, so before anything that becomes of the frames now: else their
                    // next owner could be durable before the end of this mark is.
                    self.submit_entry(|| ledger::Entry::Proven { frames, freed: false });
                    self.journal.write(frames, Some(recall.owned.id), EventKind::Recovered);
                    partition.done.insert(frames);
                }
                Ended::Withdrawn(_) | Ended::Lost | Ended::Released | Ended::TooLate => {}
            }
        }
    }

    fn note_failure(&self, recall: &Recall, loss: &Loss, partition: &mut Partition) {
        if loss.verdict != Verdict::Never {
            let due = Instant::now() + self.policy.retry.wait(&loss.verdict, recall.entry.told.attempts + 1);
            let holder = if let Verdict::Held { by } = &loss.verdict { Some(by.clone()) } else { None };
            if recall.aside.overlaps(loss.frames) {
                // Granules part runs, so the whole loss was set aside.
                let due = Instant::now() + self.policy.retry.wait(&Verdict::Retry { after: Duration::ZERO }, 0);
                self.registry.lock().asked(loss.frames, |entry| entry.due = due);
                return;
            }
            self.submit_entry(|| ledger::Entry::Retried {
                frames: loss.frames,
                attempts: recall.entry.told.attempts + 1,
                cause: loss.cause.clone(),
            });
            self.registry.lock().asked(loss.frames, |entry| {
                entry.told.attempts += 1;
                entry.told.cause = loss.cause.clone();
                entry.told.holder.clone_from(&holder);
                entry.due = due;
            });
            return;
        }
        for piece in self.records.pieces(loss.frames) {
            let mut gib = self.records.record(piece.record).lock();
            gib.fail_later(piece.span);
            self.registry.lock().lift(piece.frames, Withdrawal::Quarantined);
            partition.lost.push(self.withdraw(&recall.owned, recall.intent(), piece.frames, &Verdict::Never, &loss.cause));
        }
    }
}

/// Asks the backing about `frames`, and turns a panic into an answer: a pass has marks and entries of many owners to end.
pub(crate) fn ask_backing(frames: PfnRange, ask: impl FnOnce() -> Result<(), Stuck>) -> Result<(), Stuck> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(ask)).unwrap_or_else(|_| {
        let cause = Cause::new("prove", 0, "the backing panicked");
        Err(Stuck { at: frames, verdict: Verdict::Retry { after: Duration::ZERO }, cause })
    })
}

/// Runs `ask`, and turns a refusal or a panic of somebody else's mapping into a cause: the pool's own verbs go on.
pub(crate) fn guarded(name: &str, ask: impl FnOnce() -> Result<(), crate::Refusal>) -> Result<(), Cause> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(ask)) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(refusal)) => Err(Cause::new("prepare", 0, refusal.to_string()).at_mapping(name)),
        Err(_) => Err(Cause::new("invalidate", 0, "the mapping panicked").at_mapping(name)),
    }
}
