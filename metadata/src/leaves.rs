//! One bit for each frame of a GiB, as it is kept while in use: two 512-bit maps, and a leaf per mixed 2 MiB block.
//!
//! Bounded by construction: whatever is set in whatever order, this holds at most one 64-byte leaf per block. A block
//! that becomes uniform gives its leaf back.

use crate::bits::{self, Bits512};
use crate::leaf_store::{Leaf, LeafStore};
use crate::span::{BLOCK_FRAMES, GIB_BLOCKS, GIB_FRAMES, Span};
use crate::try_box::{NoMemory, TryBox};

/// All bits of a GiB in a row, lowest first within each byte: what roaring reads and what a leaf is copied to.
pub(crate) type Flat = [u8; GIB_FRAMES as usize / 8];

/// One bit per frame of a GiB.
pub(crate) struct Leaves {
    /// Blocks whose every bit is set. Disjoint from `mixed`.
    full: Bits512,
    /// Blocks with bits of both values: exactly these have a leaf.
    mixed: Bits512,
    store: Option<TryBox<LeafStore>>,
}

// The box that every GiB in use has: with the 128-byte record, 264 KiB per TiB.
const _: () = assert!(size_of::<Leaves>() <= 136);

impl Leaves {
    /// The most that one GiB's leaves take on the heap without reservations, with the `Leaves` themselves.
    pub(crate) const MAX_BYTES: usize = size_of::<Self>() + size_of::<LeafStore>() + LeafStore::MAX_CHUNK_BYTES;

    /// Every frame's bit is `value`. Nothing on the heap.
    pub(crate) const fn uniform(value: bool) -> Self {
        Self { full: [if value { u64::MAX } else { 0 }; 8], mixed: [0; 8], store: None }
    }

    /// The bit of `frame`.
    #[inline]
    pub(crate) fn contains(&self, frame: u32) -> bool {
        let block = frame / BLOCK_FRAMES;
        match self.leaf(block) {
            Some(leaf) => bits::has(leaf, frame % BLOCK_FRAMES),
            None => bits::has(&self.full, block),
        }
    }

    /// The value that all bits of `span` have, unless both occur.
    #[inline]
    pub(crate) fn same(&self, span: Span) -> Option<bool> {
        if !span.is_in_one_block() {
            return self.same_across(span);
        }
        let block = span.start() / BLOCK_FRAMES;
        match self.leaf(block) {
            None => Some(bits::has(&self.full, block)),
            Some(leaf) if span.frames() == 1 => Some(bits::has(leaf, span.start() % BLOCK_FRAMES)),
            Some(leaf) => bits::same(leaf, span.start() % BLOCK_FRAMES, (span.end() - 1) % BLOCK_FRAMES + 1),
        }
    }

    fn same_across(&self, span: Span) -> Option<bool> {
        let first = self.contains(span.start());
        self.seek(span.start(), span.end(), !first).is_none().then_some(first)
    }

    /// Sets the bits of `span` to `value`, and counts those that had the other. Fails only where a block without a leaf
    /// becomes mixed; the blocks before it are then set.
    #[inline]
    pub(crate) fn try_set(&mut self, span: Span, value: bool) -> Result<u32, NoMemory> {
        let block = span.start() / BLOCK_FRAMES;
        if span.is_in_one_block() {
            return if span.frames() < BLOCK_FRAMES { self.edit(block, span, value) } else { Ok(self.fill_one(block, value)) };
        }
        self.try_set_across(span, value)
    }

    fn try_set_across(&mut self, span: Span, value: bool) -> Result<u32, NoMemory> {
        let [head, tail] = span.partial_blocks();
        let mut changed = 0;
        for block in [head, tail].into_iter().flatten() {
            changed += self.edit(block, span, value)?;
        }
        let (first, end) = (span.start().div_ceil(BLOCK_FRAMES), span.end() / BLOCK_FRAMES);
        Ok(changed + if first < end { self.fill(first, end, value) } else { 0 })
    }

    /// Sets all bits to `value`. Allocates nothing.
    pub(crate) fn set_all(&mut self, value: bool) {
        let mixed = std::mem::take(&mut self.mixed);
        self.full = [if value { u64::MAX } else { 0 }; 8];
        let Some(store) = &mut self.store else { return };
        for (nth, word) in mixed.into_iter().enumerate().filter(|(_, word)| *word != 0) {
            bits::ones(nth, word).for_each(|block| store.give_back(block));
        }
    }

    /// Sets all bits to `value` where no block is mixed.
    #[inline(always)]
    pub(crate) fn fill_all(&mut self, value: bool) {
        debug_assert!(self.mixed == [0; 8], "a block is mixed");
        self.full = [if value { u64::MAX } else { 0 }; 8];
    }

    /// As [`Self::try_set`]; ends the process where that fails.
    #[inline]
    pub(crate) fn set(&mut self, span: Span, value: bool) -> u32 {
        self.try_set(span, value).unwrap_or_else(|refused| refused.abort())
    }

    /// Makes sure that setting `span` right after [`Self::redeem`] allocates nothing. On an error nothing is promised.
    #[inline]
    pub(crate) fn promise(&mut self, span: Span) -> Result<(), NoMemory> {
        match span.partial_blocks_count() {
            0 => Ok(()),
            leaves => opened(&mut self.store)?.promise(leaves, span.start() / BLOCK_FRAMES),
        }
    }

    /// Ends one [`Self::promise`] of the same span.
    #[inline]
    pub(crate) fn redeem(&mut self, span: Span) {
        if let Some(store) = &mut self.store {
            store.redeem(span.partial_blocks_count());
        }
    }

    /// [`Self::promise`] for one frame whose bit is `value`, where its leaf is there; false, and nothing done, where it is another
    /// case.
    #[inline(always)]
    pub(crate) fn promise_frame(&mut self, frame: u32, value: bool) -> bool {
        let Some(store) = &mut self.store else { return false };
        let has = match store.leaf(frame / BLOCK_FRAMES) {
            Some(leaf) => bits::has(leaf, frame % BLOCK_FRAMES),
            None => bits::has(&self.full, frame / BLOCK_FRAMES % GIB_BLOCKS),
        };
        has == value && store.promise_one()
    }

    /// [`Self::redeem`] and [`Self::set`] for one frame of a mixed block that stays mixed and whose bit changes; false, and
    /// nothing done, where it is another case.
    #[inline(always)]
    pub(crate) fn redeem_frame(&mut self, frame: u32, value: bool) -> bool {
        let Some(store) = &mut self.store else { return false };
        let Some(leaf) = store.leaf_mut(frame / BLOCK_FRAMES) else { return false };
        let (word, mask) = bits::place(frame % BLOCK_FRAMES);
        let after = leaf[word] ^ mask;
        let changes = (leaf[word] & mask != 0) != value;
        if !changes || after == if value { u64::MAX } else { 0 } {
            // The block may be uniform afterwards.
            return false;
        }
        leaf[word] = after;
        store.redeem(1);
        store.drop_needless();
        true
    }

    /// [`Self::redeem`] and [`Self::set`] for one frame whose bit changes and whose block becomes mixed or uniform by it, or stays
    /// mixed; false, and nothing done, where the bit is as asked.
    #[inline(never)]
    pub(crate) fn redeem_edge_frame(&mut self, frame: u32, value: bool) -> bool {
        let Some(store) = &mut self.store else { return false };
        let (block, all) = (frame / BLOCK_FRAMES, if value { u64::MAX } else { 0 });
        let (word, mask) = bits::place(block % GIB_BLOCKS);
        let (place, bit) = bits::place(frame % BLOCK_FRAMES);
        let was_mixed = self.mixed[word] & mask != 0;
        if !was_mixed {
            let uniform = self.full[word] & mask != 0;
            if uniform == value {
                return false;
            }
            let Some(leaf) = store.take_promised(block) else { return false };
            *leaf = [!all; 8];
            leaf[place] ^= bit;
            self.full[word] &= !mask;
            self.mixed[word] |= mask;
            return true;
        }
        let Some(leaf) = store.leaf_mut(block).filter(|leaf| (leaf[place] & bit != 0) != value) else { return false };
        leaf[place] ^= bit;
        let uniform = leaf.iter().all(|word| *word == all);
        store.redeem(1);
        if uniform {
            self.mixed[word] &= !mask;
            self.full[word] |= if value { mask } else { 0 };
            store.give_back(block);
        }
        store.drop_needless();
        true
    }

    /// The only run of frames of `block` whose bits are `value`, counted from the GiB's start.
    pub(crate) fn only_run_in_block(&self, block: u32, value: bool) -> Option<Span> {
        let base = block * BLOCK_FRAMES;
        match self.leaf(block) {
            Some(leaf) => bits::only_run(leaf, value).and_then(|(from, to)| Span::new(base + from, base + to)),
            None => (bits::has(&self.full, block) == value).then_some(Span::block(block)),
        }
    }

    /// The only block with a bit that is `value`.
    pub(crate) fn only_block(&self, value: bool) -> Option<u32> {
        let mut able = [0; 8];
        for ((able, full), mixed) in able.iter_mut().zip(&self.full).zip(&self.mixed) {
            *able = if value { full | mixed } else { !full };
        }
        bits::only_one(&able)
    }

    /// Whether every bit of `block` is `value`.
    #[inline(always)]
    pub(crate) const fn is_uniform_block(&self, block: u32, value: bool) -> bool {
        let (word, mask) = bits::place(block % GIB_BLOCKS);
        self.mixed[word] & mask == 0 && (self.full[word] & mask != 0) == value
    }

    /// [`Self::set`] of all of a block whose every bit is the other value; false, and nothing done, where it is another case.
    #[inline(always)]
    pub(crate) const fn flip_block(&mut self, block: u32, value: bool) -> bool {
        let flips = self.is_uniform_block(block, !value);
        if flips {
            let (word, mask) = bits::place(block % GIB_BLOCKS);
            self.full[word] ^= mask;
        }
        flips
    }

    /// Frees what ended promises have left behind.
    #[inline]
    pub(crate) fn tidy(&mut self) {
        if let Some(store) = &mut self.store {
            store.drop_needless();
        }
    }

    /// The first longest run within `span` of frames whose bits are `value`.
    pub(crate) fn next_run(&self, span: Span, value: bool) -> Option<Span> {
        let start = self.seek(span.start(), span.end(), value)?;
        Span::new(start, self.seek(start, span.end(), !value).unwrap_or(span.end()))
    }

    /// Frees what is kept only for speed. Nothing may be promised. Says whether memory was freed.
    pub(crate) fn trim(&mut self) -> bool {
        let Some(store) = &mut self.store else { return false };
        let trimmed = store.trim();
        let unused = store.is_unused();
        if unused {
            self.store = None;
        }
        trimmed || unused
    }

    /// The leaves with the bits of `flat`.
    pub(crate) fn try_from_flat(flat: &Flat) -> Result<TryBox<Self>, NoMemory> {
        let mut leaves = TryBox::new(Self::uniform(false))?;
        for (block, bytes) in (0..).zip(flat.as_chunks::<64>().0) {
            let mut leaf = [0; 8];
            for (word, eight) in leaf.iter_mut().zip(bytes.as_chunks::<8>().0) {
                *word = u64::from_le_bytes(*eight);
            }
            let Some(value) = bits::same(&leaf, 0, BLOCK_FRAMES) else {
                let store = opened(&mut leaves.store)?;
                store.take(block)?;
                store.leaf_mut(block).into_iter().for_each(|place| *place = leaf);
                bits::fill(&mut leaves.mixed, block, block + 1, true);
                continue;
            };
            bits::fill(&mut leaves.full, block, block + 1, value);
        }
        Ok(leaves)
    }

    /// All bits, written to `flat`.
    pub(crate) fn copy_to(&self, flat: &mut Flat) {
        for (block, bytes) in (0..).zip(flat.as_chunks_mut::<64>().0) {
            let value = if bits::has(&self.full, block) { u64::MAX } else { 0 };
            let words = self.leaf(block).copied().unwrap_or([value; 8]);
            for (eight, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
                *eight = word.to_le_bytes();
            }
        }
    }

    /// The bytes behind this value, without its own.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.store.as_ref().map_or(0, |store| size_of::<LeafStore>() + store.heap_bytes())
    }

    /// How many bits are set, counted from the leaves; an error names what disagrees with them.
    pub(crate) fn check(&self) -> Result<u32, String> {
        let mut set = 0;
        for block in 0..GIB_BLOCKS {
            let (full, mixed) = (bits::has(&self.full, block), bits::has(&self.mixed, block));
            let ones = match self.leaf(block) {
                _ if full && mixed => return Err(format!("block {block} is both full and mixed")),
                _ if !mixed => u32::from(full) * BLOCK_FRAMES,
                None => return Err(format!("block {block} is mixed and has no leaf")),
                Some(leaf) => leaf.iter().map(|word| word.count_ones()).sum(),
            };
            if mixed && ones % BLOCK_FRAMES == 0 {
                return Err(format!("block {block} counts as mixed, and {ones} of its {BLOCK_FRAMES} frames are set"));
            }
            set += ones;
        }
        match &self.store {
            Some(store) => store.check(|block| bits::has(&self.mixed, block)).map(|()| set),
            None => Ok(set),
        }
    }

    /// The leaf of a mixed block.
    #[inline]
    fn leaf(&self, block: u32) -> Option<&Leaf> {
        let store = self.store.as_ref().filter(|_| bits::has(&self.mixed, block))?;
        store.leaf(block)
    }

    /// The first frame of `from..end` whose bit is `value`.
    fn seek(&self, from: u32, end: u32, value: bool) -> Option<u32> {
        let mut at = from;
        while at < end {
            // The block of `at` itself, or the next that can hold `value`: word by word, not block by block.
            let (word, bit) = ((at / BLOCK_FRAMES / 64) as usize, at / BLOCK_FRAMES % 64);
            let able = if value { self.full[word] | self.mixed[word] } else { !self.full[word] } & u64::MAX << bit;
            let Some(block) = bits::ones(word, able).next() else {
                at = (at / BLOCK_FRAMES / 64 + 1) * 64 * BLOCK_FRAMES;
                continue;
            };
            at = at.max(block * BLOCK_FRAMES);
            let found = match self.leaf(block) {
                Some(leaf) => bits::seek(leaf, at % BLOCK_FRAMES, value),
                None => Some(at % BLOCK_FRAMES),
            };
            match found {
                Some(frame) => return Some(block * BLOCK_FRAMES + frame).filter(|frame| *frame < end),
                None => at = (block + 1) * BLOCK_FRAMES,
            }
        }
        None
    }

    /// Sets the frames of `span` that lie in `block`, which `span` covers in part.
    #[inline]
    fn edit(&mut self, block: u32, span: Span, value: bool) -> Result<u32, NoMemory> {
        let (word, mask) = bits::place(block);
        let mixed = self.mixed[word] & mask != 0;
        let was = self.full[word] & mask != 0;
        if !mixed && was == value {
            return Ok(0);
        }
        let store = opened(&mut self.store)?;
        if !mixed {
            store.take(block)?;
        }
        // A mixed block has a leaf, and one was just given to this block if it was not mixed.
        let Some(leaf) = store.leaf_mut(block) else { return Ok(0) };
        if !mixed {
            *leaf = [if was { u64::MAX } else { 0 }; 8];
            self.full[word] &= !mask;
            self.mixed[word] |= mask;
        }
        let (from, to) = within(span, block);
        let changed = bits::fill(leaf, from, to, value);
        // The first and the last word written say nearly always that the leaf is still mixed. Reading all eight at once
        // right after writing one would wait for that write each time.
        let all = if value { u64::MAX } else { 0 };
        if leaf[from as usize / 64] == all && leaf[(to - 1) as usize / 64] == all && leaf.iter().all(|word| *word == all) {
            self.mixed[word] &= !mask;
            self.full[word] |= if value { mask } else { 0 };
            store.give_back(block);
        }
        Ok(changed)
    }

    /// Sets all frames of `block`: as [`Self::fill`], without its loop.
    #[inline]
    fn fill_one(&mut self, block: u32, value: bool) -> u32 {
        let (word, mask) = bits::place(block);
        let ones = match &mut self.store {
            Some(store) if self.mixed[word] & mask != 0 => {
                let ones = store.leaf(block).map_or(0, |leaf| leaf.iter().map(|word| word.count_ones()).sum());
                store.give_back(block);
                ones
            }
            _ if self.full[word] & mask != 0 => BLOCK_FRAMES,
            _ => 0,
        };
        self.mixed[word] &= !mask;
        self.full[word] = if value { self.full[word] | mask } else { self.full[word] & !mask };
        if value { BLOCK_FRAMES - ones } else { ones }
    }

    /// Sets all frames of the blocks `first..end`.
    fn fill(&mut self, first: u32, end: u32, value: bool) -> u32 {
        let mut changed = 0;
        for (word, mask) in bits::word_masks(first, end) {
            let mixed = self.mixed[word] & mask;
            for block in bits::ones(word, mixed) {
                let Some(store) = &mut self.store else { break };
                let ones: u32 = store.leaf(block).map_or(0, |leaf| leaf.iter().map(|word| word.count_ones()).sum());
                changed += if value { BLOCK_FRAMES - ones } else { ones };
                store.give_back(block);
            }
            let other = if value { !self.full[word] } else { self.full[word] } & mask & !mixed;
            changed += other.count_ones() * BLOCK_FRAMES;
            self.mixed[word] &= !mask;
            self.full[word] = if value { self.full[word] | mask } else { self.full[word] & !mask };
        }
        changed
    }
}

/// The part of `span` that lies in `block`, which it touches, counted from the block's first frame.
#[inline]
fn within(span: Span, block: u32) -> (u32, u32) {
    let base = block * BLOCK_FRAMES;
    (span.start().saturating_sub(base), (span.end() - base).min(BLOCK_FRAMES))
}

/// The store, made when the first leaf is needed.
#[inline]
fn opened(store: &mut Option<TryBox<LeafStore>>) -> Result<&mut LeafStore, NoMemory> {
    match store {
        Some(store) => Ok(store),
        none => Ok(none.insert(new_store()?)),
    }
}

#[cold]
fn new_store() -> Result<TryBox<LeafStore>, NoMemory> {
    TryBox::new(LeafStore::new())
}
