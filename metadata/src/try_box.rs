//! Boxes whose allocation can be refused, without unsafe code: stable Rust offers that for vectors only.

use std::alloc::{Layout, handle_alloc_error};
use std::ops::{Deref, DerefMut};

/// The memory for metadata could not be allocated. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{bytes} bytes of memory for metadata could not be allocated")]
pub struct NoMemory {
    /// What was asked for, in bytes.
    pub bytes: usize,
}

impl NoMemory {
    /// Ends the process, as `Box::new` does: for the callers that were told to reserve and did not.
    pub(crate) fn abort(self) -> ! {
        handle_alloc_error(Layout::array::<u8>(self.bytes).unwrap_or(Layout::new::<u64>()))
    }
}

/// One value on the heap.
pub(crate) struct TryBox<T>(Box<[T; 1]>);

impl<T> TryBox<T> {
    /// Moves `value` to the heap.
    pub(crate) fn new(value: T) -> Result<Self, NoMemory> {
        let mut one = exactly::<T, 1>()?;
        one.push(value);
        boxed(one).map(Self)
    }
}

impl<T> Deref for TryBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0[0]
    }
}

impl<T> DerefMut for TryBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0[0]
    }
}

/// `N` copies of `value` on the heap, written there directly.
pub(crate) fn try_array<T: Copy, const N: usize>(value: T) -> Result<Box<[T; N]>, NoMemory> {
    let mut all = exactly::<T, N>()?;
    all.resize(N, value);
    boxed(all)
}

fn exactly<T, const N: usize>() -> Result<Vec<T>, NoMemory> {
    let mut empty = Vec::new();
    empty.try_reserve_exact(N).map_err(|_| NoMemory { bytes: size_of::<[T; N]>() })?;
    Ok(empty)
}

/// The vector is as long as its capacity, so it becomes the box without being moved.
fn boxed<T, const N: usize>(full: Vec<T>) -> Result<Box<[T; N]>, NoMemory> {
    full.try_into().map_err(|_| NoMemory { bytes: size_of::<[T; N]>() })
}
