//! The 64-byte leaves of a GiB's mixed blocks, and who has which.
//!
//! Leaves live in chunks of 32. A chunk that no leaf uses is freed, except one that is kept so that a guest toggling one
//! frame does not pay the allocator each time. A *pinned* block keeps its leaf whether or not it is mixed: that is how a
//! reservation promises that the set it was made for allocates nothing, whatever is set in between.

use crate::bits::Bits512;
use crate::try_box::{NoMemory, try_array};

const CHUNK_LEAVES: usize = 32;
const CHUNKS: usize = 512 / CHUNK_LEAVES;
/// The slot of a block that has no leaf.
const NONE: u16 = u16::MAX;

/// The frames of one 2 MiB block, one bit each.
pub(crate) type Leaf = Bits512;

/// Leaves by block number, 0 to 511.
pub(crate) struct LeafStore {
    slots: [u16; 512],
    /// Per chunk, the leaves that nobody has. Zero where the chunk is absent.
    free: [u32; CHUNKS],
    chunks: [Option<Box<[Leaf; CHUNK_LEAVES]>>; CHUNKS],
    /// Reservations per block; absent until the first one.
    pins: Option<Box<[u16; 512]>>,
    /// Chunks with a free leaf.
    roomy: u16,
    /// Chunks with free leaves only: at most one.
    spare: u16,
}

impl LeafStore {
    /// The heap bytes of a store whose every block has a leaf, without pins and without the store itself.
    pub(crate) const MAX_CHUNK_BYTES: usize = 512 * size_of::<Leaf>();

    pub(crate) const fn new() -> Self {
        Self { slots: [NONE; 512], free: [0; CHUNKS], chunks: [const { None }; CHUNKS], pins: None, roomy: 0, spare: 0 }
    }

    /// The leaf of `block`.
    #[inline]
    pub(crate) fn leaf(&self, block: u32) -> Option<&Leaf> {
        let slot = self.slots[block as usize] as usize;
        self.chunks.get(slot / CHUNK_LEAVES)?.as_ref().map(|chunk| &chunk[slot % CHUNK_LEAVES])
    }

    /// The leaf of `block`, to be written.
    #[inline]
    pub(crate) fn leaf_mut(&mut self, block: u32) -> Option<&mut Leaf> {
        let slot = self.slots[block as usize] as usize;
        self.chunks.get_mut(slot / CHUNK_LEAVES)?.as_mut().map(|chunk| &mut chunk[slot % CHUNK_LEAVES])
    }

    /// Gives `block` a leaf with unspecified bits, unless it has one.
    #[inline]
    pub(crate) fn take(&mut self, block: u32) -> Result<(), NoMemory> {
        if self.slots[block as usize] == NONE {
            // The spare comes last, so that it stays spare.
            let used = self.roomy & !self.spare;
            let chunk = if used != 0 {
                used.trailing_zeros() as usize
            } else if self.spare != 0 {
                self.spare.trailing_zeros() as usize
            } else {
                self.add_chunk()?
            };
            self.slots[block as usize] = self.occupy(chunk);
        }
        Ok(())
    }

    /// Takes the leaf of `block` back, unless a reservation keeps it.
    pub(crate) fn give_back(&mut self, block: u32) {
        if self.pinned(block) {
            return;
        }
        let slot = std::mem::replace(&mut self.slots[block as usize], NONE) as usize;
        let chunk = slot / CHUNK_LEAVES;
        if slot == NONE as usize {
            return;
        }
        self.free[chunk] |= 1 << (slot % CHUNK_LEAVES);
        self.roomy |= 1 << chunk;
        if self.free[chunk] == u32::MAX {
            if self.spare == 0 { self.spare = 1 << chunk } else { self.drop_chunk(chunk) }
        }
    }

    /// Gives `block` a leaf that stays until as many calls of [`Self::unpin`] as of this.
    pub(crate) fn pin(&mut self, block: u32) -> Result<(), NoMemory> {
        // The pins first: a leaf that was taken before a refusal would belong to nobody.
        if self.pins.is_none() {
            self.pins = Some(try_array(0)?);
        }
        self.take(block)?;
        let Some(pins) = &mut self.pins else { return Ok(()) };
        let count = &mut pins[block as usize];
        // One operation per frame is the most there can be, so the limit is far away; past it, refuse rather than wrap.
        *count = count.checked_add(1).ok_or(NoMemory { bytes: size_of::<Leaf>() })?;
        Ok(())
    }

    /// Undoes one [`Self::pin`], and says whether it was the block's last.
    pub(crate) fn unpin(&mut self, block: u32) -> bool {
        let Some(count) = self.pins.as_mut().map(|pins| &mut pins[block as usize]) else { return false };
        debug_assert!(*count > 0, "block {block} is unreserved more often than reserved");
        *count = count.saturating_sub(1);
        *count == 0
    }

    /// Frees what is kept only for speed, and moves the leaves into as few chunks as they need. No block may be pinned.
    /// Says whether memory was freed.
    pub(crate) fn trim(&mut self) -> bool {
        let before = self.heap_bytes();
        self.pins = None;
        let leaves = self.slots.iter().filter(|slot| **slot != NONE).count();
        let present = (0..CHUNKS).filter(|&chunk| self.chunks[chunk].is_some()).fold(0, |all: u16, chunk| all | 1 << chunk);
        let kept = lowest(present, leaves.div_ceil(CHUNK_LEAVES));
        for block in 0..512 {
            let slot = self.slots[block] as usize;
            if slot == NONE as usize || kept & 1 << (slot / CHUNK_LEAVES) != 0 {
                continue;
            }
            let Some(leaf) = self.chunks[slot / CHUNK_LEAVES].as_ref().map(|chunk| chunk[slot % CHUNK_LEAVES]) else { continue };
            let target = (self.roomy & kept).trailing_zeros() as usize;
            let moved = self.occupy(target);
            if let Some(chunk) = &mut self.chunks[target] {
                chunk[moved as usize % CHUNK_LEAVES] = leaf;
            }
            self.slots[block] = moved;
        }
        (0..CHUNKS).filter(|chunk| kept & 1 << chunk == 0).for_each(|chunk| self.drop_chunk(chunk));
        self.heap_bytes() < before
    }

    /// Whether no block has a leaf.
    pub(crate) fn is_unused(&self) -> bool {
        self.slots.iter().all(|slot| *slot == NONE)
    }

    /// The bytes of the chunks and the pins.
    pub(crate) fn heap_bytes(&self) -> usize {
        let chunks = self.chunks.iter().flatten().count();
        chunks * size_of::<[Leaf; CHUNK_LEAVES]>() + self.pins.as_ref().map_or(0, |pins| size_of_val(&**pins))
    }

    /// Whether exactly the blocks that are mixed or pinned have a leaf, each its own, and the maps of chunks agree.
    pub(crate) fn check(&self, mixed: impl Fn(u32) -> bool) -> Result<(), String> {
        let mut free = [0_u32; CHUNKS];
        for (chunk, free) in free.iter_mut().enumerate() {
            *free = if self.chunks[chunk].is_some() { u32::MAX } else { 0 };
        }
        for block in 0..512 {
            let slot = self.slots[block as usize] as usize;
            if (slot != NONE as usize) != (mixed(block) || self.pinned(block)) {
                let (is, pin) = (mixed(block), self.pinned(block));
                return Err(format!("block {block} has slot {slot:#x}, but is mixed: {is}, reserved: {pin}"));
            }
            if slot != NONE as usize {
                let bit = 1 << (slot % CHUNK_LEAVES);
                if free[slot / CHUNK_LEAVES] & bit == 0 {
                    return Err(format!("block {block} has leaf {slot:#x}, which is absent or another block's"));
                }
                free[slot / CHUNK_LEAVES] &= !bit;
            }
        }
        let roomy = (0..CHUNKS).filter(|&chunk| free[chunk] != 0).fold(0, |all: u16, chunk| all | 1 << chunk);
        let spare = (0..CHUNKS).filter(|&chunk| free[chunk] == u32::MAX).fold(0, |all: u16, chunk| all | 1 << chunk);
        if (free, roomy, spare) != (self.free, self.roomy, self.spare) || spare.count_ones() > 1 {
            let kept = (self.free, self.roomy, self.spare);
            return Err(format!("free leaves, roomy and spare chunks are {kept:x?}, the slots say {:x?}", (free, roomy, spare)));
        }
        Ok(())
    }

    #[inline]
    fn pinned(&self, block: u32) -> bool {
        self.pins.as_ref().is_some_and(|pins| pins[block as usize] > 0)
    }

    /// The slot of a free leaf of `chunk`, which is present and has one.
    fn occupy(&mut self, chunk: usize) -> u16 {
        let leaf = self.free[chunk].trailing_zeros() as usize;
        self.free[chunk] &= !(1 << leaf);
        self.spare &= !(1 << chunk);
        if self.free[chunk] == 0 {
            self.roomy &= !(1 << chunk);
        }
        // Sixteen chunks of 32 leaves: below 512.
        #[allow(clippy::cast_possible_truncation)]
        let slot = (chunk * CHUNK_LEAVES + leaf) as u16;
        slot
    }

    #[cold]
    fn add_chunk(&mut self) -> Result<usize, NoMemory> {
        // Asked for only when every present chunk is full and a block still has no leaf: so one chunk is absent.
        let chunk = self.chunks.iter().position(Option::is_none).unwrap_or(0);
        self.chunks[chunk] = Some(try_array([0; 8])?);
        self.free[chunk] = u32::MAX;
        self.roomy |= 1 << chunk;
        self.spare = 1 << chunk;
        Ok(chunk)
    }

    fn drop_chunk(&mut self, chunk: usize) {
        self.chunks[chunk] = None;
        self.free[chunk] = 0;
        self.roomy &= !(1 << chunk);
        self.spare &= !(1 << chunk);
    }
}

/// The `count` lowest bits that are set in `bits`.
fn lowest(bits: u16, count: usize) -> u16 {
    let mut rest = bits;
    for _ in 0..count {
        rest &= rest.wrapping_sub(1);
    }
    bits & !rest
}
