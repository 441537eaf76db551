//! Asking again about quarantined frames, whether or not their owner lives.
//!
//! A quarantine leaves only by a later proof, and the proof completes what the quarantine was for: the conversion, or, once
//! the owner has given the frames up, the reclaim. No mark is set meanwhile: the quarantine itself keeps everybody out, and
//! the registry lets one recall at a time ask about an entry.

use std::sync::Arc;
use std::time::Instant;

use pageless_metadata::{Ended, Intent, PfnRange, Withdrawal};

use crate::asking::{Asked, Loss, Losses};
use crate::journal::EventKind;
use crate::mapping::{Cause, Contents, Operation, Verdict};
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
    /// Picks the quarantined runs that `wanted` wants, and asks every mapping about each.
    pub(crate) fn recall(&self, wanted: impl Fn(&Entry) -> bool) -> Vec<Recall> {
        let picked = self.registry.lock().pick(wanted);
        picked.into_iter().filter_map(|entry| self.recall_entry(entry)).collect()
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
        let mut recall = Recall { entry, owned, op, losses: Losses::default() };
        self.leave_poisoned(&mut recall);
        self.ask_mappings(&mut recall);
        Some(recall)
    }

    /// A frame that was poisoned while it was quarantined has nothing to come back to: nobody is asked about it.
    fn leave_poisoned(&self, recall: &mut Recall) {
        let covering = self.registry.lock().covering(recall.op.frames);
        for entry in covering.into_iter().filter(|entry| entry.told.state == Withdrawal::Poisoned) {
            let verdict = Verdict::Retry { after: self.policy.retry.later_after };
            recall.losses.add(entry.told.frames, verdict, recall.entry.told.cause.clone());
        }
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
            losses.ask(&asked, op.frames, |part| self.backing.scrub(&op, part));
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
        for frames in recall.proven() {
            for piece in self.records.pieces(frames) {
                self.lift_quarantine(recall, piece, partition);
            }
        }
        for loss in recall.losses.runs() {
            self.note_failure(recall, loss, partition);
        }
        self.tell_backing(&partition.lost);
    }

    fn lift_quarantine(&self, recall: &Recall, piece: crate::record::Piece, partition: &mut Partition) {
        let mut gib = self.records.record(piece.record).lock();
        // The owner may have gone while the mappings were asked: then this proof was for less than is needed now.
        let gone = gib.tenants(piece.span).any(|(_, tenant)| tenant.released);
        if gone != (recall.intent() == Intent::Reclaim) {
            self.registry.lock().asked(piece.frames, |_| {});
            return;
        }
        self.registry.lock().take(piece.frames, Withdrawal::Quarantined);
        for (span, ended) in gib.prove_later(piece.span, recall.intent()) {
            let frames = span.in_gib_of(piece.frames.start());
            match ended {
                Ended::Done if recall.intent() == Intent::Reclaim => {
                    self.backing.lift(frames);
                    placement::put(&self.records, frames);
                    recall.owned.remove_released(frames);
                    self.journal.write(frames, Some(recall.owned.id), EventKind::Reclaimed);
                    partition.released.insert(frames);
                }
                Ended::Done => {
                    self.backing.lift(frames);
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
            self.registry.lock().take(piece.frames, Withdrawal::Quarantined);
            partition.lost.push(self.withdraw(&recall.owned, recall.intent(), piece.frames, &Verdict::Never, &loss.cause));
        }
    }
}

/// Runs `ask`, and turns a refusal or a panic of somebody else's mapping into a cause: the pool's own verbs go on.
pub(crate) fn guarded(name: &str, ask: impl FnOnce() -> Result<(), crate::Refusal>) -> Result<(), Cause> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(ask)) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(refusal)) => Err(Cause::new("prepare", 0, refusal.to_string()).at_mapping(name)),
        Err(_) => Err(Cause::new("invalidate", 0, "the mapping panicked").at_mapping(name)),
    }
}
