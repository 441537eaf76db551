//! Cuts memory into segments and checks every limit that could be in the way, before anything is taken.

use std::fs;
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{SysconfVar, sysconf};
use pageless::{FRAME_BYTES, NodeFrames, Pfn, PfnRange};

use crate::memory::{Layout, Settings, Slot};
use crate::page::{HugePool, kernel_before};
use crate::progress::Watcher;
use crate::{HostError, HostMemory, PageSize, Progress, ProofMethod, Zeroing, numa, transparent};

/// Most segments when the builder chooses their size: each costs a descriptor.
const SEGMENTS_BY_DEFAULT: u64 = 256;
/// Least segment when the builder chooses its size, in bytes.
const LEAST_SEGMENT_BY_DEFAULT: u64 = 2 << 20;
/// What a process can map: 47-bit user addresses of x86-64 with four-level tables, in bytes.
const ADDRESS_SPACE: u64 = 1 << 47;
/// Descriptors left free for everything else in the process.
const SPARE_DESCRIPTORS: u64 = 64;

/// Builds a [`HostMemory`]. Only an amount is needed: [`bytes`](Self::bytes) or [`node`](Self::node).
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct HostMemoryBuilder {
    parts: Vec<Part>,
    base: Option<Pfn>,
    page: PageSize,
    segment_bytes: Option<u64>,
    transparent: bool,
    proof: ProofMethod,
    zeroing: Zeroing,
    watcher: Option<Watcher>,
}

#[derive(Clone, Copy, Debug)]
struct Part {
    node: Option<u32>,
    bytes: u64,
}

impl HostMemoryBuilder {
    /// Adds `bytes` bytes from whatever node the kernel chooses, reported as node 0. A multiple of the page size.
    pub fn bytes(mut self, bytes: u64) -> Self {
        self.parts.push(Part { node: None, bytes });
        self
    }

    /// Adds `bytes` bytes of NUMA node `node`, and of no other. A multiple of the page size.
    pub fn node(mut self, node: u32, bytes: u64) -> Self {
        self.parts.push(Part { node: Some(node), bytes });
        self
    }

    /// The number of the first frame, a multiple of the page size in frames. 0 unless told.
    pub fn base(mut self, base: Pfn) -> Self {
        self.base = Some(base);
        self
    }

    /// The size of the pages behind the frames. 4 KiB unless told; [`probe`](crate::probe) says what there is.
    pub fn page(mut self, page: PageSize) -> Self {
        self.page = page;
        self
    }

    /// Asks the kernel for transparent huge pages of 2 MiB behind 4 KiB ones: fewer entries in the page tables for the same
    /// frames, which are still mapped, proven and lost by the 4 KiB. Needs a base and segments of whole 2 MiB, and a kernel that
    /// gives such pages to memory that asks (`/sys/kernel/mm/transparent_hugepage/shmem_enabled`); [`build`](Self::build)
    /// names the setting where it does not. Where the host has no free 2 MiB left the kernel takes small pages, and tells
    /// nobody.
    pub fn transparent_huge_pages(mut self) -> Self {
        self.transparent = true;
        self
    }

    /// Calls `tell` after each huge page that a commit takes: a large memory takes minutes. In the thread that commits, so
    /// it shall not take long; it may ask the memory anything.
    pub fn progress(mut self, tell: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.watcher = Some(Watcher(Arc::new(tell)));
        self
    }

    /// The length of a segment in bytes: a power of two of at least one page. Unless told, the smallest from 2 MiB on that
    /// makes at most 256 segments, or fewer where descriptors are scarce. With [`ProofMethod::Seal`] this is how much is proven, and lost, together.
    pub fn segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = Some(bytes);
        self
    }

    /// How released frames are proven unreachable. [`ProofMethod::Seal`] unless told.
    pub fn proof(mut self, proof: ProofMethod) -> Self {
        self.proof = proof;
        self
    }

    /// Whether frames are zeroed at all. Leave it [`Zeroing::On`].
    pub fn zeroing(mut self, zeroing: Zeroing) -> Self {
        self.zeroing = zeroing;
        self
    }

    /// Checks sizes, limits and the hugetlb pool, raises the soft descriptor and file-size limits to the hard ones where
    /// that is needed, and lays out the segments. Takes no memory: that is [`commit`](pageless::Backing::commit)'s.
    pub fn build(self) -> Result<HostMemory, HostError> {
        check_base_page()?;
        let total = self.check_sizes()?;
        let segment = match self.segment_bytes {
            Some(bytes) if bytes.is_power_of_two() && bytes >= self.page.bytes() => bytes,
            Some(bytes) => return Err(HostError::SegmentSize { bytes, page: self.page }),
            None => self.default_segment(descriptors_left()),
        };
        if self.transparent {
            self.check_transparent(segment)?;
        }
        let segments = self.segments_of(segment);
        allow_descriptors(segments)?;
        allow_file_size(segment)?;
        for part in &self.parts {
            if let Some(node) = part.node.filter(|node| !numa::has_memory(*node)) {
                return Err(HostError::UnknownNode { node });
            }
        }
        if self.page.is_huge() {
            check_hugepages(self.page, total / self.page.bytes())?;
        }
        let layout = self.lay_out(segment)?;
        tracing::debug!(bytes = total, page = %self.page, segment, segments, "memory laid out");
        let Self { page, transparent, proof, zeroing, watcher, .. } = self;
        Ok(HostMemory::new(layout, Settings { page, transparent, proof, zeroing, watcher }))
    }

    fn check_sizes(&self) -> Result<u64, HostError> {
        let page = self.page;
        let whole = |what, value: u64, unit: u64, unit_name| {
            if value.is_multiple_of(unit) { Ok(()) } else { Err(HostError::Unaligned { what, value, unit, unit_name, page }) }
        };
        let mut total = 0_u64;
        for part in &self.parts {
            let what = if part.node.is_some() { "node bytes" } else { "bytes" };
            whole(what, part.bytes, page.bytes(), "bytes")?;
            total = total.saturating_add(part.bytes);
        }
        whole("base", self.first().get(), page.order().frames(), "frames")?;
        match total {
            0 => Err(HostError::Empty),
            _ if total > ADDRESS_SPACE => Err(HostError::TooLarge { bytes: total, limit: ADDRESS_SPACE }),
            _ => Ok(total),
        }
    }

    fn check_transparent(&self, segment: u64) -> Result<(), HostError> {
        let huge = PageSize::Huge2M;
        let (base, unit) = (self.first(), huge.order().frames());
        if self.page.is_huge() {
            return Err(HostError::NoTransparentHugePages { why: format!("the pages are of {} already", self.page) });
        }
        if segment < huge.bytes() {
            return Err(HostError::SegmentSize { bytes: segment, page: huge });
        }
        if !base.is_aligned(huge.order()) {
            return Err(HostError::Unaligned { what: "base", value: base.get(), unit, unit_name: "frames", page: huge });
        }
        transparent::forbidden().map_or(Ok(()), |why| Err(HostError::NoTransparentHugePages { why }))
    }

    fn first(&self) -> Pfn {
        self.base.unwrap_or(Pfn::new(0))
    }

    /// How many segments of `segment` bytes there will be.
    fn segments_of(&self, segment: u64) -> u64 {
        self.parts.iter().map(|part| part.bytes.div_ceil(segment)).sum()
    }

    /// The smallest that makes at most 256 segments, or as few as there are descriptors for; at least one for each node.
    fn default_segment(&self, descriptors: u64) -> u64 {
        let most = SEGMENTS_BY_DEFAULT.min(descriptors).max(self.parts.len() as u64);
        let mut segment = self.page.bytes().max(LEAST_SEGMENT_BY_DEFAULT);
        while self.segments_of(segment) > most {
            segment *= 2;
        }
        segment
    }

    /// Segments of one length side by side; the last of a node may be shorter. None spans two nodes.
    fn lay_out(&self, segment: u64) -> Result<Layout, HostError> {
        let mut layout = Layout { nodes: Vec::new(), slots: Vec::new() };
        let mut at = self.first();
        for part in self.parts.iter().filter(|part| part.bytes > 0) {
            let frames = PfnRange::from_len(at, part.bytes / FRAME_BYTES)?;
            layout.nodes.push(NodeFrames { node: part.node.unwrap_or(0), frames });
            let mut rest = Some(frames);
            while let Some(run) = rest {
                let (piece, after) = run.split_at(segment / FRAME_BYTES);
                layout.slots.extend(piece.map(|piece| Slot::new(piece, part.node)));
                rest = after;
            }
            at = frames.end();
        }
        Ok(layout)
    }
}

/// A frame is 4 KiB. A kernel with larger base pages (some Arm ones) can neither map nor punch a single frame.
fn check_base_page() -> Result<(), HostError> {
    match sysconf(SysconfVar::PAGE_SIZE) {
        Ok(Some(4096)) => Ok(()),
        other => {
            let why = format!("this kernel's own pages are {:?} bytes long", other.ok().flatten());
            Err(HostError::PageUnsupported { page: PageSize::Base4K, why })
        }
    }
}

fn check_hugepages(page: PageSize, asked: u64) -> Result<(), HostError> {
    let (Some(pool), Some(sysctl)) = (HugePool::read(page), page.reservation_file()) else {
        return Err(HostError::PageUnsupported { page, why: "the kernel or the processor does not offer them".to_owned() });
    };
    if kernel_before(5, 18) {
        let why = "a kernel before 5.18 does not zero part of a huge page on request".to_owned();
        return Err(HostError::PageUnsupported { page, why });
    }
    if asked > pool.available() {
        return Err(HostError::HugepageShortage { page, asked, free: pool.free, reserved: pool.reserved, sysctl });
    }
    Ok(())
}

/// How many segments the hard descriptor limit has room for. When it cannot be read, the check that follows says so.
fn descriptors_left() -> u64 {
    let hard = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(_, hard)| hard);
    hard.saturating_sub(open_descriptors()).saturating_sub(SPARE_DESCRIPTORS)
}

fn open_descriptors() -> u64 {
    fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64)
}

fn allow_descriptors(segments: u64) -> Result<(), HostError> {
    let open = open_descriptors();
    let wanted = segments.saturating_add(open).saturating_add(SPARE_DESCRIPTORS);
    raise(Resource::RLIMIT_NOFILE, wanted)?.map_or(Ok(()), |limit| Err(HostError::DescriptorLimit { segments, open, limit }))
}

/// A file made longer than RLIMIT_FSIZE is answered by SIGXFSZ, so it has to be known before.
pub(crate) fn allow_file_size(segment: u64) -> Result<(), HostError> {
    raise(Resource::RLIMIT_FSIZE, segment)?.map_or(Ok(()), |limit| Err(HostError::FileSizeLimit { segment, limit }))
}

/// Raises the soft limit to the hard one if `wanted` needs it. Answers the hard limit where even that is too low.
fn raise(resource: Resource, wanted: u64) -> Result<Option<u64>, HostError> {
    let (soft, hard) = getrlimit(resource).map_err(|errno| HostError::Os { step: "getrlimit", errno })?;
    if wanted <= soft {
        return Ok(None);
    }
    if wanted > hard {
        return Ok(Some(hard));
    }
    setrlimit(resource, hard, hard).map_err(|errno| HostError::Os { step: "setrlimit", errno })?;
    Ok(None)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_default_segment_makes_at_most_256_of_them() {
        let tib = HostMemory::builder().bytes(1 << 40);
        assert_eq!(tib.default_segment(20_000), 4 << 30);
        let small = HostMemory::builder().bytes(1 << 20);
        assert_eq!(small.default_segment(20_000), 2 << 20);
        assert_eq!(HostMemory::builder().bytes((1 << 40) + 4096).default_segment(20_000), 8 << 30);
        assert_eq!(tib.default_segment(100), 16 << 30, "fewer and larger when descriptors are scarce");
    }

    #[test]
    fn the_last_segment_of_a_node_may_be_shorter_and_none_spans_two() {
        let layout = HostMemory::builder().node(0, 5 << 20).node(0, 2 << 20).base(Pfn::new(7)).lay_out(4 << 20).unwrap();
        let lengths: Vec<_> = layout.slots.iter().map(|slot| slot.frames.bytes() >> 20).collect();
        assert_eq!(lengths, [4, 1, 2]);
        assert_eq!(layout.slots[0].frames.start(), Pfn::new(7));
        assert!(layout.slots.windows(2).all(|pair| pair[0].frames.end() == pair[1].frames.start()));
    }
}
