//! The state machine of one frame, as one pure function.
//!
//! Three independent axes (who has it, who may reach it, is it sound) and the events that move a frame along them:
//!
//! ```text
//! occupancy      free --allocate--> allocated --release--> released --prove(reclaim)--> free
//! shareability   unknown/private --prove(share)--> shared --prove(unshare)--> private        (while allocated)
//! health         sound --begin--> converting --prove--> sound
//!                                 converting --lose for now--> quarantined --prove later--> sound
//!                                 converting or quarantined --lose for good--> failed
//!                any --poison--> poisoned
//! ```
//!
//! The kinds of withdrawal are independent marks, not values of one variable: a quarantined frame can also be poisoned, and
//! lifting one mark leaves the other (invariant I4). The planes of [`Gib`](crate::Gib) are this table, vectorised; the tests
//! hold the two against each other, and the model twin is made of it.

use crate::Intent;

/// Who has a frame.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Occupancy {
    /// Nobody; it can be handed out if it is sound.
    Free,
    /// An owner.
    Allocated,
    /// An owner gave it up, and nobody has proved it unreachable yet. Not free.
    Released,
}

/// Who may reach a frame.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Shareability {
    /// Not recorded: nobody may, and every verb does its full work.
    Unknown,
    /// The guest alone.
    Private,
    /// The guest and the host.
    Shared,
}

/// Why a frame can not be handed out or used.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Withdrawal {
    /// An operation ended without proof; a later proof lifts it.
    Quarantined,
    /// An invalidation failed for good.
    Failed,
    /// The hardware reported an uncorrectable error.
    Poisoned,
}

impl std::fmt::Display for Withdrawal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Quarantined => "quarantined",
            Self::Failed => "failed",
            Self::Poisoned => "poisoned",
        })
    }
}

/// Everything that is known of one frame.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FrameState {
    /// Who has it.
    pub occupancy: Occupancy,
    /// Who may reach it.
    pub shareability: Shareability,
    /// The intent of the operation under way, if one is.
    pub converting: Option<Intent>,
    /// The intent that a later proof will complete, if the frame is quarantined.
    pub quarantined: Option<Intent>,
    /// Whether an invalidation failed for good.
    pub failed: bool,
    /// Whether the hardware reported an error.
    pub poisoned: bool,
}

/// Something that happens to a frame.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FrameEvent {
    /// An owner gets it, in this shareability: private, unless the request says otherwise.
    Allocate(Shareability),
    /// The owner gives it up, or dies.
    Release,
    /// An operation passed its check and marks the frame.
    Begin(Intent),
    /// The operation was refused in prepare: the mark goes, nothing else changes.
    Cancel,
    /// Every mapping proved the frame unreachable.
    Prove,
    /// The operation ended without proof; asking again may help.
    LoseForNow,
    /// The operation, or a retry, ended with the verdict that no proof will ever come.
    LoseForGood,
    /// A later retry brought the proof.
    ProveLater,
    /// The hardware reported an uncorrectable error.
    Poison,
    /// The platform was reset, with evidence.
    PlatformReset,
    /// The memory was replaced while the host was off, with evidence.
    HardwareReplaced,
}

/// Why an event cannot happen to a frame in its state.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, thiserror::Error)]
pub enum Forbidden {
    /// The frame is not free, or not allocated, or not released, as the event needs.
    #[error("the frame is {0:?}")]
    Occupancy(Occupancy),
    /// The frame is withdrawn.
    #[error("the frame is {0}")]
    Withdrawn(Withdrawal),
    /// An operation is under way.
    #[error("an operation is under way")]
    Converting,
    /// No operation is under way, or no such mark is set.
    #[error("there is no such mark on the frame")]
    NoMark,
}

impl FrameState {
    /// A frame that nobody has had yet.
    pub const FREE: Self = Self {
        occupancy: Occupancy::Free,
        shareability: Shareability::Private,
        converting: None,
        quarantined: None,
        failed: false,
        poisoned: false,
    };

    /// The worst mark on the frame: poisoned before failed before quarantined.
    #[must_use]
    pub const fn withdrawal(self) -> Option<Withdrawal> {
        match self {
            Self { poisoned: true, .. } => Some(Withdrawal::Poisoned),
            Self { failed: true, .. } => Some(Withdrawal::Failed),
            Self { quarantined: Some(_), .. } => Some(Withdrawal::Quarantined),
            _ => None,
        }
    }

    /// Whether the frame may be handed out: free, and sound (invariant I1).
    #[must_use]
    pub fn assignable(self) -> bool {
        self.occupancy == Occupancy::Free && self.withdrawal().is_none() && self.converting.is_none()
    }

    /// The state after `event`, or why it cannot happen.
    pub fn after(self, event: FrameEvent) -> Result<Self, Forbidden> {
        match event {
            FrameEvent::Allocate(shareability) => self.allocate(shareability),
            FrameEvent::Release => self.release(),
            FrameEvent::Begin(intent) => self.begin(intent),
            FrameEvent::Cancel => self.unmarked(),
            FrameEvent::Prove => self.prove(),
            FrameEvent::LoseForNow => self.lose_for_now(),
            FrameEvent::LoseForGood => self.lose_for_good(),
            FrameEvent::ProveLater => self.prove_later(),
            FrameEvent::Poison => Ok(Self { poisoned: true, ..self }),
            FrameEvent::PlatformReset => self.lift(self.failed, Self { failed: false, ..self }),
            FrameEvent::HardwareReplaced => self.lift(self.poisoned, Self { poisoned: false, ..self }),
        }
    }

    fn allocate(self, shareability: Shareability) -> Result<Self, Forbidden> {
        self.require(Occupancy::Free)?.require_sound()?;
        Ok(Self { occupancy: Occupancy::Allocated, shareability, ..self })
    }

    fn release(self) -> Result<Self, Forbidden> {
        self.require(Occupancy::Allocated)?;
        // Whatever the quarantine was for, nobody wants it any more: a later proof can only free the frame.
        let quarantined = self.quarantined.map(|_| Intent::Reclaim);
        Ok(Self { occupancy: Occupancy::Released, quarantined, ..self })
    }

    fn begin(self, intent: Intent) -> Result<Self, Forbidden> {
        self.require(if intent == Intent::Reclaim { Occupancy::Released } else { Occupancy::Allocated })?.require_sound()?;
        Ok(Self { converting: Some(intent), ..self })
    }

    fn unmarked(self) -> Result<Self, Forbidden> {
        self.converting.ok_or(Forbidden::NoMark)?;
        Ok(Self { converting: None, ..self })
    }

    fn prove(self) -> Result<Self, Forbidden> {
        let intent = self.converting.ok_or(Forbidden::NoMark)?;
        Ok(Self { converting: None, ..self }.completed(intent))
    }

    fn prove_later(self) -> Result<Self, Forbidden> {
        let intent = self.quarantined.ok_or(Forbidden::NoMark)?;
        Ok(Self { quarantined: None, ..self }.completed(intent))
    }

    fn lose_for_now(self) -> Result<Self, Forbidden> {
        let intent = self.converting.ok_or(Forbidden::NoMark)?;
        let intent = if self.occupancy == Occupancy::Released { Intent::Reclaim } else { intent };
        Ok(Self { converting: None, quarantined: Some(intent), ..self })
    }

    fn lose_for_good(self) -> Result<Self, Forbidden> {
        self.converting.or(self.quarantined).ok_or(Forbidden::NoMark)?;
        Ok(Self { converting: None, quarantined: None, failed: true, ..self })
    }

    /// What the proof was for happens, unless another mark stands or the owner is gone: then it is too late or too little.
    fn completed(self, intent: Intent) -> Self {
        let sound = self.withdrawal().is_none();
        match (intent, self.occupancy) {
            (Intent::Share, Occupancy::Allocated) if sound => Self { shareability: Shareability::Shared, ..self },
            (Intent::Unshare, Occupancy::Allocated) if sound => Self { shareability: Shareability::Private, ..self },
            (Intent::Reclaim, Occupancy::Released) if sound => Self::FREE,
            _ => self,
        }
    }

    fn lift(self, marked: bool, lifted: Self) -> Result<Self, Forbidden> {
        match (marked, self.occupancy) {
            (false, _) => Err(Forbidden::NoMark),
            (true, Occupancy::Allocated) => Err(Forbidden::Occupancy(Occupancy::Allocated)),
            (true, _) => Ok(lifted),
        }
    }

    fn require(self, occupancy: Occupancy) -> Result<Self, Forbidden> {
        if self.occupancy == occupancy { Ok(self) } else { Err(Forbidden::Occupancy(self.occupancy)) }
    }

    fn require_sound(self) -> Result<Self, Forbidden> {
        match (self.withdrawal(), self.converting) {
            (Some(withdrawal), _) => Err(Forbidden::Withdrawn(withdrawal)),
            (None, Some(_)) => Err(Forbidden::Converting),
            (None, None) => Ok(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const INTENTS: [Intent; 5] = [Intent::Share, Intent::Unshare, Intent::Reclaim, Intent::Detach, Intent::Resize];

    fn events() -> Vec<FrameEvent> {
        use FrameEvent as E;
        let plain = [E::Release, E::Cancel, E::Prove, E::LoseForNow, E::LoseForGood, E::ProveLater];
        let rare = [E::Poison, E::PlatformReset, E::HardwareReplaced];
        let starts = [Shareability::Unknown, Shareability::Private, Shareability::Shared].map(E::Allocate);
        plain.into_iter().chain(rare).chain(starts).chain(INTENTS.map(E::Begin)).collect()
    }

    /// Every state that any sequence of events can reach.
    fn reachable() -> BTreeSet<FrameState> {
        let (mut seen, mut fresh) = (BTreeSet::from([FrameState::FREE]), vec![FrameState::FREE]);
        while let Some(state) = fresh.pop() {
            for next in events().into_iter().filter_map(|event| state.after(event).ok()) {
                if seen.insert(next) {
                    fresh.push(next);
                }
            }
        }
        seen
    }

    #[test]
    fn every_trace_ends_in_a_known_set_of_states() {
        assert_eq!(reachable().len(), 110, "the state space changed: read the table again before changing this number");
    }

    #[test]
    fn only_sound_free_frames_are_handed_out() {
        for state in reachable() {
            assert_eq!(state.after(FrameEvent::Allocate(Shareability::Private)).is_ok(), state.assignable(), "{state:?}");
        }
    }

    #[test]
    fn failed_and_poisoned_end_only_by_their_own_recorded_event() {
        for state in reachable() {
            for event in events() {
                let Ok(next) = state.after(event) else { continue };
                assert!(!state.failed || next.failed || event == FrameEvent::PlatformReset, "{state:?} {event:?}");
                assert!(!state.poisoned || next.poisoned || event == FrameEvent::HardwareReplaced, "{state:?} {event:?}");
            }
        }
    }

    #[test]
    fn an_event_lifts_at_most_one_kind_of_withdrawal() {
        for state in reachable() {
            for event in events() {
                let Ok(next) = state.after(event) else { continue };
                let lifted = [
                    state.quarantined.is_some() && next.quarantined.is_none() && !next.failed,
                    state.failed && !next.failed,
                    state.poisoned && !next.poisoned,
                ];
                assert!(lifted.iter().filter(|&&lifted| lifted).count() <= 1, "{state:?} {event:?} {next:?}");
            }
        }
    }

    #[test]
    fn a_released_frame_becomes_free_only_by_proof() {
        for state in reachable().into_iter().filter(|state| state.occupancy == Occupancy::Released) {
            for event in events() {
                let freed = state.after(event).is_ok_and(|next| next.occupancy == Occupancy::Free);
                let proof = matches!(event, FrameEvent::Prove | FrameEvent::ProveLater);
                assert!(!freed || proof, "{state:?} {event:?}");
            }
        }
    }
}
