//! What a conversion would meet and cost, asked without changing anything.

use std::ops::Range;

use pageless_metadata::{HolderId, Intent, Order, Pfn, PfnRange, Purpose, RunSet, ToChange};

use crate::allocation::Allocation;
use crate::operation::target;
use crate::outcome::{Blocked, Refused};

/// Bytes of hardware metadata that a TDX module with dynamic PAMT needs for every 2 MiB region that is used at 4 KiB: two
/// 4 KiB pages (Intel TDX module, dynamic PAMT).
pub const PAMT_BYTES_PER_BROKEN_2M: u64 = 8192;

/// The answer to `plan`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// What the verb would answer at this moment, if not success. A mapping's refusal in prepare cannot be foreseen.
    pub blocked: Option<Blocked>,
    /// Every frame is already as asked: nothing would be done.
    pub already_so: bool,
    /// Everyone who holds frames of the range, with the frames.
    pub holders: Vec<(HolderId, PfnRange)>,
    /// The GiBs whose 1 GiB leaf would be cut into 2 MiB leaves.
    pub demotes_1g: Vec<PfnRange>,
    /// The 2 MiB blocks whose leaf would be cut into 4 KiB leaves: at most the head and the tail of each extent.
    pub demotes_2m: Vec<PfnRange>,
    /// Bytes of hardware metadata that these demotions cost on a TDX platform with dynamic PAMT.
    pub hardware_bytes: u64,
}

impl Allocation {
    /// Says what `share` (with [`Intent::Share`]) or `unshare` ([`Intent::Unshare`]) of the range would do now, without
    /// changing anything. Refused for ranges that are malformed, and for other intents as a conversion that does not exist.
    pub fn plan(&self, range: Range<u64>, intent: Intent) -> Result<Plan, Refused> {
        let Some(target) = target(intent) else {
            return Err(Refused::NotAConversion { intent });
        };
        let (_, pieces, mut locked) = self.lock_runs(&range)?;
        let mut blocked = self.pool.unobstructed(&self.owned, &pieces, &mut locked, Purpose::Change).err();
        let mut guarded = false;
        let mut plan = Plan {
            blocked: None,
            already_so: true,
            holders: Vec::new(),
            demotes_1g: Vec::new(),
            demotes_2m: Vec::new(),
            hardware_bytes: 0,
        };
        for piece in &pieces {
            let gib = locked.gib(piece.record);
            plan.already_so &= gib.to_change(piece.span, target) == ToChange::Nothing;
            // Who holds frames that are somebody else's by now is not this owner's to know.
            let own = gib.tenants(piece.span).filter(|(_, tenant)| tenant.allocation == self.owned.id);
            for (span, holder) in own.flat_map(|(part, _)| gib.holders(part)) {
                plan.holders.push((holder, span.in_gib_of(piece.frames.start())));
            }
            guarded |= gib.is_guarded(piece.span);
            let new = gib.would_demote(piece.span);
            if new.gib {
                plan.demotes_1g.push(PfnRange::block(piece.frames.start(), Order::GIB1));
            }
            for block in new.blocks.into_iter().flatten() {
                let start = piece.frames.start().align_down(Order::GIB1).get() + u64::from(block) * Order::MIB2.frames();
                plan.demotes_2m.push(PfnRange::block(Pfn::new(start), Order::MIB2));
            }
        }
        drop(locked);
        plan.already_so &= blocked.is_none();
        if guarded && !plan.already_so && blocked.is_none() {
            blocked = Some(Blocked::Busy { after: self.pool.policy.busy_after });
        }
        if plan.already_so {
            plan.demotes_1g.clear();
            plan.demotes_2m.clear();
        }
        // Two extents may end in one block.
        plan.demotes_1g = each_once(plan.demotes_1g);
        plan.demotes_2m = each_once(plan.demotes_2m);
        plan.hardware_bytes = plan.demotes_2m.len() as u64 * PAMT_BYTES_PER_BROKEN_2M;
        plan.blocked = blocked;
        Ok(plan)
    }

    /// The frames of the range, as sorted runs.
    pub fn frames(&self, range: Range<u64>) -> Result<RunSet, Refused> {
        Ok(self.runs(&range)?.iter().map(|run| run.frames).collect())
    }
}

fn each_once(mut blocks: Vec<PfnRange>) -> Vec<PfnRange> {
    blocks.sort_unstable();
    blocks.dedup();
    blocks
}
