//! The 64-byte leaves of a GiB's mixed blocks, and who has which.
//!
//! Leaves live in chunks of 32. A chunk that no leaf uses is freed, except one that is kept so that a guest toggling one
//! frame does not pay the allocator each time. A *promise* of leaves, which is what a reservation is here, says no more than
//! how many must be there to be taken: so many free leaves stay in chunks that exist, whatever is taken and given back
//! meanwhile, and nobody has to note for which blocks.

use crate::bits::{self, Bits512};
use crate::try_box::{NoMemory, try_array};

const CHUNK_LEAVES: usize = 32;
const BLOCKS: usize = 512;
const CHUNKS: usize = BLOCKS / CHUNK_LEAVES;
/// The slot of a block that has no leaf.
const NONE: u16 = u16::MAX;

/// The frames of one 2 MiB block, one bit each.
pub(crate) type Leaf = Bits512;

/// Leaves by block number, 0 to 511.
pub(crate) struct LeafStore {
    slots: [u16; BLOCKS],
    /// Blocks whose leaf is in the slot of their own number: one line to look at, where the slots have sixteen.
    home: Bits512,
    /// Per chunk, the leaves that nobody has. Zero where the chunk is absent.
    free: [u32; CHUNKS],
    chunks: [Option<Box<[Leaf; CHUNK_LEAVES]>>; CHUNKS],
    /// How many leaves nobody has, in all chunks.
    available: u32,
    /// How many of them are promised. Less than is available, unless every chunk exists: then no block can go without.
    promised: u32,
    /// Chunks with a free leaf.
    roomy: u16,
    /// Chunks with free leaves only: one, and as many more as promises need.
    spare: u16,
    /// Chunks that exist.
    present: u16,
}

impl LeafStore {
    /// The heap bytes of a store whose every block has a leaf, without the store itself.
    pub(crate) const MAX_CHUNK_BYTES: usize = 512 * size_of::<Leaf>();

    pub(crate) const fn new() -> Self {
        Self {
            slots: [NONE; BLOCKS],
            home: [0; 8],
            free: [0; CHUNKS],
            chunks: [const { None }; CHUNKS],
            available: 0,
            promised: 0,
            roomy: 0,
            spare: 0,
            present: 0,
        }
    }

    /// The leaf of `block`.
    #[inline]
    pub(crate) fn leaf(&self, block: u32) -> Option<&Leaf> {
        let slot = self.slot(block);
        self.chunks.get(slot / CHUNK_LEAVES)?.as_ref().map(|chunk| &chunk[slot % CHUNK_LEAVES])
    }

    /// The leaf of `block`, to be written.
    #[inline]
    pub(crate) fn leaf_mut(&mut self, block: u32) -> Option<&mut Leaf> {
        let slot = self.slot(block);
        self.chunks.get_mut(slot / CHUNK_LEAVES)?.as_mut().map(|chunk| &mut chunk[slot % CHUNK_LEAVES])
    }

    /// Gives `block` a leaf with unspecified bits, unless it has one. None of the promised ones, unless there are others.
    #[inline]
    pub(crate) fn take(&mut self, block: u32) -> Result<(), NoMemory> {
        if self.slots[block as usize] == NONE {
            if self.available <= self.promised {
                self.make_room(1, block)?;
            }
            // The spares come last, so that they stay spare.
            let used = self.roomy & !self.spare;
            let slot = self.occupy(if used != 0 { used } else { self.roomy }, block);
            self.place(block as usize, slot);
        }
        Ok(())
    }

    /// [`Self::redeem`] of one leaf, and [`Self::take`] of it for a block that has none.
    #[inline]
    pub(crate) fn take_promised(&mut self, block: u32) -> Option<&mut Leaf> {
        self.redeem(1);
        // What was promised is there, or else every chunk is.
        self.take(block).ok()?;
        self.leaf_mut(block)
    }

    /// Takes the leaf of `block` back.
    #[inline]
    pub(crate) fn give_back(&mut self, block: u32) {
        let slot = self.slots[block as usize] as usize;
        self.place(block as usize, NONE);
        let chunk = slot / CHUNK_LEAVES;
        if slot == NONE as usize {
            return;
        }
        self.free[chunk] |= 1 << (slot % CHUNK_LEAVES);
        self.roomy |= 1 << chunk;
        self.available += 1;
        if self.free[chunk] == u32::MAX {
            self.spare |= 1 << chunk;
            self.drop_needless();
        }
    }

    /// Promises that so many leaves, 2 at most, can be taken without asking the allocator right after [`Self::redeem`] has
    /// ended the promise, best by the block `near`.
    #[inline]
    pub(crate) fn promise(&mut self, leaves: u32, near: u32) -> Result<(), NoMemory> {
        if self.available < self.promised + leaves {
            self.make_room(leaves, near)?;
        }
        self.promised += leaves;
        Ok(())
    }

    /// [`Self::promise`] of one leaf, if it is there; false, and nothing done, where room would have to be made.
    #[inline(always)]
    pub(crate) const fn promise_one(&mut self) -> bool {
        let there = self.available > self.promised || self.is_complete();
        self.promised += there as u32;
        there
    }

    /// Ends a promise of so many leaves. They are there until something else is taken or given back.
    #[inline]
    pub(crate) fn redeem(&mut self, leaves: u32) {
        debug_assert!(self.promised >= leaves, "{leaves} leaves are redeemed, {} were promised", self.promised);
        self.promised = self.promised.saturating_sub(leaves);
    }

    /// Frees the chunks that a promise kept and that nothing needs any more. Two leaves more than are promised stay: they may
    /// have been redeemed, and are about to be taken.
    #[inline]
    pub(crate) fn drop_needless(&mut self) {
        while self.spare & self.spare.wrapping_sub(1) != 0 && self.available >= self.promised + 2 + u32::BITS {
            self.drop_chunk(self.spare.trailing_zeros() as usize);
        }
    }

    /// Frees what is kept only for speed, and moves the leaves into as few chunks as they need. Nothing may be promised.
    /// Says whether memory was freed.
    pub(crate) fn trim(&mut self) -> bool {
        let before = self.heap_bytes();
        let leaves = self.slots.iter().filter(|slot| **slot != NONE).count();
        let kept = lowest(self.present, leaves.div_ceil(CHUNK_LEAVES));
        for block in 0..512 {
            let slot = self.slots[block] as usize;
            if slot == NONE as usize || kept & 1 << (slot / CHUNK_LEAVES) != 0 {
                continue;
            }
            let Some(leaf) = self.chunks[slot / CHUNK_LEAVES].as_ref().map(|chunk| chunk[slot % CHUNK_LEAVES]) else { continue };
            // A block below 512.
            #[allow(clippy::cast_possible_truncation)]
            let moved = self.occupy(self.roomy & kept, block as u32);
            if let Some(chunk) = &mut self.chunks[moved as usize / CHUNK_LEAVES] {
                chunk[moved as usize % CHUNK_LEAVES] = leaf;
            }
            self.place(block, moved);
        }
        (0..CHUNKS).filter(|chunk| kept & 1 << chunk == 0).for_each(|chunk| self.drop_chunk(chunk));
        self.heap_bytes() < before
    }

    /// Whether no block has a leaf.
    pub(crate) fn is_unused(&self) -> bool {
        self.slots.iter().all(|slot| *slot == NONE)
    }

    /// The bytes of the chunks.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.chunks.iter().flatten().count() * size_of::<[Leaf; CHUNK_LEAVES]>()
    }

    /// Whether exactly the mixed blocks have a leaf, each its own, and the maps of chunks and the counts agree.
    pub(crate) fn check(&self, mixed: impl Fn(u32) -> bool) -> Result<(), String> {
        let present = (0..CHUNKS).filter(|&chunk| self.chunks[chunk].is_some()).fold(0, |all: u16, chunk| all | 1 << chunk);
        if present != self.present {
            return Err(format!("chunks {:#x} are noted, {present:#x} exist", self.present));
        }
        let mut free = [0_u32; CHUNKS];
        for (chunk, free) in free.iter_mut().enumerate() {
            *free = if self.chunks[chunk].is_some() { u32::MAX } else { 0 };
        }
        for block in 0..512 {
            let slot = self.slots[block as usize] as usize;
            if bits::has(&self.home, block) != (slot == block as usize) {
                return Err(format!("block {block} has slot {slot:#x}, and is at home: {}", bits::has(&self.home, block)));
            }
            if (slot != NONE as usize) != mixed(block) {
                return Err(format!("block {block} has slot {slot:#x}, but is mixed: {}", mixed(block)));
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
        if (free, roomy, spare) != (self.free, self.roomy, self.spare) {
            let kept = (self.free, self.roomy, self.spare);
            return Err(format!("free leaves, roomy and spare chunks are {kept:x?}, the slots say {:x?}", (free, roomy, spare)));
        }
        let available: u32 = free.iter().map(|chunk| chunk.count_ones()).sum();
        if available != self.available {
            return Err(format!("{} leaves are counted as free, {available} are", self.available));
        }
        if available < self.promised && !self.is_complete() {
            return Err(format!("{} leaves are promised, {available} are free", self.promised));
        }
        Ok(())
    }

    /// Where the block's leaf is.
    #[inline(always)]
    const fn slot(&self, block: u32) -> usize {
        let block = block as usize % BLOCKS;
        // A block below 512.
        #[allow(clippy::cast_possible_truncation)]
        let at_home = bits::has(&self.home, block as u32);
        if at_home { block } else { self.slots[block] as usize }
    }

    /// Notes where the block's leaf is from now on.
    fn place(&mut self, block: usize, slot: u16) {
        self.slots[block] = slot;
        // A block below 512.
        #[allow(clippy::cast_possible_truncation)]
        let (word, mask) = bits::place(block as u32);
        self.home[word] = if slot as usize == block { self.home[word] | mask } else { self.home[word] & !mask };
    }

    /// Whether every chunk exists, so that there is a leaf for every block.
    #[inline]
    const fn is_complete(&self) -> bool {
        self.present == u16::MAX
    }

    /// The slot of a free leaf for `block` in one of these chunks, of which there is one and each has one: its own, if that is
    /// among them.
    fn occupy(&mut self, chunks: u16, block: u32) -> u16 {
        let (home, own) = (block as usize / CHUNK_LEAVES, block as usize % CHUNK_LEAVES);
        let is_at_home = chunks & 1 << home != 0 && self.free[home] & 1 << own != 0;
        let chunk = if is_at_home { home } else { chunks.trailing_zeros() as usize };
        let leaf = if is_at_home { own } else { self.free[chunk].trailing_zeros() as usize };
        self.free[chunk] &= !(1 << leaf);
        self.available -= 1;
        self.spare &= !(1 << chunk);
        if self.free[chunk] == 0 {
            self.roomy &= !(1 << chunk);
        }
        // Sixteen chunks of 32 leaves: below 512.
        #[allow(clippy::cast_possible_truncation)]
        let slot = (chunk * CHUNK_LEAVES + leaf) as u16;
        slot
    }

    /// Adds a chunk if so many more leaves than are promised are not there, and one can be added: the one
    /// with the own place of the block `near`, where that is not there.
    #[cold]
    fn make_room(&mut self, leaves: u32, near: u32) -> Result<(), NoMemory> {
        let home = near as usize / CHUNK_LEAVES;
        let absent = |chunk: &usize| self.present & 1 << chunk == 0;
        let Some(chunk) = Some(home).filter(absent).or_else(|| (0..CHUNKS).find(absent)) else { return Ok(()) };
        debug_assert!(leaves <= u32::BITS, "a chunk has {} leaves", u32::BITS);
        self.chunks[chunk] = Some(try_array([0; 8])?);
        self.free[chunk] = u32::MAX;
        self.available += u32::BITS;
        self.roomy |= 1 << chunk;
        self.spare |= 1 << chunk;
        self.present |= 1 << chunk;
        Ok(())
    }

    fn drop_chunk(&mut self, chunk: usize) {
        self.chunks[chunk] = None;
        self.present &= !(1 << chunk);
        self.available -= self.free[chunk].count_ones();
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Takes leaves for these blocks, and gives them back: whatever chunks that leaves, promises are kept.
    #[test]
    fn a_promise_outlives_leaves_that_come_and_go() {
        let mut store = LeafStore::new();
        let promised = 3 * CHUNK_LEAVES;
        (0..promised / 2).for_each(|_| store.promise(2, 0).unwrap());
        (0..200).for_each(|block| store.take(block).unwrap());
        (0..200).for_each(|block| store.give_back(block));
        store.check(|_| false).unwrap();
        let before = store.heap_bytes();
        assert_eq!(before, (promised + CHUNK_LEAVES) * size_of::<Leaf>(), "the promises, and room for what is on its way");
        for pair in 0..promised / 2 {
            store.redeem(2);
            for block in [pair * 2, pair * 2 + 1] {
                store.take(u32::try_from(block).unwrap()).unwrap();
            }
            assert_eq!(store.heap_bytes(), before, "pair {pair} of promised leaves asked the allocator");
            store.check(|block| block as usize <= pair * 2 + 1).unwrap();
        }
    }

    /// Between the end of a promise and the taking, something else may be given back.
    #[test]
    fn blocks_in_a_row_are_mostly_at_home_and_scattered_ones_share_a_chunk() {
        // Where a row begins within a chunk, its rest is filled by the next ones, and so on.
        for (first, at_home) in [(0, 100), (96, 100), (100, 88), (300, 64)] {
            let mut store = LeafStore::new();
            (first..first + 100).for_each(|block| store.take(block).unwrap());
            store.check(|block| (first..first + 100).contains(&block)).unwrap();
            assert_eq!(store.home.iter().map(|word| word.count_ones()).sum::<u32>(), at_home, "from {first} on");
        }
        let mut store = LeafStore::new();
        (0..32).for_each(|nth| store.take(nth * 16).unwrap());
        assert_eq!(store.heap_bytes(), CHUNK_LEAVES * size_of::<Leaf>());
        store.check(|block| block % 16 == 0).unwrap();
    }

    #[test]
    fn what_was_just_redeemed_is_not_freed() {
        let mut store = LeafStore::new();
        let pairs = CHUNK_LEAVES / 2;
        (0..=pairs).for_each(|_| store.promise(2, 0).unwrap());
        store.take(511).unwrap();
        store.redeem(2);
        store.give_back(511);
        let before = store.heap_bytes();
        [1, 2].into_iter().for_each(|block| store.take(block).unwrap());
        assert_eq!(store.heap_bytes(), before);
        store.check(|block| block == 1 || block == 2).unwrap();
    }

    #[test]
    fn a_store_whose_every_block_has_a_leaf_promises_what_it_will_not_need() {
        let mut store = LeafStore::new();
        (0..512).for_each(|block| store.take(block).unwrap());
        (0..400).for_each(|_| store.promise(2, 0).unwrap());
        store.check(|_| true).unwrap();
        (0..512).for_each(|block| store.give_back(block));
        (0..512).for_each(|block| store.take(block).unwrap());
        store.check(|_| true).unwrap();
        (0..400).for_each(|_| store.redeem(2));
        (0..512).for_each(|block| store.give_back(block));
        assert_eq!(store.heap_bytes(), CHUNK_LEAVES * size_of::<Leaf>(), "one chunk stays spare");
    }
}
