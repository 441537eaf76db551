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
        if let Err(why) = gib.check() {
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
