//! A segment is taken from a running machine for good, whether the machine agrees or not. Under [`ProofMethod::Revoke`] the
//! proof needs nobody: the price is paid by the machine, at its next touch.

use std::time::Instant;

use pageless_host::ProofMethod;

use crate::guest::{Guest, Software, assert_both_ways};
use crate::stand::{EXTENTS, SEGMENT, Stand, maps};

const MARK: &[u8] = b"the next owner's";

#[test]
fn a_revoked_segment_is_free_at_once_and_the_machine_dies_of_its_next_touch() {
    const TEST: &str = "a_revoked_segment_is_free_at_once_and_the_machine_dies_of_its_next_touch";
    let Some(software) = Software::or_skip(TEST) else { return };
    let Some(stand) = Stand::build(TEST, ProofMethod::Revoke) else { return };
    let ram = stand.ram("vm", EXTENTS * SEGMENT);
    let mut guest = Guest::boot(software, &stand, &ram);
    let hot = stand.ram("vm, more", SEGMENT);
    let frames = hot.allocation.extents()[0].frames;
    let plugged = guest.plug(&stand, &hot);
    let pages = guest.pages_on(EXTENTS, 3000);
    assert_both_ways(&mut guest, &pages, &hot, plugged.address);

    // Nobody asks QEMU, which has it mapped and in use.
    assert!(maps(guest.machine.id(), frames));
    drop(hot);
    let began = Instant::now();
    let reclaimed = stand.pool.reclaim();
    println!("revoked and proven in {:?}", began.elapsed());
    assert!(reclaimed.lost.is_empty() && reclaimed.freed.contains_range(frames), "{reclaimed:?}");
    let next = stand.ram("next", SEGMENT);
    assert_eq!(next.allocation.extents()[0].frames, frames);
    for address in &pages.addresses {
        let mut bytes = [1; 4096];
        next.host.read(address - plugged.address, &mut bytes).unwrap();
        assert!(bytes == [0; 4096], "the next owner reads the machine's bytes at {address:#x}");
        next.host.write(address - plugged.address, MARK).unwrap();
    }

    // The process in the guest writes to its pages. No byte of it arrives.
    guest.assert_ends_by_a_touch();
    for address in &pages.addresses {
        let mut bytes = [0; 4096];
        next.host.read(address - plugged.address, &mut bytes).unwrap();
        assert!(bytes.starts_with(MARK) && bytes[MARK.len()..].iter().all(|byte| *byte == 0), "changed at {address:#x}");
    }
    drop((guest, ram, next));
    stand.assert_neighbours_untouched();
    stand.assert_all_comes_back();
}
