//! Transparent huge pages behind an ordinary memfd, seen in the kernel's own account of the mapping.

use pageless_host::{HostError, PageSize, ProofMethod};

use crate::reservation::LargeFolios;
use crate::{builder, byte_at, map, map_all, part, write_all};

/// `ShmemPmdMapped` of the mapping that begins at `address`, in bytes (/proc/self/smaps, proc(5)).
fn mapped_by_huge_entries(address: usize) -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let start = format!("{address:x}-");
    let mut lines = text.lines().skip_while(|line| !line.starts_with(&start));
    let line = lines.find_map(|line| line.strip_prefix("ShmemPmdMapped:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

/// Free blocks of 2 MiB or more that the host has, so that a large page is a matter of asking (/proc/buddyinfo, proc(5)).
fn free_blocks() -> u64 {
    let text = std::fs::read_to_string("/proc/buddyinfo").unwrap_or_default();
    let of_orders = |line: &str| line.split_whitespace().skip(4 + 9).filter_map(|count| count.parse::<u64>().ok()).sum::<u64>();
    text.lines().filter(|line| line.contains("Normal")).map(of_orders).sum()
}

#[test]
fn memory_that_asks_is_mapped_by_2m_entries_and_memory_that_does_not_is_not() {
    let Some(_setting) = LargeFolios::set("transparent huge pages", "advise") else { return };
    let plain = builder(ProofMethod::ProcessUnmap).bytes(8 << 20).build().unwrap();
    let guest = map_all(&plain);
    write_all(&guest);
    assert_eq!(mapped_by_huge_entries(guest.address()), 0);
    let memory = builder(ProofMethod::ProcessUnmap).bytes(8 << 20).transparent_huge_pages().build().unwrap();
    let guest = map_all(&memory);
    write_all(&guest);
    if free_blocks() < 64 {
        return crate::reservation::skip("transparent huge pages", "the host has too few free blocks of 2 MiB to be sure of one");
    }
    assert!(mapped_by_huge_entries(guest.address()) > 0);
    // Still mapped and proven by the 4 KiB.
    guest.unmap(part(&memory, 5, 1)).unwrap();
    memory.prove_granules(part(&memory, 5, 1)).unwrap();
    map(&guest, part(&memory, 5, 1)).unwrap();
    assert_eq!([4, 5, 6].map(|frame| byte_at(&guest, frame << 12)), [7, 0, 7]);
}

#[test]
fn a_setting_that_forbids_them_is_named() {
    let Some(_setting) = LargeFolios::set("transparent huge pages forbidden", "never") else { return };
    let refused = builder(ProofMethod::Seal).bytes(4 << 20).transparent_huge_pages().build().unwrap_err();
    let HostError::NoTransparentHugePages { why } = refused else { panic!("{refused}") };
    assert!(why.contains("transparent_hugepage/shmem_enabled is never; as root"), "{why}");
}

#[test]
fn memory_that_they_cannot_lie_behind_is_refused_by_name() {
    let asking = || builder(ProofMethod::Seal).bytes(4 << 20).transparent_huge_pages();
    let small = asking().segment_bytes(1 << 20).build().unwrap_err();
    assert_eq!(small, HostError::SegmentSize { bytes: 1 << 20, page: PageSize::Huge2M });
    let odd = asking().base(pageless::Pfn::new(1)).build().unwrap_err();
    assert!(matches!(odd, HostError::Unaligned { what: "base", value: 1, unit: 512, .. }), "{odd}");
    let huge = asking().page(PageSize::Huge2M).build().unwrap_err();
    assert!(matches!(huge, HostError::NoTransparentHugePages { .. }), "{huge}");
}
