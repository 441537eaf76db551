//! QEMU as a client that nobody here wrote: Debian's QEMU runs Debian's kernel on memory from a pool.
//!
//! The owner's side of the memory is `stand`, the other side is `guest`. Each test boots a machine of its own.
//!
//! | module | what it shows |
//! |---|---|
//! | `extents` | guest-physical addresses are where they were computed to be, in extents that are not adjacent |
//! | `hotplug` | a segment goes to a running machine and comes back; a machine that is killed lets go |
//! | `revoked` | a segment is taken from a running machine for good |
//!
//! Huge pages are borrowed for the length of a test. Where something is missing, a test says `skipped: `.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod extents;
mod guest;
mod hotplug;
mod revoked;
mod stand;
