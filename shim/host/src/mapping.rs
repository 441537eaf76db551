//! [`HostMapping`]: this process's own page tables as a mapping of one allocation.

use std::fs;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::mman::MmapAdvise;
use pageless::{Allocation, Cause, FRAME_BYTES, MapGuard, Mapping, Operation, Order, Pfn, PfnRange, Refusal, Stuck, Verdict};
use parking_lot::RwLock;

use crate::region::{Gap, Region};
use crate::{HostBacking, MapError, PageSize};

/// An allocation's frames in this process's address space, at their guest offsets.
///
/// The addresses of the whole allocation are reserved once; frames are really mapped there under a map guard and really
/// unmapped by [`invalidate`](Mapping::invalidate), whose proof is that `mmap` over them succeeded: the kernel flushes the
/// processors' translations before it returns. Granule: 4 KiB on ordinary memory, the page on huge. It does not see other
/// processes, other mappings of the same descriptor, nor kernel pins of the pages.
///
/// Bytes are reached through [`read`](Self::read) and [`write`](Self::write) only, which fail with a name where a pointer
/// would fault; a child made by `fork` inherits none of them. An invalidation waits for the copies under way, at most 1 MiB each.
#[derive(Debug)]
pub struct HostMapping {
    memory: Arc<dyn HostBacking>,
    translations: Arc<Translations>,
}

/// What lies at the addresses of a [`HostMapping`] where no frame is mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Vacant {
    /// Nothing: a touch is a fault. For the addresses that a guest's memory slots point at, since KVM then reports it.
    #[default]
    Inaccessible,
    /// Private pages of this process that no guest reaches, taken when first touched. A pointer that somebody made while a
    /// frame was mapped, and uses after it went, reads zeroes or what was written late before, and writes into a void: as if
    /// the write had come just before the frame was zeroed. The frame itself is as unreachable as otherwise.
    ///
    /// The price: late writes take memory of this process until a frame is mapped there again or the mapping goes, and under
    /// `vm.overcommit_memory` = 2 the kernel counts the whole region as promised.
    Scratch,
}

/// Which frames lie where, and which of them are mapped.
#[derive(Debug)]
pub(crate) struct Translations {
    /// By frame number. Held for reading while anything is mapped, so that a frame that is replaced meanwhile is not.
    extents: RwLock<Vec<Extent>>,
    region: Region,
}

#[derive(Clone, Copy, Debug)]
struct Extent {
    frames: PfnRange,
    /// The first frame's place in the region.
    at: Pfn,
}

impl Extent {
    /// Where `frames`, a part of this extent, lie in the region.
    fn place(&self, frames: PfnRange) -> Option<PfnRange> {
        let into = frames.start().get().checked_sub(self.frames.start().get())?;
        PfnRange::from_len(self.at.add(into), frames.frames()).ok()
    }

    /// The frames at a part of the region that is this extent's.
    fn frames_at(&self, place: PfnRange) -> Option<PfnRange> {
        self.frames.sub(place.start().get().checked_sub(self.at.get())?, place.frames())
    }
}

impl Translations {
    /// The part of each extent that `frames` name, with its place in the region; by frame number.
    fn places(extents: &[Extent], frames: PfnRange) -> impl Iterator<Item = (&Extent, PfnRange, PfnRange)> {
        let first = extents.partition_point(|extent| extent.frames.end() <= frames.start());
        extents[first..].iter().map_while(move |extent| {
            let part = extent.frames.intersect(frames)?;
            Some((extent, part, extent.place(part)?))
        })
    }

    /// The runs of `frames` that are mapped now.
    pub(crate) fn of(&self, frames: PfnRange) -> Vec<PfnRange> {
        let mapped = |(extent, _, place): (&Extent, PfnRange, PfnRange)| {
            let places = self.region.mapped_in(place);
            places.into_iter().filter_map(|place| extent.frames_at(place)).collect::<Vec<_>>()
        };
        Self::places(&self.extents.read(), frames).flat_map(mapped).collect()
    }
}

impl HostMapping {
    /// Reserves addresses for an allocation: its extents as (guest offset in bytes, frames). Nothing is mapped yet. Offsets
    /// and frames begin and end on the memory's pages; extents may come in any order and may leave gaps.
    pub fn new<B>(memory: &B, extents: impl IntoIterator<Item = (u64, PfnRange)>) -> Result<Self, MapError>
    where
        B: HostBacking + Clone + 'static,
    {
        Self::with_vacant(memory, extents, Vacant::Inaccessible)
    }

    /// As [`new`](Self::new), and says what lies where no frame is mapped.
    pub fn with_vacant<B>(
        memory: &B,
        extents: impl IntoIterator<Item = (u64, PfnRange)>,
        vacant: Vacant,
    ) -> Result<Self, MapError>
    where
        B: HostBacking + Clone + 'static,
    {
        let page = memory.page();
        let mut given: Vec<(u64, PfnRange)> = extents.into_iter().collect();
        let mut bytes = 0;
        for &(offset, frames) in &given {
            let end = offset.checked_add(frames.bytes()).filter(|end| end / FRAME_BYTES <= Pfn::LIMIT.get());
            bytes = end.ok_or(MapError::NoAddresses { bytes: u64::MAX, errno: Errno::ENOMEM })?.max(bytes);
            if !offset.is_multiple_of(page.bytes()) || !on_pages(frames, page) {
                return Err(MapError::Unaligned { frames, offset, page });
            }
            if !memory.frames().contains_range(frames) {
                return Err(MapError::Foreign { frames });
            }
        }
        given.sort_unstable_by_key(|(offset, _)| *offset);
        let overlap = |first: PfnRange, second: PfnRange| Err(MapError::Overlap { first, second });
        if let Some(pair) = given.windows(2).find(|pair| pair[0].0 + pair[0].1.bytes() > pair[1].0) {
            return overlap(pair[0].1, pair[1].1);
        }
        let extents = joined(given);
        if let Some(pair) = extents.windows(2).find(|pair| pair[0].frames.overlaps(pair[1].frames)) {
            return overlap(pair[0].frames, pair[1].frames);
        }
        if bytes == 0 {
            return Err(MapError::Empty);
        }
        let region = Region::reserve(bytes, alignment(bytes, page), vacant);
        let region = region.map_err(|errno| MapError::NoAddresses { bytes, errno })?;
        let translations = Arc::new(Translations { extents: RwLock::new(extents), region });
        memory.local_mappings().enter(&translations);
        Ok(Self { memory: Arc::new(memory.clone()), translations })
    }

    /// The same for the frames that an allocation has now.
    pub fn of<B: HostBacking + Clone + 'static>(memory: &B, allocation: &Allocation) -> Result<Self, MapError> {
        Self::of_with_vacant(memory, allocation, Vacant::Inaccessible)
    }

    /// As [`of`](Self::of), and says what lies where no frame is mapped.
    pub fn of_with_vacant<B>(memory: &B, allocation: &Allocation, vacant: Vacant) -> Result<Self, MapError>
    where
        B: HostBacking + Clone + 'static,
    {
        let extents = allocation.extents().into_iter().map(|extent| (extent.offset, extent.frames));
        Self::with_vacant(memory, extents, vacant)
    }

    /// Puts `frame` in the place of whichever frame lies at `offset`, in bytes from the start of the allocation, aligned to
    /// 4 KiB: for [`Allocation::replace`]. The old frame is unmapped first, so nothing translates to it from here any more;
    /// the new one is not mapped yet. A frame that the allocation had given up may come back so, at another offset: it leaves its
    /// old place, where nothing may be mapped any more. Memory of huge pages cannot do this: they are mapped whole.
    pub fn replaced(&self, offset: u64, frame: Pfn) -> Result<(), MapError> {
        let (fresh, page) = (PfnRange::single(frame), self.memory.page());
        if page.is_huge() || !offset.is_multiple_of(FRAME_BYTES) {
            return Err(MapError::Unaligned { frames: fresh, offset, page });
        }
        if !self.memory.frames().contains_range(fresh) {
            return Err(MapError::Foreign { frames: fresh });
        }
        let place = PfnRange::single(Pfn::new(offset / FRAME_BYTES));
        let region = &self.translations.region;
        let mut extents = self.translations.extents.write();
        if let Some((taken, _, before)) = Translations::places(&extents, fresh).next()
            && (before == place || !region.mapped_in(before).is_empty())
        {
            return Err(MapError::Overlap { first: taken.frames, second: fresh });
        }
        let holds = |extent: &Extent| extent.place(extent.frames).is_some_and(|places| places.contains_range(place));
        let Some(old) = extents.iter().find(|extent| holds(extent)).and_then(|extent| extent.frames_at(place)) else {
            return Err(MapError::Outside { offset, bytes: FRAME_BYTES, size: self.bytes() });
        };
        region.unmap(place).map_err(|errno| MapError::Os { step: "mmap(PROT_NONE)", errno })?;
        for gone in [old, fresh] {
            cut_out(&mut extents, gone);
        }
        extents.push(Extent { frames: fresh, at: place.start() });
        extents.sort_unstable_by_key(|extent| extent.frames);
        Ok(())
    }

    /// Maps `frames`, which `guard` permits. Frames that are mapped already stay so. Adjacent frames of one segment cost one
    /// mapping of the process together; scattered ones cost one each (vm.max_map_count).
    pub fn map(&self, guard: &MapGuard<'_>, frames: PfnRange) -> Result<(), MapError> {
        if !guard.covers(frames) {
            return Err(MapError::NotGuarded { frames });
        }
        self.map_run(frames)
    }

    /// Maps `frames`. On an error the frames before the one it names stay mapped.
    fn map_run(&self, frames: PfnRange) -> Result<(), MapError> {
        let page = self.memory.page();
        let extents = self.translations.extents.read();
        let covered: u64 = Translations::places(&extents, frames).map(|(_, part, _)| part.frames()).sum();
        if covered != frames.frames() {
            return Err(MapError::Foreign { frames });
        }
        self.memory.populate(frames).map_err(MapError::Vanished)?;
        let huge = [MmapAdvise::MADV_HUGEPAGE];
        let advice = if self.memory.wants_transparent_huge_pages() { &huge[..] } else { &[] };
        for (extent, part, place) in Translations::places(&extents, frames) {
            if !on_pages(part, page) {
                return Err(MapError::Unaligned { frames: part, offset: place.start().get() * FRAME_BYTES, page });
            }
            let mut rest = Some(part);
            while let Some(run) = rest {
                let handle = self.memory.segment(run.start()).ok_or(MapError::NotCommitted { frames: run })?;
                let (piece, after) = run.split_at(handle.frames().frames());
                if let Some((piece, place)) = piece.and_then(|piece| Some((piece, extent.place(piece)?))) {
                    self.translations.region.map(place, &handle, advice).map_err(|errno| map_error(errno, piece))?;
                }
                rest = after;
            }
        }
        Ok(())
    }

    /// Unmaps `frames` and proves it by the system call's success, as [`invalidate`](Mapping::invalidate) does: for whoever
    /// uses the mapping without a pool. On [`Stuck`] the frames before `stuck.at` are unmapped.
    pub fn unmap(&self, frames: PfnRange) -> Result<(), Stuck> {
        self.unmap_run(frames, frames)
    }

    /// Copies the bytes at `offset`, in bytes from the start of the allocation, into `buffer`. Bytes that are not mapped at
    /// the moment are an error, never a fault; what lies before them has then been copied.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), MapError> {
        self.check_inside(offset, buffer.len())?;
        self.translations.region.read(offset, buffer).map_err(unmapped)
    }

    /// Copies `bytes` to the bytes at `offset`, in bytes from the start of the allocation. Bytes that are not mapped at the
    /// moment are an error, never a fault; what lies before them has then been written.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), MapError> {
        self.check_inside(offset, bytes.len())?;
        self.translations.region.write(offset, bytes).map_err(unmapped)
    }

    /// The runs of `frames` that are translated now.
    #[must_use]
    pub fn translations(&self, frames: PfnRange) -> Vec<PfnRange> {
        self.translations.of(frames)
    }

    /// Whether the frame is translated now.
    #[must_use]
    pub fn is_mapped(&self, pfn: Pfn) -> bool {
        !self.translations.of(PfnRange::single(pfn)).is_empty()
    }

    /// Whether every byte of `bytes` bytes at `offset` is mapped at this moment. It may have changed when you look.
    #[must_use]
    pub fn is_mapped_at(&self, offset: u64, bytes: u64) -> bool {
        let end = offset.checked_add(bytes).filter(|end| bytes > 0 && *end <= self.bytes());
        let frames = end.and_then(|end| PfnRange::new(Pfn::new(offset / FRAME_BYTES), Pfn::new(end.div_ceil(FRAME_BYTES))).ok());
        frames.is_some_and(|frames| self.translations.region.has_all(frames))
    }

    /// The size of the pages behind the frames: they are mapped whole.
    #[must_use]
    pub fn page(&self) -> PageSize {
        self.memory.page()
    }

    /// What lies where no frame is mapped.
    #[must_use]
    pub fn vacant(&self) -> Vacant {
        self.translations.region.vacant()
    }

    /// The region's length in bytes: the end of the extent that lies last in the guest.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.translations.region.bytes()
    }

    /// The address of the byte at guest offset 0, for asking the kernel about it (`/proc/self/maps`, a KVM memory slot).
    /// It stays reserved while the mapping lives; a pointer made of it faults where nothing is mapped.
    #[must_use]
    pub fn address(&self) -> usize {
        self.translations.region.address()
    }

    pub(crate) fn region(&self) -> &Region {
        &self.translations.region
    }

    pub(crate) fn check_inside(&self, offset: u64, bytes: usize) -> Result<(), MapError> {
        let (size, bytes) = (self.bytes(), bytes as u64);
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= size);
        if inside { Ok(()) } else { Err(MapError::Outside { offset, bytes, size }) }
    }

    /// Refuses `frames` that would cut a huge page which is mapped.
    fn check_cut(&self, frames: PfnRange) -> Result<(), Refusal> {
        let page = self.memory.page();
        if on_pages(frames, page) {
            return Ok(());
        }
        let edges = [frames.start(), Pfn::new(frames.end().get() - 1)];
        let cut = edges.iter().map(|pfn| PfnRange::block(*pfn, page.order())).find(|block| !frames.contains_range(*block));
        match cut.filter(|block| !self.translations.of(*block).is_empty()) {
            Some(block) => {
                Err(Refusal::Other(format!("{frames} cuts the {page} page {block}, and hugetlb mappings cannot be split").into()))
            }
            None => Ok(()),
        }
    }

    /// Unmaps `frames` and no others, but for a huge page that lies wholly in `all`: that goes as one.
    fn unmap_run(&self, all: PfnRange, frames: PfnRange) -> Result<(), Stuck> {
        let order = self.memory.page().order();
        let widened = PfnRange::new(frames.start().align_down(order), frames.end().align_up(order)).unwrap_or(frames);
        let (asked, frames) = (frames, if all.contains_range(widened) { widened } else { frames });
        if let Err(refusal) = self.check_cut(frames) {
            return Err(Stuck {
                at: asked,
                verdict: Verdict::Never,
                cause: Cause::new("mmap", Errno::EINVAL as u64, refusal.to_string()),
            });
        }
        let extents = self.translations.extents.read();
        for (_, part, place) in Translations::places(&extents, frames) {
            if let Err(errno) = self.translations.region.unmap(place) {
                // An answer is about what was asked, though its page reaches further.
                let Some(at) = PfnRange::new(part.start(), frames.end()).unwrap_or(part).intersect(asked) else { continue };
                // ENOMEM: no room to cut a mapping in two (vm.max_map_count) or no memory. It passes; nothing else does.
                let verdict = if errno == Errno::ENOMEM { Verdict::Retry { after: RETRY_AFTER } } else { Verdict::Never };
                return Err(Stuck { at, verdict, cause: Cause::new("mmap(PROT_NONE)", errno as u64, errno.desc()) });
            }
        }
        Ok(())
    }
}

const RETRY_AFTER: std::time::Duration = std::time::Duration::from_millis(100);

impl Mapping for HostMapping {
    /// Nothing to demote: the kernel cuts its mappings at 4 KiB itself. A run that would cut a huge page is refused.
    fn prepare(&self, op: &Operation) -> Result<(), Refusal> {
        self.check_cut(op.frames)
    }

    /// Unmaps `frames` and proves it by the system call's success. A huge page goes as a whole, where all of it is part of
    /// the operation.
    fn invalidate(&self, op: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        self.unmap_run(op.frames, frames)
    }

    /// Whether the block is one piece here: all of it mapped, in one extent and one segment, and as aligned in addresses and
    /// in the file as in frames. Then nothing of this mapping stands against a larger leaf; the kernel alone decides whether
    /// it uses one (on hugetlb it always does).
    fn promote(&self, block: PfnRange) -> Result<(), Refusal> {
        let aligned = |order: Order, number: u64| number.is_multiple_of(order.frames());
        let Some(order) = Order::DESCENDING.into_iter().find(|order| order.frames() == block.frames()) else {
            return Err(Refusal::Other(format!("{block} is no block of a leaf's size").into()));
        };
        if self.translations.of(block) != [block] {
            return Err(Refusal::Other(format!("{block} is not mapped as one piece").into()));
        }
        let segment = self.memory.segment(block.start()).filter(|segment| segment.frames().contains_range(block));
        let extents = self.translations.extents.read();
        let (Some(segment), Some((_, _, place))) = (segment, Translations::places(&extents, block).next()) else {
            return Err(Refusal::Other(format!("{block} spans two segments").into()));
        };
        let address = self.translations.region.address() as u64 / FRAME_BYTES + place.start().get();
        match aligned(order, address) && aligned(order, segment.offset() / FRAME_BYTES) {
            true => Ok(()),
            false => Err(Refusal::Other(
                format!("{block} is aligned to {order} in frames, but not in addresses or in its file").into(),
            )),
        }
    }
}

/// As aligned as the largest leaf that fits, so that the kernel may use it: addresses cost nothing.
fn alignment(bytes: u64, page: PageSize) -> u64 {
    Order::largest_fit(Pfn::new(0), bytes / FRAME_BYTES).bytes().max(page.bytes())
}

fn on_pages(frames: PfnRange, page: PageSize) -> bool {
    frames.start().is_aligned(page.order()) && frames.end().is_aligned(page.order())
}

/// Extents that follow each other both in the guest and in frames become one; by frame number.
fn joined(by_offset: Vec<(u64, PfnRange)>) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::with_capacity(by_offset.len());
    for (offset, frames) in by_offset {
        let at = Pfn::new(offset / FRAME_BYTES);
        match extents.last_mut() {
            Some(last) if last.frames.end() == frames.start() && last.at.add(last.frames.frames()) == at => {
                last.frames = last.frames.hull(frames);
            }
            _ => extents.push(Extent { frames, at }),
        }
    }
    extents.sort_unstable_by_key(|extent| extent.frames);
    extents
}

/// Takes `frames`, which lie in one extent or in none, out of the list; what is left is not in order.
fn cut_out(extents: &mut Vec<Extent>, frames: PfnRange) {
    let Some(at) = extents.iter().position(|extent| extent.frames.contains_range(frames)) else { return };
    let whole = extents.swap_remove(at);
    let rest = whole.frames.subtract(frames).into_iter().flatten();
    extents.extend(rest.filter_map(|frames| Some(Extent { frames, at: whole.place(frames)?.start() })));
}

fn unmapped(gap: Gap) -> MapError {
    MapError::Unmapped { offset: gap.offset, done: gap.done }
}

fn map_error(errno: Errno, frames: PfnRange) -> MapError {
    if errno != Errno::ENOMEM {
        return MapError::Os { step: "mmap", errno };
    }
    let limit = fs::read_to_string("/proc/sys/vm/max_map_count").ok().and_then(|text| text.trim().parse().ok());
    MapError::NoRoom { frames, limit: limit.unwrap_or(0) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use pageless::Backing;
    use pageless_hugepages::{Borrowed, HUGE_2M};

    use super::*;
    use crate::{HostMemory, ProofMethod};

    /// An earlier mapping may have proven only part of what an operation covers, so a later one is asked for odd runs.
    #[test]
    fn an_odd_run_takes_its_huge_page_along_only_within_the_operation() {
        let Some(_pages) = Borrowed::or_skip("odd runs 2M", HUGE_2M, 2) else { return };
        let memory =
            HostMemory::builder().bytes(4 << 20).page(PageSize::Huge2M).proof(ProofMethod::ProcessUnmap).build().unwrap();
        memory.commit(memory.frames()).unwrap();
        let mapping = HostMapping::new(&memory, [(0, memory.frames())]).unwrap();
        mapping.map_run(memory.frames()).unwrap();
        let (first, second) = (memory.frames().sub(0, 512).unwrap(), memory.frames().sub(512, 512).unwrap());
        let odd = memory.frames().sub(3, 5).unwrap();
        assert!(matches!(mapping.check_cut(odd), Err(Refusal::Other(_))));
        assert_eq!(mapping.unmap_run(odd, odd).unwrap_err().verdict, Verdict::Never);
        assert_eq!(mapping.translations(memory.frames()), [memory.frames()]);
        assert_eq!(mapping.unmap_run(first, odd), Ok(()));
        assert_eq!(mapping.translations(memory.frames()), [second]);
        assert_eq!(mapping.check_cut(odd), Ok(()), "nothing of it is mapped any more");
    }
}
