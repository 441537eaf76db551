//! What a guest asks for, read out of a vCPU's exit. The numbers are the guest's, so any of them may be anything.

use std::ops::Range;

use kvm_bindings::KVM_MEMORY_EXIT_FLAG_PRIVATE;
use pageless::{FRAME_BYTES, Shareability};

use crate::layout::{Layout, NotMemory};

/// `KVM_HC_MAP_GPA_RANGE` (include/uapi/linux/kvm_para.h): arguments are guest-physical address, number of 4 KiB pages and
/// attributes. KVM passes it on once `KVM_CAP_EXIT_HYPERCALL` is enabled with bit 12.
pub const HYPERCALL_MAP_GPA_RANGE: u64 = 12;
/// `KVM_MAP_GPA_RANGE_ENC_STAT(1)` (the same file): the range becomes private. Without it: shared.
pub const MAP_GPA_RANGE_ENCRYPTED: u64 = 1 << 4;
/// `KVM_MAP_GPA_RANGE_PAGE_SZ_*` (the same file): a hint about the guest's page size; 0 4 KiB, 1 2 MiB, 2 1 GiB. More is
/// undefined.
const PAGE_SIZE_MASK: u64 = 0b1111;
const PAGE_SIZE_LARGEST: u64 = 2;

/// A conversion that a guest asked for: checked, and nothing but memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// The offsets of the allocation, in bytes.
    pub offsets: Range<u64>,
    /// What they shall become: private or shared.
    pub to: Shareability,
}

/// Why a guest's request is none. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadRequest {
    /// The address is no multiple of 4 KiB.
    #[error("guest-physical {gpa:#x} is no multiple of 4 KiB")]
    Unaligned {
        /// The address.
        gpa: u64,
    },
    /// The range is empty, or longer than there are addresses.
    #[error("{pages} pages at guest-physical {gpa:#x} are no range of addresses")]
    NoRange {
        /// Where it begins.
        gpa: u64,
        /// Pages of 4 KiB.
        pages: u64,
    },
    /// A bit is set that has no meaning.
    #[error("attributes {attributes:#x} have bits without a meaning")]
    Attributes {
        /// The attributes, or the flags of a fault.
        attributes: u64,
    },
    /// Some of it is not memory.
    #[error(transparent)]
    NotMemory(#[from] NotMemory),
}

impl Request {
    /// The arguments of `KVM_HC_MAP_GPA_RANGE`.
    pub fn map_gpa_range(layout: &Layout, gpa: u64, pages: u64, attributes: u64) -> Result<Self, BadRequest> {
        let size = attributes & PAGE_SIZE_MASK;
        if attributes & !(PAGE_SIZE_MASK | MAP_GPA_RANGE_ENCRYPTED) != 0 || size > PAGE_SIZE_LARGEST {
            return Err(BadRequest::Attributes { attributes });
        }
        let to = if attributes & MAP_GPA_RANGE_ENCRYPTED == 0 { Shareability::Shared } else { Shareability::Private };
        let bytes = pages.checked_mul(FRAME_BYTES).filter(|bytes| *bytes > 0).ok_or(BadRequest::NoRange { gpa, pages })?;
        Self::of_bytes(layout, gpa, bytes, to)
    }

    /// What a memory fault implies: the guest touched memory as private (`KVM_MEMORY_EXIT_FLAG_PRIVATE`) or as shared.
    pub fn memory_fault(layout: &Layout, flags: u64, gpa: u64, bytes: u64) -> Result<Self, BadRequest> {
        let private = u64::from(KVM_MEMORY_EXIT_FLAG_PRIVATE);
        if flags & !private != 0 {
            return Err(BadRequest::Attributes { attributes: flags });
        }
        let to = if flags & private == 0 { Shareability::Shared } else { Shareability::Private };
        Self::of_bytes(layout, gpa, bytes, to)
    }

    fn of_bytes(layout: &Layout, gpa: u64, bytes: u64, to: Shareability) -> Result<Self, BadRequest> {
        if !gpa.is_multiple_of(FRAME_BYTES) {
            return Err(BadRequest::Unaligned { gpa });
        }
        let pages = bytes.div_ceil(FRAME_BYTES);
        if bytes == 0 || !bytes.is_multiple_of(FRAME_BYTES) || gpa.checked_add(bytes).is_none() {
            return Err(BadRequest::NoRange { gpa, pages });
        }
        Ok(Self { offsets: layout.offsets(gpa, bytes)?, to })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::layout::PC_HOLE;

    fn layout() -> Layout {
        Layout::around(5 << 30, PC_HOLE).unwrap()
    }

    #[test]
    fn a_good_request_names_offsets_and_a_direction() {
        let ask = |gpa, pages, attributes| Request::map_gpa_range(&layout(), gpa, pages, attributes);
        let shared = Request { offsets: 0x2000..0x5000, to: Shareability::Shared };
        assert_eq!(ask(0x2000, 3, 0), Ok(shared.clone()));
        assert_eq!(ask(0x2000, 3, 2), Ok(shared), "a page size is a hint");
        let private = Request { offsets: 3 << 30..(3 << 30) + 0x1000, to: Shareability::Private };
        assert_eq!(ask(4 << 30, 1, MAP_GPA_RANGE_ENCRYPTED), Ok(private));
    }

    #[test]
    fn hostile_requests_are_refused_by_name() {
        let ask = |gpa, pages, attributes| Request::map_gpa_range(&layout(), gpa, pages, attributes).unwrap_err();
        assert_eq!(ask(0x2001, 1, 0), BadRequest::Unaligned { gpa: 0x2001 });
        assert_eq!(ask(0x2000, 0, 0), BadRequest::NoRange { gpa: 0x2000, pages: 0 });
        assert_eq!(ask(0x2000, 1 << 52, 0), BadRequest::NoRange { gpa: 0x2000, pages: 1 << 52 });
        assert_eq!(ask(!0xfff, 1, 0), BadRequest::NoRange { gpa: !0xfff, pages: 1 });
        assert_eq!(ask(0x2000, 1, 3), BadRequest::Attributes { attributes: 3 });
        assert_eq!(ask(0x2000, 1, 1 << 5), BadRequest::Attributes { attributes: 1 << 5 });
        assert!(matches!(ask((3 << 30) - 0x1000, 2, 0), BadRequest::NotMemory(_)), "over the edge of the hole");
        assert!(matches!(ask(0, 6 << 18, 0), BadRequest::NotMemory(_)), "over the whole hole");
        let fault = |flags, gpa, bytes| Request::memory_fault(&layout(), flags, gpa, bytes).unwrap_err();
        assert_eq!(fault(1, 0, 0x1000), BadRequest::Attributes { attributes: 1 });
        assert_eq!(fault(8, 0, 0x1001), BadRequest::NoRange { gpa: 0, pages: 2 });
    }

    proptest! {
        #[test]
        fn no_argument_panics_and_what_is_granted_is_memory(gpa: u64, pages: u64, attributes in 0_u64..64, raw: u64) {
            for (gpa, pages, attributes) in [(gpa, pages, raw), (gpa & !0xfff, pages, attributes), (gpa & 0x1_ffff_f000, pages & 0xfff, attributes)] {
                if let Ok(request) = Request::map_gpa_range(&layout(), gpa, pages, attributes) {
                    prop_assert_eq!(layout().addresses(request.offsets).collect::<Vec<_>>(), vec![gpa..gpa + pages * FRAME_BYTES]);
                }
            }
        }
    }
}
