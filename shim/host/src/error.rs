//! What can be in the way of getting or mapping memory, with the numbers and what to do about them.

use std::path::PathBuf;

use nix::errno::Errno;
use pageless::{InvalidRange, PfnRange, Shortage};

use crate::{GuestMemfdSupport, PageSize, SharedSide};

/// Why a builder gave no memory. Nothing has been taken.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// No memory was asked for.
    #[error("no memory asked for: 0 bytes; say how many, at least one page")]
    Empty,
    /// A size or the base is no multiple of the page size.
    #[error("{what} {value:#x} is no multiple of {unit:#x}, the length of a {page} page in {what_unit}", what_unit = .unit_name)]
    Unaligned {
        /// Which number: `bytes`, `node bytes` or `base`.
        what: &'static str,
        /// Its value, in `unit_name`.
        value: u64,
        /// What it must be a multiple of, in `unit_name`.
        unit: u64,
        /// `bytes` or `frames`.
        unit_name: &'static str,
        /// The page size asked for.
        page: PageSize,
    },
    /// The segment size is no power of two, or smaller than a page.
    #[error("a segment of {bytes} bytes is no power of two of at least one {page} page ({least} bytes)", least = .page.bytes())]
    SegmentSize {
        /// The segment size asked for, in bytes.
        bytes: u64,
        /// The page size asked for.
        page: PageSize,
    },
    /// More than a process can map.
    #[error("{bytes} bytes are more than the {limit} that one process can map")]
    TooLarge {
        /// The bytes asked for.
        bytes: u64,
        /// The most there can be, in bytes.
        limit: u64,
    },
    /// The frame numbers run beyond the last there is.
    #[error("no such frames")]
    Frames(#[from] InvalidRange),
    /// The host's hugetlb pool has too few pages.
    #[error(
        "{asked} pages of {page} asked for, but {free} are free and {reserved} of those promised to others; \
         as root, raise {sysctl}"
    )]
    HugepageShortage {
        /// The page size.
        page: PageSize,
        /// Pages asked for.
        asked: u64,
        /// Free pages.
        free: u64,
        /// Free pages that the kernel has promised to others.
        reserved: u64,
        /// The file that sets how many there are.
        sysctl: PathBuf,
    },
    /// This host has no pages of this size at all.
    #[error("no {page} pages on this host: {why}")]
    PageUnsupported {
        /// The page size.
        page: PageSize,
        /// Why.
        why: String,
    },
    /// The kernel gives no transparent huge pages to memory that asks for them, or the pages are huge anyway.
    #[error("no transparent huge pages: {why}")]
    NoTransparentHugePages {
        /// Which setting is in the way, its value, and what to do about it.
        why: String,
    },
    /// More segments than the process may have open files.
    #[error(
        "{segments} segments need as many descriptors, but {open} are open and RLIMIT_NOFILE allows {limit}; \
         choose larger segments or raise the hard limit"
    )]
    DescriptorLimit {
        /// Segments wanted.
        segments: u64,
        /// Descriptors open now.
        open: u64,
        /// The hard limit.
        limit: u64,
    },
    /// A segment is larger than the process may make a file.
    #[error(
        "a segment of {segment} bytes is larger than RLIMIT_FSIZE allows ({limit} bytes); choose smaller segments or raise the hard limit"
    )]
    FileSizeLimit {
        /// The segment size, in bytes.
        segment: u64,
        /// The hard limit, in bytes.
        limit: u64,
    },
    /// The host has no such NUMA node with memory.
    #[error("this host has no NUMA node {node} with memory")]
    UnknownNode {
        /// The node asked for.
        node: u32,
    },
    /// There is no such file, and no length was given to make one.
    #[error("{path} does not exist; give bytes() to have it made")]
    NoSuchFile {
        /// The path.
        path: PathBuf,
    },
    /// The kernel does not open it, or does not make it, for reading and writing: no permission, no such folder.
    #[error("{path} cannot be opened for reading and writing")]
    NotOpened {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        errno: Errno,
    },
    /// A directory, a device, a pipe: nothing whose bytes could be frames here.
    #[error("{path} is no regular file")]
    NotAFile {
        /// The path, or what the kernel calls the descriptor.
        path: PathBuf,
    },
    /// The descriptor was opened for reading only, or for writing only.
    #[error("{path} is not open for reading and writing")]
    NotReadWrite {
        /// What the kernel calls the descriptor.
        path: PathBuf,
    },
    /// Another memory, of this process or another, is the file already.
    #[error("{path} is in use: somebody holds its lock (flock)")]
    FileInUse {
        /// The path, or what the kernel calls the descriptor.
        path: PathBuf,
    },
    /// The descriptor is not one of a KVM virtual machine.
    #[error("{step} failed: the descriptor is not a KVM virtual machine's")]
    NotAVm {
        /// The step.
        step: &'static str,
        /// What the kernel said.
        #[source]
        errno: Errno,
    },
    /// KVM does not offer the guest_memfd that was asked for.
    #[error("no guest_memfd with its shared side {asked}: this VM has {support}")]
    NoGuestMemfd {
        /// Where the shared side was to be.
        asked: SharedSide,
        /// What there is.
        support: GuestMemfdSupport,
    },
    /// The kernel refused a step that has no better name here.
    #[error("{step} failed")]
    Os {
        /// The step.
        step: &'static str,
        /// What the kernel said.
        #[source]
        errno: Errno,
    },
}

/// Why a [`HostMapping`](crate::HostMapping) did not map, read or write.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// The map guard does not permit these frames.
    #[error("the map guard does not cover all of {frames}")]
    NotGuarded {
        /// The frames that were to be mapped.
        frames: PfnRange,
    },
    /// No extent was given, or nothing was asked for.
    #[error("nothing to map")]
    Empty,
    /// An extent's offset, start or length is no multiple of the page size.
    #[error("{frames} at offset {offset:#x} does not begin and end on {page} pages")]
    Unaligned {
        /// The frames.
        frames: PfnRange,
        /// Where they belong, in bytes from the start of the region.
        offset: u64,
        /// The page size of the memory.
        page: PageSize,
    },
    /// Two extents share guest offsets or frames.
    #[error("{first} and {second} overlap, in frames or in guest offsets")]
    Overlap {
        /// One extent's frames.
        first: PfnRange,
        /// The other's.
        second: PfnRange,
    },
    /// The frames are not this memory's, or not of this mapping's extents.
    #[error("{frames} are not among the frames of this mapping")]
    Foreign {
        /// The frames.
        frames: PfnRange,
    },
    /// No memory has been committed behind the frames.
    #[error("no memory has been committed behind {frames}")]
    NotCommitted {
        /// The frames.
        frames: PfnRange,
    },
    /// Pages that were committed are gone, and the host has no others to put in their place.
    #[error("pages behind frames that were committed have vanished")]
    Vanished(#[source] Shortage),
    /// The bytes are not mapped at the moment: never mapped, or made unreachable.
    #[error("the byte at offset {offset:#x} is not mapped now; {done} bytes before it were copied")]
    Unmapped {
        /// The first byte that is not mapped, from the start of the region.
        offset: u64,
        /// How many bytes had been copied before, from the start of the request.
        done: usize,
    },
    /// The bytes lie outside the region.
    #[error("{bytes} bytes at offset {offset:#x} end beyond the region's {size:#x} bytes")]
    Outside {
        /// Where the request begins, in bytes.
        offset: u64,
        /// Its length in bytes.
        bytes: u64,
        /// The region's length in bytes.
        size: u64,
    },
    /// The kernel has no room for another mapping.
    #[error(
        "no room to map {frames}: ENOMEM. This process may have {limit} mappings (vm.max_map_count) and scattered runs cost one each; \
         otherwise memory or address space (RLIMIT_AS) is short"
    )]
    NoRoom {
        /// The frames.
        frames: PfnRange,
        /// vm.max_map_count; 0 when it cannot be read.
        limit: u64,
    },
    /// No room for the region's addresses.
    #[error("no {bytes} bytes of address space to reserve (RLIMIT_AS?)")]
    NoAddresses {
        /// The bytes wanted.
        bytes: u64,
        /// What the kernel said.
        #[source]
        errno: Errno,
    },
    /// A pin came out shorter than asked.
    #[error("pinned {pinned} of {asked} bytes: the pipe holds no more; pin less")]
    ShortPin {
        /// Bytes that would have been pinned. They are not any more.
        pinned: usize,
        /// Bytes asked for.
        asked: usize,
    },
    /// The kernel refused a step that has no better name here.
    #[error("{step} failed")]
    Os {
        /// The step.
        step: &'static str,
        /// What the kernel said.
        #[source]
        errno: Errno,
    },
}
