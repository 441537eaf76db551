//! What happened: told to subscribers as it happens, and kept for `explain`.
//!
//! Events are about losing and regaining frames and about owners, not about conversions: a guest can make millions of those.
//! The history is bounded; when it is full, the oldest entry makes room.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use pageless_metadata::{AllocationId, HolderId, PfnRange, Withdrawal};

use crate::mapping::Cause;
use crate::sync::Mutex;

/// Events that a subscriber may be behind before it misses some.
pub const SUBSCRIBER_QUEUE: usize = 4096;
/// Events that `explain` can look back on.
pub const HISTORY: usize = 16_384;

/// Something that happened to a run of frames.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// The frames.
    pub frames: PfnRange,
    /// The allocation that had them, if one did.
    pub allocation: Option<AllocationId>,
    /// When.
    pub at: SystemTime,
    /// What.
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum EventKind {
    /// An owner got the frames.
    Allocated {
        /// The owner's name.
        owner: Arc<str>,
    },
    /// The owner gave them up, or died.
    Released,
    /// They were proven unreachable and are free again.
    Reclaimed,
    /// They are withdrawn now.
    Withdrawn {
        /// The mark that was set.
        state: Withdrawal,
        /// Why.
        cause: Cause,
    },
    /// A later proof lifted their quarantine, and the intent was carried out.
    Recovered,
    /// Another frame took the place of this lost one.
    Replaced {
        /// The frame that did.
        by: PfnRange,
    },
    /// Nobody held them before; now somebody does.
    Held {
        /// Who.
        holder: HolderId,
    },
    /// Nobody holds them any more.
    Unheld {
        /// Who was the last.
        holder: HolderId,
    },
    /// A recorded platform reset lifted their failed mark.
    PlatformReset {
        /// The evidence that was given.
        evidence: Arc<str>,
    },
    /// A recorded hardware replacement lifted their poisoned mark.
    HardwareReplaced {
        /// The evidence that was given.
        evidence: Arc<str>,
    },
    /// The subscriber was too slow; this many events before this one did not reach it.
    Missed {
        /// How many.
        events: u64,
    },
}

/// The pool's journal.
#[derive(Default)]
pub(crate) struct Journal(Mutex<Pages>);

#[derive(Default)]
struct Pages {
    history: VecDeque<Event>,
    subscribers: Vec<Subscriber>,
}

struct Subscriber {
    queue: Sender<Event>,
    missed: u64,
}

impl Journal {
    pub(crate) fn subscribe(&self) -> Receiver<Event> {
        let (queue, events) = bounded(SUBSCRIBER_QUEUE);
        self.0.lock().subscribers.push(Subscriber { queue, missed: 0 });
        events
    }

    pub(crate) fn write(&self, frames: PfnRange, allocation: Option<AllocationId>, kind: EventKind) {
        let event = Event { frames, allocation, at: SystemTime::now(), kind };
        let mut pages = self.0.lock();
        pages.subscribers.retain_mut(|subscriber| subscriber.tell(&event));
        if pages.history.len() == HISTORY {
            pages.history.pop_front();
        }
        pages.history.push_back(event);
    }

    /// The events that concern `frames`, oldest first.
    pub(crate) fn about(&self, frames: PfnRange) -> Vec<Event> {
        self.0.lock().history.iter().filter(|event| event.frames.overlaps(frames)).cloned().collect()
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        self.0.lock().history.capacity() * size_of::<Event>()
    }
}

impl Subscriber {
    /// Sends the event, or counts it as missed; false when nobody listens any more.
    fn tell(&mut self, event: &Event) -> bool {
        if self.missed > 0 {
            let missed = Event { kind: EventKind::Missed { events: self.missed }, ..event.clone() };
            match self.queue.try_send(missed) {
                Ok(()) => self.missed = 0,
                Err(TrySendError::Full(_)) => {}
                Err(TrySendError::Disconnected(_)) => return false,
            }
        }
        match self.queue.try_send(event.clone()) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.missed += 1;
                true
            }
            Err(TrySendError::Disconnected(_)) => false,
        }
    }
}
