//! Facts about frames, and nothing else: no I/O, no threads, no locks.
//!
//! Read bottom-up: [`Pfn`] and [`Order`] are numbers, [`PfnRange`] is one run, [`RunSet`] several.
#![forbid(unsafe_code)]

mod account;
mod converting;
mod demoted;
mod gib;
mod hold;
mod id;
mod intent;
mod obstacle;
mod pfn;
mod range;
mod runs;
mod span;
mod tenure;
mod transition;

pub use account::FrameCounts;
pub use converting::{Converting, Mark};
pub use demoted::{Demoted, NewDemotions};
pub use gib::{Ended, Ending, Gib, Parts};
pub use hold::{HoldId, Holds};
pub use id::{AllocationId, HolderId, OperationId};
pub use intent::Intent;
pub use obstacle::{Obstacle, Purpose, ToChange};
pub use pfn::{FRAME_BYTES, Order, Pfn};
pub use range::{InvalidRange, PfnRange};
pub use runs::RunSet;
pub use span::{BLOCK_FRAMES, GIB_BLOCKS, GIB_FRAMES, Span};
pub use tenure::{Tenant, Tenure};
pub use transition::{Forbidden, FrameEvent, FrameState, Occupancy, Shareability, Withdrawal};
