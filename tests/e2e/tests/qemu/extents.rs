//! The machine's memory is where the owner computed it to be.

use pageless::Extent;
use pageless_host::ProofMethod;

use crate::guest::{Guest, Software, assert_both_ways};
use crate::stand::{EXTENTS, SEGMENT, Stand, maps};

/// Each extent is one NUMA node, one after the other from guest-physical address 0 on, so an address below 2 GiB is an offset
/// in the allocation.
#[test]
fn patterns_are_at_their_computed_addresses_both_ways_in_every_extent() {
    const TEST: &str = "patterns_are_at_their_computed_addresses_both_ways_in_every_extent";
    let Some(software) = Software::or_skip(TEST) else { return };
    let Some(stand) = Stand::build(TEST, ProofMethod::Seal) else { return };
    let ram = stand.ram("vm", EXTENTS * SEGMENT);
    let extents = ram.allocation.extents();
    assert_eq!(extents.len() as u64, EXTENTS);
    let adjacent =
        |pair: &[Extent]| pair[0].frames.end() == pair[1].frames.start() || pair[1].frames.end() == pair[0].frames.start();
    assert!(!extents.windows(2).any(adjacent), "{extents:?}");

    let mut guest = Guest::boot(software, &stand, &ram);
    for (node, extent) in (0..).zip(&extents) {
        assert!(maps(guest.machine.id(), extent.frames));
        let pages = guest.pages_on(node, 1000 + node);
        let within = extent.offset..extent.end();
        assert!(pages.addresses.iter().all(|address| within.contains(address)), "node {node} is extent {within:x?}");
        assert_both_ways(&mut guest, &pages, &ram, 0);
        guest.end(pages);
    }
    stand.assert_neighbours_untouched();
    drop((guest, ram));
    stand.assert_all_comes_back();
}
