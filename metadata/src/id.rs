//! Names and numbers of those who act on frames: allocations, operations, holders.

use std::fmt;
use std::sync::Arc;

/// The number of an allocation. Never used twice in a pool's life; below 2^63.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AllocationId(u64);

impl AllocationId {
    /// The allocation with this number, cut to 63 bits: a pool that made one allocation every nanosecond would need 292
    /// years to get there.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number & (u64::MAX >> 1))
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for AllocationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "alloc:{}", self.0)
    }
}

impl fmt::Debug for AllocationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The number of an operation: the GiB where it began and its turn there. Never used twice in a pool's life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationId(u64);

impl OperationId {
    /// Bits for the turn; the 22 bits above them hold the number of the GiB (a pool has at most 2^40 frames).
    const TURN_BITS: u32 = 42;

    /// The `turn`th operation that began in the GiB with this number.
    #[must_use]
    pub const fn new(gib: u64, turn: u64) -> Self {
        Self(gib << Self::TURN_BITS | turn & ((1 << Self::TURN_BITS) - 1))
    }

    pub(crate) const fn from_raw(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "op:{:#x}", self.0)
    }
}

impl fmt::Debug for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The name of somebody who holds frames: a device, a live migration, a debugger.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HolderId(Arc<str>);

impl HolderId {
    /// The holder of this name.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl From<&str> for HolderId {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

impl fmt::Display for HolderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
