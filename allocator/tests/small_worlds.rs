//! Exhaustive small worlds: three frames, two owners, and every trace of a handful of verbs to a depth, each step compared with
//! the model twin. What a random test may miss for years is met here in seconds, if it is small.
//!
//! A step that changed nothing ends its trace: what could follow is explored without it.
#![allow(clippy::unwrap_used, clippy::panic, dead_code, reason = "a test that fails should panic; the worlds are shared")]

mod twin;

use std::sync::atomic::Ordering;

use pageless::{Intent, Order, Shareability};
use twin::action::{Action, Meeting, Trouble, Where};
use twin::perform::perform;
use twin::script::{BACKING, Fault, Prep, When, lock};
use twin::{Shape, World};

const GIB: u64 = 1 << 18;

/// Three frames across the border of a GiB.
fn three_frames(granule: u64) -> Shape {
    Shape::new(&[(0, GIB - 2, GIB + 1)], granule, true)
}

fn allocate(frames: u16, owner: u8, mappings: &[usize]) -> Action {
    let mappings = mappings.to_vec();
    let (order, starts) = (Order::BASE, Shareability::Private);
    Action::Allocate { frames, order, contiguous: false, node: 0, owner, starts, keeps: false, mappings }
}

fn all_of(allocation: u8) -> Where {
    Where { allocation, from: 0, frames: 0 }
}

fn frame(allocation: u8, from: u16) -> Where {
    Where { allocation, from, frames: 1 }
}

fn fine() -> Trouble {
    Trouble::default()
}

fn trouble(faults: &[(usize, u16, Fault)]) -> Trouble {
    Trouble { faults: faults.to_vec(), prepare: None }
}

fn share(at: Where, trouble: Trouble) -> Action {
    Action::Convert { at, intent: Intent::Share, trouble, meeting: None }
}

fn unshare(at: Where, trouble: Trouble) -> Action {
    Action::Convert { at, intent: Intent::Unshare, trouble, meeting: None }
}

fn share_meeting(at: Where, slot: usize, when: When, actions: &[Action]) -> Action {
    let meeting = Some(Meeting { slot, when, actions: actions.to_vec() });
    Action::Convert { at, intent: Intent::Share, trouble: fine(), meeting }
}

fn reclaim() -> Action {
    Action::Reclaim { trouble: fine() }
}

/// Runs every trace of `verbs` to `depth`; returns how many steps were compared: each of them once.
fn every_trace(shape: &Shape, verbs: &[Action], depth: usize) -> u64 {
    let (mut trace, mut steps, mut repeated) = (vec![0; depth], 0, 0);
    loop {
        let world = World::new(shape.clone());
        // The first step that changes nothing: everything that begins so is passed over.
        let idle = trace.iter().enumerate().position(|(nth, verb)| {
            let before = lock(&world.model).clone();
            world.repeats.store(nth < repeated, Ordering::Relaxed);
            perform(&world, &verbs[*verb]);
            steps += u64::from(nth >= repeated);
            *lock(&world.model) == before
        });
        let mut at = idle.unwrap_or(depth - 1);
        trace[at + 1..].fill(0);
        loop {
            trace[at] += 1;
            if trace[at] < verbs.len() {
                repeated = at;
                break;
            }
            if at == 0 {
                return steps;
            }
            trace[at] = 0;
            at -= 1;
        }
    }
}

#[test]
fn every_trace_of_giving_and_taking_back_equals_the_model() {
    let verbs = [
        allocate(2, 0, &[0]),
        allocate(1, 1, &[0, 1]),
        share(all_of(0), trouble(&[(0, 1, Fault::Retry)])),
        unshare(frame(0, 0), trouble(&[(BACKING, 0, Fault::Never), (1, 0, Fault::Held)])),
        Action::OwnerDied { owner: 0 },
        Action::Reclaim { trouble: trouble(&[(0, 0, Fault::Never)]) },
        reclaim(),
    ];
    let steps = every_trace(&three_frames(1), &verbs, 8);
    assert!(steps > 3_500, "{steps} steps");
}

#[test]
fn every_trace_of_poison_holds_and_replacement_equals_the_model() {
    let verbs = [
        allocate(2, 0, &[0, 1]),
        share(all_of(0), trouble(&[(1, 0, Fault::Never)])),
        Action::Hold { at: frame(0, 1), holder: 0 },
        Action::Unhold { nth: 0 },
        Action::Poison { from: 1, frames: 1 },
        Action::Replace { at: frame(0, 0), pick_lost: true },
        Action::DropHandle { allocation: 0 },
        reclaim(),
        Action::PlatformReset { evidence: true },
        Action::HardwareReplaced { from: 0, frames: 2 },
    ];
    let steps = every_trace(&three_frames(1), &verbs, 7);
    assert!(steps > 8_000, "{steps} steps");
}

#[test]
fn every_trace_of_verbs_that_meet_each_other_equals_the_model() {
    let during = |actions: &[Action]| share_meeting(all_of(0), 0, When::Invalidate, actions);
    let verbs = [
        allocate(2, 0, &[0, 1]),
        share(frame(0, 0), fine()),
        during(&[Action::Poison { from: 0, frames: 1 }]),
        during(&[Action::OwnerDied { owner: 0 }, reclaim()]),
        during(&[Action::QuarantineHung]),
        during(&[Action::QuarantineHung, reclaim(), unshare(all_of(0), fine())]),
        share_meeting(all_of(0), 1, When::Prepare, &[Action::Hold { at: frame(0, 0), holder: 1 }, share(frame(0, 1), fine())]),
        Action::Detach { allocation: 0, slot: 0, trouble: trouble(&[(0, 1, Fault::Retry)]), meeting: None },
        Action::Convert { at: all_of(0), intent: Intent::Unshare, trouble: trouble(&[(1, 1, Fault::Panic)]), meeting: None },
        reclaim(),
    ];
    let steps = every_trace(&three_frames(1), &verbs, 7);
    assert!(steps > 8_500, "{steps} steps");
}

#[test]
fn every_trace_over_a_granule_of_two_frames_equals_the_model() {
    let refused = Trouble { faults: Vec::new(), prepare: Some((0, Prep::Busy)) };
    let verbs = [
        allocate(1, 0, &[0]),
        allocate(2, 1, &[1]),
        share(all_of(0), trouble(&[(0, 0, Fault::Breach)])),
        share(all_of(0), trouble(&[(BACKING, 0, Fault::Held)])),
        Action::ReleaseRange { at: frame(1, 1) },
        Action::OwnerDied { owner: 1 },
        Action::Release { allocation: 0 },
        Action::Reclaim { trouble: trouble(&[(BACKING, 0, Fault::Retry)]) },
        Action::Reclaim { trouble: refused },
        reclaim(),
    ];
    let steps = every_trace(&three_frames(2), &verbs, 6);
    assert!(steps > 10_000, "{steps} steps");
}
