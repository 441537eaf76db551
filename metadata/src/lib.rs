//! Facts about frames, and nothing else: no I/O, no threads, no locks.
//!
//! Read bottom-up: [`Pfn`] and [`Order`] are numbers, [`PfnRange`] is one run, [`RunSet`] several.
//! [`Span`] counts within one GiB; a [`SharePlane`] says which frames of a GiB are shared, a [`SparsePlane`] which of them
//! carry a rare mark. Below both lie leaves: one bit per frame, kept only where a 2 MiB block is mixed.
#![forbid(unsafe_code)]

mod at_rest;
mod bits;
mod intent;
mod leaf_store;
mod leaves;
mod pfn;
mod range;
mod run_list;
mod runs;
mod shareability;
mod span;
mod sparse;
mod try_box;

pub use at_rest::PLANE_BYTES_MAX;
pub use intent::Intent;
pub use pfn::{FRAME_BYTES, Order, Pfn};
pub use range::{InvalidRange, PfnRange};
pub use runs::RunSet;
pub use shareability::{SharePlane, Uniformity};
pub use span::{BLOCK_FRAMES, GIB_BLOCKS, GIB_FRAMES, Span};
pub use sparse::SparsePlane;
pub use try_box::NoMemory;
