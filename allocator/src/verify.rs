//! Whether the pool's books agree: every count with its bitmap, every plane with the registry, and every frame in exactly one
//! place (invariant I10).

use pageless_metadata::{PfnRange, RunSet, Span, Withdrawal};

use crate::pool::{Inner, Pool};

/// What `verify` found: sentences with frame numbers, none when all is well.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Verified {
    /// What does not agree.
    pub faults: Vec<String>,
    /// How many frames were accounted for.
    pub frames: u64,
}

impl Verified {
    /// Whether everything agrees.
    #[must_use]
    pub const fn is_sound(&self) -> bool {
        self.faults.is_empty()
    }
}

impl Pool {
    /// Checks all books against each other. Allocating and freeing wait meanwhile; conversions go on.
    #[must_use]
    pub fn verify(&self) -> Verified {
        self.0.transit.stopped(|in_transit| {
            let mut found = Verified::default();
            for node in self.0.records.nodes() {
                if let Err(why) = node.frames.check() {
                    found.faults.push(format!("node {}: {why}", node.number));
                }
            }
            self.0.records.indices().for_each(|index| self.0.verify_record(index, in_transit, &mut found));
            found
        })
    }
}

impl Inner {
    fn verify_record(&self, index: usize, in_transit: &RunSet, found: &mut Verified) {
        let Some(frames) = self.records.frames_of(index) else { return };
        let Some(node) = self.records.node_of(frames.start()) else { return };
        let gib = self.records.record(index).lock();
        if let Err(why) = gib.check().and_then(|()| gib.check_summary()) {
            found.faults.push(format!("the GiB of {frames}: {why}"));
        }
        let to_frames = |span: Span| span.in_gib_of(frames.start());
        let whole = Span::head_of(frames);
        let free: RunSet = node.frames.free_runs_in(frames);
        let owned: RunSet = gib.tenants(Span::WHOLE).map(|(span, _)| to_frames(span)).collect();
        let moving: RunSet = in_transit.clipped(frames).collect();
        let mut marked = [RunSet::new(), RunSet::new(), RunSet::new()];
        for (set, state) in marked.iter_mut().zip([Withdrawal::Quarantined, Withdrawal::Failed, Withdrawal::Poisoned]) {
            set.extend(gib.marked_runs(state).into_iter().map(to_frames));
            let registered: RunSet = self.registry.lock().frames(state).clipped(frames).collect();
            if *set != registered {
                found.faults.push(format!("{state}: the plane says {set}, the registry {registered}"));
            }
        }
        let withdrawn = marked.iter().fold(RunSet::new(), |all, set| all.union(set));
        let mut apart = |a: &RunSet, b: &RunSet, what: &str| {
            let both = a.intersection(b);
            if !both.is_empty() {
                found.faults.push(format!("{both}: {what}"));
            }
        };
        apart(&free, &owned, "free, and somebody has them");
        apart(&free, &withdrawn, "free, and withdrawn");
        apart(&free, &moving, "free, and in transit");
        let known = free.union(&owned).union(&moving).union(&withdrawn);
        let missing = RunSet::from(to_frames(whole)).difference(&known);
        if !missing.is_empty() {
            found.faults.push(format!("{missing}: neither free, nor anybody's, nor withdrawn"));
        }
        for (span, tenant) in gib.tenants(Span::WHOLE) {
            self.verify_tenant(to_frames(span), tenant, found);
        }
        found.frames += known.frames();
    }

    fn verify_tenant(&self, frames: PfnRange, tenant: pageless_metadata::Tenant, found: &mut Verified) {
        let Some(owned) = self.owners.lock().get(&tenant.allocation).cloned() else {
            found.faults.push(format!("{frames}: {} has them, and the pool does not know it", tenant.allocation));
            return;
        };
        let known: RunSet = if tenant.released {
            owned.released.lock().iter().map(|extent| extent.frames).collect()
        } else {
            owned.extents.with(|extents| extents.iter().map(|extent| extent.frames).collect())
        };
        if !known.contains_range(frames) {
            let axis = if tenant.released { "released frames" } else { "extents" };
            found.faults.push(format!("{frames}: not among the {axis} of {}, which are {known}", tenant.allocation));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use pageless_metadata::{AllocationId, Intent, Pfn, Shareability};

    use super::*;
    use crate::mapping::{Cause, Verdict};
    use crate::{Allocation, MetadataOnly, Request};

    fn run(start: u64, end: u64) -> PfnRange {
        PfnRange::new(Pfn::new(start), Pfn::new(end)).unwrap()
    }

    /// A pool of 16 frames, of which the first 8 are somebody's.
    fn world() -> (Pool, Allocation) {
        let pool = Pool::builder().backing(MetadataOnly::new(run(0, 16))).build().unwrap();
        let ram = pool.allocate(Request::bytes(8 * 4096).owner("vm")).unwrap();
        assert_eq!(pool.verify(), Verified { faults: Vec::new(), frames: 16 });
        (pool, ram)
    }

    /// Plants one fault behind the pool's back: `verify` must name the frames and what is wrong with them.
    fn finds(expected: &str, plant: impl FnOnce(&Inner, &Allocation)) {
        let (pool, ram) = world();
        plant(&pool.0, &ram);
        let found = pool.verify();
        assert!(found.faults.iter().any(|fault| fault.contains(expected)), "{expected:?} is not among {:#?}", found.faults);
        // What was planted may not survive a release.
        std::mem::forget(ram);
    }

    #[test]
    fn a_frame_that_is_nowhere_is_found() {
        finds("pfn:0x9..0xa (1 frames): neither free", |pool, _| pool.records.nodes()[0].frames.take_at(run(9, 10)).unwrap());
    }

    #[test]
    fn a_frame_that_is_free_and_somebodys_is_found() {
        finds("pfn:0x3..0x4 (1 frames): free, and somebody has them", |pool, _| {
            pool.records.nodes()[0].frames.put(run(3, 4)).unwrap();
        });
    }

    #[test]
    fn a_frame_that_is_free_and_poisoned_is_found() {
        finds("pfn:0xb..0xc (1 frames): free, and withdrawn", |pool, _| {
            pool.records.record(0).lock().poison(Span::single(11));
        });
    }

    #[test]
    fn a_mark_without_an_entry_in_the_registry_is_found() {
        finds("poisoned: the plane says pfn:0x2..0x3 (1 frames), the registry no frames", |pool, _| {
            pool.records.record(0).lock().poison(Span::single(2));
        });
    }

    #[test]
    fn an_entry_in_the_registry_without_a_mark_is_found() {
        finds("failed: the plane says no frames, the registry pfn:0x2..0x4 (2 frames)", |pool, ram| {
            pool.withdraw(&ram.owned, Intent::Share, run(2, 4), &Verdict::Never, &Cause::default());
        });
    }

    #[test]
    fn a_tenant_that_nobody_knows_is_found() {
        finds("alloc:99 has them, and the pool does not know it", |pool, _| {
            pool.records.nodes()[0].frames.take_at(run(12, 13)).unwrap();
            pool.records.record(0).lock().allocate(Span::single(12), AllocationId::new(99), Shareability::Private);
        });
    }

    #[test]
    fn a_tenant_whose_extents_do_not_have_the_frame_is_found() {
        finds("pfn:0xc..0xd: not among the extents of alloc:1", |pool, ram| {
            pool.records.nodes()[0].frames.take_at(run(12, 13)).unwrap();
            pool.records.record(0).lock().allocate(Span::single(12), ram.id(), Shareability::Private);
        });
    }

    #[test]
    fn a_released_frame_that_no_reclaim_would_look_at_is_found() {
        finds("pfn:0x1..0x2: not among the released frames of alloc:1", |pool, ram| {
            pool.records.record(0).lock().release(Span::single(1), ram.id());
        });
    }

    #[test]
    fn a_quarantined_frame_that_never_had_an_owner_is_found() {
        finds("is quarantined, and a frame of it has never had an owner", |pool, ram| {
            let mut gib = pool.records.record(0).lock();
            let operation = gib.next_operation(0);
            gib.begin(Span::single(12), operation, Intent::Share).unwrap();
            gib.finish(operation, Span::single(12), pageless_metadata::Ending::Quarantine);
            pool.withdraw(&ram.owned, Intent::Share, run(12, 13), &Verdict::Retry { after: Duration::ZERO }, &Cause::default());
        });
    }

    #[test]
    fn a_frame_in_transit_is_accounted_for() {
        let (pool, _ram) = world();
        let take = || pool.0.records.nodes()[0].frames.take_at(run(9, 10)).map(|()| vec![run(9, 10)]);
        let taken = pool.0.transit.enter(take).unwrap();
        assert!(pool.verify().is_sound());
        pool.0.transit.leave(&taken, || ());
        assert!(!pool.verify().is_sound(), "now it is nowhere");
    }
}
