//! Facts about frames, and nothing else: no I/O, no threads, no locks.
//!
//! Read bottom-up. [`Pfn`] and [`Order`] are numbers, [`PfnRange`] is one run, [`RunSet`] several, [`Span`] a run within one
//! GiB. [`FrameState`] is the state machine of one frame as one pure function. The planes ([`SharePlane`], [`SparsePlane`]),
//! [`Tenure`], [`Converting`], [`Demoted`] and [`Holds`] keep one kind of fact for the frames of one GiB each; [`Gib`] puts
//! them behind one interface, and [`Summary`] says the usual answers in a word. [`model`] is the same written the dumb way, for tests.
#![forbid(unsafe_code)]

mod account;
mod at_once;
mod at_rest;
mod bits;
mod converting;
mod demoted;
mod gib;
mod hold;
mod id;
mod intent;
mod leaf_store;
mod leaves;
pub mod model;
mod obstacle;
mod pfn;
mod range;
mod run_list;
mod runs;
mod shareability;
mod span;
mod sparse;
mod summary;
mod tenure;
mod transition;
mod try_box;
mod whole_gib;

pub use account::FrameCounts;
pub use at_rest::PLANE_BYTES_MAX;
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
pub use shareability::{SharePlane, Uniformity};
pub use span::{BLOCK_FRAMES, GIB_BLOCKS, GIB_FRAMES, Shape, Span};
pub use sparse::SparsePlane;
pub use summary::{Summary, SummaryKey};
pub use tenure::{Tenant, Tenure};
pub use transition::{Forbidden, FrameEvent, FrameState, Occupancy, Shareability, Withdrawal};
pub use try_box::NoMemory;
