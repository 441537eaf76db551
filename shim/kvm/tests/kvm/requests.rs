//! What a guest asks, carried out on a whole guest: hostile arguments, conversions that tear, waiting.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use pageless::{Cause, Convert, FRAME_BYTES, Mapping, Operation, Pfn, PfnRange, Refusal, Shareability, Stuck, Verdict};
use pageless_kvm::{Answer, HOST, Request, STAGE2};
use proptest::prelude::*;

use crate::fake::FakeVm;
use crate::{MIB, World};

/// Never gives up these frames.
struct Clings(PfnRange);

impl Mapping for Clings {
    fn prepare(&self, _: &Operation) -> Result<(), Refusal> {
        Ok(())
    }

    fn invalidate(&self, op: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        let at = frames.intersect(self.0).filter(|_| op.intent != pageless::Intent::Reclaim);
        at.map_or(Ok(()), |at| Err(Stuck { at, verdict: Verdict::Never, cause: Cause::new("TEST", 1, "clings") }))
    }
}

#[test]
fn the_mappings_are_asked_in_the_order_device_guest_host_last() {
    let nothing = || Arc::new(Clings(PfnRange::single(Pfn::new(1 << 30)))) as Arc<dyn Mapping>;
    let world = World::with(FakeVm::with_slots(4), MIB, [("iommu".into(), nothing())], [("pins".into(), nothing())]);
    let names: Vec<_> = world.guest.ram().mappings().iter().map(ToString::to_string).collect();
    assert_eq!(names, ["iommu", STAGE2, HOST, "pins"]);
    world.end();
}

#[test]
fn what_a_torn_conversion_did_convert_is_mapped_and_the_rest_is_not() {
    let clings: Arc<dyn Mapping> = Arc::new(Clings(PfnRange::from_len(Pfn::new(3), 2).unwrap()));
    let world = World::with(FakeVm::with_slots(4), MIB, [], [("device".into(), clings)]);
    world.guest.map(0..MIB).unwrap();
    let (answer, outcome) = world.guest.map_gpa_range(0, 8, 0);
    assert_eq!(answer, Answer::Error(Errno::EIO));
    let Some(Err(Convert::Torn { done, lost })) = outcome else { panic!("{outcome:?}") };
    assert_eq!((done.frames(), lost[0].frames().frames()), (6, 2));
    let mapped = |mapping: &pageless_host::HostMapping, frame: u64| mapping.is_mapped(Pfn::new(frame));
    for frame in 0..8 {
        let sound = !(3..5).contains(&frame);
        assert_eq!(mapped(world.guest.host(), frame), sound, "frame {frame} for the host");
        assert_eq!(mapped(world.guest.stage2().view(), frame), sound, "frame {frame} for the guest");
    }
    let touched = world.guest.fault(3 * FRAME_BYTES).unwrap_err();
    assert!(touched.refused().is_some() && !touched.is_transient(), "{touched}");
    // Asked again, the guest is told the same and nothing changes.
    assert_eq!(world.guest.map_gpa_range(0, 8, 0).0, Answer::Error(Errno::EIO));
    assert_eq!(world.guest.map_gpa_range(0, 3, 0).0, Answer::Done { changed: false });
}

#[test]
fn a_lost_frame_is_replaced_under_the_guest_and_both_views_follow() {
    let clings: Arc<dyn Mapping> = Arc::new(Clings(PfnRange::single(Pfn::new(3))));
    let bytes = MIB;
    let memory = crate::memory(2 * bytes);
    let pool = pageless::Pool::builder().backing(memory.clone()).build().unwrap();
    let world = World::of(FakeVm::with_slots(4), pool, memory, bytes, [("device".to_owned(), clings)], []);
    assert_eq!(world.guest.map_gpa_range(0, 8, 0).0, Answer::Error(Errno::EIO));
    let at = 3 * FRAME_BYTES;
    assert!(world.guest.replace(4 * FRAME_BYTES).is_err(), "a sound frame is not replaced");
    let replaced = world.guest.replace(at).unwrap();
    assert_eq!(replaced.lost, Pfn::new(3));
    world.guest.stage2().view().write(at, b"new frame").unwrap();
    assert!(world.guest.host().read(at, &mut [0; 9]).is_err(), "private");
    assert_eq!(world.guest.map_gpa_range(at, 1, 0).0, Answer::Done { changed: true });
    world.guest.stage2().view().write(at, b"for you").unwrap();
    let mut seen = [0; 7];
    world.guest.host().read(at, &mut seen).unwrap();
    assert_eq!(&seen, b"for you");
}

/// A balloon's frame is free, so it may be the one that takes a lost frame's place in the same guest.
#[test]
fn a_frame_that_the_guest_had_given_up_comes_back_to_it_at_another_offset() {
    let clings: Arc<dyn Mapping> = Arc::new(Clings(PfnRange::single(Pfn::new(3))));
    let world = World::with(FakeVm::with_slots(4), MIB, [("device".to_owned(), clings)], []);
    let (at, given_up) = (3 * FRAME_BYTES, 9 * FRAME_BYTES);
    world.guest.map(0..MIB).unwrap();
    assert_eq!(world.guest.map_gpa_range(at, 1, 0).0, Answer::Error(Errno::EIO));
    world.guest.ram().release_range(given_up..given_up + FRAME_BYTES).unwrap();
    assert_eq!(world.pool.reclaim().freed.frames(), 1);
    let replaced = world.guest.replace(at).unwrap();
    assert_eq!((replaced.lost, replaced.frame), (Pfn::new(3), Pfn::new(9)), "there is no other");
    let view = world.guest.stage2().view();
    view.write(at, b"again").unwrap();
    assert!(view.read(given_up, &mut [0]).is_err() && world.guest.fault(given_up).is_err(), "given up is given up");
    assert!(view.is_mapped_at(given_up - FRAME_BYTES, FRAME_BYTES) && view.is_mapped_at(given_up + FRAME_BYTES, FRAME_BYTES));
    assert_eq!(world.guest.map_gpa_range(at, 1, 0).0, Answer::Done { changed: true });
    assert!(world.guest.host().is_mapped(Pfn::new(9)));
}

#[test]
fn a_touch_waits_while_its_frames_convert_and_is_told_when_it_takes_too_long() {
    let world = World::on(FakeVm::with_slots(4), MIB);
    let guest = world.guest.patience(Duration::from_millis(50));
    let guard = guest.ram().map_guard(STAGE2, 0..FRAME_BYTES).unwrap();
    let began = Instant::now();
    let (answer, outcome) = guest.map_gpa_range(0, 1, 0);
    assert!(matches!(answer, Answer::Again { .. }), "{outcome:?}: the guard is never dropped");
    assert!(began.elapsed() >= Duration::from_millis(50), "it waited");
    drop(guard);
    assert_eq!(guest.map_gpa_range(0, 1, 0).0, Answer::Done { changed: true });
    let hold = guest.ram().hold(0..FRAME_BYTES, "vfio").unwrap();
    assert_eq!(guest.map_gpa_range(0, 1, 16).0, Answer::Error(Errno::EBUSY));
    drop(hold);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever a guest names, either all of it is memory and converts, or it is told EINVAL and nothing has changed.
    #[test]
    fn hostile_requests_change_nothing(asked in prop::collection::vec((0_u64..600, 0_u64..600, 0_u64..40, any::<[bool; 3]>(), any::<[u64; 3]>()), 1..12)) {
        let world = World::on(FakeVm::with_slots(4), 2 * MIB);
        let states = || (0..512).map(|frame| world.guest.ram().shareability(frame * FRAME_BYTES).unwrap()).collect::<Vec<_>>();
        for (page, pages, attributes, wild, numbers) in asked {
            let pick = |wild, number, tame| if wild { number } else { tame };
            let gpa = pick(wild[0] && page % 4 == 0, numbers[0], page * FRAME_BYTES);
            let (pages, attributes) = (pick(wild[1] && page % 4 == 1, numbers[1], pages), pick(wild[2] && page % 4 == 2, numbers[2], attributes));
            let before = states();
            let (answer, _) = world.guest.map_gpa_range(gpa, pages, attributes);
            let memory = gpa % FRAME_BYTES == 0 && pages > 0 && gpa / FRAME_BYTES < 512 && pages <= 512 - gpa / FRAME_BYTES;
            if memory && attributes & !0b1_0011 == 0 && attributes & 3 < 3 {
                let want = if attributes & 16 == 0 { Shareability::Shared } else { Shareability::Private };
                let done = matches!(answer, Answer::Done { .. });
                prop_assert!(done, "{answer:?}");
                let first = usize::try_from(gpa / FRAME_BYTES).unwrap();
                prop_assert!(states()[first..first + usize::try_from(pages).unwrap()].iter().all(|have| *have == want));
            } else {
                prop_assert_eq!(answer, Answer::Error(Errno::EINVAL));
                prop_assert_eq!(states(), before);
            }
        }
        world.end();
    }
}

#[test]
fn a_request_for_unknown_memory_opens_nothing() {
    let world = World::on(FakeVm::with_slots(4), MIB);
    let (answer, outcome) = world.guest.convert(&Request { offsets: 0..4096, to: Shareability::Unknown });
    assert_eq!(answer, Answer::Error(Errno::EOPNOTSUPP));
    assert!(matches!(outcome, Err(Convert::Refused(_))), "{outcome:?}");
    assert!(world.guest.is(Shareability::Private, 0));
}
