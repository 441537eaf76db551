//! Frame numbers and orders: the two numbers everything else is made of.
//!
//! A [`Pfn`] names one 4 KiB frame of a pool's backing. An [`Order`] is the base-two logarithm of a run's length in
//! frames; only the three sizes that page tables know exist. Both print so that the text can be pasted into a search.

use std::fmt;

/// Bytes in a frame: 4 KiB, the smallest unit that x86-64 and 4K-granule Arm page tables can translate.
pub const FRAME_BYTES: u64 = 4096;

/// The number of a 4 KiB frame in the pool's backing.
///
/// With a *physical* backing this is the host's physical frame number; with a *synthetic* one it is an offset, in
/// frames, into the pool's files.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pfn(u64);

impl Pfn {
    /// One past the largest frame number: 2^40 frames, the 52-bit physical addresses of x86-64 (Intel SDM 3A, 4.1.4)
    /// and Armv8.2-LPA. Below it, a frame number times [`FRAME_BYTES`] cannot overflow.
    pub const LIMIT: Self = Self(1 << 40);

    /// The frame with this number. Any number may be named; ranges refuse those beyond [`Pfn::LIMIT`].
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number itself, in frames.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The frame `frames` further on.
    #[must_use]
    pub const fn add(self, frames: u64) -> Self {
        Self(self.0.saturating_add(frames))
    }

    /// The first frame of the aligned block of `order` that holds this frame.
    #[must_use]
    pub const fn align_down(self, order: Order) -> Self {
        Self(self.0 & !(order.frames() - 1))
    }

    /// The first aligned frame of `order` at or after this one.
    #[must_use]
    pub const fn align_up(self, order: Order) -> Self {
        Self(self.0.saturating_add(order.frames() - 1)).align_down(order)
    }

    /// Whether an aligned block of `order` starts here.
    #[must_use]
    pub const fn is_aligned(self, order: Order) -> bool {
        self.0 & (order.frames() - 1) == 0
    }

    /// How many frames this one lies behind the start of its GiB: 0 to 262,143.
    #[must_use]
    pub const fn in_gib(self) -> u32 {
        // The mask leaves 18 bits, so nothing is cut.
        #[allow(clippy::cast_possible_truncation)]
        let offset = (self.0 & (Order::GIB1.frames() - 1)) as u32;
        offset
    }
}

impl fmt::Display for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pfn:{:#x}", self.0)
    }
}

impl fmt::Debug for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The size of an aligned block, as log2 of its length in frames. Only the leaf sizes of a page table exist.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Order(u8);

impl Order {
    /// 4 KiB: one frame.
    pub const BASE: Self = Self(0);
    /// 2 MiB: 512 frames.
    pub const MIB2: Self = Self(9);
    /// 1 GiB: 262,144 frames.
    pub const GIB1: Self = Self(18);
    /// All orders, largest first: the order in which a run is cut into leaves.
    pub const DESCENDING: [Self; 3] = [Self::GIB1, Self::MIB2, Self::BASE];

    /// The order with this logarithm, if page tables have such a leaf: 0, 9 or 18.
    #[must_use]
    pub const fn from_log2(log2: u8) -> Option<Self> {
        match log2 {
            0 | 9 | 18 => Some(Self(log2)),
            _ => None,
        }
    }

    /// log2 of the length in frames: 0, 9 or 18.
    #[must_use]
    pub const fn log2(self) -> u8 {
        self.0
    }

    /// Length in frames: 1, 512 or 262,144.
    #[must_use]
    pub const fn frames(self) -> u64 {
        1 << self.0
    }

    /// Length in bytes: 4 KiB, 2 MiB or 1 GiB.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.frames() * FRAME_BYTES
    }

    /// The next smaller order: what one demotion leaves behind.
    #[must_use]
    pub const fn smaller(self) -> Option<Self> {
        match self.0 {
            18 => Some(Self::MIB2),
            9 => Some(Self::BASE),
            _ => None,
        }
    }

    /// The largest order whose aligned block starts at `start` and fits into `frames`.
    #[must_use]
    pub const fn largest_fit(start: Pfn, frames: u64) -> Self {
        if frames >= Self::GIB1.frames() && start.is_aligned(Self::GIB1) {
            Self::GIB1
        } else if frames >= Self::MIB2.frames() && start.is_aligned(Self::MIB2) {
            Self::MIB2
        } else {
            Self::BASE
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            18 => "1G",
            9 => "2M",
            _ => "4K",
        })
    }
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_prints_as_something_one_can_search_for() {
        assert_eq!(Pfn::new(0x1f).to_string(), "pfn:0x1f");
        assert_eq!(format!("{:?}", Order::MIB2), "2M");
    }

    #[test]
    fn the_largest_fit_needs_both_alignment_and_length() {
        assert_eq!(Order::largest_fit(Pfn::new(0), 262_144), Order::GIB1);
        assert_eq!(Order::largest_fit(Pfn::new(0), 262_143), Order::MIB2);
        assert_eq!(Order::largest_fit(Pfn::new(512), 262_144), Order::MIB2);
        assert_eq!(Order::largest_fit(Pfn::new(512), 511), Order::BASE);
        assert_eq!(Order::largest_fit(Pfn::new(1), u64::MAX), Order::BASE);
    }

    #[test]
    fn only_page_table_leaf_sizes_are_orders() {
        let known: Vec<u8> = (0..=64).filter(|&n| Order::from_log2(n).is_some()).collect();
        assert_eq!(known, [0, 9, 18]);
    }
}
