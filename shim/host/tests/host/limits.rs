//! Bad arguments and scarce things are named, with their numbers.

use pageless::Pfn;
use pageless_host::{HostError, HostMemory, PageSize};

fn error(builder: pageless_host::HostMemoryBuilder) -> HostError {
    builder.build().unwrap_err()
}

#[test]
fn sizes_that_do_not_fit_are_refused_by_name() {
    let new = HostMemory::builder;
    assert_eq!(error(new()), HostError::Empty);
    assert_eq!(error(new().bytes(0)), HostError::Empty);
    assert!(matches!(error(new().bytes(4097)), HostError::Unaligned { what: "bytes", value: 4097, unit: 4096, .. }));
    assert!(matches!(error(new().node(0, 1)), HostError::Unaligned { what: "node bytes", .. }));
    let odd = new().bytes(2 << 20).page(PageSize::Huge2M).base(Pfn::new(1));
    assert!(matches!(error(odd), HostError::Unaligned { what: "base", value: 1, unit: 512, unit_name: "frames", .. }));
    assert!(matches!(error(new().bytes(1 << 30).segment_bytes(3 << 20)), HostError::SegmentSize { bytes: 0x30_0000, .. }));
    assert!(matches!(error(new().bytes(1 << 30).segment_bytes(2048)), HostError::SegmentSize { .. }));
    assert!(matches!(error(new().bytes(1 << 48)), HostError::TooLarge { bytes: 0x1_0000_0000_0000, limit: 0x8000_0000_0000 }));
    assert!(matches!(error(new().bytes(4096).base(Pfn::LIMIT)), HostError::Frames(_)));
}

#[test]
fn a_node_that_the_host_has_not_is_refused() {
    assert_eq!(error(HostMemory::builder().node(999, 4096)), HostError::UnknownNode { node: 999 });
}

#[test]
fn more_segments_than_descriptors_are_refused_with_both_numbers() {
    let refused = error(HostMemory::builder().bytes(1 << 46).segment_bytes(4 << 20));
    let HostError::DescriptorLimit { segments, open, limit } = refused else { panic!("{refused}") };
    assert!(segments == 1 << 24 && open > 0 && limit < segments);
}

#[test]
fn a_shortage_of_huge_pages_tells_how_many_and_which_file_to_raise() {
    let pages = 1 << 20;
    let refused = error(HostMemory::builder().bytes(pages * PageSize::Huge2M.bytes()).page(PageSize::Huge2M));
    match &refused {
        HostError::HugepageShortage { asked, sysctl, .. } => {
            assert_eq!(*asked, pages);
            assert!(sysctl.ends_with("hugepages-2048kB/nr_hugepages"));
            assert!(refused.to_string().contains("1048576 pages of 2M"), "{refused}");
        }
        HostError::PageUnsupported { .. } => {}
        other => panic!("{other}"),
    }
}
