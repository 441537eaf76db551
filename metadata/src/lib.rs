//! Facts about frames, and nothing else: no I/O, no threads, no locks.
//!
//! Read bottom-up: [`Pfn`] and [`Order`] are numbers, [`PfnRange`] is one run, [`RunSet`] several.
#![forbid(unsafe_code)]

mod intent;
mod pfn;
mod range;
mod runs;
mod span;

pub use intent::Intent;
pub use pfn::{FRAME_BYTES, Order, Pfn};
pub use range::{InvalidRange, PfnRange};
pub use runs::RunSet;
pub use span::{BLOCK_FRAMES, GIB_BLOCKS, GIB_FRAMES, Span};
