//! A segment goes to a running machine and comes back, and a machine that is killed lets go of all that it had. Under
//! [`ProofMethod::Seal`] nothing takes memory from a process: the kernel says when it has let go.

use std::time::{Duration, Instant};

use pageless::{PfnRange, Pool, Reclaimed};
use pageless_host::ProofMethod;

use crate::guest::{Guest, Software, assert_both_ways};
use crate::stand::{EXTENTS, SEGMENT, Stand, maps};

/// A pass over released frames that QEMU still maps: they are proven by nobody, and the cause says who is in the way.
fn assert_refused(reclaimed: &Reclaimed, frames: PfnRange) {
    assert!(!reclaimed.freed.overlaps(frames), "{reclaimed:?}");
    let lost = reclaimed.lost.iter().find(|lost| lost.frames().overlaps(frames)).unwrap();
    assert_eq!(lost.cause().step, "F_ADD_SEALS(F_SEAL_WRITE)");
    assert!(lost.cause().meaning.contains("mapped writable by somebody other"), "{}", lost.cause().meaning);
}

/// Asks until the kernel agrees that `frames` are nobody's, for 5 s at most.
fn proven(pool: &Pool, frames: PfnRange) -> Duration {
    let began = Instant::now();
    while !pool.retry(frames).freed.contains_range(frames) {
        assert!(began.elapsed() < Duration::from_secs(5), "{frames} are not proven: {:?}", pool.withdrawn());
        std::thread::sleep(Duration::from_millis(5));
    }
    began.elapsed()
}

#[test]
fn a_segment_is_plugged_used_and_comes_back_only_when_qemu_has_let_go() {
    const TEST: &str = "a_segment_is_plugged_used_and_comes_back_only_when_qemu_has_let_go";
    let Some(software) = Software::or_skip(TEST) else { return };
    let Some(stand) = Stand::build(TEST, ProofMethod::Seal) else { return };
    let ram = stand.ram("vm", EXTENTS * SEGMENT);
    let mut guest = Guest::boot(software, &stand, &ram);

    let hot = stand.ram("vm, more", SEGMENT);
    let frames = hot.allocation.extents()[0].frames;
    let plugged = guest.plug(&stand, &hot);
    assert!(maps(guest.machine.id(), frames));
    let pages = guest.pages_on(EXTENTS, 2000);
    assert!(pages.addresses.iter().all(|address| (plugged.address..plugged.address + SEGMENT).contains(address)));
    assert_both_ways(&mut guest, &pages, &hot, plugged.address);
    guest.end(pages);

    // The owner gives it up while QEMU has it: released, and not free.
    drop(hot);
    assert_refused(&stand.pool.reclaim(), frames);
    guest.unplug(&plugged);
    println!("proven {:?} after QEMU's last answer", proven(&stand.pool, frames));
    assert!(!maps(guest.machine.id(), frames));

    // The next owner finds zeroes; the machine goes on without the segment.
    let next = stand.ram("next", SEGMENT);
    assert_eq!(next.allocation.extents()[0].frames, frames);
    let mut bytes = vec![1; 1 << 20];
    for offset in (0..SEGMENT).step_by(1 << 20) {
        next.host.read(offset, &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0), "stale bytes at {offset:#x}");
    }
    let pages = guest.pages_on(0, 2001);
    assert_both_ways(&mut guest, &pages, &ram, 0);

    // It is killed while it has its memory mapped and in use.
    let extents = ram.allocation.extents();
    drop((ram, next));
    let reclaimed = stand.pool.reclaim();
    extents.iter().for_each(|extent| assert_refused(&reclaimed, extent.frames));
    guest.machine.kill().unwrap();
    for extent in &extents {
        proven(&stand.pool, extent.frames);
    }
    stand.assert_neighbours_untouched();
    stand.assert_all_comes_back();
}
