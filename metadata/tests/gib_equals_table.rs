//! `Gib`, which keeps planes, against the transition table, which keeps one state per frame: random events on stretches of a
//! GiB that end at borders of blocks, words and the GiB itself.
#![allow(clippy::unwrap_used, reason = "a test that fails should panic")]

use pageless_metadata::{
    AllocationId, Ended, Ending, FrameEvent, FrameState, GIB_FRAMES, Gib, Intent, Occupancy, OperationId, Shareability, Span,
};
use proptest::prelude::*;

/// Stretches of frames to which the same things happen.
const CUTS: [u32; 12] = [0, 1, 63, 64, 511, 512, 513, 1024, 2000, 131_072, GIB_FRAMES - 1, GIB_FRAMES];
const STRETCHES: usize = CUTS.len() - 1;
const INTENTS: [Intent; 5] = [Intent::Share, Intent::Unshare, Intent::Reclaim, Intent::Detach, Intent::Resize];

/// One stretch in the plain world.
#[derive(Clone, Copy, Debug)]
struct Plain {
    state: FrameState,
    tenant: u64,
    operation: u64,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Table(FrameEvent),
    Hung,
    Compact,
    /// The short way of a proven conversion.
    Flip,
}

fn event() -> impl Strategy<Value = Event> {
    const STARTS: [Shareability; 3] = [Shareability::Unknown, Shareability::Private, Shareability::Shared];
    let table = prop_oneof![
        4 => prop::sample::select(&STARTS).prop_map(FrameEvent::Allocate),
        2 => Just(FrameEvent::Release),
        8 => prop::sample::select(&INTENTS).prop_map(FrameEvent::Begin),
        1 => Just(FrameEvent::Cancel),
        4 => Just(FrameEvent::Prove),
        3 => Just(FrameEvent::LoseForNow),
        2 => Just(FrameEvent::LoseForGood),
        3 => Just(FrameEvent::ProveLater),
        2 => Just(FrameEvent::Poison),
        1 => Just(FrameEvent::PlatformReset),
        2 => Just(FrameEvent::HardwareReplaced),
    ];
    prop_oneof![20 => table.prop_map(Event::Table), 1 => Just(Event::Hung), 1 => Just(Event::Compact), 2 => Just(Event::Flip)]
}

struct Both {
    gib: Gib,
    plain: [Plain; STRETCHES],
    allocations: u64,
    operations: Vec<OperationId>,
}

impl Both {
    fn new() -> Self {
        let plain = [Plain { state: FrameState::FREE, tenant: 0, operation: 0 }; STRETCHES];
        Self { gib: Gib::new(), plain, allocations: 0, operations: Vec::new() }
    }

    /// Does the event to the stretches `from..to`, if the table allows it for each and they belong together.
    fn apply(&mut self, event: Event, from: usize, to: usize) {
        let span = Span::new(CUTS[from], CUTS[to]).unwrap();
        match event {
            Event::Table(event) => self.apply_table(event, from..to, span),
            Event::Compact => drop(self.gib.compact()),
            Event::Hung => {
                let operation = self.plain[from].operation;
                self.finish(operation, from..to, span, Ending::Quarantine);
            }
            Event::Flip => self.flip(from..to, span),
        }
    }

    fn apply_table(&mut self, event: FrameEvent, which: std::ops::Range<usize>, span: Span) {
        let first = self.plain[which.start];
        let together = self.plain[which.clone()].iter().all(|other| other.operation == first.operation);
        let Ok(after) = self.plain[which.clone()].iter().map(|plain| plain.state.after(event)).collect::<Result<Vec<_>, _>>()
        else {
            return;
        };
        let quarantined = first.state.quarantined;
        match event {
            FrameEvent::Allocate(starts) => {
                self.allocations += 1;
                self.gib.allocate(span, AllocationId::new(self.allocations), starts);
                self.plain[which.clone()].iter_mut().for_each(|plain| plain.tenant = self.allocations);
            }
            FrameEvent::Release if self.plain[which.clone()].iter().all(|other| other.tenant == first.tenant) => {
                let released = self.gib.release(span, AllocationId::new(first.tenant));
                assert_eq!(released.iter().map(|part| part.frames()).sum::<u32>(), span.frames());
            }
            FrameEvent::Begin(intent) => {
                let operation = self.gib.next_operation(7);
                self.gib.begin(span, operation, intent).unwrap();
                self.operations.push(operation);
                let number = self.operations.len() as u64;
                self.plain[which.clone()].iter_mut().for_each(|plain| plain.operation = number);
            }
            FrameEvent::Cancel if together => {
                self.gib.cancel(self.operation(first.operation), span);
                self.plain[which.clone()].iter_mut().for_each(|plain| plain.operation = 0);
            }
            FrameEvent::Prove if together => return self.finish(first.operation, which, span, Ending::Proven),
            FrameEvent::LoseForNow if together => return self.finish(first.operation, which, span, Ending::Quarantine),
            FrameEvent::LoseForGood if together && first.operation > 0 => {
                return self.finish(first.operation, which, span, Ending::Fail);
            }
            FrameEvent::LoseForGood if self.plain[which.clone()].iter().all(|other| other.operation == 0) => {
                self.gib.fail_later(span);
            }
            FrameEvent::ProveLater if self.plain[which.clone()].iter().all(|other| other.state.quarantined == quarantined) => {
                drop(self.gib.prove_later(span, quarantined.unwrap()));
            }
            FrameEvent::Poison => {
                let fresh = which.clone().filter(|at| !self.plain[*at].state.poisoned).map(|at| CUTS[at + 1] - CUTS[at]);
                let fresh: u32 = fresh.sum();
                assert_eq!(self.gib.poison(span), fresh);
            }
            FrameEvent::PlatformReset => assert_eq!(self.gib.lift_failed(span), span.frames()),
            FrameEvent::HardwareReplaced => assert_eq!(self.gib.lift_poisoned(span), span.frames()),
            _ => return,
        }
        which.zip(after).for_each(|(at, after)| self.plain[at].state = after);
    }

    fn operation(&self, number: u64) -> OperationId {
        let at = usize::try_from(number).unwrap().checked_sub(1);
        at.map_or(OperationId::new(9, 9), |at| self.operations[at])
    }

    /// Ends the operation, also where it no longer has its mark.
    fn finish(&mut self, operation: u64, which: std::ops::Range<usize>, span: Span, ending: Ending) {
        let event = match ending {
            Ending::Proven => FrameEvent::Prove,
            Ending::Quarantine => FrameEvent::LoseForNow,
            Ending::Fail => FrameEvent::LoseForGood,
        };
        let parts = self.gib.finish(self.operation(operation), span, ending);
        assert_eq!(parts.iter().map(|(part, _)| part.frames()).sum::<u32>(), span.frames(), "{parts:?} does not part {span:?}");
        for at in which {
            let plain = &mut self.plain[at];
            let (_, ended) = parts.iter().find(|(part, _)| part.contains(CUTS[at])).unwrap();
            let before = plain.state;
            if operation == 0 || plain.operation != operation {
                assert_eq!(*ended, Ended::TooLate, "{at}: {before:?}");
                continue;
            }
            plain.state = before.after(event).unwrap();
            plain.operation = 0;
            let proven = ending == Ending::Proven;
            let gone = before.occupancy == Occupancy::Released && before.converting != Some(Intent::Reclaim);
            let expected = match before.withdrawal() {
                _ if !proven => Ended::Lost,
                Some(mark) => Ended::Withdrawn(mark),
                None if gone => Ended::Released,
                None => Ended::Done,
            };
            assert_eq!(*ended, expected, "{at}: {before:?} after {event:?}");
        }
    }

    fn flip(&mut self, which: std::ops::Range<usize>, span: Span) {
        let first = self.plain[which.start];
        let Some(intent @ (Intent::Share | Intent::Unshare)) = first.state.converting else { return };
        let ours = |at: usize| self.plain.get(at).is_some_and(|plain| plain.operation == first.operation);
        let edges = which.start.checked_sub(1).is_some_and(ours) || ours(which.end);
        let whole = !edges && which.clone().all(ours);
        let clear = |plain: &Plain| {
            let known = plain.state.shareability != Shareability::Unknown;
            plain.state.occupancy == Occupancy::Allocated && plain.state.withdrawal().is_none() && known
        };
        let plainly = whole && which.clone().all(|at| clear(&self.plain[at]) && self.plain[at].tenant == first.tenant);
        if self.gib.flip(self.operation(first.operation), span, intent) {
            assert!(plainly, "flipped {span:?}, and yet {:?}", &self.plain[which]);
            for plain in &mut self.plain[which] {
                plain.state = plain.state.after(FrameEvent::Prove).unwrap();
                plain.operation = 0;
            }
        } else {
            assert!(!plainly, "did not flip {span:?}: {:?}", &self.plain[which]);
        }
    }

    fn compare(&self) {
        self.gib.check().unwrap();
        let mut counts = [0; 8];
        for (at, plain) in self.plain.iter().enumerate() {
            let frames = CUTS[at + 1] - CUTS[at];
            let s = plain.state;
            let facts = [
                s.occupancy == Occupancy::Allocated,
                s.occupancy == Occupancy::Released,
                s.shareability == Shareability::Shared,
                s.shareability == Shareability::Unknown,
                s.converting.is_some(),
                s.quarantined.is_some(),
                s.failed,
                s.poisoned,
            ];
            counts.iter_mut().zip(facts).for_each(|(count, fact)| *count += if fact { frames } else { 0 });
            for frame in [CUTS[at], CUTS[at] + frames / 2, CUTS[at + 1] - 1] {
                let mut seen = self.gib.state(frame);
                // The plane does not know what a live owner's quarantine is for.
                assert_eq!(seen.quarantined.is_some(), s.quarantined.is_some(), "{frame}");
                seen.quarantined = s.quarantined;
                assert_eq!(seen, s, "frame {frame}");
                assert_eq!(self.gib.withdrawal(frame), s.withdrawal());
            }
        }
        let told = self.gib.counts();
        let told = [
            told.allocated,
            told.released,
            told.shared,
            told.unknown,
            told.converting,
            told.quarantined,
            told.failed,
            told.poisoned,
        ];
        assert_eq!(told, counts);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 700, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_event_leaves_the_planes_in_the_state_that_the_table_says(
        events in prop::collection::vec((event(), 0..STRETCHES, 1..=4_usize), 1..80)
    ) {
        let mut both = Both::new();
        for (event, from, many) in events {
            // Now and then everything at once.
            let (from, to) = if many == 4 { (0, STRETCHES) } else { (from, (from + many).min(STRETCHES)) };
            both.apply(event, from, to);
            both.compare();
        }
    }
}
