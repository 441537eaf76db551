//! The model's owners: attach, hold, guard, release, replace, die.

use std::ops::Range;

use super::{Attached, Model, Place, Refused, Spot, obstacle::index, to_set};
use crate::{AllocationId, FRAME_BYTES, FrameEvent, HoldId, HolderId, Pfn, PfnRange, Purpose, RunSet, Shareability};

impl Model {
    /// Attaches the mapping in `slot` of the oracle.
    pub fn attach(&mut self, id: AllocationId, name: &str, slot: usize) -> Result<(), Refused> {
        let held = self.allocations.get_mut(&id).expect("a known allocation");
        if held.mappings.iter().any(|mapping| mapping.name == name && mapping.retired.is_none()) {
            return Err(Refused::NameTaken);
        }
        held.mappings.push(Attached { name: name.to_owned(), slot, retired: None });
        Ok(())
    }

    /// The names of the attached mappings, in the order of attachment.
    #[must_use]
    pub fn mappings(&self, id: AllocationId) -> Vec<&str> {
        let mappings = &self.allocations[&id].mappings;
        mappings.iter().filter(|mapping| mapping.retired.is_none()).map(|mapping| mapping.name.as_str()).collect()
    }

    /// Detaches a mapping of an allocation of which nothing is live and sound: nobody needs to be asked.
    pub fn detach_unasked(&mut self, id: AllocationId, name: &str) {
        let rest = self.unproven(id);
        self.retire(id, name, &rest);
    }

    /// The frames that a detached mapping is still asked about: released, or withdrawn.
    #[must_use]
    pub fn unproven(&self, id: AllocationId) -> RunSet {
        let unproven = |state: crate::FrameState| state.occupancy == crate::Occupancy::Released || state.withdrawal().is_some();
        self.set(|frame| frame.tenant == Some(id) && unproven(frame.state))
    }

    /// Takes a proven mapping off the list; it stays on for what is released or withdrawn.
    pub(super) fn retire(&mut self, id: AllocationId, name: &str, rest: &RunSet) {
        let held = self.allocations.get_mut(&id).expect("a known allocation");
        let Some(at) = held.mappings.iter().position(|mapping| mapping.name == name && mapping.retired.is_none()) else { return };
        if rest.is_empty() {
            held.mappings.remove(at);
        } else {
            held.mappings[at].retired = Some(rest.into_iter().flat_map(PfnRange::iter).collect());
        }
    }

    /// Registers a holder.
    pub fn hold(&mut self, id: AllocationId, range: &Range<u64>, hold: HoldId, holder: &HolderId) -> Result<(), Refused> {
        let spots = self.usable(id, range)?;
        for (_, pfn) in spots {
            self.frames.get_mut(&pfn).expect("a frame of the pool").holds.push((hold, holder.clone()));
        }
        Ok(())
    }

    /// Ends a hold.
    pub fn unhold(&mut self, hold: HoldId) {
        self.frames.values_mut().for_each(|frame| frame.holds.retain(|(id, _)| *id != hold));
    }

    /// Gives a map guard; returns its frames.
    pub fn guard(&mut self, id: AllocationId, mapping: &str, range: &Range<u64>) -> Result<Vec<Pfn>, Refused> {
        let spots = self.usable(id, range)?;
        let attached = self.mappings(id).contains(&mapping);
        attached.then_some(()).ok_or(Refused::NoSuchMapping)?;
        let frames: Vec<Pfn> = spots.into_iter().map(|(_, pfn)| pfn).collect();
        self.count_guards(&frames, |guards| guards + 1);
        Ok(frames)
    }

    /// Takes a map guard back.
    pub fn unguard(&mut self, frames: &[Pfn]) {
        self.count_guards(frames, |guards| guards - 1);
    }

    fn count_guards(&mut self, frames: &[Pfn], count: impl Fn(u32) -> u32) {
        for pfn in frames {
            let frame = self.frames.get_mut(pfn).expect("a frame of the pool");
            frame.guards = count(frame.guards);
        }
    }

    fn usable(&self, id: AllocationId, range: &Range<u64>) -> Result<Vec<Spot>, Refused> {
        let spots = self.spots(id, range)?;
        self.obstacle(id, &spots, Purpose::Use)?;
        Ok(spots)
    }

    /// The owner gives everything up; refused while somebody holds what it has.
    pub fn release(&mut self, id: AllocationId) -> Result<RunSet, Refused> {
        let live = self.live_spots(id);
        if let Some((at, pfn)) = live.iter().find(|(_, pfn)| !self.frames[pfn].holds.is_empty()) {
            return Err(Refused::Held { offset: at * FRAME_BYTES, holders: self.holders(*pfn) });
        }
        Ok(self.give_up(id))
    }

    /// The owner gives a part up.
    pub fn release_range(&mut self, id: AllocationId, range: &Range<u64>) -> Result<RunSet, Refused> {
        let spots = self.spots(id, range)?;
        self.obstacle(id, &spots, Purpose::Change)?;
        spots.iter().for_each(|(_, pfn)| self.step(*pfn, FrameEvent::Release));
        Ok(to_set(spots.into_iter().map(|(_, pfn)| pfn)))
    }

    /// The handle is dropped: the owner gives up also what somebody holds.
    pub fn drop_handle(&mut self, id: AllocationId) -> RunSet {
        self.give_up(id)
    }

    /// Every allocation of the owner is given up; returns how many those were.
    pub fn owner_died(&mut self, owner: &str) -> usize {
        let theirs = self.allocations.iter().filter(|(_, held)| held.live && held.owner == owner);
        let theirs: Vec<AllocationId> = theirs.map(|(id, _)| *id).collect();
        theirs.iter().for_each(|id| drop(self.give_up(*id)));
        theirs.len()
    }

    /// Whether `replace` finds the frame in need of it, and another to put in its place.
    pub fn replaceable(&self, id: AllocationId, offset: u64) -> Result<Pfn, Refused> {
        let spot = self.spots(id, &(offset..offset.saturating_add(FRAME_BYTES)))?[0];
        if !self.is_live(spot.1, id) {
            return Err(Refused::Released { offset });
        }
        if self.frames[&spot.1].state.withdrawal().is_none() {
            return Err(Refused::NotLost { offset });
        }
        if self.free().is_empty() {
            return Err(Refused::NoFrame { offset });
        }
        Ok(spot.1)
    }

    /// Puts `fresh`, which the pool chose, in the place of the lost frame at `offset`; false if the pool must not have chosen
    /// it: it is not assignable, or remote although the node of the lost frame has free ones.
    pub fn replace(&mut self, id: AllocationId, offset: u64, fresh: Pfn) -> bool {
        let at = index(offset / FRAME_BYTES);
        let lost = self.allocations[&id].places[at].pfn;
        let assignable = self.frames.get(&fresh).is_some_and(|frame| frame.state.assignable());
        let near = self.node_of(lost);
        if !assignable || (self.node_of(fresh) != near && self.free_blocks(crate::Order::BASE, Some(near)) > 0) {
            return false;
        }
        self.step(lost, FrameEvent::Release);
        self.hand_out(fresh, id, offset / FRAME_BYTES, Shareability::Private);
        let held = self.allocations.get_mut(&id).expect("a known allocation");
        held.replaced += 1;
        let places = &mut held.places;
        // An offset that was given up, and listed the fresh frame since, lists the lost one from now on.
        let stale = places.iter().position(|place| place.pfn == fresh);
        for (at, pfn) in stale.map(|stale| (stale, lost)).into_iter().chain([(at, fresh)]) {
            places[at] = Place { pfn, begins: true };
            if let Some(after) = places.get_mut(at + 1) {
                after.begins = true;
            }
        }
        true
    }

    fn live_spots(&self, id: AllocationId) -> Vec<Spot> {
        self.all_spots(id).into_iter().filter(|(_, pfn)| self.is_live(*pfn, id)).collect()
    }

    fn give_up(&mut self, id: AllocationId) -> RunSet {
        self.allocations.get_mut(&id).expect("a known allocation").live = false;
        let live = self.live_spots(id);
        live.iter().for_each(|(_, pfn)| self.step(*pfn, FrameEvent::Release));
        to_set(live.into_iter().map(|(_, pfn)| pfn))
    }

    /// The frames of an allocation in guest order, as runs that the pool chose.
    pub(super) fn places(runs: &[PfnRange]) -> Vec<Place> {
        let place = |run: PfnRange| run.iter().map(move |pfn| Place { pfn, begins: pfn == run.start() });
        runs.iter().flat_map(|run| place(*run)).collect()
    }
}
