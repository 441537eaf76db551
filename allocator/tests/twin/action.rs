//! What can happen to a pool, as data.

use pageless::{Intent, Order, Shareability};
use proptest::prelude::*;

use super::script::{BACKING, Fault, Prep, When};

/// Numbers that a world folds into what it has: which allocation, which frames.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Where {
    pub(crate) allocation: u8,
    pub(crate) from: u16,
    pub(crate) frames: u16,
}

/// What goes wrong, before it is known for which frames.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trouble {
    pub(crate) faults: Vec<(usize, u16, Fault)>,
    pub(crate) prepare: Option<(usize, Prep)>,
}

/// What else happens during a verb, in a call to one of its mappings.
#[derive(Clone, Debug)]
pub(crate) struct Meeting {
    pub(crate) slot: usize,
    pub(crate) when: When,
    pub(crate) actions: Vec<Action>,
}

#[derive(Clone, Debug)]
pub(crate) enum Action {
    Allocate {
        frames: u16,
        order: Order,
        contiguous: bool,
        node: u8,
        owner: u8,
        starts: Shareability,
        keeps: bool,
        mappings: Vec<usize>,
    },
    Convert {
        at: Where,
        intent: Intent,
        trouble: Trouble,
        meeting: Option<Meeting>,
    },
    BadRange {
        allocation: u8,
        start: u64,
        end: u64,
    },
    Hold {
        at: Where,
        holder: u8,
    },
    Unhold {
        nth: u8,
    },
    Guarded {
        at: Where,
        slot: usize,
        actions: Vec<Action>,
    },
    Attach {
        allocation: u8,
        slot: usize,
    },
    Detach {
        allocation: u8,
        slot: usize,
        trouble: Trouble,
        meeting: Option<Meeting>,
    },
    Demote {
        at: Where,
        to: Order,
        trouble: Trouble,
    },
    Promote {
        at: Where,
        to: Order,
        trouble: Trouble,
    },
    Release {
        allocation: u8,
    },
    ReleaseRange {
        at: Where,
    },
    DropHandle {
        allocation: u8,
    },
    OwnerDied {
        owner: u8,
    },
    Replace {
        at: Where,
        pick_lost: bool,
    },
    Reclaim {
        trouble: Trouble,
    },
    Retry {
        trouble: Trouble,
    },
    Poison {
        from: u16,
        frames: u16,
    },
    PlatformReset {
        evidence: bool,
    },
    HardwareReplaced {
        from: u16,
        frames: u16,
    },
    QuarantineHung,
    Compact,
}

impl Action {
    /// Whether a sweep for hung operations is in it.
    pub(crate) fn sweeps(&self) -> bool {
        let inner: &[Self] = match self {
            Self::QuarantineHung => return true,
            Self::Guarded { actions, .. } => actions,
            Self::Convert { meeting: Some(meeting), .. } | Self::Detach { meeting: Some(meeting), .. } => &meeting.actions,
            _ => &[],
        };
        inner.iter().any(Self::sweeps)
    }
}

fn place() -> impl Strategy<Value = Where> {
    (any::<u8>(), any::<u16>(), prop_oneof![1u16..4, 1u16..40, any::<u16>()]).prop_map(|(allocation, from, frames)| Where {
        allocation,
        from,
        frames,
    })
}

fn trouble() -> impl Strategy<Value = Trouble> {
    let fault = prop_oneof![
        3 => Just(Fault::Retry),
        1 => Just(Fault::RetryOnce),
        2 => Just(Fault::Held),
        3 => Just(Fault::Never),
        1 => Just(Fault::Breach),
        1 => Just(Fault::Panic),
    ];
    let slot = prop_oneof![0usize..3, Just(BACKING)];
    let faults = prop_oneof![2 => Just(vec![]).boxed(), 3 => prop::collection::vec((slot, any::<u16>(), fault), 1..4).boxed()];
    let prep = prop_oneof![Just(Prep::Busy), Just(Prep::NoMemory), Just(Prep::Unsupported), Just(Prep::Other), Just(Prep::Panic)];
    (faults, prop::option::weighted(0.1, (0usize..3, prep))).prop_map(|(mut faults, prepare)| {
        // A mapping that is transient at several frames uses up the pool's patience, which the model does not count.
        let mut once = false;
        faults.retain(|(_, _, fault)| *fault != Fault::RetryOnce || !std::mem::replace(&mut once, true));
        Trouble { faults, prepare }
    })
}

fn sizes() -> impl Strategy<Value = (u16, Order)> {
    prop_oneof![
        8 => (1u16..48).prop_map(|frames| (frames, Order::BASE)),
        2 => (500u16..600).prop_map(|frames| (frames, Order::BASE)),
        3 => (1u16..3).prop_map(|blocks| (blocks * 512, Order::MIB2)),
    ]
}

fn allocate() -> impl Strategy<Value = Action> {
    let starts = prop_oneof![4 => Just(Shareability::Private), 1 => Just(Shareability::Unknown), 1 => Just(Shareability::Shared)];
    let mappings =
        prop_oneof![Just(vec![]), Just(vec![0]), Just(vec![0, 1]), Just(vec![2, 0]), Just(vec![0, 1, 2]), Just(vec![2, 1, 0]),];
    (sizes(), any::<bool>(), 0u8..8, 0u8..3, starts, any::<bool>(), mappings).prop_map(
        |((frames, order), contiguous, node, owner, starts, keeps, mappings)| Action::Allocate {
            frames,
            order,
            contiguous,
            node,
            owner,
            starts,
            keeps,
            mappings,
        },
    )
}

/// Verbs that meet nothing on their way.
fn plain() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => (place(), 0u8..3).prop_map(|(at, holder)| Action::Hold { at, holder }),
        2 => any::<u8>().prop_map(|nth| Action::Unhold { nth }),
        1 => (any::<u8>(), 0usize..3).prop_map(|(allocation, slot)| Action::Attach { allocation, slot }),
        1 => any::<u8>().prop_map(|allocation| Action::Release { allocation }),
        3 => place().prop_map(|at| Action::ReleaseRange { at }),
        1 => any::<u8>().prop_map(|allocation| Action::DropHandle { allocation }),
        1 => (0u8..3).prop_map(|owner| Action::OwnerDied { owner }),
        3 => (place(), prop::bool::weighted(0.9)).prop_map(|(at, pick_lost)| Action::Replace { at, pick_lost }),
        3 => trouble().prop_map(|trouble| Action::Reclaim { trouble }),
        3 => trouble().prop_map(|trouble| Action::Retry { trouble }),
        2 => (any::<u16>(), 1u16..4).prop_map(|(from, frames)| Action::Poison { from, frames }),
        1 => any::<bool>().prop_map(|evidence| Action::PlatformReset { evidence }),
        1 => (any::<u16>(), any::<u16>()).prop_map(|(from, frames)| Action::HardwareReplaced { from, frames }),
        2 => Just(Action::QuarantineHung),
        1 => Just(Action::Compact),
        1 => (any::<u8>(), bad_range()).prop_map(|(allocation, (start, end))| Action::BadRange { allocation, start, end }),
        2 => (place(), order(), trouble()).prop_map(|(at, to, trouble)| Action::Demote { at, to, trouble }),
        2 => (place(), order(), trouble()).prop_map(|(at, to, trouble)| Action::Promote { at, to, trouble }),
    ]
}

fn order() -> impl Strategy<Value = Order> {
    prop_oneof![1 => Just(Order::BASE), 3 => Just(Order::MIB2), 1 => Just(Order::GIB1)]
}

fn bad_range() -> impl Strategy<Value = (u64, u64)> {
    prop_oneof![
        Just((0, 1)),
        Just((1, 4096)),
        Just((4096, 4096)),
        Just((8192, 4096)),
        Just((0, 1 << 50)),
        Just((u64::MAX - 4095, u64::MAX - 4095)),
        Just((0, u64::MAX - 4095))
    ]
}

fn intent() -> impl Strategy<Value = Intent> {
    prop_oneof![3 => Just(Intent::Share), 2 => Just(Intent::Unshare)]
}

fn meeting(actions: BoxedStrategy<Action>) -> impl Strategy<Value = Option<Meeting>> {
    let when = prop_oneof![1 => Just(When::Prepare), 3 => Just(When::Invalidate)];
    let met = (0usize..3, when, prop::collection::vec(actions, 1..5));
    prop::option::weighted(0.4, met.prop_map(|(slot, when, actions)| Meeting { slot, when, actions }))
}

fn meeting_verbs(inner: BoxedStrategy<Action>) -> BoxedStrategy<Action> {
    prop_oneof![
        8 => (place(), intent(), trouble(), meeting(inner.clone()))
            .prop_map(|(at, intent, trouble, meeting)| Action::Convert { at, intent, trouble, meeting }),
        1 => (any::<u8>(), 0usize..3, trouble(), meeting(inner.clone()))
            .prop_map(|(allocation, slot, trouble, meeting)| Action::Detach { allocation, slot, trouble, meeting }),
        1 => (place(), 0usize..3, prop::collection::vec(inner, 1..4))
            .prop_map(|(at, slot, actions)| Action::Guarded { at, slot, actions }),
    ]
    .boxed()
}

/// Any verb; those that ask mappings may meet others on their way, and those again.
pub(crate) fn any_action() -> BoxedStrategy<Action> {
    let alone = prop_oneof![1 => allocate(), 4 => plain()].boxed();
    let twice = prop_oneof![4 => alone.clone(), 2 => meeting_verbs(alone.clone())].boxed();
    prop_oneof![2 => allocate(), 4 => alone, 6 => meeting_verbs(twice)].boxed()
}
