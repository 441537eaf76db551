//! Doing an action to the pool and to the model, and comparing what they say.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use pageless::metadata::HoldId;
use pageless::metadata::model::{Begun, Demand, Ended, FromNode};
use pageless::{
    AllocateError, Allocation, AllocationId, Blocked, Cause, Convert, Converted, Detach, FRAME_BYTES, HolderId, Intent,
    LiftRefused, NodeChoice, Pfn, PfnRange, Request, RunSet,
};

use super::action::{Action, Meeting, Trouble, Where};
use super::compare::{lost_frames, same_reclaimed, same_refusal, same_result};
use super::script::{BACKING, Fault, Prep, Script, Scripted, When, check_log, lock};
use super::{World, bytes};

pub(crate) const NAMES: [&str; 3] = ["iommu", "ept", "host"];
const OWNERS: [&str; 3] = ["vm-0", "vm-1", "vm-2"];
const HOLDERS: [&str; 3] = ["vfio", "migration", "debugger"];

type Happening = (usize, When, Box<dyn FnOnce() + Send>);

/// Does the action to both, and compares the state after it.
pub(crate) fn perform(world: &Arc<World>, action: &Action) {
    match action {
        Action::Allocate { .. } => allocate(world, action),
        Action::Convert { at, intent, trouble, meeting } => convert(world, *at, *intent, trouble, meeting.as_ref()),
        Action::BadRange { allocation, start, end } => bad_range(world, *allocation, &(*start..*end)),
        Action::Hold { at, holder } => hold(world, *at, HOLDERS[usize::from(*holder)]),
        Action::Unhold { nth } => unhold(world, *nth),
        Action::Guarded { at, slot, actions } => guarded(world, *at, *slot, actions),
        Action::Attach { allocation, slot } => attach(world, *allocation, *slot),
        Action::Detach { allocation, slot, trouble, meeting } => detach(world, *allocation, *slot, trouble, meeting.as_ref()),
        Action::Demote { at, to, trouble } => super::resize::demote(world, *at, *to, trouble),
        Action::Promote { at, to, trouble } => super::resize::promote(world, *at, *to, trouble),
        Action::Release { allocation } => release(world, *allocation),
        Action::ReleaseRange { at } => release_range(world, *at),
        Action::DropHandle { allocation } => drop_handle(world, *allocation),
        Action::OwnerDied { owner } => {
            let owner = OWNERS[usize::from(*owner)];
            let expected = lock(&world.model).owner_died(owner);
            assert_eq!(world.pool.owner_died(owner), expected);
        }
        Action::Replace { at, pick_lost } => replace(world, *at, *pick_lost),
        Action::Reclaim { trouble } => reclaim(world, trouble, world.shape.asks_again),
        Action::Retry { trouble } => reclaim(world, trouble, true),
        Action::Poison { from, frames } => {
            let range = PfnRange::from_len(world.pfn(*from), u64::from(*frames)).unwrap();
            let expected = lock(&world.model).poison(range);
            assert_eq!(world.pool.poison(range, Cause::new("mce", 1, "")), expected);
            world.tell("poisoned");
        }
        Action::PlatformReset { evidence } => platform_reset(world, *evidence),
        Action::HardwareReplaced { from, frames } => hardware_replaced(world, *from, *frames),
        Action::QuarantineHung => quarantine_hung(world),
        Action::Compact => drop(world.pool.compact()),
    }
    world.compare();
}

pub(crate) fn allocate(world: &Arc<World>, action: &Action) {
    let Action::Allocate { frames, order, contiguous, node, owner, starts, keeps, mappings } = action else { return };
    let number = world.shape.nodes[usize::from(*node / 2) % world.shape.nodes.len()].node;
    let (from, choice) = match node {
        0..2 => (FromNode::Any, NodeChoice::Any),
        n if n % 2 == 0 => (FromNode::Prefer(number), NodeChoice::Prefer(number)),
        _ => (FromNode::Require(number), NodeChoice::Require(number)),
    };
    let demand = Demand {
        frames: u64::from(*frames),
        order: *order,
        contiguous: *contiguous,
        node: from,
        owner: OWNERS[usize::from(*owner)].to_owned(),
        starts: *starts,
        keeps_contents: *keeps,
    };
    let request = Request::bytes(demand.frames * FRAME_BYTES).order(*order).owner(&demand.owner).starts(*starts);
    let request = match choice {
        NodeChoice::Any => request,
        NodeChoice::Prefer(node) => request.prefer_node(node),
        NodeChoice::Require(node) => request.require_node(node),
    };
    let request = if *contiguous { request.contiguous() } else { request };
    let request = if *keeps { request.keep_contents() } else { request };
    let can = lock(&world.model).can_allocate(&demand);
    match world.pool.allocate(request) {
        Ok(handle) => {
            assert!(can, "the pool gave {handle:?} for {demand:?}, the model has nothing");
            let runs: Vec<PfnRange> = handle.extents().iter().map(|extent| extent.frames).collect();
            let chosen = lock(&world.model).allocate(handle.id(), &demand, &runs);
            assert_eq!(chosen, Ok(()));
            world.tell("allocated");
            let handle = Arc::new(handle);
            lock(&world.handles).push(Arc::clone(&handle));
            mappings.iter().for_each(|slot| attach_slot(world, &handle, *slot));
        }
        Err(AllocateError::NotEnough { .. }) => assert!(!can, "the pool has nothing for {demand:?}, the model has"),
        Err(other) => panic!("{other}"),
    }
}

/// The script that trouble becomes for these frames.
pub(crate) fn script(trouble: &Trouble, frames: &[Pfn]) -> Script {
    let place = |at: u16| frames.get(usize::from(at).checked_rem(frames.len())?).copied();
    Script {
        faults: trouble.faults.iter().filter_map(|(slot, at, fault)| Some(((*slot, place(*at)?), *fault))).collect(),
        prepare: trouble.prepare.into_iter().collect(),
    }
}

/// Where a sweep may come in between, nobody panics: whether it came to that depends on when the sweep was.
fn calm(trouble: &Trouble, meeting: Option<&Meeting>) -> Trouble {
    let mut trouble = trouble.clone();
    if meeting.is_some_and(|meeting| meeting.actions.iter().any(Action::sweeps)) {
        trouble.faults.retain(|(_, _, fault)| *fault != Fault::Panic);
        trouble.prepare = trouble.prepare.filter(|(_, fault)| *fault != Prep::Panic);
    }
    trouble
}

pub(crate) fn happening(world: &Arc<World>, meeting: Option<&Meeting>) -> Option<Happening> {
    let Meeting { slot, when, actions } = meeting?.clone();
    let world = Arc::clone(world);
    let happen = move || {
        world.compare();
        world.tell("met");
        actions.iter().for_each(|action| perform(&world, action));
    };
    Some((slot, when, Box::new(happen)))
}

/// Runs a verb of the pool that may panic because a script says so.
pub(crate) fn caught<T>(verb: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(verb)) {
        Ok(answer) => Some(answer),
        Err(payload) if payload.is::<Scripted>() => None,
        Err(payload) => resume_unwind(payload),
    }
}

/// The slots of an allocation's mappings, in order, retired ones too.
pub(crate) fn slot_order(world: &World) -> impl Fn(AllocationId) -> Vec<usize> + use<> {
    let slots = lock(&world.slots).clone();
    move |id| slots.get(&id).cloned().unwrap_or_default()
}

fn convert(world: &Arc<World>, at: Where, intent: Intent, trouble: &Trouble, meeting: Option<&Meeting>) {
    let Some(handle) = world.handle(at.allocation) else { return };
    let range = bytes(&handle, at);
    convert_range(world, &handle, &range, intent, trouble, meeting);
}

pub(crate) fn convert_range(
    world: &Arc<World>,
    handle: &Arc<Allocation>,
    range: &Range<u64>,
    intent: Intent,
    trouble: &Trouble,
    meeting: Option<&Meeting>,
) {
    super::resize::same_plan(world, handle, range, intent);
    let frames: Vec<Pfn> = handle.frames(range.clone()).unwrap().into_iter().flat_map(|run| run.iter()).collect();
    let script = script(&calm(trouble, meeting), &frames);
    let begun = lock(&world.model).begin(handle.id(), range, intent);
    let happening = happening(world, meeting);
    let order = slot_order(world);
    let before = world.stage.enter(&script, happening);
    let answer = caught(|| if intent == Intent::Share { handle.share(range.clone()) } else { handle.unshare(range.clone()) });
    let log = world.stage.leave(before);
    check_log(&log, &order);
    match begun {
        Ok(Begun::Open(operation)) => {
            let expected = lock(&world.model).end(&operation, &script);
            same_conversion(world, answer, expected);
        }
        Ok(Begun::AlreadySo) => {
            let answer = answer.unwrap().unwrap();
            assert!(!answer.changed() && log.is_empty());
            assert_eq!(*answer.frames(), handle.frames(range.clone()).unwrap());
        }
        Err(refused) => {
            assert!(log.is_empty(), "refused, and yet {log:?}");
            same_refusal(&blocked(answer.unwrap().unwrap_err()), &refused);
        }
    }
}

fn blocked(error: Convert) -> Blocked {
    match error {
        Convert::Busy { after } => Blocked::Busy { after },
        Convert::Held { holder, offset } => Blocked::Held { holder, offset },
        Convert::Refused(refused) => Blocked::Refused(refused),
        other => panic!("{other:?} is no refusal"),
    }
}

fn same_conversion(world: &World, answer: Option<Result<Converted, Convert>>, expected: Ended) {
    match (answer, expected) {
        (None, Ended::Panicked) => world.tell("panicked"),
        (Some(Err(error)), Ended::Refused(why)) => same_refusal(&blocked(error), &why),
        (Some(Ok(converted)), Ended::Parted { done, lost, released }) => {
            assert!(lost.is_empty() && released.is_empty(), "the pool says {converted:?}; lost: {lost:?}, released: {released}");
            assert_eq!((converted.frames(), converted.changed()), (&done, true));
            world.tell("converted");
        }
        (Some(Err(Convert::Torn { done, lost })), Ended::Parted { done: all, lost: gone, released }) => {
            assert!(released.is_empty() || !done.is_empty(), "{released} were released");
            assert_eq!((done, lost_frames(&lost)), (all, gone));
            world.tell("torn");
        }
        (Some(Err(Convert::OwnerGone { lost })), Ended::Parted { done, lost: gone, released }) => {
            assert!(done.is_empty() && !released.is_empty(), "done {done}, released {released}");
            assert_eq!(lost_frames(&lost), gone);
            world.tell("owner gone");
        }
        (answer, expected) => panic!("the pool says {answer:?}, the model {expected:?}"),
    }
}

fn bad_range(world: &Arc<World>, allocation: u8, range: &Range<u64>) {
    let Some(handle) = world.handle(allocation) else { return };
    if range.end <= handle.bytes()
        && range.start < range.end
        && [range.start, range.end].iter().all(|edge| edge.is_multiple_of(FRAME_BYTES))
    {
        return;
    }
    let mut model = lock(&world.model);
    let expected = model.begin(handle.id(), range, Intent::Share).unwrap_err();
    let holder = HolderId::new("nobody");
    assert_eq!(model.hold(handle.id(), range, HoldId(0), &holder), Err(expected.clone()));
    let refused: [Blocked; 6] = [
        blocked(handle.share(range.clone()).unwrap_err()),
        blocked(handle.unshare(range.clone()).unwrap_err()),
        handle.plan(range.clone(), Intent::Share).unwrap_err().into(),
        handle.hold(range.clone(), "nobody").unwrap_err(),
        handle.map_guard("iommu", range.clone()).map(|_| ()).unwrap_err(),
        handle.release_range(range.clone()).unwrap_err(),
    ];
    refused.iter().for_each(|blocked| same_refusal(blocked, &expected));
}

fn hold(world: &Arc<World>, at: Where, holder: &str) {
    let Some(handle) = world.handle(at.allocation) else { return };
    let range = bytes(&handle, at);
    let id = {
        let mut next = lock(&world.next_hold);
        *next += 1;
        HoldId(*next)
    };
    let expected = lock(&world.model).hold(handle.id(), &range, id, &HolderId::new(holder));
    let answer = handle.hold(range, holder);
    match (answer, expected) {
        (Ok(hold), Ok(())) => lock(&world.holds).push((id, hold)),
        (Err(blocked), Err(refused)) => same_refusal(&blocked, &refused),
        (answer, expected) => panic!("the pool says {answer:?}, the model {expected:?}"),
    }
}

fn unhold(world: &Arc<World>, nth: u8) {
    let mut holds = lock(&world.holds);
    let Some(at) = usize::from(nth).checked_rem(holds.len()) else { return };
    let (id, hold) = holds.swap_remove(at);
    drop(holds);
    lock(&world.model).unhold(id);
    drop(hold);
}

fn guarded(world: &Arc<World>, at: Where, slot: usize, actions: &[Action]) {
    let Some(handle) = world.handle(at.allocation) else { return };
    let range = bytes(&handle, at);
    let expected = lock(&world.model).guard(handle.id(), NAMES[slot], &range);
    match (handle.map_guard(NAMES[slot], range), expected) {
        (Ok(guard), Ok(frames)) => {
            let covered: RunSet = guard.extents().iter().map(|extent| extent.frames).collect();
            assert_eq!(covered, frames.iter().map(|pfn| PfnRange::single(*pfn)).collect());
            world.tell("guarded");
            actions.iter().for_each(|action| perform(world, action));
            drop(guard);
            lock(&world.model).unguard(&frames);
        }
        (Err(blocked), Err(refused)) => same_refusal(&blocked, &refused),
        (answer, expected) => panic!("the pool says {:?}, the model {expected:?}", answer.map(|guard| guard.extents().to_vec())),
    }
}

fn attach(world: &Arc<World>, allocation: u8, slot: usize) {
    if let Some(handle) = world.handle(allocation) {
        attach_slot(world, &handle, slot);
    }
}

fn attach_slot(world: &Arc<World>, handle: &Allocation, slot: usize) {
    let expected = lock(&world.model).attach(handle.id(), NAMES[slot], slot);
    let answer = handle.attach(NAMES[slot], world.mapping(slot));
    if expected.is_ok() {
        lock(&world.slots).entry(handle.id()).or_default().push(slot);
    }
    same_result(answer.map_err(Blocked::from), expected);
}

fn detach(world: &Arc<World>, allocation: u8, slot: usize, trouble: &Trouble, meeting: Option<&Meeting>) {
    let Some(handle) = world.handle(allocation) else { return };
    let id = handle.id();
    let frames: Vec<Pfn> = handle.extents().iter().flat_map(|extent| extent.frames.iter()).collect();
    let script = script(&calm(trouble, meeting), &frames);
    let (begun, rest) = {
        let mut model = lock(&world.model);
        (model.begin_detach(id, NAMES[slot]), model.unproven(id))
    };
    let before = world.stage.enter(&script, happening(world, meeting));
    let answer = caught(|| handle.detach(NAMES[slot]));
    world.stage.leave(before);
    let swept;
    let ended = match begun {
        Err(refused) => {
            let Some(Err(Detach::Blocked(blocked))) = answer else { panic!("{answer:?}, not {refused:?}") };
            return same_refusal(&blocked, &refused);
        }
        Ok(Begun::AlreadySo) => {
            lock(&world.model).detach_unasked(id, NAMES[slot]);
            assert_eq!(*answer.unwrap().unwrap().still_asked_about(), rest);
            return;
        }
        Ok(Begun::Open(operation)) => {
            let mut model = lock(&world.model);
            swept = model.is_swept(&operation);
            model.end(&operation, &script)
        }
    };
    // By this call: when it was declared hung, another one may have done it.
    let detached = !swept && !lock(&world.model).mappings(id).contains(&NAMES[slot]);
    match (answer, ended) {
        (None, Ended::Panicked) => {}
        (Some(Err(Detach::Blocked(blocked))), Ended::Refused(why)) => same_refusal(&blocked, &why),
        // A mapping that proved everything is detached, whatever else came up meanwhile.
        (Some(Ok(_)), Ended::Parted { released, .. }) if detached => assert!(released.is_empty()),
        (Some(Err(Detach::Blocked(Blocked::Busy { .. }))), Ended::Parted { lost, released, .. }) if !detached => {
            assert!(lost.is_empty() && released.is_empty());
        }
        (Some(Err(Detach::Torn { lost })), Ended::Parted { lost: gone, released, .. }) if !detached => {
            assert!(released.is_empty());
            assert_eq!(lost_frames(&lost), gone);
        }
        (Some(Err(Detach::OwnerGone { lost })), Ended::Parted { lost: gone, released, .. }) => {
            assert!(!released.is_empty());
            assert_eq!(lost_frames(&lost), gone);
        }
        (answer, ended) => panic!("the pool says {answer:?}, the model {ended:?}"),
    }
    world.tell("detached");
}

fn release(world: &Arc<World>, allocation: u8) {
    let Some(handle) = world.handle(allocation) else { return };
    let id = handle.id();
    lock(&world.handles).retain(|other| other.id() != id);
    match Arc::try_unwrap(handle) {
        Ok(handle) => match (handle.release(), lock(&world.model).release(id)) {
            (Ok(released), Ok(expected)) => assert_eq!(released, expected),
            (Err(refused), Err(expected)) => {
                same_refusal(&refused.why, &expected);
                lock(&world.handles).push(Arc::new(refused.allocation));
            }
            (answer, expected) => panic!("the pool says {answer:?}, the model {expected:?}"),
        },
        // A verb is under way on it: then only the death of its owner releases it.
        Err(handle) => {
            let owner = handle.owner().to_owned();
            lock(&world.handles).push(handle);
            let expected = lock(&world.model).owner_died(&owner);
            assert_eq!(world.pool.owner_died(&owner), expected);
        }
    }
}

fn release_range(world: &Arc<World>, at: Where) {
    let Some(handle) = world.handle(at.allocation) else { return };
    let range = bytes(&handle, at);
    let expected = lock(&world.model).release_range(handle.id(), &range);
    same_result(handle.release_range(range), expected);
}

fn drop_handle(world: &Arc<World>, allocation: u8) {
    let Some(handle) = world.handle(allocation) else { return };
    let id = handle.id();
    if Arc::strong_count(&handle) > 2 {
        return;
    }
    lock(&world.handles).retain(|other| other.id() != id);
    drop(handle);
    lock(&world.model).drop_handle(id);
}

fn replace(world: &Arc<World>, at: Where, pick_lost: bool) {
    let Some(handle) = world.handle(at.allocation) else { return };
    let mut offset = bytes(&handle, at).start;
    if pick_lost {
        let lost = (0..handle.bytes() / FRAME_BYTES).map(|at| at * FRAME_BYTES);
        let mut lost = lost.filter(|offset| lock(&world.model).replaceable(handle.id(), *offset).is_ok());
        offset = lost.next().unwrap_or(offset);
    }
    let expected = lock(&world.model).replaceable(handle.id(), offset);
    match (handle.replace(offset), expected) {
        (Ok(replaced), Ok(lost)) => {
            assert_eq!((replaced.offset, replaced.lost), (offset, lost));
            assert!(lock(&world.model).replace(handle.id(), offset, replaced.frame), "{replaced:?}");
            world.tell("replaced");
        }
        (Err(blocked), Err(refused)) => same_refusal(&blocked, &refused),
        (answer, expected) => panic!("the pool says {answer:?}, the model {expected:?}"),
    }
}

fn reclaim(world: &Arc<World>, trouble: &Trouble, again: bool) {
    let asked: Vec<Pfn> = {
        let model = lock(&world.model);
        model
            .frames()
            .filter(|(_, f)| f.state.withdrawal().is_some() || f.state.occupancy != pageless::metadata::Occupancy::Free)
            .map(|(pfn, _)| pfn)
            .collect()
    };
    let mut script = script(trouble, &asked);
    // What a panic or a breach costs a frame that is asked about again depends on how the records are cut.
    let gentle = again && !lock(&world.model).marked(pageless::Withdrawal::Quarantined).is_empty();
    for ((slot, _), fault) in &mut script.faults {
        if matches!(fault, Fault::Breach | Fault::Panic) && (gentle || *slot == BACKING) {
            *fault = Fault::Never;
        }
    }
    let order = slot_order(world);
    let before = world.stage.enter(&script, None);
    let everything = PfnRange::new(Pfn::new(0), Pfn::LIMIT).unwrap();
    let told = if again && !world.shape.asks_again { world.pool.retry(everything) } else { world.pool.reclaim() };
    check_log(&world.stage.leave(before), &order);
    let expected = lock(&world.model).reclaim(again, &script);
    same_reclaimed(&told, &expected);
    for (what, some) in [
        ("reclaimed", !told.freed.is_empty()),
        ("recovered", !told.recovered.is_empty()),
        ("lost in reclaim", !told.lost.is_empty()),
    ] {
        if some {
            world.tell(what);
        }
    }
}

fn platform_reset(world: &Arc<World>, evidence: bool) {
    let live = lock(&world.model).live();
    match (evidence, live) {
        (false, _) => assert!(matches!(world.pool.platform_reset(" "), Err(LiftRefused::NoEvidence { .. }))),
        (true, 0) => assert_eq!(world.pool.platform_reset("boot 7"), Ok(lock(&world.model).platform_reset().unwrap())),
        (true, _) => {
            assert!(
                matches!(world.pool.platform_reset("boot 7"), Err(LiftRefused::Live { live: told, .. }) if told as u64 == live)
            );
        }
    }
}

fn hardware_replaced(world: &Arc<World>, from: u16, frames: u16) {
    let range = PfnRange::from_len(world.pfn(from), u64::from(frames) + 1).unwrap();
    let inside = range.iter().all(|pfn| lock(&world.model).frame(pfn).is_some());
    let live = lock(&world.model).live();
    match (world.pool.hardware_replaced(range, "slot 3"), live, inside) {
        (Err(LiftRefused::Live { live: told, .. }), live, _) if live > 0 => assert_eq!(told as u64, live),
        (Err(LiftRefused::Outside { .. }), 0, false) => {}
        (Ok(lifted), 0, true) => assert_eq!(lifted, lock(&world.model).hardware_replaced(range).unwrap()),
        other => panic!("{other:?}"),
    }
}

fn quarantine_hung(world: &Arc<World>) {
    let expected = lock(&world.model).quarantine_hung();
    let noted = world.pool.quarantine_hung(std::time::Duration::ZERO);
    let told = world.pool.quarantine_hung(std::time::Duration::ZERO);
    let lost: RunSet =
        lost_frames(&[noted, told].into_iter().flatten().collect::<Vec<_>>()).into_keys().map(PfnRange::single).collect();
    if !expected.is_empty() {
        world.tell("hung");
    }
    assert_eq!(lost, expected);
}
