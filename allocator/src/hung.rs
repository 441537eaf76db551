//! Operations that never come back: a mapping hangs, or the thread that ran the operation was killed.
//!
//! A sweep remembers when it first saw an operation under way. One that an earlier sweep saw long enough ago is declared
//! hung, and its frames are quarantined. Should it come back after all, its flip finds its marks gone and does nothing.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use pageless_metadata::{Ended, Ending, Gib, Intent, Mark, OperationId, Span};

use crate::mapping::{Cause, Verdict};
use crate::operation::target;
use crate::pool::{Inner, Pool};
use crate::sync::Ordering;
use crate::withdrawal::Lost;

impl Pool {
    /// Quarantines the frames of operations that an earlier sweep saw under way at least `longer_than` ago. Call it now and
    /// then; the first call after an operation began only takes note of it.
    pub fn quarantine_hung(&self, longer_than: Duration) -> Vec<Lost> {
        let pool = &self.0;
        let now = Instant::now();
        let mut seen = pool.seen_running.lock().clone();
        let mut running: HashMap<OperationId, Instant> = HashMap::new();
        let mut lost = Vec::new();
        for index in pool.records.indices() {
            let marks: Vec<_> = pool.records.record(index).lock().marks().collect();
            for mark in marks {
                let first_seen = *seen.entry(mark.operation).or_insert(now);
                running.insert(mark.operation, first_seen);
                if now.duration_since(first_seen) >= longer_than && first_seen != now {
                    lost.extend(pool.quarantine_mark(index, mark.operation, now.duration_since(first_seen)));
                }
            }
        }
        *pool.seen_running.lock() = running;
        pool.tell_backing(&mut lost);
        lost
    }
}

impl Inner {
    fn quarantine_mark(&self, index: usize, operation: OperationId, after: Duration) -> Vec<Lost> {
        let Some(pool_frames) = self.records.frames_of(index) else { return Vec::new() };
        let mut gib = self.records.record(index).lock();
        let marks: Vec<_> = gib.marks().filter(|mark| mark.operation == operation).collect();
        let cause = Cause::new("operation", 0, format!("{operation} did not come back for {after:?}"));
        let mut lost = Vec::new();
        for mark in marks {
            let tenant = gib.tenants(mark.span).next().map(|(_, tenant)| tenant);
            let owned = tenant.and_then(|tenant| self.owners.lock().get(&tenant.allocation).cloned());
            // Before the mark goes: see `OpenOperation::still_marked`.
            self.swept_marks.fetch_add(1, Ordering::AcqRel);
            for part in changing(&gib, mark) {
                for (span, ended) in gib.finish(operation, part, Ending::Quarantine) {
                    let (Ended::Lost, Some(owned)) = (ended, &owned) else { continue };
                    for (part, tenant) in gib.tenants(span) {
                        let intent = if tenant.released { Intent::Reclaim } else { mark.intent };
                        let part = part.in_gib_of(pool_frames.start());
                        self.withdraw(owned, intent, part, &Verdict::Retry { after: Duration::ZERO }, &cause);
                    }
                    lost.extend(self.receipts(span.in_gib_of(pool_frames.start())));
                }
            }
            if target(mark.intent).is_some() {
                // Its mappings may have been prepared for it.
                gib.demote(mark.span);
            }
            // What was as asked before is not touched by any mapping, so nothing needs to be proven about it.
            gib.cancel(operation, mark.span);
        }
        lost
    }
}

/// The parts of a mark that the operation changes.
fn changing(gib: &Gib, mark: Mark) -> Vec<Span> {
    let Some(target) = target(mark.intent) else { return vec![mark.span] };
    let next = |from: u32| gib.next_to_change(Span::new(from, mark.span.end())?, target);
    std::iter::successors(next(mark.span.start()), |part| next(part.end())).collect()
}
