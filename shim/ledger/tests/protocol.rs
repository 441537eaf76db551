//! The protocol between owners, pool, mapping and ledger as a model, checked exhaustively for small bounds by stateright.
//!
//! The model has what the code has: a queue whose order is kept, commits that may fail after all and may have landed all the same,
//! crashes that lose the queue and the pool's memory, and frames that an owner may really still reach. Four broken variants must
//! be caught, so that a property that holds says something.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use stateright::{Checker, Model, Property};

const OWNERS: u8 = 2;

/// Stands for the owner of withdrawn frames that have none.
const NOBODY: u8 = 7;

/// How large a world is: frames, entries in the queue, and how many crashes and failed commits a run may have.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    frames: usize,
    queue: usize,
    crashes: u8,
    failures: u8,
}

/// One frame with a long life.
const DEEP: Bounds = Bounds { frames: 1, queue: 3, crashes: 2, failures: 2 };
/// Two frames that meet in the queue.
const WIDE: Bounds = Bounds { frames: 2, queue: 2, crashes: 1, failures: 1 };

/// What the pool's memory says of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Occupancy {
    Free,
    /// Taken for an owner, and not recorded yet.
    Taken(u8),
    Owned(u8),
    Released(u8),
    /// Proven unreachable, and not recorded yet.
    Proven(u8),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Mark {
    None,
    Quarantined,
    Failed,
}

/// What the ledger is told.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Entry {
    Allocated(u8),
    Undone(u8),
    Withdrawn(Mark),
    Reclaimed(u8),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Frame {
    occupancy: Occupancy,
    mark: Mark,
    /// The mark is in the ledger, as far as the pool knows.
    recorded: bool,
    converting: bool,
    /// Who can really reach it.
    reach: Option<u8>,
    /// On disk: a bit for each owner that has it.
    durable_owners: u8,
    durable_mark: Mark,
    /// Which owner has been given a handle and has not given it back.
    told_owner: Option<u8>,
    /// Which mark somebody has been told of as recorded.
    told_mark: Mark,
}

const FREE: Frame = Frame {
    occupancy: Occupancy::Free,
    mark: Mark::None,
    recorded: true,
    converting: false,
    reach: None,
    durable_owners: 0,
    durable_mark: Mark::None,
    told_owner: None,
    told_mark: Mark::None,
};

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    up: bool,
    frames: Vec<Frame>,
    queue: Vec<(usize, Entry)>,
    /// Something was handed out while a withdrawal was not recorded and nobody was recording it.
    blind: bool,
    crashes: u8,
    failures: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Action {
    Allocate(usize, u8),
    Convert(usize),
    ConvertProven(usize),
    ConvertStuck(usize, Mark),
    Release(usize),
    ReclaimProven(usize),
    ReclaimStuck(usize, Mark),
    RecordAgain(usize),
    /// The first entry of the queue becomes durable.
    Sync,
    /// Its commit fails; it may have landed.
    Fail {
        landed: bool,
    },
    Crash,
    Reopen,
}

/// How the protocol is broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Variant {
    AsBuilt,
    AcknowledgesBeforeSync,
    FreesBeforeProof,
    ForgetsToUndo,
    AllocatesWhileUnrecorded,
}

struct Protocol(Variant, Bounds);

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State { up: true, frames: vec![FREE; self.1.frames], queue: Vec::new(), blind: false, crashes: 0, failures: 0 }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if !state.up {
            actions.push(Action::Reopen);
            return;
        }
        if state.crashes < self.1.crashes {
            actions.push(Action::Crash);
        }
        if !state.queue.is_empty() {
            actions.push(Action::Sync);
            if state.failures < self.1.failures {
                actions.extend([Action::Fail { landed: false }, Action::Fail { landed: true }]);
            }
        }
        for at in 0..self.1.frames {
            self.frame_actions(state, at, actions);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Allocate(at, owner) => {
                state.blind |= has_unrecorded(last);
                state.frames[at].occupancy = Occupancy::Taken(owner);
                self.enqueue(&mut state, at, Entry::Allocated(owner));
            }
            Action::Convert(at) => state.frames[at].converting = true,
            Action::ConvertProven(at) => state.frames[at].converting = false,
            Action::ConvertStuck(at, mark) => {
                state.frames[at].converting = false;
                self.withdraw(&mut state, at, mark);
            }
            Action::Release(at) => {
                let frame = &mut state.frames[at];
                let Occupancy::Owned(owner) = frame.occupancy else { return None };
                frame.occupancy = Occupancy::Released(owner);
                frame.told_owner = None;
            }
            Action::ReclaimProven(at) => {
                let Occupancy::Released(owner) = state.frames[at].occupancy else { return None };
                if self.0 != Variant::FreesBeforeProof {
                    state.frames[at].reach = None;
                }
                state.frames[at].occupancy = Occupancy::Proven(owner);
                self.enqueue(&mut state, at, Entry::Reclaimed(owner));
            }
            Action::ReclaimStuck(at, mark) => self.withdraw(&mut state, at, mark),
            Action::RecordAgain(at) => {
                let mark = state.frames[at].mark;
                self.enqueue(&mut state, at, Entry::Withdrawn(mark));
            }
            Action::Sync => {
                let (at, entry) = state.queue.remove(0);
                write(&mut state.frames[at], entry);
                tell(&mut state.frames[at], entry);
            }
            Action::Fail { landed } => self.fail(&mut state, landed),
            Action::Crash => {
                state.queue.clear();
                state.crashes += 1;
                state.up = false;
            }
            Action::Reopen => reopen(&mut state),
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("I1 only sound frames are free", |_, state: &State| {
                state.frames.iter().all(|frame| !state.up || frame.occupancy != Occupancy::Free || frame.mark == Mark::None)
            }),
            Property::always("I2 what is free, or another's, nobody from before can reach", |_, state: &State| {
                !state.up || state.frames.iter().all(reach_is_its_owners)
            }),
            Property::always("I3 failed stays failed", |_, state: &State| {
                state.frames.iter().all(|frame| frame.told_mark != Mark::Failed || frame.durable_mark == Mark::Failed)
                    && state.frames.iter().all(|frame| !state.up || frame.told_mark != Mark::Failed || frame.mark == Mark::Failed)
            }),
            Property::always("I7 what was told is durable", |_, state: &State| {
                state.frames.iter().all(|frame| {
                    let handle = frame.told_owner.is_none_or(|owner| frame.durable_owners & (1 << owner) != 0);
                    handle && frame.told_mark <= frame.durable_mark
                })
            }),
            Property::always("no frame has two owners on disk", |_, state: &State| {
                state.frames.iter().all(|frame| frame.durable_owners.count_ones() <= 1)
            }),
            Property::always("nothing is handed out while a withdrawal is not recorded", |_, state: &State| !state.blind),
            Property::sometimes("a frame comes back", |_, state: &State| {
                state.crashes > 0 && state.frames.iter().any(|frame| frame.told_owner == Some(1))
            }),
            Property::sometimes("a mark survives every crash", |model: &Self, state: &State| {
                state.up && state.crashes == model.1.crashes && state.frames.iter().any(|frame| frame.told_mark == Mark::Failed)
            }),
        ]
    }
}

impl Protocol {
    fn frame_actions(&self, state: &State, at: usize, actions: &mut Vec<Action>) {
        let frame = &state.frames[at];
        let room = state.queue.len() < self.1.queue;
        let stuck = [Mark::Quarantined, Mark::Failed];
        let unrecorded = has_unrecorded(state);
        match frame.occupancy {
            Occupancy::Free if room && (!unrecorded || self.0 == Variant::AllocatesWhileUnrecorded) => {
                actions.extend((0..OWNERS).map(|owner| Action::Allocate(at, owner)));
            }
            Occupancy::Owned(_) => {
                // The owner's end is accepted whatever is under way.
                actions.push(Action::Release(at));
                if frame.mark == Mark::None && !frame.converting {
                    actions.push(Action::Convert(at));
                }
            }
            // A quarantined frame is asked about again once that is recorded; a failed one never.
            Occupancy::Released(_) if room && !frame.converting && frame.recorded && frame.mark != Mark::Failed => {
                actions.push(Action::ReclaimProven(at));
                actions.extend(stuck.iter().filter(|mark| **mark > frame.mark).map(|mark| Action::ReclaimStuck(at, *mark)));
            }
            _ => {}
        }
        if frame.converting {
            actions.push(Action::ConvertProven(at));
            if room {
                actions.extend(stuck.map(|mark| Action::ConvertStuck(at, mark)));
            }
        }
        if room && is_unrecorded(state, at) {
            actions.push(Action::RecordAgain(at));
        }
    }

    fn enqueue(&self, state: &mut State, at: usize, entry: Entry) {
        state.queue.push((at, entry));
        if self.0 == Variant::AcknowledgesBeforeSync {
            tell(&mut state.frames[at], entry);
        }
    }

    fn withdraw(&self, state: &mut State, at: usize, mark: Mark) {
        state.frames[at].mark = mark;
        state.frames[at].recorded = false;
        self.enqueue(state, at, Entry::Withdrawn(mark));
    }

    /// The first commit of the queue fails.
    fn fail(&self, state: &mut State, landed: bool) {
        let (at, entry) = state.queue.remove(0);
        state.failures += 1;
        if landed {
            write(&mut state.frames[at], entry);
        }
        let frame = &mut state.frames[at];
        match entry {
            Entry::Allocated(owner) => {
                frame.occupancy = Occupancy::Free;
                if self.0 != Variant::ForgetsToUndo {
                    state.queue.push((at, Entry::Undone(owner)));
                }
            }
            // Kept, before everything else, until it is written.
            Entry::Undone(_) => state.queue.insert(0, (at, entry)),
            // `recorded: false`.
            Entry::Withdrawn(_) => frame.recorded = false,
            Entry::Reclaimed(owner) => frame.occupancy = Occupancy::Released(owner),
        }
    }
}

/// Whether a mark is not recorded, and nobody is recording it.
fn is_unrecorded(state: &State, at: usize) -> bool {
    let frame = &state.frames[at];
    let pending = state.queue.iter().any(|(other, entry)| *other == at && matches!(entry, Entry::Withdrawn(_)));
    frame.mark != Mark::None && !frame.recorded && !pending
}

fn has_unrecorded(state: &State) -> bool {
    (0..state.frames.len()).any(|at| is_unrecorded(state, at))
}

/// An entry reaches the disk.
fn write(frame: &mut Frame, entry: Entry) {
    match entry {
        Entry::Allocated(owner) => frame.durable_owners |= 1 << owner,
        Entry::Undone(owner) => frame.durable_owners &= !(1 << owner),
        Entry::Withdrawn(mark) => frame.durable_mark = mark,
        Entry::Reclaimed(owner) => {
            frame.durable_owners &= !(1 << owner);
            frame.durable_mark = Mark::None;
            if frame.told_mark == Mark::Quarantined {
                // Its proof was given, and is durable now, whether or not anybody hears of it.
                frame.told_mark = Mark::None;
            }
        }
    }
}

/// Whoever waits for an entry is told that it is durable.
fn tell(frame: &mut Frame, entry: Entry) {
    match entry {
        Entry::Allocated(owner) => {
            frame.occupancy = Occupancy::Owned(owner);
            frame.told_owner = Some(owner);
            frame.reach = Some(owner);
        }
        Entry::Undone(_) => {}
        Entry::Withdrawn(mark) => {
            frame.recorded |= frame.mark == mark;
            frame.told_mark = mark;
        }
        Entry::Reclaimed(_) => {
            frame.occupancy = Occupancy::Free;
            frame.mark = Mark::None;
            frame.recorded = true;
            frame.told_mark = Mark::None;
        }
    }
}

/// A new pool finds what is on disk. What was reachable still is; owners of before are dead.
fn reopen(state: &mut State) {
    state.up = true;
    for frame in &mut state.frames {
        let owner = (0..OWNERS).find(|owner| frame.durable_owners & (1 << owner) != 0);
        // A mark on a frame that nobody has: its reclaim landed though it had failed. It is released, by nobody.
        let owner = owner.or((frame.durable_mark != Mark::None).then_some(NOBODY));
        *frame = Frame {
            occupancy: owner.map_or(Occupancy::Free, Occupancy::Released),
            mark: frame.durable_mark,
            recorded: true,
            converting: false,
            told_owner: None,
            ..*frame
        };
    }
}

fn reach_is_its_owners(frame: &Frame) -> bool {
    match frame.occupancy {
        Occupancy::Free | Occupancy::Taken(_) | Occupancy::Proven(_) => frame.reach.is_none(),
        Occupancy::Owned(owner) => frame.reach.is_none_or(|reach| reach == owner),
        Occupancy::Released(_) => true,
    }
}

#[test]
fn the_protocol_keeps_its_invariants_in_every_run() {
    for bounds in [DEEP, WIDE] {
        let checker = Protocol(Variant::AsBuilt, bounds).checker().threads(2).spawn_bfs().join();
        println!("{bounds:?}: {} states, {} of them different", checker.state_count(), checker.unique_state_count());
        assert!(checker.is_done() && checker.unique_state_count() > 1_000);
        checker.assert_properties();
    }
}

fn breaks(variant: Variant, property: &'static str) {
    let caught = |bounds| Protocol(variant, bounds).checker().threads(2).spawn_bfs().join().discovery(property).is_some();
    assert!(caught(DEEP) || caught(WIDE), "{variant:?} was not caught by {property:?}");
}

#[test]
fn acknowledging_before_the_sync_is_caught() {
    breaks(Variant::AcknowledgesBeforeSync, "I7 what was told is durable");
}

#[test]
fn freeing_before_the_proof_is_caught() {
    breaks(Variant::FreesBeforeProof, "I2 what is free, or another's, nobody from before can reach");
}

#[test]
fn an_allocation_that_failed_and_is_not_undone_is_caught() {
    breaks(Variant::ForgetsToUndo, "no frame has two owners on disk");
}

#[test]
fn handing_out_while_a_withdrawal_is_unrecorded_is_caught() {
    breaks(Variant::AllocatesWhileUnrecorded, "nothing is handed out while a withdrawal is not recorded");
}
